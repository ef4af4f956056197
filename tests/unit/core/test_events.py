from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from skerry.api.kinds.device import UpdateHold
from skerry.api.kinds.enrollment import Enrollment, EnrollmentSpec, EnrollmentStatus
from skerry.api.kinds.model_deployment import ModelDeployment, ModelDeploymentSpec, ModelDeploymentStatus
from skerry.api.kinds.model_version import ModelVersionStatus
from skerry.api.kinds.rollout import GateResult, Rollout, RolloutSpec, RolloutStatus, WaveStatus
from skerry.api.kinds.trust_policy import TrustPolicy, TrustPolicyStatus, TrustVerdict
from skerry.api.kinds.variants import Blob
from skerry.api.meta import Condition, LabelSelector, ObjectMeta
from skerry.core import events
from skerry.core.events import (
    Happening,
    SeenCondition,
    SeenDevice,
    SeenMeta,
    SeenSpec,
    SeenStatus,
    SeenWorkload,
)

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
META = SeenMeta(name="till-7", namespace="shop", uid="u")


def device(*workloads: SeenWorkload, phase: str = "Online", **fields: Any) -> SeenDevice:
    conditions = fields.pop("conditions", [])
    status = SeenStatus(phase=phase, workloads=list(workloads), conditions=conditions)
    return SeenDevice(metadata=META, spec=SeenSpec(**fields), status=status)


def told(old: SeenDevice | None, new: SeenDevice) -> list[tuple[str, str]]:
    return [(one.type, one.reason) for one in events.of_device(old, new)]


def workload(phase: str, **fields: Any) -> SeenWorkload:
    return SeenWorkload(name="digits", rollout="digits-2", variant="onnx-int8", phase=phase, **fields)


def condition(kind: str, status: str, reason: str, message: str = "why") -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message, last_transition_time=NOW)  # type: ignore[arg-type]


def test_nothing_is_told_of_what_did_not_change() -> None:
    one = device(workload("Running"), cordoned=True, conditions=[SeenCondition(type="Connected", status="True")])
    assert told(one, msgspec.json.decode(msgspec.json.encode(one), type=SeenDevice)) == []


def test_devices_come_go_and_are_cordoned() -> None:
    assert told(None, device(phase="Pending")) == [("Normal", "Enrolled")]
    assert told(device(phase="Pending"), device()) == [("Normal", "Online")]
    gone = device(
        phase="Offline", conditions=[SeenCondition(type="Connected", status="False", message="its link broke")]
    )
    assert list(events.of_device(device(), gone)) == [
        Happening(type="Warning", reason="Offline", message="its link broke")
    ]
    assert told(device(), device(cordoned=True)) == [("Normal", "Cordoned")]
    assert told(device(cordoned=True), device()) == [("Normal", "Uncordoned")]
    hold = UpdateHold(until=NOW, reason="inventory")
    assert [one.message for one in events.of_device(device(), device(hold=hold))] == [
        "no updates until 2026-11-23T10:00:00Z: inventory"
    ]
    assert told(device(hold=hold), device()) == [("Normal", "HoldEnded")]


def test_workloads_are_told_of_when_they_serve_fail_or_return() -> None:
    probing, serving = device(workload("Probing")), device(workload("Running"))
    assert told(probing, serving) == [("Normal", "Serving")]
    failed = device(workload("Failed", message="no memory"))
    assert list(events.of_device(probing, failed)) == [
        Happening(
            type="Warning",
            reason="WorkloadFailed",
            message="digits: digits-2/onnx-int8: no memory",
            part="status.workloads{digits}",
        )
    ]
    assert told(serving, device(workload("RollingBack"))) == [("Warning", "RollingBack")]
    assert told(device(workload("RollingBack")), serving) == [("Warning", "RolledBack")]
    assert told(serving, device(workload("Running", restarts=1))) == [("Warning", "Restarted")]
    assert told(serving, device(workload("Pending", refusal="Disk", message="full"))) == [("Warning", "Refused")]
    assert told(serving, device()) == [("Normal", "Removed")]


def test_desired_states_that_devices_do_not_take_are_told() -> None:
    refused = device(conditions=[SeenCondition(type="DesiredAccepted", status="False", message="unsigned")])
    assert told(device(), refused) == [("Warning", "Refused")]
    assert told(refused, refused) == []
    ahead = device(conditions=[SeenCondition(type="AwaitingReconciliation", status="True", message="behind")])
    assert told(device(), ahead) == [("Warning", "AwaitingReconciliation")]


def rollout(phase: str = "Progressing", *waves: WaveStatus, message: str = "") -> Rollout:
    return Rollout(
        metadata=ObjectMeta(name="digits-2", namespace="shop"),
        spec=RolloutSpec(
            deployment="digits",
            deployment_uid="d",
            revision=2,
            template=ModelDeploymentSpec(model_version="digits-v2", device_selector=LabelSelector()),
        ),
        status=RolloutStatus(phase=phase, waves=list(waves), message=message),  # type: ignore[arg-type]
    )


def test_rollouts_say_what_was_measured() -> None:
    begun = list(events.of_rollout(None, rollout("Pending")))
    assert begun == [
        Happening(reason="RolloutStarted", message="revision 2 of digits rolls out model version digits-v2")
    ]
    good = GateResult(gate="accuracy", verdict="Passed", threshold=0.95, measured=0.971)
    passed = WaveStatus(name="canary", phase="Passed", assigned=3, running=3, gates=[good])
    running = WaveStatus(name="canary", phase="Progressing", assigned=3)
    found = list(events.of_rollout(rollout("Progressing", running), rollout("Progressing", passed)))
    assert found == [
        Happening(reason="WavePassed", message="wave canary passed on 3 of 3 devices: accuracy 0.971 (asked 0.95)")
    ]
    assert list(events.of_rollout(rollout("Progressing", passed), rollout("Progressing", passed))) == []


def test_gates_that_fail_say_which_where_and_how_far() -> None:
    bad = GateResult(gate="accuracy", verdict="Failed", threshold=0.95, measured=0.71, worst="till-9")
    failed = WaveStatus(name="canary", phase="Failed", gates=[bad])
    running = WaveStatus(name="canary", phase="Progressing")
    after = rollout("RollingBack", failed, message="wave canary: accuracy is too low")
    found = [(one.type, one.reason, one.message) for one in events.of_rollout(rollout("Progressing", running), after)]
    assert found == [
        ("Warning", "GateFailed", "wave canary: accuracy 0.71 (asked 0.95); worst on till-9"),
        ("Warning", "RollingBack", "wave canary: accuracy is too low"),
    ]
    for phase, reason in (("Succeeded", "Completed"), ("RolledBack", "RolledBack"), ("Paused", "Paused")):
        assert [one.reason for one in events.of_rollout(rollout(), rollout(phase))] == [reason]
    assert list(events.of_rollout(rollout("Pending"), rollout("Progressing"))) == []


def test_deployments_tell_what_is_in_the_way_once() -> None:
    def deployment(*conditions: Condition) -> ModelDeployment:
        return ModelDeployment(
            metadata=ObjectMeta(name="digits", namespace="shop"),
            spec=ModelDeploymentSpec(model_version="v", device_selector=LabelSelector()),
            status=ModelDeploymentStatus(conditions=list(conditions)),
        )

    missing = deployment(condition("Progressing", "False", "ModelVersionMissing"))
    assert [(one.type, one.reason) for one in events.of_deployment(None, missing)] == [
        ("Warning", "ModelVersionMissing")
    ]
    assert list(events.of_deployment(missing, missing)) == []
    rolling = deployment(condition("Progressing", "False", "RollingBack"))
    assert list(events.of_deployment(missing, rolling)) == []
    refused = deployment(condition("Trusted", "False", "NotTrusted"))
    assert [(one.type, one.reason) for one in events.of_deployment(None, refused)] == [("Warning", "NotTrusted")]


def version(status: ModelVersionStatus) -> Any:
    raw = {"metadata": {"name": "v"}, "status": msgspec.to_builtins(status)}
    return msgspec.convert(raw, _Version)


class _Version(msgspec.Struct):
    metadata: ObjectMeta
    status: ModelVersionStatus


def test_model_versions_tell_whether_they_are_whole_signed_and_trusted() -> None:
    pending = version(ModelVersionStatus())
    ready = ModelVersionStatus(phase="Ready", conditions=[condition("Ready", "True", "Complete", "2 variants: a, b")])
    found = list(events.of_model_version(pending, version(ready)))
    assert [(one.type, one.reason) for one in found] == [("Normal", "Verified"), ("Normal", "Unsigned")]
    assert "2 variants: a, b" in found[0].message
    broken = ModelVersionStatus(phase="Broken", conditions=[condition("Ready", "False", "Incomplete", "blob is gone")])
    assert [(one.type, one.reason, one.message) for one in events.of_model_version(pending, version(broken))] == [
        ("Warning", "Broken", "blob is gone")
    ]
    signed = msgspec.structs.replace(ready, signatures=[Blob(digest="sha256:" + "a" * 64, size=1)])
    assert [one.reason for one in events.of_model_version(version(ready), version(signed))] == ["Signed"]
    for covered, mode, reason in (
        (True, "enforce", "Trusted"),
        (False, "enforce", "NotTrusted"),
        (False, "warn", "TrustWarned"),
    ):
        judged = msgspec.structs.replace(signed, trust=TrustVerdict(covered=covered, mode=mode, message="m"))  # type: ignore[arg-type]
        assert [one.reason for one in events.of_model_version(version(signed), version(judged))] == [reason]
        assert list(events.of_model_version(version(judged), version(judged))) == []


def test_enrollments_and_policies() -> None:
    spec = EnrollmentSpec(device_name="till-7", csr="-", token_id="t-1")
    asked = Enrollment(metadata=ObjectMeta(name="e"), spec=spec)
    approved = msgspec.structs.replace(asked, status=EnrollmentStatus(phase="Approved", device_name="till-7"))
    denied = msgspec.structs.replace(asked, status=EnrollmentStatus(phase="Denied"))
    assert [one.message for one in events.of_enrollment(None, approved)] == ["device till-7 with join token t-1"]
    assert [(one.type, one.reason) for one in events.of_enrollment(asked, denied)] == [("Warning", "Denied")]
    assert list(events.of_enrollment(approved, approved)) == []
    policy = TrustPolicy(metadata=ObjectMeta(name="default"))
    expired = TrustPolicyStatus(conditions=[condition("Accepted", "False", "Expired", "sign it again")])
    after = msgspec.structs.replace(policy, status=expired)
    assert [(one.type, one.reason) for one in events.of_trust_policy(policy, after)] == [("Warning", "Expired")]


def test_messages_are_one_line_and_bounded() -> None:
    noisy = device(workload("Failed", message="a\nb" + "x" * 5000))
    (found,) = events.of_device(device(workload("Probing")), noisy)
    assert "\n" not in found.message
    assert len(found.message) == events.MAX_MESSAGE
