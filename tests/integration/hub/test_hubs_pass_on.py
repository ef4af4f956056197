"""Two real hubs on one PostgreSQL and a real agent: whichever hub is asked, the one that leads answers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.integration.agent.surroundings import make_model
from tests.integration.agent.test_agent_hub import Site, deployment, device, make_token, push, runs_at, until
from tests.integration.hub.conftest import API, HubProcess
from tests.integration.hub.test_hubs_on_one_store import leader_of, split
from tests.postgresql import running as running_server

from skerry.agent import enroll
from skerry.agent.disk import Disk
from skerry.agent.settings import AgentSettings
from skerry.drivers.client.api import HubClient
from skerry.drivers.client.kubeconfig import load_kubeconfig
from skerry.hub.stores import open_named_store

KUBECTL = shutil.which("kubectl")
POD = "digits.till-1"
ALLOWED = '[remote]\nallow = ["logs", "forward", "exec"]\n[telemetry]\ninterval = "1s"\nsend = "1s"\n'
LOG = f"{API}/devices/till-1/log?workload=digits"
INFER = f"{API}/devices/till-1/infer?workload=digits"


@dataclass
class Pair:
    """Two hubs, of which one leads, and a device that knows the other one."""

    directory: Path
    leading: HubProcess
    other: HubProcess
    model: Any

    def kubectl(self, hub: HubProcess, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
        assert KUBECTL is not None
        return subprocess.run(
            [KUBECTL, *arguments],
            env=self.environment(hub) | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def environment(self, hub: HubProcess) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "KUBECONFIG": str(hub.state_dir / "kubeconfig"),
            "KUBECACHEDIR": str(hub.state_dir / "cache"),
        }

    def entries(self, hub: HubProcess, subresource: str) -> list[Any]:
        """The newest entries of one hub's own audit log about what was asked of devices and pods."""
        status, found = hub.call(hub.admin, "GET", "/apis/skerry.dev/v1alpha1/auditevents?limit=200")
        assert status == 200, found
        return [item for item in found["items"] if item.get("objectRef", {}).get("subresource") == subresource]


def a_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("pair")
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(running_server()).new_url()
        # All have one MQTT port, as several machines have; it is open where the leader is.
        common = [
            "--store",
            url,
            "--keys-dir",
            str(directory / "keys"),
            "--artifacts-dir",
            str(directory / "artifacts"),
        ]
        common += ["--mqtt-port", str(a_port()), "--api-port", "0"]
        hubs = []
        for name in ("one", "two"):
            hubs.append(HubProcess(directory / name, *common))
            stack.callback(hubs[-1].end)
        for hub in hubs:
            hub.wait_ready()
        leading, other = split(hubs, asyncio.run(_leader(url)))
        site = Site(directory)
        stack.callback(site.close)
        client = stack.enter_context(contextlib.closing(HubClient(load_kubeconfig(other.state_dir / "kubeconfig"))))
        model = make_model(directory, "v1", seed=1)
        known = str(other.record["url"])
        enroll.enroll(
            Disk(directory / "till-1"), AgentSettings(), hub_url=known, token=make_token(client), name="till-1"
        )
        (directory / "till-1/agent.toml").write_text(ALLOWED)
        site.start_agent("till-1")
        push(client, directory, model)
        client.apply(deployment("v1"))
        until(lambda: runs_at(client, "v1"), "the model serves")
        assert device(client, "till-1").status.phase == "Online"
        yield Pair(directory, leading, other, model)


async def _leader(url: str) -> Any:
    async with open_named_store(url) as store:
        return await leader_of(store)


def test_logs_and_inference_are_the_leader_s_whoever_is_asked(pair: Pair) -> None:
    for hub in (pair.leading, pair.other):
        status, said = hub.call(hub.admin, "GET", LOG)
        assert status == 200, said
        assert b"serve" in said
    question = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}
    answers = [hub.call(hub.admin, "POST", INFER, question) for hub in (pair.leading, pair.other)]
    assert answers[0] == answers[1]
    status, refused = pair.other.call(pair.other.admin, "POST", INFER, [])
    assert (status, refused["kind"]) == (400, "Status")
    status, missing = pair.other.call(pair.other.admin, "GET", f"{API}/devices/nobody/log")
    assert (status, missing["details"]["name"]) == (404, "nobody")
    # Only what needs the devices is passed on: there is one entry here, and one there.
    assert pair.other.call(pair.other.admin, "GET", f"{API}/devices/till-1")[0] == 200


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
def test_kubectl_reaches_into_a_device_by_either_hub(pair: Pair) -> None:
    for hub in (pair.leading, pair.other):
        done = pair.kubectl(hub, "exec", POD, "--", "sh", "-c", "echo out; echo err >&2; exit 3")
        assert (done.returncode, done.stdout) == (3, b"out\n"), done
        assert done.stderr == b"err\ncommand terminated with exit code 3\n"
        # Older kubectl: SPDY instead of WebSocket.
        old = {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": "false"}
        done = pair.kubectl(hub, "exec", POD, "--", "sh", "-c", "echo out; exit 4", **old)
        assert (done.returncode, done.stdout) == (4, b"out\n"), done
        refused = pair.kubectl(hub, "exec", "nobody.till-1", "--", "true")
        assert (refused.returncode, b"NotFound" in refused.stderr) == (1, True), refused
        until(functools.partial(_has_telemetry, pair, hub), "telemetry has come")
        assert b"till-1" in pair.kubectl(hub, "top", "nodes").stdout


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
def test_much_passes_both_ways_and_nothing_is_lost(pair: Pair) -> None:
    content = os.urandom(3_000_000)
    for sockets in ("true", "false"):
        done = subprocess.run(
            [str(KUBECTL), "exec", "-i", POD, "--", "cat"],
            env=pair.environment(pair.other) | {"KUBECTL_REMOTE_COMMAND_WEBSOCKETS": sockets},
            input=content,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout == content) == (0, True), done.stderr


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
def test_a_log_is_followed_by_way_of_the_other_hub(pair: Pair) -> None:
    following = subprocess.Popen(
        [str(KUBECTL), "logs", "-f", "--tail=0", POD],
        env=pair.environment(pair.other),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert following.stdout is not None
        log = pair.directory / "till-1/workloads/digits/server.log"
        until(lambda: _begun(pair, "log"), "it is followed")
        with log.open("ab") as writing:
            writing.write(b"a word of the workload\n")
        assert following.stdout.readline() == b"a word of the workload\n"
    finally:
        following.kill()
        following.communicate()


def _has_telemetry(pair: Pair, hub: HubProcess) -> bool:
    return pair.kubectl(hub, "top", "pods").returncode == 0


def _begun(pair: Pair, subresource: str) -> bool:
    return any(entry["stage"] == "ResponseStarted" for entry in pair.entries(pair.leading, subresource))


def test_both_audit_logs_name_who_asked_and_from_where(pair: Pair) -> None:
    status, _ = pair.other.call(pair.other.admin, "GET", LOG, **{"audit-id": "passed-on-1"})
    assert status == 200
    found = {}
    for hub in (pair.other, pair.leading):
        entry = next(item for item in pair.entries(hub, "log") if item["auditID"] == "passed-on-1")
        found[hub] = entry["user"]["username"], entry["user"]["groups"], entry["sourceIPs"]
        assert (entry.get("userAgent", ""), entry["requestURI"]) == ("", LOG), "nothing is added to what was asked"
    user, groups, addresses = found[pair.other]
    assert (user, addresses) == ("admin", ["127.0.0.1"])
    # At the leader it is the same person, at the same address, by way of the hub that was asked.
    assert found[pair.leading] == (user, groups, ["127.0.0.1", "127.0.0.1"])


def test_who_may_not_is_refused_where_he_asks_and_impersonation_is_not_lost(pair: Pair) -> None:
    as_anna = {"impersonate-user": "anna", "impersonate-group": "ops", "audit-id": "passed-on-2"}
    status, refused = pair.other.call(pair.other.admin, "GET", LOG, **as_anna)
    assert (status, refused["reason"]) == (403, "Forbidden"), refused
    assert not [item for item in pair.entries(pair.leading, "log") if item["auditID"] == "passed-on-2"]
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "ops"},
        "subjects": [{"kind": "Group", "name": "ops", "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "ClusterRole", "name": "admin", "apiGroup": "rbac.authorization.k8s.io"},
    }
    path = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings"
    status, made = pair.leading.call(pair.leading.admin, "POST", path, binding)
    assert status == 201, made
    as_anna["audit-id"] = "passed-on-3"
    until(lambda: pair.other.call(pair.other.admin, "GET", LOG, **as_anna)[0] == 200, "the rule counts at both hubs")
    newest = next(item for item in pair.entries(pair.leading, "log") if item["auditID"] == "passed-on-3")
    assert (newest["user"]["username"], newest["impersonatedUser"]["username"]) == ("admin", "anna")
    assert "ops" in newest["impersonatedUser"]["groups"]


def test_what_is_taken_away_at_one_hub_is_taken_away_at_the_other(pair: Pair) -> None:
    rules = [{"apiGroups": ["skerry.dev"], "resources": ["devices"], "verbs": ["get"]}]
    group, place = "rbac.authorization.k8s.io", "/apis/rbac.authorization.k8s.io/v1"
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "see"}, "rules": rules}
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "see"},
        "subjects": [{"kind": "User", "name": "berta", "apiGroup": group}],
        "roleRef": {"kind": "Role", "name": "see", "apiGroup": group},
    }

    def sees(hub: HubProcess) -> bool:
        return hub.call(hub.admin, "GET", f"{API}/devices/till-1", **{"impersonate-user": "berta"})[0] == 200

    one, another = pair.leading, pair.other
    for made in (role, binding):
        plural = f"{made['kind']}s".lower()
        status, said = one.call(one.admin, "POST", f"{place}/namespaces/default/{plural}", made)
        assert status == 201, said
    assert sees(one), "at once, where it was written"
    until(lambda: sees(another), "it counts there too")
    status, _ = another.call(another.admin, "DELETE", f"{place}/namespaces/default/rolebindings/see")
    assert status == 200
    assert not sees(another)
    until(lambda: not sees(one), "it counts no more there either")


def test_nobody_but_a_hub_is_believed(pair: Pair) -> None:
    """A word that an outsider makes up is not read, whoever he is."""
    word = {"skerry-forwarded": "eyJ0byI6IiJ9." + "0" * 64}
    for context in (pair.leading.context(), None):
        status, said = pair.leading.call(context or pair.leading.admin, "GET", LOG, **word)
        assert status == (200 if context is None else 401), said
    # With a hub's own certificate it is read, and must be sealed.
    pki = pair.other.state_dir / "pki"
    as_hub = pair.leading.context(pki / "hub.crt", pki / "hub.key")
    status, said = pair.leading.call(as_hub, "GET", LOG, **word)
    assert (status, "not sealed" in json.dumps(said)) == (401, True), said
    assert pair.leading.call(as_hub, "GET", LOG)[0] == 401, "the certificate alone is nobody's"


class HubAt(HubProcess):
    """A hub at an address of its own, under a name and ports that it shares, as hubs on several machines do."""

    def __init__(self, host: str, state_dir: Path, *options: str) -> None:
        super().__init__(state_dir, "--host", host, "--advertise", "localhost", *options)
        self.host = host

    def connect(self, context: ssl.SSLContext) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self.host, self.record["apiPort"], context=context, timeout=20)


def test_hubs_under_one_name_know_each_other_s_tokens_and_the_way_to_the_leader(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(running_server()).new_url()
        keys, artifacts = str(tmp_path / "keys"), str(tmp_path / "artifacts")
        common = ["--store", url, "--keys-dir", keys, "--artifacts-dir", artifacts, "--audit-level", "metadata"]
        common += ["--mqtt-port", str(a_port()), "--api-port", str(a_port())]
        hubs = [HubAt(f"127.0.0.{number}", tmp_path / str(number), *common) for number in (1, 2)]
        for hub in hubs:
            stack.callback(hub.end)
            hub.wait_ready()
        leader = asyncio.run(_leader(url))
        one, another = hubs
        assert one.record["url"] == another.record["url"]
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ci"}}
        place = "/api/v1/namespaces/default/serviceaccounts"
        assert one.call(one.admin, "POST", place, account)[0] == 201
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        for made_at in hubs:
            asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
            status, made = made_at.call(made_at.admin, "POST", f"{place}/ci/token", asked)
            assert status == 201, made
            for hub in hubs:
                bearer = {"authorization": f"Bearer {made['status']['token']}"}
                path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
                status, said = hub.call(hub.context(), "POST", path, review, **bearer)
                assert status == 201, said
                assert said["status"]["userInfo"]["username"] == "system:serviceaccount:default:ci"
        # Whichever of them leads, both ask it, though they have one name.
        device = {"apiVersion": "skerry.dev/v1alpha1", "kind": "Device", "metadata": {"name": "till-9"}, "spec": {}}
        assert one.call(one.admin, "POST", f"{API}/devices", device)[0] == 201
        pod = "/api/v1/namespaces/default/pods/digits.till-9/log"
        said = [hub.call(hub.admin, "GET", pod) for hub in hubs]
        assert said[0] == said[1]
        entries = [_passed_on(hub) for hub in hubs]
        assert sorted(map(len, entries)) == [0, 1], "one of them was asked by the other one"
        # A leader that stands still is one that does not answer, and the one that was asked says so.
        leading, other = hubs if leader.address.startswith(one.host + ":") else hubs[::-1]
        leading.process.send_signal(signal.SIGSTOP)
        try:
            status, refused = other.call(other.admin, "GET", pod)
        finally:
            leading.process.send_signal(signal.SIGCONT)
        assert (status, refused["reason"]) == (503, "ServiceUnavailable"), refused
        assert "hub that" in refused["message"], refused


def _passed_on(hub: HubProcess) -> list[Any]:
    status, found = hub.call(hub.admin, "GET", "/apis/skerry.dev/v1alpha1/auditevents?limit=200")
    assert status == 200, found
    return [item for item in found["items"] if len(item.get("sourceIPs", [])) > 1]


def test_when_the_leader_is_killed_the_other_one_answers(pair: Pair) -> None:
    """Last of all, for it ends the leader."""
    pair.leading.kill()
    until(lambda: pair.other.call(pair.other.admin, "GET", LOG)[0] == 200, "the other one leads now")
    assert [entry for entry in pair.entries(pair.other, "log") if entry["responseStatus"]["code"] == 200]
