"""What a change of an object means to an operator: the events that are told of it. Pure: two versions in, events out.

A version that is None is an object that was not there yet. Must not live here: how often the same may be told and how
it is kept (`hub.events`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from skerry.api.kinds.device import Refusal, UpdateHold
from skerry.api.kinds.enrollment import Enrollment
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import GateResult, Rollout, WaveStatus
from skerry.api.kinds.trust_policy import TrustPolicy
from skerry.api.meta import Condition, Struct

EventType = Literal["Normal", "Warning"]
MAX_MESSAGE = 1000
"""Characters; Kubernetes' own bound is the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Happening:
    """One thing that happened to an object."""

    reason: str
    """One word, in CamelCase."""
    message: str
    """One sentence."""
    type: EventType = "Normal"
    part: str = ""
    """The part of the object that is meant, as in `status.workloads{digits}`."""


class SeenMeta(Struct, frozen=True, kw_only=True):
    """What is needed of a device's metadata."""

    name: str
    namespace: str
    uid: str


class SeenSpec(Struct, frozen=True, kw_only=True):
    """What is told of a device's spec."""

    cordoned: bool = False
    hold: UpdateHold | None = None


class SeenWorkload(Struct, frozen=True, kw_only=True):
    """What is told of a workload."""

    name: str
    rollout: str = ""
    variant: str = ""
    phase: str = ""
    message: str = ""
    refusal: Refusal = ""
    restarts: int = 0


class SeenCondition(Struct, frozen=True, kw_only=True):
    """What is told of a condition."""

    type: str
    status: str
    reason: str = ""
    message: str = ""


class SeenStatus(Struct, frozen=True, kw_only=True):
    """What is told of a device's status."""

    phase: str = "Pending"
    workloads: list[SeenWorkload] = []
    conditions: list[SeenCondition] = []


class SeenDevice(Struct, frozen=True, kw_only=True):
    """A Device, as far as anything is told of it: a fleet reports all the time, and most of it is measurements."""

    metadata: SeenMeta
    spec: SeenSpec = SeenSpec()
    status: SeenStatus = SeenStatus()


def of_device(old: SeenDevice | None, new: SeenDevice) -> Iterator[Happening]:
    """Yield what happened to a device."""
    if old is None:
        yield Happening(reason="Enrolled", message="joined the fleet")
        old = SeenDevice(metadata=new.metadata)
    if new.status.phase != old.status.phase and new.status.phase == "Online":
        yield Happening(reason="Online", message="is connected")
    elif new.status.phase != old.status.phase and new.status.phase == "Offline":
        said = next((c.message for c in new.status.conditions if c.type == "Connected"), "")
        yield Happening(type="Warning", reason="Offline", message=said or "is not connected")
    yield from _wishes(old.spec, new.spec)
    if old.status.conditions != new.status.conditions:
        yield from _accepted(old.status, new.status)
    if old.status.workloads != new.status.workloads:
        known = {workload.name: workload for workload in old.status.workloads}
        for workload in new.status.workloads:
            yield from _workload(known.pop(workload.name, SeenWorkload(name=workload.name)), workload)
        for gone in known:
            yield Happening(reason="Removed", message=f"workload {gone} was removed", part=part_of(gone))


def part_of(workload: str) -> str:
    """Return how an event about one workload of a device names it."""
    return f"status.workloads{{{workload}}}"


def of_rollout(old: Rollout | None, new: Rollout) -> Iterator[Happening]:
    """Yield what happened to a rollout, with what its gates measured."""
    spec, status = new.spec, new.status
    if old is None:
        text = f"revision {spec.revision} of {spec.deployment} rolls out model version {spec.template.model_version}"
        yield Happening(reason="RolloutStarted", message=text)
    before = {} if old is None else {wave.name: wave for wave in old.status.waves}
    for wave in status.waves:
        known = before.get(wave.name)
        if wave.phase == "Passed" and (known is None or known.phase != "Passed"):
            yield Happening(reason="WavePassed", message=_passed(wave))
        if wave.phase == "Failed" and (known is None or known.phase != "Failed"):
            yield from _failed(wave)
    if old is not None and status.phase != old.status.phase and status.phase in _PHASES:
        kind, reason = _PHASES[status.phase]
        yield Happening(type=kind, reason=reason, message=_bounded(status.message) or status.phase)


def of_deployment(old: ModelDeployment | None, new: ModelDeployment) -> Iterator[Happening]:
    """Yield what happened to a deployment beside its rollouts: what keeps one from beginning, and when that ended."""
    before = {} if old is None else _by_type(old.status.conditions)
    for condition in new.status.conditions:
        known = before.get(condition.type)
        if known is not None and (known.status, known.reason) == (condition.status, condition.reason):
            continue
        if condition.type == "Progressing" and condition.status == "False" and condition.reason in _IN_THE_WAY:
            yield Happening(type="Warning", reason=condition.reason, message=_bounded(condition.message))
        if condition.type == "Trusted" and condition.status == "False":
            yield Happening(type="Warning", reason=condition.reason, message=_bounded(condition.message))
        if condition.type == "Available" and condition.status == "True":
            yield Happening(reason=condition.reason, message=_bounded(condition.message))


def of_model_version(old: ModelVersion | None, new: ModelVersion) -> Iterator[Happening]:
    """Yield what happened to a model version: whether its artifacts are whole, who signed it, what that is worth."""
    status, before = new.status, None if old is None else old.status
    ready = _by_type(status.conditions).get("Ready")
    if status.phase != (before.phase if before else "Pending") and ready is not None:
        if status.phase == "Ready":
            yield Happening(reason="Verified", message=_bounded(f"all artifacts are there: {ready.message}"))
            if not status.signatures:
                yield Happening(reason="Unsigned", message="no signature is attached to it")
        elif status.phase == "Broken":
            yield Happening(type="Warning", reason="Broken", message=_bounded(ready.message))
    count, known = len(status.signatures), len(before.signatures) if before else 0
    if count > known:
        yield Happening(reason="Signed", message=f"{count} signature{'s are' if count > 1 else ' is'} attached to it")
    verdict, earlier = status.trust, before.trust if before else None
    if verdict is None or verdict.mode == "off" or (earlier and earlier.covered == verdict.covered):
        return
    if verdict.covered:
        yield Happening(reason="Trusted", message=_bounded(verdict.message))
    else:
        reason = "NotTrusted" if verdict.mode == "enforce" else "TrustWarned"
        yield Happening(type="Warning", reason=reason, message=_bounded(verdict.message))


def of_enrollment(old: Enrollment | None, new: Enrollment) -> Iterator[Happening]:
    """Yield what happened to a device's request to join."""
    status = new.status
    if old is not None and old.status.phase == status.phase:
        return
    if status.phase == "Approved":
        how = f"with join token {new.spec.token_id}" if new.spec.token_id else "renewed its certificate"
        yield Happening(reason="Approved", message=f"device {status.device_name} {how}")
    elif status.phase == "Denied":
        yield Happening(type="Warning", reason="Denied", message=f"device {new.spec.device_name} may not join")


def of_trust_policy(old: TrustPolicy | None, new: TrustPolicy) -> Iterator[Happening]:
    """Yield what happened to a trust policy."""
    found = _by_type(new.status.conditions).get("Accepted")
    known = None if old is None else _by_type(old.status.conditions).get("Accepted")
    if found is None or (known is not None and (known.status, known.reason) == (found.status, found.reason)):
        return
    well = found.status == "True" and found.reason != "ExpiresSoon"
    yield Happening(
        type="Normal" if well else "Warning", reason=found.reason or "Accepted", message=_bounded(found.message)
    )


_PHASES: Mapping[str, tuple[EventType, str]] = {
    "Paused": ("Normal", "Paused"),
    "Succeeded": ("Normal", "Completed"),
    "RollingBack": ("Warning", "RollingBack"),
    "RolledBack": ("Warning", "RolledBack"),
    "Failed": ("Warning", "Failed"),
    "Superseded": ("Normal", "Superseded"),
}
_IN_THE_WAY = frozenset(
    {
        "ConstraintMeaningless",
        "Error",
        "Invalid",
        "ModelVersionBroken",
        "ModelVersionMissing",
        "ModelVersionReplaced",
        "NoDevices",
        "NoVariantFits",
    }
)
"""What keeps a rollout from beginning or going on; what else a deployment says is told of its rollout."""


def _wishes(old: SeenSpec, new: SeenSpec) -> Iterator[Happening]:
    if new.cordoned != old.cordoned:
        yield (
            Happening(reason="Cordoned", message="takes no new placements; what runs stays")
            if new.cordoned
            else Happening(reason="Uncordoned", message="takes placements again")
        )
    if new.hold != old.hold:
        if new.hold is None:
            yield Happening(reason="HoldEnded", message="updates go on")
        else:
            why = f": {new.hold.reason}" if new.hold.reason else ""
            until = new.hold.until.isoformat().replace("+00:00", "Z")
            yield Happening(reason="Held", message=_bounded(f"no updates until {until}{why}"))


def _accepted(old: SeenStatus, new: SeenStatus) -> Iterator[Happening]:
    before = {condition.type: condition for condition in old.conditions}
    for condition in new.conditions:
        known = before.get(condition.type)
        if known is not None and (known.status, known.message) == (condition.status, condition.message):
            continue
        if condition.type == "DesiredAccepted" and condition.status == "False":
            yield Happening(type="Warning", reason="Refused", message=_bounded(condition.message))
        if condition.type == "AwaitingReconciliation" and condition.status == "True":
            yield Happening(type="Warning", reason="AwaitingReconciliation", message=_bounded(condition.message))


def _workload(old: SeenWorkload, new: SeenWorkload) -> Iterator[Happening]:
    part, what = part_of(new.name), f"{new.name}: {new.rollout}/{new.variant}"
    if new.refusal and (new.refusal, new.rollout) != (old.refusal, old.rollout):
        yield Happening(type="Warning", reason="Refused", message=_bounded(f"{what}: {new.message}"), part=part)
    if new.restarts > old.restarts and old.phase:
        yield Happening(
            type="Warning", reason="Restarted", message=f"{new.name} ended by itself and was started again", part=part
        )
    if (new.phase, new.rollout) == (old.phase, old.rollout):
        return
    if new.phase == "Failed":
        text = _bounded(f"{what}: {new.message}" if new.message else what)
        yield Happening(type="Warning", reason="WorkloadFailed", message=text, part=part)
    elif new.phase == "RollingBack":
        text = _bounded(f"{what}: {new.message}" if new.message else what)
        yield Happening(type="Warning", reason="RollingBack", message=text, part=part)
    elif new.phase == "Running":
        reason = "RolledBack" if old.phase == "RollingBack" else "Serving"
        kind: EventType = "Warning" if reason == "RolledBack" else "Normal"
        yield Happening(type=kind, reason=reason, message=f"{what} serves", part=part)


def _passed(wave: WaveStatus) -> str:
    measured = [_measured(gate) for gate in wave.gates if gate.measured is not None]
    devices = f"{wave.running} of {wave.assigned} devices"
    return _bounded(f"wave {wave.name} passed on {devices}" + (f": {', '.join(measured)}" if measured else ""))


def _failed(wave: WaveStatus) -> Iterator[Happening]:
    failed = [gate for gate in wave.gates if gate.verdict == "Failed"]
    for gate in failed:
        said = gate.message or _measured(gate)
        worst = f"; worst on {gate.worst}" if gate.worst and gate.worst not in said else ""
        named = said if said.startswith(gate.gate) else f"{gate.gate}: {said}"
        text = _bounded(f"wave {wave.name}: {named}{worst}")
        yield Happening(type="Warning", reason="GateFailed", message=text)
    if not failed:
        yield Happening(type="Warning", reason="WaveFailed", message=f"wave {wave.name} failed")


def _measured(gate: GateResult) -> str:
    value = "nothing" if gate.measured is None else f"{gate.measured:g}"
    return f"{gate.gate} {value} (asked {gate.threshold:g})"


def _by_type(conditions: list[Condition]) -> dict[str, Condition]:
    return {condition.type: condition for condition in conditions}


def _bounded(text: str) -> str:
    flat = " ".join(text.split())  # devices say what they like, and kubectl prints it as it is
    flat = flat if flat.isprintable() else "".join(c if c.isprintable() else "?" for c in flat)
    return flat if len(flat) <= MAX_MESSAGE else f"{flat[: MAX_MESSAGE - 3]}..."
