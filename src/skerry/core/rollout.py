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

Phases and what leads from one to the next are the tables `_STEPS` and `_EVENTS`; the phases of waves are in
`core.progress`. What is asked of the devices is `core.fleet`: `decide` is told who answers.

Lives here: the phases of a rollout. Must not live here: its waves (`core.progress`), the way back (`core.rollback`),
variants (`core.placement`), verdicts (`core.gates`), the reading of single devices (`core.waves`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec

from skerry.api.kinds.rollout import RolloutStatus
from skerry.core import pace, plain, progress, rollback, steps, windows
from skerry.core.fleet import Fleet
from skerry.core.progress import Event, Outlook
from skerry.core.steps import ENDED, Action, Assign, Phase, SetStatus, Step, View
from skerry.core.waves import MAX_LISTED, Member


def step(view: View, now: datetime) -> Step:
    """Return what to do next. Raises InvalidError when the deployment's durations cannot be read."""
    return decide(plain.Plain(view, now))


def decide(fleet: Fleet) -> Step:
    """Return what to do next with a fleet, whoever answers for it. Raises InvalidError as `step`."""
    return _STEPS[fleet.frame.rollout.status.phase](fleet)


def supersede(view: View, by: str, now: datetime) -> Step:
    """Return what ends a rollout in favour of a newer one; one that is rolling back first returns its devices."""
    return displace(plain.Plain(view, now), by)


def displace(fleet: Fleet, by: str) -> Step:
    """Return what `supersede` returns, whoever answers for the fleet."""
    frame, status = fleet.frame, fleet.frame.rollout.status
    if status.phase in ENDED:
        return Step()
    actions = fleet.converge()[0] if status.phase == "RollingBack" else ()
    ended = msgspec.structs.replace(
        status, phase="Superseded", finished_at=fleet.now, message=f"{by} took its place before it was done"
    )
    ended = steps.with_condition(frame, ended, "False", "Superseded", fleet.now)
    return Step(actions=(*actions, SetStatus(status=ended)))


# --- events: what they mean for the rollout ------------------------------------------------------------------------


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


# --- phases: what is done in each -----------------------------------------------------------------------------------


def _advance(fleet: Fleet) -> Step:
    frame = fleet.frame
    outlook = progress.walk(fleet)
    found, status = outlook.found, _status(fleet, outlook)
    if found.event == "Failing":  # the returns follow from the written failure
        returns, _ = fleet.converge()
        return Step(actions=(*steps.set_status(frame, status), *returns), wake_at=rollback.deadline_of(frame, status))
    taken = {member.uid for member in found.chosen}
    joined, joins_at = fleet.joins(taken) if found.event != "Complete" else ((), None)
    assigned = _assign(fleet, found.chosen, outlook.index)
    follow: tuple[Action, ...] = (*fleet.withdrawals(), *assigned, *fleet.reschedule(), *joined)
    return Step(actions=(*steps.set_status(frame, status), *follow), wake_at=steps.earliest(found.wake_at, joins_at))


def _assign(fleet: Fleet, chosen: Sequence[Member], index: int) -> list[Assign]:
    wanted = fleet.frame.spec.strategy.windows
    return [Assign(uid=m.uid, wave=index, windows=windows.desired_of(wanted, m.uid)) for m in chosen]


def _keep(fleet: Fleet) -> Step:
    """After success: late devices join as fast as the pace allows, those that no longer match leave."""
    frame = fleet.frame
    last = max(len(frame.rollout.status.waves) - 1, 0)
    status = _counted(fleet, frame.rollout.status)
    if not pace.is_paced(frame.spec.strategy):
        late, wake_at = fleet.late(), None
    else:
        admitted = fleet.admit(progress.EVERYBODY, fleet.free, successes=fleet.serving)
        late, wake_at = admitted.chosen, admitted.wake_at
    follow: tuple[Action, ...] = (*fleet.withdrawals(), *_assign(fleet, late, last), *fleet.reschedule())
    return Step(actions=(*steps.set_status(frame, status), *follow), wake_at=wake_at)


def _nothing(fleet: Fleet) -> Step:  # noqa: ARG001 - the table's shape
    return Step()


_STEPS: Mapping[Phase, Callable[[Fleet], Step]] = {
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


def _status(fleet: Fleet, outlook: Outlook) -> RolloutStatus:
    frame, now, found = fleet.frame, fleet.now, outlook.found
    known, rows = frame.rollout.status, outlook.rows
    started, outcome = rows[0].phase != "Pending", _EVENTS[found.event]
    status = msgspec.structs.replace(
        _counted(fleet, known),
        phase=outcome.phases[1 if started else 0],
        current_wave=outlook.index,
        waves=rows,
        message=found.message,
        started_at=known.started_at or (now if started else None),
        failed_at=now if found.event == "Failing" else None,
        finished_at=now if found.event == "Complete" else None,
    )
    return steps.with_condition(frame, status, outcome.status, found.reason or outcome.reason or found.event, now)


def _counted(fleet: Fleet, status: RolloutStatus) -> RolloutStatus:
    """The status with the selection counted."""
    found = fleet.selection()
    return msgspec.structs.replace(
        status,
        selected=found.selected,
        placed=found.selected - found.unfits,
        unplaced=dict(found.unfit[:MAX_LISTED]),
    )
