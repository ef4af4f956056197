"""Rolling back: bring every device to the last rollout that succeeded. Pure.

A rollout that failed, and one that has rolled back, converge on the previous rollout: what a wave moved returns, what a
superseded rollout left behind follows, late devices join. Where there is no previous rollout, or none of its variants
fits, what failed is withdrawn: it does not keep running; also from a device on which the previous one no longer works
and that fell back to what failed. What this rollout has not touched is not taken away. A
cordoned device is brought back too, for returning is no new placement. Done when every device that is online says it is
back, or one device timeout after the failure; the others are named.

Lives here: the way back. Must not live here: the decision to go back (`core.rollout`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

from skerry.api import duration
from skerry.api.kinds.rollout import RolloutStatus
from skerry.core import steps, waves, windows
from skerry.core.fleet import Fleet
from skerry.core.steps import Frame, Return, Step, Withdraw
from skerry.core.waves import Member


def roll_back(fleet: Fleet) -> Step:
    """Return every device, and be done when all that are online say they are back, or their time is over."""
    frame, now = fleet.frame, fleet.now
    follow, _ = fleet.converge()
    deadline = deadline_of(frame, frame.rollout.status)
    found = fleet.homecoming()
    over = deadline is None or now >= deadline
    if follow or fleet.on or (found.online and not over):
        return Step(actions=tuple(follow), wake_at=None if over else deadline)
    place = f"{frame.previous} is back" if frame.previous else "withdrawn, there is no previous rollout to return to"
    where = f" on {steps.devices(found.moved - found.away)}" if frame.previous else ""
    rest = f"; not yet confirmed by {steps.names(found.named, found.away)}" if found.away else ""
    status = msgspec.structs.replace(
        frame.rollout.status,
        phase="RolledBack",
        finished_at=now,
        message=f"{frame.rollout.status.message}; {place}{where}{rest}",
    )
    return Step(actions=steps.set_status(frame, steps.with_condition(frame, status, "False", "RolledBack", now)))


def rest(fleet: Fleet) -> Step:
    """Keep everybody on the previous rollout, late devices too."""
    actions, wake_at = fleet.converge()
    return Step(actions=tuple(actions), wake_at=wake_at)


def deadline_of(frame: Frame, status: RolloutStatus) -> datetime | None:
    """How long the returning devices are waited for: one device timeout from the failure on."""
    failed_at = status.failed_at or next((w.finished_at for w in status.waves if w.phase == "Failed"), None)
    return failed_at + duration.parse(frame.spec.strategy.device_timeout) if failed_at else None


# --- what becomes of one device -------------------------------------------------------------------------------------

Due: TypeAlias = Return | Withdraw | Literal["join"] | None


def due(member: Member, frame: Frame) -> Due:
    """Return what brings a device to the previous rollout; "join" for one that runs nothing and may join it.

    What failed is taken off where there is no previous rollout, or where nothing of it fits. Who is not selected is a
    stray, if anything.
    """
    if not member.selected:
        return None
    if frame.previous and member.rollout == frame.previous and not _stranger(member, frame):
        return Withdraw(uid=member.uid) if _clings(member, frame) else None
    moved = waves.belongs(member, frame.rollout)
    if not moved and not member.cordoned and _is_idle(member, frame):
        return "join" if joins(member, frame) else None
    if frame.previous and not member.previous_unfit and (moved or not member.cordoned):
        failed = frame.rollout.metadata.name if moved else ""
        return Return(uid=member.uid, rollout=frame.previous, returned_from=failed)
    return Withdraw(uid=member.uid) if moved else None


def joins(member: Member, frame: Frame) -> bool:
    """Whether a device runs nothing, so that it gets the version that is proven until its wave comes."""
    if not frame.previous or member.previous_unfit:
        return False
    return _is_idle(member, frame) and not _still_runs(member, frame)


def join(member: Member, frame: Frame) -> Return:
    """Return what gives such a device the previous rollout."""
    told = windows.desired_of(frame.spec.strategy.windows, member.uid)
    return Return(uid=member.uid, rollout=frame.previous, returned_from="", windows=told)


def is_stray(member: Member, frame: Frame) -> bool:
    """Whether its workload goes: it matches no more, or holds what a deleted deployment of that name left behind."""
    return member.assignment is not None and (not member.selected or _stranger(member, frame))


def is_moved(member: Member, frame: Frame) -> bool:
    """Whether this rollout touched the device: it was returned from it, or still speaks of it."""
    name, report = frame.rollout.metadata.name, member.report
    if member.assignment is not None:
        return member.assignment.returned_from == name
    if not member.selected or report is None or report.rollout != name:
        return False
    return waves.may_be(report.deployment_uid, frame.rollout.spec.deployment_uid)


def is_back(member: Member, frame: Frame) -> bool:
    """Whether it says that it serves the previous rollout, or nothing where that is what is left."""
    if member.assignment is None:
        return member.report is None
    return member.rollout == frame.previous and member.serves_assigned


def _is_idle(member: Member, frame: Frame) -> bool:
    return member.assignment is None or _stranger(member, frame)


def _clings(member: Member, frame: Frame) -> bool:
    """The previous version does not work on the device (any more), and so it fell back to the one that failed."""
    report = member.current_report
    return report is not None and report.phase == "Running" and _still_runs(member, frame)


def _still_runs(member: Member, frame: Frame) -> bool:
    running = member.report.running if member.report is not None else None
    if running is None or running.rollout != frame.rollout.metadata.name:
        return False
    return waves.may_be(running.deployment_uid, frame.rollout.spec.deployment_uid)


def _stranger(member: Member, frame: Frame) -> bool:
    """Its workload comes from an earlier deployment of the same name."""
    return member.assignment is not None and member.assignment.deployment_uid != frame.rollout.spec.deployment_uid
