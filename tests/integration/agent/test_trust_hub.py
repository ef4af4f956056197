"""Trust policies at a real hub with real agents: what the hub refuses, what devices refuse when the hub is taken."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from tests import trusting
from tests.integration.agent.test_agent_hub import Site, deployment, device, hub_url, make_token, runs_at, until

from skerry.api.errors import InvalidError
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec
from skerry.api.kinds.rollout import Rollout
from skerry.api.kinds.trust_policy import TrustPolicy
from skerry.api.kinds.variants import Evaluation, Golden, NumericalError, Profile, Variant
from skerry.api.meta import Condition, ObjectMeta, find_condition
from skerry.core import card as cards
from skerry.drivers.client.api import HubClient
from skerry.drivers.client.registry import push_package
from skerry.drivers.signing import package as packages


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.fixture
def client(site: Site) -> Iterator[HubClient]:
    with contextlib.closing(site.start_hub()) as made:
        yield made


def push(client: HubClient, directory: Path, model: Any, *signers: Any) -> None:
    """Package a tiny model, sign it, and push it as the command line does."""
    package = directory / f"package-{model.version}"
    package.mkdir()
    desired = model.desired()
    profile = Profile(latency_p50_ms=1, latency_p95_ms=1, peak_memory_bytes=64 * 1024**2, runs=1)
    variant = Variant(
        name="onnx-fp32",
        format="onnx",
        precision="fp32",
        needs=msgspec.structs.replace(desired.needs, memory_bytes=64 * 1024**2),
        blob=desired.blob,
        metric=1.0,
        metric_drop=0.0,
        error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
        profile=profile,
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
    files = {"model.onnx": model.model, cards.GOLDEN_FILE: model.golden, cards.CARD_FILE: cards.encode(card)}
    for name, content in files.items():
        (package / name).write_bytes(content)
    for signer in signers:
        packages.add_signature(package, trusting.bundle(signer, files))
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


def policy(signer: Any, **spec: Any) -> dict[str, Any]:
    rule = {"name": "lab", "models": ["dig*"], "keys": [trusting.pem(signer)]}
    return {
        "apiVersion": "skerry.dev/v1alpha1",
        "kind": "TrustPolicy",
        "metadata": {"name": "default"},
        "spec": {"rules": [rule], **spec},
    }


def condition(client: HubClient, kind: str) -> Condition | None:
    return find_condition(client.get(ModelDeployment, "digits").status.conditions, kind)


def skerry(*words: str) -> str:
    command = [sys.executable, "-m", "skerry.cli", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_the_hub_deploys_what_the_policy_covers_and_looks_anew_when_it_changes(
    site: Site, client: HubClient, models: dict[str, Any]
) -> None:
    signer, stranger = trusting.signer(), trusting.signer()
    skerry("agent", "enroll", "--hub", hub_url(site), "--token", make_token(client), "--name", "till-1",
           "--state-dir", str(site.directory / "till-1"))  # fmt: skip
    site.start_agent("till-1")
    client.apply(policy(signer))
    push(client, site.directory, models["v1"], signer)
    push(client, site.directory, models["again"], stranger)
    client.apply(deployment("v1"))
    until(lambda: runs_at(client, "v1"), "what is signed runs, on a device that does not ask for it")
    trusted = until(lambda: condition(client, "Trusted"), "the deployment says so")
    assert (trusted.status, trusted.reason) == ("True", "Covered")
    until(lambda: client.list(Rollout)[0].status.phase == "Succeeded", "the rollout is over")

    client.apply(deployment("v9"))

    def refused() -> Condition | None:
        found = condition(client, "Progressing")
        return found if found is not None and found.reason == "NotTrusted" else None

    told = until(refused, "the deployment is refused")
    assert 'model version "digits-v9" is not covered by the trust policy: found no signature that holds' in told.message
    assert "is made with a key that is not trusted" in told.message
    assert "wanted 1 of key sha256:" in told.message
    assert [r.spec.template.model_version for r in client.list(Rollout)] == ["digits-v1"], "nothing was begun"
    kubeconfig = str(site.directory / "hub" / "kubeconfig")
    explained = skerry("explain", "deployment/digits", "device/till-1", "--kubeconfig", kubeconfig)
    assert 'trust policy: model version "digits-v9" is not covered by the trust policy' in " ".join(explained.split())
    kept = client.get(ModelDeployment, "digits").metadata.resource_version
    listed = skerry("get", "trustpolicies", "--kubeconfig", kubeconfig)
    assert listed.split()[:8] == ["NAME", "MODE", "VERSION", "RULES", "COVERED", "REFUSED", "STATUS", "AGE"]
    assert listed.splitlines()[1].split()[:7] == ["default", "enforce", "0", "lab", "1", "1", "Unsigned"]
    assert client.get(ModelDeployment, "digits").metadata.resource_version == kept, "it is not looked at without end"

    client.apply(policy(signer, mode="warn"))
    until(lambda: runs_at(client, "v9"), "with a warning it is deployed")
    warned = condition(client, "Trusted")
    assert warned is not None
    assert (warned.status, warned.reason) == ("False", "Warned")
    until(lambda: "trust.not_covered namespace=default name=digits-v9" in site.log("hub"), "the log has it")

    client.delete(TrustPolicy, "default")
    until(lambda: condition(client, "Trusted") is None, "without a policy nobody is asked")
    with pytest.raises(InvalidError, match='named "default"'):
        client.apply({**policy(signer), "metadata": {"name": "other"}})


def test_a_device_with_an_anchor_outlives_its_hub(site: Site, client: HubClient, models: dict[str, Any]) -> None:
    """Everything by the command line; then whoever has the hub tries to have something else run."""
    offline = site.directory / "offline"
    offline.mkdir()
    secret = offline / "passphrase"
    secret.write_text("correct horse battery\n")

    def trust(*words: str | Path) -> str:
        return skerry("trust", *map(str, words))

    def key(name: str) -> Path:
        return offline / f"{name}.key"

    for name in ("anna", "ben", "policies"):
        trust("keygen", key(name), "--passphrase-file", secret)
        assert key(name).stat().st_mode & 0o777 == 0o600
        assert b"ENCRYPTED" in key(name).read_bytes()
    first, second = offline / "root.1.json", offline / "root.2.json"
    trust(
        "init", "-o", first, "--owner", f"{key('anna')}.pub", "--owner", f"{key('ben')}.pub", "--threshold", "2",
        "--policy-key", f"{key('policies')}.pub", "--key", key("anna"), "--passphrase-file", secret,
    )  # fmt: skip
    trust("sign", first, "--key", key("ben"), "--passphrase-file", secret)

    signer = trusting.signer()
    written, signed = offline / "policy.yaml", offline / "signed.yaml"
    written.write_text(yaml.safe_dump(policy(signer, version=1)))
    trust("sign-policy", written, "-o", signed, "--root", first, "--key", key("policies"), "--passphrase-file", secret)
    trust("verify", first, "--policy", signed)
    kubeconfig = str(site.directory / "hub" / "kubeconfig")
    skerry("apply", "-f", str(signed), "--kubeconfig", kubeconfig)

    def accepted(reason: str) -> bool:
        found = find_condition(client.get(TrustPolicy, "default").status.conditions, "Accepted")
        return found is not None and found.reason == reason

    until(lambda: accepted("Signed"), "the hub has looked at it")
    skerry("agent", "enroll", "--hub", hub_url(site), "--token", make_token(client), "--name", "till-1",
           "--state-dir", str(site.directory / "till-1"), "--trust", str(first))  # fmt: skip
    site.start_agent("till-1")
    push(client, site.directory, models["v1"], signer)
    push(client, site.directory, models["again"])
    client.apply(deployment("v1"))
    until(lambda: runs_at(client, "v1"), "what is signed runs")

    def told() -> tuple[int, int]:
        found = device(client, "till-1").status.trust
        return (0, 0) if found is None else (found.anchor, found.policy)

    until(lambda: told() == (1, 1), "the device tells what it obeys")

    # The hub is taken: it has no policy any more, and wants something that nobody signed.
    client.delete(TrustPolicy, "default")
    wish = deployment("v9")
    wish["spec"]["strategy"]["onFailure"] = "pause"
    client.apply(wish)

    def refuses() -> str:
        found = device(client, "till-1").status.workloads
        return found[0].message if found and found[0].refusal == "Trust" else ""

    assert "found no signature that holds" in until(refuses, "the device refuses")
    until(lambda: runs_at(client, "v1"), "what serves goes on")
    until(lambda: "Paused" in {r.status.phase for r in client.list(Rollout)}, "the rollout is given up")

    def told_by_the_device() -> bool:
        found = condition(client, "Progressing")
        return found is not None and "the device's own check (Trust)" in found.message

    until(told_by_the_device, "the deployment says why")
    explained = skerry("explain", "deployment/digits", "device/till-1", "--kubeconfig", kubeconfig)
    assert "the device obeys trust anchor 1 and policy 1" in explained

    # The owners replace one of them; devices follow, and take the next policy.
    trust("keygen", key("cara"), "--passphrase-file", secret)
    trust(
        "rotate", first, "-o", second, "--owner", f"{key('anna')}.pub", "--owner", f"{key('cara')}.pub",
        "--key", key("anna"), "--key", key("ben"), "--key", key("cara"), "--passphrase-file", secret,
    )  # fmt: skip
    again = offline / "again.yaml"
    trust("sign-policy", written, "-o", again, "--version", "2", "--root", first, "--root", second,
          "--key", key("policies"), "--passphrase-file", secret)  # fmt: skip
    skerry("apply", "-f", str(again), "--kubeconfig", kubeconfig)
    until(lambda: told() == (2, 2), "the device followed")
    forged = yaml.safe_load(again.read_text())
    forged["spec"]["mode"] = "off"
    client.apply(forged)
    until(lambda: accepted("Invalid"), "a policy that says other than it signs is not handed on")
    assert told() == (2, 2)
