"""Actions on a device's record: once is enough, and the room is checked when it is written."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from skerry.api.kinds.device import DeviceStatus, EngineFacts, Hardware
from skerry.api.kinds.model_deployment import ModelDeploymentSpec
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec, ModelVersionStatus
from skerry.api.kinds.rollout import Rollout, RolloutSpec, RolloutStatus, WaveStatus
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Evaluation, Golden, NumericalError, Profile, Requirements, Variant
from skerry.api.meta import LabelSelector, ObjectMeta
from skerry.core.assignment import Target, carry_out
from skerry.core.desired import DesiredRecord
from skerry.core.steps import Assign, Return, Withdraw

NOW = datetime(2026, 11, 23, tzinfo=UTC)
LATER = datetime(2026, 11, 24, tzinfo=UTC)
MIB = 1024 * 1024
BLOB = Blob(digest="sha256:" + "a" * 64, size=1)
EMPTY = DesiredRecord(uid="u", namespace="default", device="till")
FACTS = DeviceStatus(
    hardware=Hardware(arch="amd64", memory_bytes=100 * MIB), engines=[EngineFacts(name="onnxruntime", version="1.26")]
)
SMALL = msgspec.structs.replace(FACTS, hardware=Hardware(arch="amd64", memory_bytes=MIB))
ASSIGN = Assign(uid="u", wave=1)
RETURN = Return(uid="u", rollout="digits-1", returned_from="digits-2")


def target(name: str, *, ready: bool = True, memory: int = 60, uid: str = "dep") -> Target:
    deployment, _, revision = name.rpartition("-")
    variant = Variant(
        name="onnx-fp32",
        format="onnx",
        precision="fp32",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=memory * MIB),
        blob=BLOB,
        metric=0.98,
        metric_drop=0,
        error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
        profile=Profile(latency_p50_ms=1, latency_p95_ms=2, peak_memory_bytes=memory * MIB, runs=1),
    )
    model = ModelVersion(
        metadata=ObjectMeta(name=f"v{revision}", namespace="default"),
        spec=ModelVersionSpec(
            model=deployment,
            version=revision,
            artifact=Artifact(repository="default/digits", digest=BLOB.digest),
            signature=ModelSignature(inputs=[], outputs=[]),
            evaluation=Evaluation(metric="accuracy", baseline=1, samples=1, allowed_drop=0),
            golden=Golden(blob=BLOB, samples=1),
        ),
        status=ModelVersionStatus(phase="Ready", variants=[variant]),
    )
    rollout = Rollout(
        metadata=ObjectMeta(name=name, namespace="default"),
        spec=RolloutSpec(
            deployment=deployment,
            deployment_uid=uid,
            revision=int(revision),
            template=ModelDeploymentSpec(model_version=f"v{revision}", device_selector=LabelSelector()),
        ),
        status=RolloutStatus(waves=[WaveStatus(name="canary"), WaveStatus(name="all")]),
    )
    return Target(rollout=rollout, model=model if ready else None)


def test_assigning_twice_is_assigning_once() -> None:
    once = carry_out(ASSIGN, EMPTY, FACTS, target("digits-1"), NOW)
    held = once.find("digits")
    assert held is not None
    assert (held.wave, held.manifest_version, once.manifest_version, held.assigned_at) == (1, 1, 1, NOW)
    assert carry_out(ASSIGN, once, FACTS, target("digits-1"), LATER) == once


def test_the_next_rollout_takes_the_place_and_says_since_when() -> None:
    first = carry_out(ASSIGN, EMPTY, FACTS, target("digits-1"), NOW)
    second = carry_out(ASSIGN, first, FACTS, target("digits-2"), LATER)
    held = second.find("digits")
    assert held is not None
    assert (held.workload.rollout, held.manifest_version, second.manifest_version) == ("digits-2", 2, 2)
    back = carry_out(RETURN, second, FACTS, target("digits-1"), LATER)
    held = back.find("digits")
    assert held is not None
    assert (held.workload.rollout, held.returned_from, held.wave) == ("digits-1", "digits-2", 1)
    assert carry_out(RETURN, back, FACTS, target("digits-1"), LATER) == back


def test_two_deployments_cannot_take_the_same_memory() -> None:
    first = carry_out(ASSIGN, EMPTY, FACTS, target("digits-1"), NOW)
    assert carry_out(ASSIGN, first, FACTS, target("letters-1"), NOW) == first
    assert carry_out(ASSIGN, first, FACTS, target("letters-1", memory=30), NOW).find("letters") is not None


@pytest.mark.parametrize(("facts", "goal"), [(SMALL, target("digits-1")), (FACTS, target("digits-1", ready=False))])
def test_what_failed_is_taken_off_when_there_is_no_way_back(facts: DeviceStatus, goal: Target) -> None:
    failed = carry_out(ASSIGN, EMPTY, FACTS, target("digits-2"), NOW)
    after = carry_out(RETURN, failed, facts, goal, LATER)
    assert (after.assignments, after.manifest_version) == ([], 2)


def test_what_did_not_fail_is_kept_when_nothing_better_fits() -> None:
    other = carry_out(ASSIGN, EMPTY, FACTS, target("digits-3"), NOW)
    assert carry_out(RETURN, other, SMALL, target("digits-1"), LATER) == other
    assert carry_out(ASSIGN, other, SMALL, target("digits-4"), LATER) == other


def test_a_workload_of_an_earlier_deployment_is_replaced_though_the_name_is_the_same() -> None:
    old = carry_out(ASSIGN, EMPTY, FACTS, target("digits-1", uid="gone"), NOW)
    new = carry_out(ASSIGN, old, FACTS, target("digits-1"), LATER)
    held = new.find("digits")
    assert held is not None
    assert (held.deployment_uid, held.assigned_at) == ("dep", LATER)


def test_withdrawing_leaves_the_others() -> None:
    both = carry_out(ASSIGN, EMPTY, FACTS, target("digits-1"), NOW)
    both = carry_out(ASSIGN, both, FACTS, target("letters-1", memory=10), NOW)
    after = carry_out(Withdraw(uid="u"), both, FACTS, target("digits-1"), LATER)
    assert [a.workload.name for a in after.assignments] == ["letters"]
    assert after.manifest_version == 3
    assert carry_out(Withdraw(uid="u"), after, FACTS, target("digits-1"), LATER) == after
