"""Agents as programs at a real hub: enrolment, MQTT over TLS, a rollout that a gate stops, a hub that dies, renewal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skerry.agent import enroll, identity
from skerry.agent.disk import Disk
from skerry.agent.settings import AgentSettings
from skerry.api.errors import AlreadyExistsError, ForbiddenError, IntegrityError, InvalidError, SkerryError
from skerry.api.kinds.device import Device as DeviceKind
from skerry.api.kinds.enrollment import JoinToken
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec
from skerry.api.kinds.rollout import Rollout
from skerry.api.kinds.variants import Evaluation, Golden, NumericalError, Profile, Variant
from skerry.api.meta import ObjectMeta
from skerry.core import card as cards
from skerry.drivers.client.api import HubClient
from skerry.drivers.client.kubeconfig import load_kubeconfig
from skerry.drivers.client.registry import push_package

PATIENCE = 60.0


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


@dataclass
class Site:
    """A hub and agents, each a process with a state directory and a log."""

    directory: Path
    programs: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *arguments: str) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self.programs[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        process = self.programs.pop(name)
        process.send_signal(number)
        return process.wait(PATIENCE)

    def start_hub(self) -> HubClient:
        hub = self.directory / "hub"
        (hub / "kubeconfig").unlink(missing_ok=True)
        self.start("hub", "skerry.hub", "--state-dir", str(hub), "--api-port", "0", "--mqtt-port", "0")

        def ready() -> HubClient | None:
            assert self.programs["hub"].poll() is None, self.log("hub")
            if not (hub / "kubeconfig").exists():
                return None
            client = HubClient(load_kubeconfig(hub / "kubeconfig"))
            try:
                client.check_ready()
            except SkerryError:
                client.close()
                return None
            return client

        return until(ready, "the hub is ready")  # type: ignore[no-any-return]

    def start_agent(self, name: str) -> None:
        self.start(name, "skerry.agent", "run", "--state-dir", str(self.directory / name))

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def close(self) -> None:
        for name in [name for name in self.programs if name != "hub"]:
            self.end(name)
            subprocess.run(
                [sys.executable, "-m", "skerry.agent", "stop", "--state-dir", str(self.directory / name)],
                check=True,
                capture_output=True,
            )
        for name in list(self.programs):
            self.end(name)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.fixture
def client(site: Site) -> Iterator[HubClient]:
    with contextlib.closing(site.start_hub()) as made:
        yield made


def make_token(client: HubClient, *, uses: int = 1) -> str:
    raw = {
        "apiVersion": "skerry.dev/v1alpha1",
        "kind": "JoinToken",
        "metadata": {"generateName": "t-"},
        "spec": {"uses": uses, "labels": {"site": "lab"}},
    }
    return client.create(raw, JoinToken).status.token


def join(site: Site, client: HubClient, token: str, name: str) -> identity.Identity:
    return enroll.enroll(Disk(site.directory / name), AgentSettings(), hub_url=hub_url(site), token=token, name=name)


def hub_url(site: Site) -> str:
    return str(msgspec.json.decode((site.directory / "hub" / "hub.json").read_bytes())["url"])


def device(client: HubClient, name: str) -> DeviceKind:
    return client.get(DeviceKind, name)


def test_enrolment_is_one_use_one_device_and_mistakes_are_sentences(site: Site, client: HubClient) -> None:
    token = make_token(client)
    known = join(site, client, token, "till-1")
    assert known.uid == device(client, "till-1").metadata.uid
    assert device(client, "till-1").metadata.labels == {"site": "lab"}
    assert device(client, "till-1").status.hardware.cores > 0
    for name in ("device.pem", "identity.json"):
        assert (site.directory / "till-1" / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(AlreadyExistsError, match="is enrolled already"):
        join(site, client, token, "till-1")
    with pytest.raises(ForbiddenError, match="used up"):
        join(site, client, token, "till-2")
    # The answer was lost: the device asks again with the key it kept, and is the same device.
    key = (site.directory / "till-1" / "device.pem").read_bytes().split(b"-----BEGIN CERTIFICATE")[0]
    again = Disk(site.directory / "till-1-again")
    again.write(enroll.PENDING_KEY, key)
    assert join(site, client, token, "till-1-again").uid == known.uid
    assert not (again.root / enroll.PENDING_KEY).exists()
    assert len(client.list(DeviceKind)) == 1
    # Another hub's token, a token that was never made, no hub's URL.
    head, fingerprint = make_token(client).rsplit(".", 1)
    with pytest.raises(IntegrityError, match="another CA than the token names"):
        join(site, client, f"{head}.{fingerprint[::-1]}", "till-3")
    assert not (site.directory / "till-3" / enroll.PENDING_KEY).exists(), "nothing was begun with a stranger"
    with pytest.raises(SkerryError, match="token"):
        join(site, client, f"skj1.nobody.nothing.{fingerprint}", "till-3")
    with pytest.raises(InvalidError):
        join(site, client, make_token(client), "Not A Name!")
    assert not identity.is_enrolled(Disk(site.directory / "till-3"))


def test_a_device_whose_certificate_ran_out_comes_back_as_itself(site: Site, client: HubClient) -> None:
    first = join(site, client, make_token(client), "till-1")
    disk = Disk(site.directory / "till-1")
    before = disk.read("device.pem")
    day = timedelta(days=1)
    identity.save(disk, msgspec.structs.replace(first, not_after=first.not_before - day), pem=before)
    enroll._pending_key(disk)  # as a renewal leaves it that failed in the handshake
    back = join(site, client, make_token(client), "till-1")
    assert (back.uid, back.name) == (first.uid, "till-1")
    assert identity.load(disk).not_after > datetime.now(UTC)
    assert not (disk.root / enroll.PENDING_KEY).exists()
    site.start_agent("till-1")
    until(lambda: device(client, "till-1").status.phase == "Online", "online")
    assert len(client.list(DeviceKind)) == 1


def test_a_deleted_device_enrols_again_and_obeys_under_its_new_uid(
    site: Site, client: HubClient, models: dict[str, Any]
) -> None:
    first = join(site, client, make_token(client), "till-1")
    site.start_agent("till-1")
    until(lambda: device(client, "till-1").status.phase == "Online", "online")
    push(client, site.directory, models["v1"])
    disk = Disk(site.directory / "till-1")

    def observes(version: int) -> Callable[[], bool]:
        def holds() -> bool:
            status = device(client, "till-1").status
            return status.observed_manifest_version == version and bool(status.workloads) == (version % 2 == 1)

        return holds

    for version in (1, 3, 5):
        client.apply(deployment("v1"))
        until(observes(version), "deployed")
        client.delete(ModelDeployment, "digits")
        until(observes(version + 1), "withdrawn")
    client.delete(DeviceKind, "till-1")
    assert site.end("till-1") == 0
    command = [
        sys.executable,
        "-m",
        "skerry.cli",
        "agent",
        "enroll",
        "--hub",
        hub_url(site),
        "--state-dir",
        str(disk.root),
    ]
    refused = subprocess.run([*command, "--token", make_token(client)], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "is enrolled already" in refused.stderr
    assert "--again" in refused.stderr
    subprocess.run([*command, "--token", make_token(client), "--again"], check=True, capture_output=True)
    again = identity.load(disk)
    assert (again.uid != first.uid, again.name) == (True, "till-1")
    site.start_agent("till-1")
    client.apply(deployment("v1"))
    until(lambda: runs_at(client, "v1"), "the new uid's first desired state is accepted")
    kept = disk.read_desired()
    assert kept is not None
    assert (kept.uid, kept.manifest_version) == (again.uid, 1)


def push(client: HubClient, directory: Path, model: Any) -> None:
    """Package a tiny model as the factory does, and push it as the command line does."""
    package = directory / f"package-{model.version}"
    package.mkdir()
    desired = model.desired()
    (package / "model.onnx").write_bytes(model.model)
    (package / cards.GOLDEN_FILE).write_bytes(model.golden)
    variant = Variant(
        name="onnx-fp32",
        format="onnx",
        precision="fp32",
        needs=msgspec.structs.replace(desired.needs, memory_bytes=64 * 1024**2),
        blob=desired.blob,
        metric=1.0,
        metric_drop=0.0,
        error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
        profile=Profile(latency_p50_ms=1, latency_p95_ms=1, peak_memory_bytes=64 * 1024**2, runs=1),
    )
    card = cards.EvaluationCard(
        model="digits",
        version=model.version,
        signature=model.signature,
        evaluation=Evaluation(metric="accuracy", baseline=1, samples=20, allowed_drop=0.01),
        golden=Golden(blob=desired.golden, samples=20),
        variants=[cards.PackagedVariant(variant=variant, file="model.onnx")],
        provenance=cards.Provenance(source_kind="onnx"),
    )
    (package / cards.CARD_FILE).write_bytes(cards.encode(card))
    pushed = push_package(client.http, "default/digits", package, card, lambda _name, _count: None)
    spec = ModelVersionSpec(
        model="digits",
        version=model.version,
        artifact=Artifact(repository="default/digits", digest=pushed.index),
        signature=card.signature,
        evaluation=card.evaluation,
        golden=card.golden,
    )
    client.apply(msgspec.to_builtins(ModelVersion(metadata=ObjectMeta(name=f"digits-{model.version}"), spec=spec)))


def deployment(version: str) -> dict[str, Any]:
    return {
        "apiVersion": "skerry.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "digits"},
        "spec": {
            "modelVersion": f"digits-{version}",
            "deviceSelector": {"matchLabels": {"site": "lab"}},
            "strategy": {
                "waves": [{"name": "all", "percent": 100}],
                "gates": {"accuracy": {"min": 0.95, "minSamples": 10}},
            },
        },
    }


def test_a_rollout_reaches_the_device_and_a_bad_one_leaves_it(
    site: Site, client: HubClient, models: dict[str, Any]
) -> None:
    join(site, client, make_token(client), "till-1")
    site.start_agent("till-1")
    until(lambda: device(client, "till-1").status.phase == "Online", "online")
    for version in ("v1", "v2"):
        push(client, site.directory, models[version])

    def runs(version: str) -> bool:
        workloads = device(client, "till-1").status.workloads
        running = workloads[0].running if workloads else None
        return running is not None and running.model_version == f"digits-{version}" and workloads[0].phase == "Running"

    client.apply(deployment("v1"))
    until(lambda: runs("v1"), "v1 runs")
    [status] = device(client, "till-1").status.workloads
    assert status.measurement is not None
    assert status.measurement.accuracy == 1.0
    until(lambda: {r.status.phase for r in client.list(Rollout)} == {"Succeeded"}, "the first rollout succeeded")
    row = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 0, 0, 0]}]}
    assert client.infer("till-1", "digits", row)["model_version"] == "v1"
    # The hub dies, as hubs do; the device goes on, and finds it again where it was.
    site.end("hub", signal.SIGKILL)
    with contextlib.closing(site.start_hub()) as back:
        until(lambda: device(back, "till-1").status.phase == "Online", "online again")
        back.apply(deployment("v2"))
        until(lambda: "RolledBack" in {r.status.phase for r in back.list(Rollout)}, "the second one was rolled back")
        until(lambda: runs_at(back, "v1"), "v1 runs again")
        [after] = device(back, "till-1").status.workloads
        assert after.fetched_bytes == 0, "what it goes back to is still there"


def runs_at(client: HubClient, version: str) -> bool:
    workloads = device(client, "till-1").status.workloads
    running = workloads[0].running if workloads else None
    return running is not None and running.model_version == f"digits-{version}"


def test_a_certificate_is_renewed_while_the_agent_runs(site: Site, client: HubClient) -> None:
    first = join(site, client, make_token(client), "till-1")
    before = (site.directory / "till-1" / "device.pem").read_bytes()
    # It was issued long ago: renewal is due at once.
    disk = Disk(site.directory / "till-1")
    old = msgspec.structs.replace(first, not_before=first.not_before - 2 * (first.not_after - first.not_before))
    identity.save(disk, old, pem=before)
    site.start_agent("till-1")
    until(lambda: "certificate.renewed" in site.log("till-1"), "renewed")
    assert identity.load(disk).uid == first.uid
    after = (site.directory / "till-1" / "device.pem").read_bytes()
    assert after.split(b"-----BEGIN CERT")[0] != before.split(b"-----BEGIN CERT")[0], "with a new key"
    until(lambda: device(client, "till-1").status.phase == "Online", "online")
    assert site.end("till-1") == 0
    until(lambda: device(client, "till-1").status.phase == "Offline", "its last will was read")
    site.start_agent("till-1")
    until(lambda: device(client, "till-1").status.phase == "Online", "online with the new certificate")
    assert os.listdir(site.directory / "till-1" / "workloads") == []
