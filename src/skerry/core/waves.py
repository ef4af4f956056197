"""Waves: who is on a rollout, how each device stands, how far a wave goes, and who comes next. Pure.

Lives here: the reading of one device's record and report, targets, order, and what a wave's status shows. Must not live
here: verdicts (`core.gates`) or what follows from them (`core.rollout`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256

import msgspec

from skerry.api import duration, selector
from skerry.api.kinds.device import Device, WorkloadStatus
from skerry.api.kinds.model_deployment import Strategy, Wave
from skerry.api.kinds.rollout import Rollout, WaveDevice, WaveStatus
from skerry.api.meta import find_condition
from skerry.core import gates, windows
from skerry.core.desired import Assignment, DesiredRecord
from skerry.core.readings import Sample, State

MAX_LISTED = 50
"""Devices listed of one wave; the counts are complete."""
MAX_LISTED_IN_ALL = 500
"""Devices listed of all waves, so that a status with many waves still fits into the store."""
_MAX_TEXT = 300
_FALLEN = ("RollingBack", "Failed")
_TRIED = ("Probing", "Shadowing")
ORDER: Sequence[State] = ("Failed", "Waiting", "Running")
"""In which devices are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One device as a rollout sees it: selected now, or still holding this deployment's workload."""

    uid: str
    name: str
    selected: bool = True
    """It matches the deployment's selector."""
    online: bool = True
    cordoned: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    unfit: str = ""
    """Why no variant of this rollout fits it; empty when one does."""
    previous_unfit: str = ""
    """The same for the rollout that devices return to."""
    assignment: Assignment | None = None
    """What its record holds for this deployment."""
    observed: int = 0
    """The manifest version it has accepted."""
    report: WorkloadStatus | None = None
    """What it last said of this deployment's workload."""

    @property
    def rollout(self) -> str:
        """Name of the rollout it is assigned to, or empty."""
        return self.assignment.workload.rollout if self.assignment else ""

    @property
    def current_report(self) -> WorkloadStatus | None:
        """What it said of the workload that is assigned now; None while it may still mean an earlier one."""
        report, assignment = self.report, self.assignment
        if assignment is None or report is None or self.observed < assignment.manifest_version:
            return None
        # Right after it accepted another variant of the same rollout, it may still speak of the one it refused.
        told = (assignment.workload.rollout, assignment.workload.variant)
        same = (report.rollout, report.variant) == told and may_be(report.deployment_uid, assignment.deployment_uid)
        return report if same else None

    @property
    def serves_assigned(self) -> bool:
        """Whether it reports that what is assigned is what serves."""
        report = self.current_report
        return (
            report is not None
            and report.phase == "Running"
            and report.running is not None
            and not _serves_another(report)
        )


def may_be(reported: str, wanted: str) -> bool:
    """Return whether a device speaks of this deployment, by its uid, or does not say of which of that name."""
    return not reported or not wanted or reported == wanted


def member_of(
    device: Device,
    record: DesiredRecord | None,
    deployment: str,
    *,
    selected: bool,
    unfit: str = "",
    previous_unfit: str = "",
) -> Member:
    """Return a device and its record as one member."""
    return Member(
        uid=device.metadata.uid,
        name=device.metadata.name,
        selected=selected,
        online=device.status.phase == "Online",
        cordoned=device.spec.cordoned,
        labels=device.metadata.labels,
        unfit=unfit,
        previous_unfit=previous_unfit,
        assignment=record.find(deployment) if record else None,
        observed=0 if _awaits_reconciliation(device) else device.status.observed_manifest_version,
        report=next((w for w in device.status.workloads if w.name == deployment), None),
    )


def _awaits_reconciliation(device: Device) -> bool:
    """It speaks of desired states that this hub does not know, be their names the same."""
    found = find_condition(device.status.conditions, "AwaitingReconciliation")
    return found is not None and found.status == "True"


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How one device stands with the rollout it is on."""

    member: Member
    wave: int
    state: State
    phase: str
    message: str = ""
    deadline: datetime | None = None
    """When it counts as failed if nothing changes; for those that wait."""
    proven: bool = False
    """Its wave has passed."""
    silent: bool = False
    """Its time is over, and it said nothing of this rollout or is offline."""

    @property
    def sample(self) -> Sample:
        """What it contributes to the gates."""
        report = self.member.current_report
        return Sample(
            device=self.member.name,
            state=self.state,
            measurement=report.measurement if report else None,
            observation=report.observation if report else None,
            shadow=report.shadow if report else None,
            asked=self.member.assignment.workload if self.member.assignment else None,
            why=self.message,
            silent=self.silent,
            excused=self.proven,
        )


def belongs(member: Member, rollout: Rollout) -> bool:
    """Return whether a device is on this rollout: assigned to it, for this very deployment."""
    assignment = member.assignment
    return (
        assignment is not None
        and assignment.workload.rollout == rollout.metadata.name
        and assignment.deployment_uid == rollout.spec.deployment_uid
    )


def eligible(member: Member, rollout: Rollout) -> bool:
    """Return whether a coming wave may take this device."""
    return is_open(member) and not belongs(member, rollout)


def is_open(member: Member) -> bool:
    """Return whether a device may be placed anew."""
    return member.selected and not member.cordoned and not member.unfit


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a device is held to while a wave is under way."""

    index: int
    """Devices of waves before this one have proven themselves."""
    timeout: timedelta
    """From its assignment on."""
    measured: bool
    """It has to show a measurement."""

    def stand(self, member: Member, now: datetime) -> Standing:
        """Return `waves.stand` for a device that is on the rollout."""
        return stand(member, index=self.index, timeout=self.timeout, now=now, measured=self.measured)


def terms_of(strategy: Strategy, index: int) -> Terms:
    """Return what devices are held to while the wave at `index` is under way. Raises InvalidError.

    Where a wave passes without its last devices (successThreshold), having been in it proves nothing.
    """
    return Terms(
        index=0 if strategy.success_threshold is not None else index,
        timeout=duration.parse(strategy.device_timeout),
        measured=gates.needs_measurement(strategy.gates),
    )


def stand(member: Member, *, index: int, timeout: timedelta, now: datetime, measured: bool) -> Standing:
    """Say how a device that is on the rollout stands while wave `index` is under way.

    Failed: it says so (RollingBack, Failed, or Running another rollout), or its time is over. Running: it serves this
    rollout and, if gates need it (`measured`), has measured it; or it did both before and is restarting. A policy that
    holds it up stops its clock.
    """
    assignment = member.assignment
    if assignment is None:
        raise ValueError(f"{member.name} is on no rollout")
    report = member.current_report
    proven = assignment.wave < index
    phase = report.phase if report else "Pending"
    said = report.message[:_MAX_TEXT] if report else ""

    def standing(state: State, message: str = "", until: datetime | None = None, *, silent: bool = False) -> Standing:
        return Standing(
            member=member,
            wave=assignment.wave,
            state=state,
            phase=phase,
            message=message,
            deadline=until,
            proven=proven,
            silent=silent,
        )

    if report is not None and report.phase in _FALLEN:
        return standing("Failed", said or f"it reports {report.phase}")
    if report is not None and _fell_back(report):
        back_on = report.running.rollout[:_MAX_TEXT] if report.running else ""
        back_on += " of an earlier deployment" if back_on == report.rollout else ""
        return standing("Failed", f"it fell back to {back_on}" + (f": {said}" if said else ""))
    if proven or _has_run(member, measured=measured):
        return standing("Running", said)
    if report is not None and (report.waiting_for or _stays_in_shadow(report, assignment)):
        return standing("Waiting", said or f"it waits for {report.waiting_for or 'requests'}")
    deadline = _deadline(assignment, report, timeout, now)
    if now >= deadline:
        return standing("Failed", _late(member, report, timeout), silent=report is None or not member.online)
    return standing("Waiting", said or ("" if member.online else "offline"), deadline)


def target_of(wave: Wave, base: int) -> int:
    """Return how many of `base` devices are on the rollout when this wave is done; a share is rounded up."""
    if wave.count is not None:
        return min(wave.count, base)
    return -(-(100 if wave.percent is None else wave.percent) * base // 100)


def plan_of(waves: Sequence[Wave]) -> list[Wave]:
    """Return the waves to go through: those asked for and, if they end below 100 percent, one for all the rest."""
    whole = bool(waves) and waves[-1].percent == 100 and waves[-1].selector is None
    return [*waves] if whole else [*waves, Wave(name="rest", percent=100)]


def matching(wave: Wave, members: Sequence[Member]) -> Sequence[Member]:
    """Return those that the wave's selector matches; all without one. Raises InvalidError."""
    if wave.selector is None:
        return members
    wanted = selector.requirements(wave.selector)
    return [member for member in members if selector.matches(wanted, member.labels)]


def reach_of(wave: Wave, *, on: int, base: int, there: int, others: int, reached: int) -> int:
    """Return how many devices are on the rollout when this wave is done, after waves that went as far as `reached`.

    `on` are those on it now, `base` all with those that are free; `there` and `others` those on it and those that are
    free of which the wave's selector speaks: it adds to the waves before what it lacks of them.
    """
    if wave.selector is None:
        return max(reached, target_of(wave, base))
    lacking = max(target_of(wave, there + others) - there, 0)
    return max(reached, min(max(reached, on) + lacking, base))


def name_of(wave: Wave, index: int) -> str:
    """Return a wave's name, made up from its place when it has none."""
    return wave.name or f"wave-{index + 1}"


def take(candidates: Sequence[Member], count: int, rollout: Rollout) -> list[Member]:
    """Choose who comes next: online devices first, then in an order that only rollout and device decide."""

    def key(member: Member) -> tuple[bool, bytes]:
        return not member.online, rank(member.uid, rollout)

    return sorted(candidates, key=key)[: max(count, 0)]


def rank(uid: str, rollout: Rollout) -> bytes:
    """Return a device's place in the order of a rollout: lower comes first."""
    return sha256(f"{rollout.metadata.uid}/{uid}".encode()).digest()


def listed_of(count: int) -> int:
    """Return how many devices each of so many waves may list."""
    return max(1, min(MAX_LISTED, MAX_LISTED_IN_ALL // max(count, 1)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Own:
    """A wave's own devices, counted, and those of them that are shown."""

    assigned: int
    running: int
    failed: int
    shown: Sequence[Standing]


def own_of(standings: Iterable[Standing], index: int, listed: int) -> Own:
    """Return the devices of the wave at `index`, with the first `listed` of them, failures first, then by name."""
    own = [standing for standing in standings if standing.wave == index]
    return Own(
        assigned=len(own),
        running=sum(s.state == "Running" for s in own),
        failed=sum(s.state == "Failed" for s in own),
        shown=sorted(own, key=lambda s: (ORDER.index(s.state), s.member.name))[:listed],
    )


def describe(wave: WaveStatus, own: Own, now: datetime) -> WaveStatus:
    """Return the wave's status with its own devices."""
    known = {device.name: device for device in wave.devices}
    return msgspec.structs.replace(
        wave,
        assigned=own.assigned,
        running=own.running,
        failed=own.failed,
        devices=[_listed(standing, known.get(standing.member.name), now) for standing in own.shown],
    )


def _listed(standing: Standing, known: WaveDevice | None, now: datetime) -> WaveDevice:
    assignment, report = standing.member.assignment, standing.member.current_report
    seconds = known.seconds if known else None
    if seconds is None and standing.state == "Running" and assignment is not None:
        seconds = round((now - assignment.assigned_at).total_seconds(), 3)
    return WaveDevice(
        name=standing.member.name,
        variant=assignment.workload.variant if assignment else "",
        phase="Failed" if standing.state == "Failed" else standing.phase,
        message=standing.message,
        measurement=report.measurement if report else None,
        seconds=seconds,
    )


def _fell_back(report: WorkloadStatus) -> bool:
    return report.phase == "Running" and _serves_another(report)


def _serves_another(report: WorkloadStatus) -> bool:
    """What serves is another rollout than the one it was told, be it one of the same name of an earlier deployment."""
    running = report.running
    if running is None:
        return False
    return running.rollout != report.rollout or not may_be(running.deployment_uid, report.deployment_uid)


def _deadline(assignment: Assignment, report: WorkloadStatus | None, timeout: timedelta, now: datetime) -> datetime:
    """Time outside of the windows does not count, nor what it says it had to wait; the two overlap."""
    start, told = assignment.assigned_at, assignment.workload.windows
    shadow = assignment.workload.shadow
    timeout += timedelta(seconds=0 if shadow is None else shadow.seconds)
    waited = start + timeout + _waited(report, assignment, now)
    if told is None:
        return waited
    return max(windows.deadline(told.switch_over or told.download, start, timeout), waited)


def _stays_in_shadow(report: WorkloadStatus, assignment: Assignment) -> bool:
    """It was told to wait for requests without end."""
    shadow = assignment.workload.shadow
    return report.phase == "Shadowing" and shadow is not None and shadow.missing == "wait"


def _waited(report: WorkloadStatus | None, assignment: Assignment, now: datetime) -> timedelta:
    """Time in which a policy held the device up: never more than has passed, whatever it says."""
    said = report.waited_seconds if report is not None else 0.0
    passed = max((now - assignment.assigned_at).total_seconds(), 0.0)
    return timedelta(seconds=min(said, passed) if math.isfinite(said) and said > 0 else 0.0)


def _has_run(member: Member, *, measured: bool) -> bool:
    """It serves and is measured; or it was and is restarting, with nothing else serving in its place."""
    report = member.current_report
    if report is None:
        return False
    if member.serves_assigned:
        return report.measurement is not None or not measured
    tried = report.phase in _TRIED
    return report.served and report.measurement is not None and not _serves_another(report) and not tried


def _late(member: Member, report: WorkloadStatus | None, timeout: timedelta) -> str:
    within = f"within {timeout.total_seconds():g} s"
    if member.serves_assigned:
        return f"it runs, but reported no measurement {within}"
    if not member.online:
        return f"it was not Running {within}, it is offline"
    return f"it was not Running {within}, it is {report.phase if report else 'silent about this rollout'}"
