"""Progress: how far the waves are, and what stops them. Pure.

Goes from the wave that is under way on as far as waves pass, and says where it ends (`walk`): the statuses of all
waves, the event, whom the wave takes now, and when to look again.

Lives here: one wave's life, from Pending over Progressing and Baking (and back, when a device stops serving) to Passed
or Failed. Must not live here: what an event means for the rollout (`core.rollout`), verdicts (`core.gates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

import msgspec

from skerry.api import amount, duration, selector
from skerry.api.kinds.gates import SuccessGate
from skerry.api.kinds.model_deployment import Wave
from skerry.api.kinds.rollout import GateResult, WaveStatus
from skerry.api.meta import find_condition
from skerry.core import gates, promotion, steps, waves
from skerry.core.fleet import Fleet, Selection, Standings
from skerry.core.waves import Member

EVERYBODY = Wave(percent=100)
"""What takes whoever comes next."""

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
class Found:
    """What became of one wave: its status now, the event, the sentence, whom to take, and when to look again."""

    wave: WaveStatus
    event: Event
    message: str = ""
    reason: str = ""
    chosen: tuple[Member, ...] = ()
    wake_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """Where the waves are: the index of the one under way, all of them, and what became of that one."""

    index: int
    rows: list[WaveStatus]
    found: Found


def walk(fleet: Fleet) -> Outlook:
    """Go through the waves from the current one on, as far as they pass. Raises InvalidError."""
    rows = _rows(fleet)
    index = min(fleet.frame.rollout.status.current_wave, len(rows) - 1)
    reason = promotion.abort_reason(fleet.frame.rollout)
    if reason:
        if rows[index].phase in ("Progressing", "Baking"):
            rows[index] = msgspec.structs.replace(rows[index], phase="Failed", finished_at=fleet.now)
        found = Found(wave=rows[index], event="Failing", message=f"aborted: {reason}")
        return Outlook(index=index, rows=rows, found=found)
    while True:
        found = _look(fleet, rows, index)
        rows[index] = found.wave
        if found.event != "Passed":
            return Outlook(index=index, rows=rows, found=found)
        if index + 1 == len(rows):
            message = f"{steps.devices(fleet.on)} on {fleet.frame.rollout.metadata.name}"
            return Outlook(index=index, rows=rows, found=replace(found, event="Complete", message=message))
        index += 1


def _plan(fleet: Fleet) -> list[Wave]:
    """The waves to go through, as the strategy has them now."""
    return waves.plan_of(fleet.frame.spec.strategy.waves)


def _planned(fleet: Fleet, wave: WaveStatus, index: int) -> Wave:
    """What was planned of a wave; one that is no longer in the plan takes whoever comes next."""
    plan = _plan(fleet)
    known = index < len(plan) and waves.name_of(plan[index], index) == wave.name
    return plan[index] if known else Wave(name=wave.name, percent=100)


def _base(fleet: Fleet) -> int:
    """Devices that a wave's percentage is counted over."""
    return fleet.on + fleet.free


def _rows(fleet: Fleet) -> list[WaveStatus]:
    """The waves as they stand: those that started as they were frozen, the others as they are planned now."""
    frame = fleet.frame
    kept = [wave for wave in frame.rollout.status.waves if wave.phase != "Pending"]
    reached = max((wave.target for wave in kept), default=0)
    ahead: list[WaveStatus] = []
    for index, wave in enumerate(_plan(fleet)):
        if index >= len(kept):
            reached = fleet.reach(wave, reached)
            ahead.append(WaveStatus(name=waves.name_of(wave, index), target=reached))
    standings = fleet.standings(frame.rollout.status.current_wave)
    listed = waves.listed_of(len(kept) + len(ahead))
    rows = [waves.describe(wave, standings.own(i, listed), fleet.now) for i, wave in enumerate(kept)] + ahead
    if not ahead and kept[-1].name != "rest" and kept[-1].target < _base(fleet):
        # Devices joined during the last wave, or the plan was shortened under it: one gated wave more for what is left.
        rows.append(WaveStatus(name="rest", target=_base(fleet)))
    return rows


def _look(fleet: Fleet, rows: Sequence[WaveStatus], index: int) -> Found:
    frame, wave = fleet.frame, rows[index]
    if wave.phase == "Passed":
        return Found(wave=wave, event="Passed")
    if wave.phase == "Failed":
        seen = find_condition(frame.rollout.status.conditions, "Progressing")
        if seen is not None and seen.observed_generation == frame.generation:
            return Found(wave=wave, event="GateFailed", message=frame.rollout.status.message)
        again = "Progressing" if wave.started_at else "Pending"
        wave = msgspec.structs.replace(wave, phase=again, settled_at=None, finished_at=None, gates=[])
    if wave.phase == "Pending":
        obstacle = _obstacle(fleet, rows, wave, index)
        if obstacle is not None:
            return obstacle
        wave = msgspec.structs.replace(wave, phase="Progressing", started_at=fleet.now)
    return _judge(fleet, wave, index, waves.listed_of(len(rows)))


def _obstacle(fleet: Fleet, rows: Sequence[WaveStatus], wave: WaveStatus, index: int) -> Found | None:
    """Why this wave cannot start, or None."""
    frame, more = fleet.frame, wave.target > fleet.on
    if frame.spec.paused and more:
        return _stand_still(fleet, index, Found(wave=wave, event="Paused", message=f"paused before wave {wave.name}"))
    passed = promotion.awaited(frame.rollout, frame.spec.strategy, _plan(fleet), rows, index) if more else ""
    if passed:
        message = f"wave {passed} passed; wave {wave.name} waits for its approval"
        return _stand_still(fleet, index, Found(wave=wave, event="AwaitingApproval", message=message))
    first = index == 0 or frame.hold is not None or _planned(fleet, wave, index).selector is not None
    return _lack(fleet, wave, index) if first else None


def _stand_still(fleet: Fleet, index: int, found: Found) -> Found:
    """While people let it wait, the devices on it are judged all the same: what worsens meanwhile fails it."""
    standings = fleet.standings(index)
    if not standings.total:
        return found
    results = _verdicts(fleet, standings, expected=standings.total)
    if not gates.failed(results):
        return replace(found, wake_at=steps.earliest(found.wake_at, standings.deadline))
    return _fail(fleet, msgspec.structs.replace(found.wave, gates=results), results)


def _lack(fleet: Fleet, wave: WaveStatus, index: int) -> Found | None:
    """What is missing to go on at all: a model version, devices, or devices that something fits; or None."""
    frame = fleet.frame
    if frame.hold is not None:
        return Found(wave=wave, event="Held", reason=frame.hold.reason, message=frame.hold.message)
    selection = fleet.selection()
    if not selection.selected:
        wanted = selector.render(selector.requirements(frame.spec.device_selector)) or "the namespace: it has none"
        return Found(wave=wave, event="NoDevices", message=f"no device matches {wanted}")
    if not _base(fleet):
        return Found(wave=wave, event="NoVariantFits", message=_nothing_fits(selection))
    planned = _planned(fleet, wave, index)
    if planned.selector is not None and not fleet.matches(planned):
        wanted = selector.render(selector.requirements(planned.selector))
        return Found(wave=wave, event="NoDevices", message=f"wave {wave.name}: no device matches {wanted}")
    return None


def _judge(fleet: Fleet, wave: WaveStatus, index: int, listed: int) -> Found:
    """Judge a wave that has started: fail it, fill it, wait for it, let it bake, or pass it."""
    now, strategy = fleet.now, fleet.frame.spec.strategy
    lack = _lack(fleet, wave, index)
    goal = wave.target if lack else min(wave.target, fleet.on + fleet.takes(_planned(fleet, wave, index)))
    if lack is not None and not fleet.on:
        return lack
    standings = fleet.standings(index)
    expected, missing = max(goal, fleet.on), goal - fleet.on
    settled = missing <= 0 and _is_settled(standings, strategy.success_threshold, expected)
    bake = _bake_time(fleet, wave, index)
    baked = now - (wave.settled_at or now) >= bake
    last = (wave.settled_at or now) + bake + duration.parse(strategy.device_timeout)
    results = _verdicts(fleet, standings, expected=expected, settled=settled, baked=baked, overdue=now >= last)
    wave = waves.describe(msgspec.structs.replace(wave, gates=results), standings.own(index, listed), now)
    if gates.failed(results):
        return _fail(fleet, wave, results)
    progress = f"wave {wave.name}: {standings.running} of {steps.devices(expected)} running"
    if not settled:
        wave = msgspec.structs.replace(wave, phase="Progressing", settled_at=None)
        if lack is not None and missing > 0:
            return replace(lack, wave=wave, wake_at=standings.deadline)
        return _fill(fleet, wave, standings, index=index, missing=missing, progress=progress)
    waits = gates.pending(results)
    if baked and waits:
        waiting = msgspec.structs.replace(wave, phase="Baking", settled_at=wave.settled_at or now)
        message = f"{progress}, waiting at gate {steps.sentences(waits)}"
        return Found(wave=waiting, event="Baking", message=message, wake_at=last if now < last else None)
    return _bake(wave, bake, now, progress)


def _fill(fleet: Fleet, wave: WaveStatus, standings: Standings, *, index: int, missing: int, progress: str) -> Found:
    """Take as many of those who come next as the pace allows now."""
    successes = standings.running_in(index)
    admitted = fleet.admit(_planned(fleet, wave, index), max(missing, 0), successes=successes)
    until = fleet.now + duration.parse(fleet.frame.spec.strategy.device_timeout) if admitted.chosen else None
    busy = bool(admitted.chosen) or standings.waiting > 0
    return Found(
        wave=wave,
        event="RollingOut" if busy else "Slowed",
        reason="" if busy else admitted.reason,
        message=f"{progress}; {admitted.message}" if admitted.message else progress,
        chosen=admitted.chosen,
        wake_at=steps.earliest(standings.deadline, until, admitted.wake_at),
    )


def _is_settled(standings: Standings, threshold: str | None, expected: int) -> bool:
    """Whether nobody need be waited for any more: all run or have failed, or enough of them run."""
    if not standings.waiting:
        return True
    return threshold is not None and standings.running >= _needed(threshold, expected)


def _needed(threshold: str, expected: int) -> int:
    return max(min(amount.round_up(threshold, expected), expected), 1)


def _verdicts(
    fleet: Fleet,
    standings: Standings,
    *,
    expected: int,
    settled: bool = False,
    baked: bool = False,
    overdue: bool = False,
) -> list[GateResult]:
    """The verdict of each gate, and that of the failure threshold.

    When enough devices run, those still on their way are left out; they are judged with the next wave.
    """
    strategy, wanted = fleet.frame.spec.strategy, fleet.frame.spec.strategy.gates
    counted = standings.total - (standings.waiting if settled else 0)
    if strategy.success_threshold is not None and wanted.success_ratio == SuccessGate() and expected:
        share = _needed(strategy.success_threshold, expected) / expected
        wanted = msgspec.structs.replace(wanted, success_ratio=SuccessGate(min=share))
    results = gates.judge(
        wanted,
        standings.said(settled=settled),
        expected=expected if counted == standings.total else counted,
        final=settled,
        baked=baked,
        overdue=overdue,
    )
    if strategy.failure_threshold is not None:
        results.append(_failures(strategy.failure_threshold, standings.failed, expected, final=settled))
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


def _bake_time(fleet: Fleet, wave: WaveStatus, index: int) -> timedelta:
    """The wave for the rest does not bake when there is no rest."""
    implied = index >= len(fleet.frame.spec.strategy.waves)
    return timedelta(0) if implied and not wave.assigned else duration.parse(fleet.frame.spec.strategy.bake_time)


def _bake(wave: WaveStatus, bake: timedelta, now: datetime, progress: str) -> Found:
    settled_at = wave.settled_at or now
    if now - settled_at >= bake:
        passed = msgspec.structs.replace(wave, phase="Passed", settled_at=settled_at, finished_at=now)
        return Found(wave=passed, event="Passed", message=progress)
    pending = [msgspec.structs.replace(result, verdict="Pending") for result in wave.gates]
    baking = msgspec.structs.replace(wave, phase="Baking", settled_at=settled_at, gates=pending)
    end = settled_at + bake
    return Found(wave=baking, event="Baking", message=f"{progress}, baking for {duration.render(bake)}", wake_at=end)


def _fail(fleet: Fleet, wave: WaveStatus, results: Sequence[GateResult]) -> Found:
    failed = msgspec.structs.replace(wave, phase="Failed", finished_at=fleet.now)
    paused = fleet.frame.spec.strategy.on_failure == "pause"
    ending = "; paused: change the deployment to go on, or undo the rollout" if paused else ""
    message = f"wave {wave.name} failed at gate {steps.verdicts(results)}{ending}"
    return Found(wave=failed, event="GateFailed" if paused else "Failing", message=message)


# --- sentences -----------------------------------------------------------------------------------------------------


def _nothing_fits(found: Selection) -> str:
    parts = [f"{found.unfits} do not fit ({found.unfit[0][0]}: {found.unfit[0][1]})"] if found.unfit else []
    parts += [f"{found.cordoned} are cordoned"] if found.cordoned else []
    return f"none of the {steps.devices(found.selected)} selected can take it: {', '.join(parts)}"
