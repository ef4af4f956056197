"""Steps: what a rollout is asked with and answers with, and how a status is put together. Pure.

Lives here: the view, the actions, and small parts of statuses and sentences. Must not live here: any rule (see
`core.rollout` and `core.rollback`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

from skerry.api.kinds.model_deployment import ModelDeploymentSpec
from skerry.api.kinds.pacing import UpdateWindows
from skerry.api.kinds.rollout import GateResult, Rollout, RolloutStatus
from skerry.api.meta import Condition, set_condition
from skerry.core import gates, windows
from skerry.core.messages import WindowsDesired
from skerry.core.waves import Member

Phase: TypeAlias = Literal[
    "Pending", "Progressing", "Paused", "Succeeded", "RollingBack", "RolledBack", "Failed", "Superseded"
]
MAX_NAMED = 5
"""Names in one sentence."""
ENDED: frozenset[Phase] = frozenset({"Succeeded", "RolledBack", "Failed", "Superseded"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """Why nothing new may be assigned for now, as a condition's reason and message."""

    reason: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """What a step looks at besides the devices."""

    rollout: Rollout
    spec: ModelDeploymentSpec
    """The deployment's spec as it is now."""
    generation: int
    """The deployment's generation now."""
    previous: str = ""
    """The rollout devices return to, if it still exists."""
    hold: Hold | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class View(Frame):
    """Everything a step looks at."""

    members: Sequence[Member]
    """The selected devices, and all others that still hold this deployment's workload."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetStatus:
    """Write the rollout's status."""

    status: RolloutStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class Assign:
    """Put the device on this rollout, unless it is on it already."""

    uid: str
    wave: int
    windows: WindowsDesired | None = None
    """When the device may fetch and switch over; the one thing that is brought up to date on a device that waits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Return:
    """Put the device on the previous rollout, unless it is on it already."""

    uid: str
    rollout: str
    returned_from: str
    """The rollout that failed; empty for a device that only joins the previous one."""
    windows: WindowsDesired | None = None
    """For a device that only joins; the way back waits for no window."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Withdraw:
    """Take the deployment's workload off the device."""

    uid: str


Action: TypeAlias = SetStatus | Assign | Return | Withdraw


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What to do, in this order, and when to look again if nothing happens before."""

    actions: tuple[Action, ...] = ()
    wake_at: datetime | None = None


def rescheduled(member: Member, wanted: UpdateWindows) -> Assign | None:
    """Return what tells a device on its way to the rollout of windows that were changed since; None when none were.

    Assigning again does no more. Raises InvalidError.
    """
    held = member.assignment
    if held is None or (held.workload.windows is None and not wanted.download and not wanted.switch_over):
        return None
    report = member.current_report
    if report is not None and report.phase in ("Running", "RollingBack", "Failed"):
        return None  # it arrived, or failed: another wish would make it try again
    now, known = windows.desired_of(wanted, member.uid), held.workload.windows
    told = None if known is None else msgspec.structs.replace(known, issued_at=None)
    return Assign(uid=member.uid, wave=held.wave, windows=now) if now != told else None


def with_condition(
    frame: Frame, status: RolloutStatus, value: Literal["True", "False", "Unknown"], reason: str, now: datetime
) -> RolloutStatus:
    """Return the status with its Progressing condition, whose message is the status's own."""
    condition = Condition(
        type="Progressing",
        status=value,
        reason=reason,
        message=status.message,
        last_transition_time=now,
        observed_generation=frame.generation,
    )
    return msgspec.structs.replace(status, conditions=set_condition(status.conditions, condition))


def set_status(frame: Frame, status: RolloutStatus) -> tuple[Action, ...]:
    """Return the write of a status, or nothing when it is what is stored."""
    return () if status == frame.rollout.status else (SetStatus(status=status),)


def verdicts(results: Sequence[GateResult]) -> str:
    """Return the gates that failed, each with its sentence."""
    return sentences(gates.failed(results))


def sentences(results: Sequence[GateResult]) -> str:
    """Return the gates, each with its sentence."""
    return "; ".join(f"{result.gate}: {result.message}" for result in results)


def earliest(*times: datetime | None) -> datetime | None:
    """Return the first of the times there are."""
    return min((time for time in times if time is not None), default=None)


def devices(count: int) -> str:
    """Return `1 device`, `2 devices`."""
    return f"{count} device{'' if count == 1 else 's'}"


def names(listed: Sequence[str], total: int | None = None) -> str:
    """Return the first few names, and how many more there are (of `total`, where not all are listed)."""
    more = (len(listed) if total is None else total) - MAX_NAMED
    return ", ".join(listed[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
