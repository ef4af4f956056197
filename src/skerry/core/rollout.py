"""Rollouts: what to do next, from what the store says now. `step(view, now)` returns actions and never does anything.

The rules:

- All state is in the store: who is on which rollout is in the devices' records, how they fare is in their reports, and
  the plan's progress is in `Rollout.status`. Stepping again after a crash at any point converges to the same end.
- Actions are carried out in their order. A decision is written (SetStatus) before anything follows from it: a wave's
  size before its first device, a failure before the first return.
- A wave takes devices until its frozen target is reached, no faster than the pace allows (`core.pace`); the next
  starts when all gates passed after the bake time, and when it was approved if that was asked for.
- Waves, gates, times, `paused` and the selector are read from the deployment as it is now; what runs on the devices is
  the rollout's frozen template.
- A device that runs nothing gets the previous rollout, the last that succeeded, until its wave comes.

Phases and what leads from one to the next are the tables `_STEPS` and `_EVENTS`; wave phases go Pending, Progressing,
Baking (back to Progressing when a device stops serving), then Passed or Failed.

Lives here: the way forward. Must not live here: the way back (`core.rollback`), variants (`core.placement`), verdicts
(`core.gates`), the reading of single devices (`core.waves`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

import msgspec

from skerry.api import amount, duration, selector
from skerry.api.kinds.gates import SuccessGate
from skerry.api.kinds.model_deployment import Wave
from skerry.api.kinds.rollout import GateResult, RolloutStatus, WaveStatus
from skerry.api.meta import find_condition
from skerry.core import gates, pace, promotion, rollback, steps, waves, windows
from skerry.core.pace import Admitted
from skerry.core.steps import ENDED, Assign, Phase, SetStatus, Step, View
from skerry.core.waves import Member, Standing


def step(view: View, now: datetime) -> Step:
    """Return what to do next. Raises InvalidError when the deployment's durations cannot be read."""
    return _STEPS[view.rollout.status.phase](view, now)


def supersede(view: View, by: str, now: datetime) -> Step:
    """Return what ends a rollout in favour of a newer one; one that is rolling back first returns its devices."""
    status = view.rollout.status
    if status.phase in ENDED:
        return Step()
    actions = rollback.converge(view, now)[0] if status.phase == "RollingBack" else ()
    ended = msgspec.structs.replace(
        status, phase="Superseded", finished_at=now, message=f"{by} took its place before it was done"
    )
    ended = steps.with_condition(view, ended, "False", "Superseded", now)
    return Step(actions=(*actions, SetStatus(status=ended)))


# --- events: what a look at the fleet may find ---------------------------------------------------------------------

Event: TypeAlias = Literal[
    "NoDevices",
    "NoVariantFits",
    "Held",
    "Paused",
    "AwaitingApproval",
    "RollingOut",
    "Slowed",
    "Baking",
    "Passed",
    "GateFailed",
    "Failing",
    "Complete",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    """The rollout's next phase (the first of the pair before any wave has started) and its Progressing condition."""

    phases: tuple[Phase, Phase]
    status: Literal["True", "False", "Unknown"]
    reason: str = ""


_EVENTS: Mapping[Event, _Outcome] = {
    "NoDevices": _Outcome(phases=("Pending", "Progressing"), status="False"),
    "NoVariantFits": _Outcome(phases=("Pending", "Progressing"), status="False"),
    "Held": _Outcome(phases=("Pending", "Progressing"), status="False"),
    "Paused": _Outcome(phases=("Paused", "Paused"), status="Unknown"),
    "AwaitingApproval": _Outcome(phases=("Paused", "Paused"), status="Unknown"),
    "RollingOut": _Outcome(phases=("Progressing", "Progressing"), status="True"),
    "Slowed": _Outcome(phases=("Progressing", "Progressing"), status="True"),
    "Baking": _Outcome(phases=("Progressing", "Progressing"), status="True"),
    "Passed": _Outcome(phases=("Progressing", "Progressing"), status="True", reason="RollingOut"),
    "GateFailed": _Outcome(phases=("Paused", "Paused"), status="False"),
    "Failing": _Outcome(phases=("RollingBack", "RollingBack"), status="False", reason="RollingBack"),
    "Complete": _Outcome(phases=("Succeeded", "Succeeded"), status="True"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What became of one wave: its status now, the event, the sentence, whom to take, and when to look again."""

    wave: WaveStatus
    event: Event
    message: str = ""
    reason: str = ""
    chosen: tuple[Member, ...] = ()
    wake_at: datetime | None = None


# --- going forward -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fleet:
    """The members, sorted into those on the rollout and those a wave may still take."""

    view: View
    now: datetime
    on: Sequence[Member]
    free: Sequence[Member]

    @property
    def base(self) -> int:
        """Devices that a wave's percentage is counted over."""
        return len(self.on) + len(self.free)

    @property
    def plan(self) -> list[Wave]:
        """The waves to go through, as the strategy has them now."""
        return waves.plan_of(self.view.spec.strategy.waves)

    def planned(self, wave: WaveStatus, index: int) -> Wave:
        """What was planned of a wave; one that is no longer in the plan takes whoever comes next."""
        plan = self.plan
        known = index < len(plan) and waves.name_of(plan[index], index) == wave.name
        return plan[index] if known else Wave(name=wave.name, percent=100)

    def standings(self, index: int) -> list[Standing]:
        """How each device on the rollout stands while wave `index` is under way.

        Where a wave passes without its last devices (successThreshold), having been in it proves nothing.
        """
        strategy = self.view.spec.strategy
        index = 0 if strategy.success_threshold is not None else index
        timeout, measured = duration.parse(strategy.device_timeout), gates.needs_measurement(strategy.gates)
        return [waves.stand(m, index=index, timeout=timeout, now=self.now, measured=measured) for m in self.on]


def _fleet_of(view: View, now: datetime) -> _Fleet:
    on = [member for member in view.members if member.selected and waves.belongs(member, view.rollout)]
    free = [member for member in view.members if waves.eligible(member, view.rollout)]
    return _Fleet(view=view, now=now, on=on, free=free)


def _advance(view: View, now: datetime) -> Step:
    fleet = _fleet_of(view, now)
    index, rows, found = _aborted(fleet) or _walk(fleet)
    status = _status(fleet, index, rows, found)
    if found.event == "Failing":  # the returns follow from the written failure
        follow, _ = rollback.converge(view, now)
        return Step(actions=(*steps.set_status(view, status), *follow), wake_at=rollback.deadline_of(view, status))
    taken = {member.uid for member in found.chosen}
    later = [] if found.event == "Complete" else [member for member in fleet.free if member.uid not in taken]
    joined, joins_at = rollback.join_previous(view, later, now)
    follow = (*rollback.withdrawals(view), *_assign(view, found.chosen, index), *_reschedule(fleet), *joined)
    return Step(actions=(*steps.set_status(view, status), *follow), wake_at=steps.earliest(found.wake_at, joins_at))


def _aborted(fleet: _Fleet) -> tuple[int, list[WaveStatus], _Found] | None:
    """Where it ends when somebody aborted it: the wave that is under way has failed; or None."""
    reason = promotion.abort_reason(fleet.view.rollout)
    if not reason:
        return None
    rows = _rows(fleet)
    index = min(fleet.view.rollout.status.current_wave, len(rows) - 1)
    if rows[index].phase in ("Progressing", "Baking"):
        rows[index] = msgspec.structs.replace(rows[index], phase="Failed", finished_at=fleet.now)
    return index, rows, _Found(wave=rows[index], event="Failing", message=f"aborted: {reason}")


def _assign(view: View, chosen: Sequence[Member], index: int) -> list[Assign]:
    wanted = view.spec.strategy.windows
    return [Assign(uid=m.uid, wave=index, windows=windows.desired_of(wanted, m.uid)) for m in chosen]


def _reschedule(fleet: _Fleet) -> list[Assign]:
    """Devices on their way to it are told of windows that were changed since; assigning again does no more."""
    wanted, told = fleet.view.spec.strategy.windows, []
    for member in fleet.on:
        held = member.assignment
        if held is None or (held.workload.windows is None and not wanted.download and not wanted.switch_over):
            continue
        report = member.current_report
        if report is not None and report.phase in ("Running", "RollingBack", "Failed"):
            continue  # it arrived, or failed: another wish would make it try again
        now = windows.desired_of(wanted, member.uid)
        known = held.workload.windows
        if now != (None if known is None else msgspec.structs.replace(known, issued_at=None)):
            told.append(Assign(uid=member.uid, wave=held.wave, windows=now))
    return told


def _walk(fleet: _Fleet) -> tuple[int, list[WaveStatus], _Found]:
    """Go through the waves from the current one on, as far as they pass: where it ends, all waves, what was found."""
    rows = _rows(fleet)
    index = min(fleet.view.rollout.status.current_wave, len(rows) - 1)
    while True:
        found = _look(fleet, rows, index)
        rows[index] = found.wave
        if found.event != "Passed":
            return index, rows, found
        if index + 1 == len(rows):
            message = f"{steps.devices(len(fleet.on))} on {fleet.view.rollout.metadata.name}"
            return index, rows, replace(found, event="Complete", message=message)
        index += 1


def _rows(fleet: _Fleet) -> list[WaveStatus]:
    """The waves as they stand: those that started as they were frozen, the others as they are planned now."""
    view = fleet.view
    kept = [wave for wave in view.rollout.status.waves if wave.phase != "Pending"]
    reached = max((wave.target for wave in kept), default=0)
    ahead: list[WaveStatus] = []
    for index, wave in enumerate(fleet.plan):
        if index >= len(kept):
            reached = waves.reach_of(wave, fleet.on, fleet.free, reached)
            ahead.append(WaveStatus(name=waves.name_of(wave, index), target=reached))
    standings = fleet.standings(view.rollout.status.current_wave)
    listed = waves.listed_of(len(kept) + len(ahead))
    rows = [waves.describe(wave, index, standings, fleet.now, listed) for index, wave in enumerate(kept)] + ahead
    if not ahead and kept[-1].name != "rest" and kept[-1].target < fleet.base:
        # Devices joined during the last wave, or the plan was shortened under it: one gated wave more for what is left.
        rows.append(WaveStatus(name="rest", target=fleet.base))
    return rows


def _look(fleet: _Fleet, rows: Sequence[WaveStatus], index: int) -> _Found:
    view, wave = fleet.view, rows[index]
    if wave.phase == "Passed":
        return _Found(wave=wave, event="Passed")
    if wave.phase == "Failed":
        seen = find_condition(view.rollout.status.conditions, "Progressing")
        if seen is not None and seen.observed_generation == view.generation:
            return _Found(wave=wave, event="GateFailed", message=view.rollout.status.message)
        again = "Progressing" if wave.started_at else "Pending"
        wave = msgspec.structs.replace(wave, phase=again, settled_at=None, finished_at=None, gates=[])
    if wave.phase == "Pending":
        obstacle = _obstacle(fleet, rows, wave, index)
        if obstacle is not None:
            return obstacle
        wave = msgspec.structs.replace(wave, phase="Progressing", started_at=fleet.now)
    return _judge(fleet, wave, index, waves.listed_of(len(rows)))


def _obstacle(fleet: _Fleet, rows: Sequence[WaveStatus], wave: WaveStatus, index: int) -> _Found | None:
    """Why this wave cannot start, or None."""
    view, more = fleet.view, wave.target > len(fleet.on)
    if view.spec.paused and more:
        return _stand_still(fleet, index, _Found(wave=wave, event="Paused", message=f"paused before wave {wave.name}"))
    passed = promotion.awaited(view.rollout, view.spec.strategy, fleet.plan, rows, index) if more else ""
    if passed:
        message = f"wave {passed} passed; wave {wave.name} waits for its approval"
        return _stand_still(fleet, index, _Found(wave=wave, event="AwaitingApproval", message=message))
    first = index == 0 or view.hold is not None or fleet.planned(wave, index).selector is not None
    return _lack(fleet, wave, index) if first else None


def _stand_still(fleet: _Fleet, index: int, found: _Found) -> _Found:
    """While people let it wait, the devices on it are judged all the same: what worsens meanwhile fails it."""
    standings = fleet.standings(index)
    if not standings:
        return found
    results = _verdicts(fleet, standings, expected=len(standings))
    if not gates.failed(results):
        return found
    return _fail(fleet, msgspec.structs.replace(found.wave, gates=results), results)


def _lack(fleet: _Fleet, wave: WaveStatus, index: int) -> _Found | None:
    """What is missing to go on at all: a model version, devices, or devices that something fits; or None."""
    view = fleet.view
    selected = [member for member in view.members if member.selected]
    if view.hold is not None:
        return _Found(wave=wave, event="Held", reason=view.hold.reason, message=view.hold.message)
    if not selected:
        wanted = selector.render(selector.requirements(view.spec.device_selector)) or "the namespace: it has none"
        return _Found(wave=wave, event="NoDevices", message=f"no device matches {wanted}")
    if not fleet.base:
        return _Found(wave=wave, event="NoVariantFits", message=_nothing_fits(selected))
    planned = fleet.planned(wave, index)
    if planned.selector is not None and not waves.matching(planned, [*fleet.on, *fleet.free]):
        wanted = selector.render(selector.requirements(planned.selector))
        return _Found(wave=wave, event="NoDevices", message=f"wave {wave.name}: no device matches {wanted}")
    return None


def _judge(fleet: _Fleet, wave: WaveStatus, index: int, listed: int) -> _Found:
    """Judge a wave that has started: fail it, fill it, wait for it, let it bake, or pass it."""
    now, strategy = fleet.now, fleet.view.spec.strategy
    lack = _lack(fleet, wave, index)
    takes = len(waves.matching(fleet.planned(wave, index), fleet.free))
    goal = wave.target if lack else min(wave.target, len(fleet.on) + takes)
    if lack is not None and not fleet.on:
        return lack
    standings = fleet.standings(index)
    expected, missing = max(goal, len(fleet.on)), goal - len(fleet.on)
    settled = missing <= 0 and _is_settled(standings, strategy.success_threshold, expected)
    bake = _bake_time(fleet, wave, index)
    baked = now - (wave.settled_at or now) >= bake
    last = (wave.settled_at or now) + bake + duration.parse(strategy.device_timeout)
    results = _verdicts(fleet, standings, expected=expected, settled=settled, baked=baked, overdue=now >= last)
    wave = waves.describe(msgspec.structs.replace(wave, gates=results), index, standings, now, listed)
    if gates.failed(results):
        return _fail(fleet, wave, results)
    running = sum(standing.state == "Running" for standing in standings)
    progress = f"wave {wave.name}: {running} of {steps.devices(expected)} running"
    if not settled:
        wave = msgspec.structs.replace(wave, phase="Progressing", settled_at=None)
        if lack is not None and missing > 0:
            return replace(lack, wave=wave, wake_at=_earliest(standings))
        return _fill(fleet, wave, standings, index=index, missing=missing, progress=progress)
    waits = gates.pending(results)
    if baked and waits:
        waiting = msgspec.structs.replace(wave, phase="Baking", settled_at=wave.settled_at or now)
        message = f"{progress}, waiting at gate {steps.sentences(waits)}"
        return _Found(wave=waiting, event="Baking", message=message, wake_at=last if now < last else None)
    return _bake(wave, bake, now, progress)


def _fill(
    fleet: _Fleet, wave: WaveStatus, standings: Sequence[Standing], *, index: int, missing: int, progress: str
) -> _Found:
    """Take as many of those who come next as the pace allows now."""
    free = waves.matching(fleet.planned(wave, index), fleet.free)
    successes = sum(standing.wave == index and standing.state == "Running" for standing in standings)
    admitted = _admit(fleet, free, missing, successes=successes)
    until = fleet.now + duration.parse(fleet.view.spec.strategy.device_timeout) if admitted.chosen else None
    busy = bool(admitted.chosen) or any(standing.state == "Waiting" for standing in standings)
    return _Found(
        wave=wave,
        event="RollingOut" if busy else "Slowed",
        reason="" if busy else admitted.reason,
        message=f"{progress}; {admitted.message}" if admitted.message else progress,
        chosen=admitted.chosen,
        wake_at=_earliest(standings, until, admitted.wake_at),
    )


def _admit(fleet: _Fleet, free: Sequence[Member], missing: int, *, successes: int) -> Admitted:
    view, strategy = fleet.view, fleet.view.spec.strategy
    if not pace.is_paced(strategy):
        return Admitted(chosen=tuple(waves.take(free, missing, view.rollout)))
    return pace.admit(
        waves.take(free, len(free), view.rollout),
        max(missing, 0),
        strategy=strategy,
        selected=[member for member in view.members if member.selected],
        on=fleet.on,
        successes=successes,
        now=fleet.now,
    )


def _is_settled(standings: Sequence[Standing], threshold: str | None, expected: int) -> bool:
    """Whether nobody need be waited for any more: all run or have failed, or enough of them run."""
    if all(standing.state != "Waiting" for standing in standings):
        return True
    running = sum(standing.state == "Running" for standing in standings)
    return threshold is not None and running >= _needed(threshold, expected)


def _needed(threshold: str, expected: int) -> int:
    return max(min(amount.round_up(threshold, expected), expected), 1)


def _verdicts(
    fleet: _Fleet,
    standings: Sequence[Standing],
    *,
    expected: int,
    settled: bool = False,
    baked: bool = False,
    overdue: bool = False,
) -> list[GateResult]:
    """The verdict of each gate, and that of the failure threshold.

    When enough devices run, those still on their way are left out; they are judged with the next wave.
    """
    strategy, wanted = fleet.view.spec.strategy, fleet.view.spec.strategy.gates
    counted = [s for s in standings if not settled or s.state != "Waiting"]
    if strategy.success_threshold is not None and wanted.success_ratio == SuccessGate() and expected:
        share = _needed(strategy.success_threshold, expected) / expected
        wanted = msgspec.structs.replace(wanted, success_ratio=SuccessGate(min=share))
    results = gates.judge(
        wanted,
        [standing.sample for standing in counted],
        expected=expected if len(counted) == len(standings) else len(counted),
        final=settled,
        baked=baked,
        overdue=overdue,
    )
    if strategy.failure_threshold is not None:
        failures = sum(standing.state == "Failed" for standing in standings)
        results.append(_failures(strategy.failure_threshold, failures, expected, final=settled))
    return results


def _failures(threshold: str, failures: int, expected: int, *, final: bool) -> GateResult:
    """Whether more devices have failed than may."""
    exceeded, share = amount.exceeds(failures, threshold, expected), threshold.endswith("%")
    return GateResult(
        gate="failureThreshold",
        verdict="Failed" if exceeded else "Passed" if final else "Pending",
        threshold=int(threshold[:-1]) / 100 if share else int(threshold),
        measured=(failures / expected if expected else 0.0) if share else failures,
        devices=expected,
        message=f"{failures} of {steps.devices(expected)} failed, {'more than' if exceeded else 'at most'} {threshold}"
        f"{'' if exceeded else ' may'}",
    )


def _bake_time(fleet: _Fleet, wave: WaveStatus, index: int) -> timedelta:
    """The wave for the rest does not bake when there is no rest."""
    implied = index >= len(fleet.view.spec.strategy.waves)
    return timedelta(0) if implied and not wave.assigned else duration.parse(fleet.view.spec.strategy.bake_time)


def _bake(wave: WaveStatus, bake: timedelta, now: datetime, progress: str) -> _Found:
    settled_at = wave.settled_at or now
    if now - settled_at >= bake:
        passed = msgspec.structs.replace(wave, phase="Passed", settled_at=settled_at, finished_at=now)
        return _Found(wave=passed, event="Passed", message=progress)
    pending = [msgspec.structs.replace(result, verdict="Pending") for result in wave.gates]
    baking = msgspec.structs.replace(wave, phase="Baking", settled_at=settled_at, gates=pending)
    end = settled_at + bake
    return _Found(wave=baking, event="Baking", message=f"{progress}, baking for {duration.render(bake)}", wake_at=end)


def _fail(fleet: _Fleet, wave: WaveStatus, results: Sequence[GateResult]) -> _Found:
    failed = msgspec.structs.replace(wave, phase="Failed", finished_at=fleet.now)
    paused = fleet.view.spec.strategy.on_failure == "pause"
    ending = "; paused: change the deployment to go on, or undo the rollout" if paused else ""
    message = f"wave {wave.name} failed at gate {steps.verdicts(results)}{ending}"
    return _Found(wave=failed, event="GateFailed" if paused else "Failing", message=message)


def _keep(view: View, now: datetime) -> Step:
    """After success: late devices join as fast as the pace allows, those that no longer match leave."""
    fleet = _fleet_of(view, now)
    last = max(len(view.rollout.status.waves) - 1, 0)
    status = msgspec.structs.replace(view.rollout.status, **steps.counts(view))
    if not pace.is_paced(view.spec.strategy):
        late, wake_at = tuple(fleet.free), None
    else:
        serving = sum(member.serves_assigned for member in fleet.on)
        admitted = _admit(fleet, fleet.free, len(fleet.free), successes=serving)
        late, wake_at = admitted.chosen, admitted.wake_at
    follow = (*rollback.withdrawals(view), *_assign(view, late, last), *_reschedule(fleet))
    return Step(actions=(*steps.set_status(view, status), *follow), wake_at=wake_at)


def _nothing(view: View, now: datetime) -> Step:  # noqa: ARG001 - the table's shape
    return Step()


_STEPS: Mapping[Phase, Callable[[View, datetime], Step]] = {
    "Pending": _advance,
    "Progressing": _advance,
    "Paused": _advance,
    "RollingBack": rollback.roll_back,
    "RolledBack": rollback.rest,
    "Succeeded": _keep,
    "Failed": _nothing,
    "Superseded": _nothing,
}


# --- statuses ------------------------------------------------------------------------------------------------------


def _status(fleet: _Fleet, index: int, rows: list[WaveStatus], found: _Found) -> RolloutStatus:
    view, now = fleet.view, fleet.now
    started, outcome = rows[0].phase != "Pending", _EVENTS[found.event]
    status = msgspec.structs.replace(
        view.rollout.status,
        phase=outcome.phases[1 if started else 0],
        current_wave=index,
        waves=rows,
        message=found.message,
        started_at=view.rollout.status.started_at or (now if started else None),
        failed_at=now if found.event == "Failing" else None,
        finished_at=now if found.event == "Complete" else None,
        **steps.counts(view),
    )
    return steps.with_condition(view, status, outcome.status, found.reason or outcome.reason or found.event, now)


# --- sentences -----------------------------------------------------------------------------------------------------


def _nothing_fits(selected: Sequence[Member]) -> str:
    unfit = sorted((m.name, m.unfit) for m in selected if m.unfit)
    cordoned = sum(m.cordoned and not m.unfit for m in selected)
    parts = [f"{len(unfit)} do not fit ({unfit[0][0]}: {unfit[0][1]})"] if unfit else []
    parts += [f"{cordoned} are cordoned"] if cordoned else []
    return f"none of the {steps.devices(len(selected))} selected can take it: {', '.join(parts)}"


def _earliest(standings: Sequence[Standing], *others: datetime | None) -> datetime | None:
    known = [s.deadline for s in standings if s.state == "Waiting" and s.deadline] + [o for o in others if o]
    return min(known, default=None)
