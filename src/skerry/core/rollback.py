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

from collections.abc import Iterable
from datetime import datetime

import msgspec

from skerry.api import duration
from skerry.api.kinds.rollout import RolloutStatus
from skerry.core import pace, steps, waves, windows
from skerry.core.steps import Action, Return, Step, View, Withdraw
from skerry.core.waves import Member


def roll_back(view: View, now: datetime) -> Step:
    """Return every device, and be done when all that are online say they are back, or their time is over."""
    follow, _ = converge(view, now)
    deadline = deadline_of(view, view.rollout.status)
    moved = [member for member in view.members if _moved(member, view)]
    away = sorted(member.name for member in moved if not _is_back(member, view))
    online = sorted(member.name for member in moved if member.online and not _is_back(member, view))
    over = deadline is None or now >= deadline
    unreturned = any(member.selected and waves.belongs(member, view.rollout) for member in view.members)
    if follow or unreturned or (online and not over):
        return Step(actions=follow, wake_at=None if over else deadline)
    place = f"{view.previous} is back" if view.previous else "withdrawn, there is no previous rollout to return to"
    where = f" on {steps.devices(len(moved) - len(away))}" if view.previous else ""
    rest = f"; not yet confirmed by {steps.names(away)}" if away else ""
    status = msgspec.structs.replace(
        view.rollout.status,
        phase="RolledBack",
        finished_at=now,
        message=f"{view.rollout.status.message}; {place}{where}{rest}",
    )
    return Step(actions=steps.set_status(view, steps.with_condition(view, status, "False", "RolledBack", now)))


def rest(view: View, now: datetime) -> Step:
    """Keep everybody on the previous rollout, late devices too."""
    actions, wake_at = converge(view, now)
    return Step(actions=actions, wake_at=wake_at)


def converge(view: View, now: datetime) -> tuple[tuple[Action, ...], datetime | None]:
    """Bring everybody to the previous rollout; take what failed off where there is none, or where it does not fit.

    The second value is when a window lets more devices join.
    """
    actions: list[Action] = [*withdrawals(view)]
    joining: list[Member] = []
    for member in view.members:
        if not member.selected:
            continue
        if view.previous and member.rollout == view.previous and not _stranger(member, view):
            actions += [Withdraw(uid=member.uid)] if _clings(member, view) else []
            continue
        moved = waves.belongs(member, view.rollout)
        if not moved and not member.cordoned and _is_idle(member, view):
            joining.append(member)
        elif view.previous and not member.previous_unfit and (moved or not member.cordoned):
            failed = view.rollout.metadata.name if moved else ""
            actions.append(Return(uid=member.uid, rollout=view.previous, returned_from=failed))
        elif moved:
            actions.append(Withdraw(uid=member.uid))
    joined, wake_at = join_previous(view, joining, now)
    return (*actions, *joined), wake_at


def join_previous(view: View, members: Iterable[Member], now: datetime) -> tuple[tuple[Action, ...], datetime | None]:
    """Devices that run nothing and whose wave is still to come get the version that is proven, in their window.

    The second value is when a window lets more devices join.
    """
    if not view.previous:
        return (), None
    actions: list[Action] = []
    later: list[datetime] = []
    wanted = view.spec.strategy.windows
    for member in members:
        if not _is_idle(member, view) or member.previous_unfit or _still_runs(member, view.rollout.metadata.name):
            continue
        opens = pace.opens_at(wanted, member, now)
        if opens is not None and opens <= now:
            told = windows.desired_of(wanted, member.uid)
            actions.append(Return(uid=member.uid, rollout=view.previous, returned_from="", windows=told))
        elif opens is not None:
            later.append(opens)
    return tuple(actions), min(later, default=None)


def _is_idle(member: Member, view: View) -> bool:
    return member.assignment is None or _stranger(member, view)


def _clings(member: Member, view: View) -> bool:
    """The previous version does not work on the device (any more), and so it fell back to the one that failed."""
    report, failed = member.current_report, view.rollout.metadata.name
    return report is not None and report.phase == "Running" and _still_runs(member, failed)


def _still_runs(member: Member, name: str) -> bool:
    return member.report is not None and member.report.running is not None and member.report.running.rollout == name


def withdrawals(view: View) -> list[Action]:
    """Devices that no longer match leave, and so does what a deleted deployment of the same name has left behind."""
    held = [member for member in view.members if member.assignment is not None]
    return [Withdraw(uid=member.uid) for member in held if not member.selected or _stranger(member, view)]


def _stranger(member: Member, view: View) -> bool:
    """Its workload comes from an earlier deployment of the same name."""
    return member.assignment is not None and member.assignment.deployment_uid != view.rollout.spec.deployment_uid


def _moved(member: Member, view: View) -> bool:
    """Whether this rollout touched the device: it was returned from it, or still speaks of it."""
    name, report = view.rollout.metadata.name, member.report
    if member.assignment is not None:
        return member.assignment.returned_from == name
    return member.selected and report is not None and report.rollout == name


def _is_back(member: Member, view: View) -> bool:
    if member.assignment is None:
        return member.report is None
    return member.rollout == view.previous and member.serves_assigned


def deadline_of(view: View, status: RolloutStatus) -> datetime | None:
    """How long the returning devices are waited for: one device timeout from the failure on."""
    failed_at = status.failed_at or next((w.finished_at for w in status.waves if w.phase == "Failed"), None)
    return failed_at + duration.parse(view.spec.strategy.device_timeout) if failed_at else None
