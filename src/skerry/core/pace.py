"""Pace: which of the devices that come next a wave may take at this moment, and what the others wait for. Pure.

Three bounds, each read from the devices' own records, so that a hub that dies forgets none of them:

- window: the device's download window is open, its own delay included;
- disruption: of one value of the label never more devices are unavailable than allowed. A device is available when it
  is online, serves something, and has no unfinished change; who is unavailable already may be taken, it costs nobody;
- rate: fewer than rate(successes) devices were assigned within the last minute.

Who waits is passed over in favour of who comes later, as long as that one is online: a device that is away would only
let its time run out. Lives here: these bounds. Must not live here: targets and order (`core.waves`), the windows'
own rules (`core.windows`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from skerry.api import amount
from skerry.api.kinds.model_deployment import Strategy
from skerry.api.kinds.pacing import Disruption, Rate, UpdateWindows
from skerry.core import windows
from skerry.core.waves import Member

MINUTE = timedelta(minutes=1)
_SLACK = 1e-9  # for products that are not exact in binary


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """Who may be taken now, and why not the others."""

    chosen: tuple[Member, ...] = ()
    reason: str = ""
    """What holds the others back: WindowClosed, DisruptionBudget or RateLimited; empty when nobody is held back."""
    message: str = ""
    wake_at: datetime | None = None
    """When the clock alone may let more in."""


def is_paced(strategy: Strategy) -> bool:
    """Return whether there is any bound at all."""
    return strategy.rate is not None or strategy.disruption is not None or bool(strategy.windows.download)


def admit(
    order: Sequence[Member],
    count: int,
    *,
    strategy: Strategy,
    selected: Iterable[Member],
    on: Sequence[Member],
    successes: int,
    now: datetime,
) -> Admitted:
    """Return up to `count` of `order` that may be taken now.

    `selected` are the deployment's devices, `on` those on the rollout, `successes` the wave's devices that run.
    """
    budget = Budget(strategy.disruption, selected)
    times = [member.assignment.assigned_at for member in on if member.assignment is not None]
    allowed = allowance(strategy.rate, times, successes, now)
    chosen: list[Member] = []
    closed, opens, over = 0, list[datetime](), list[str]()
    for place, member in enumerate(order):
        if len(chosen) == count or (place >= count and not member.online):
            break
        opening = opens_at(strategy.windows, member, now)
        if opening is None or opening > now:
            closed += 1
            opens += [opening] if opening is not None else []
        elif not budget.allows(member):
            over.append(group_of(strategy.disruption, member))
        elif len(chosen) == allowed.number:
            break
        else:
            chosen.append(member)
            budget.take(member)
    held = Held(closed=closed, opens=min(opens, default=None), over=len(over), group=over[0] if over else "")
    return answer(chosen, count, strategy, allowed=allowed, successes=successes, held=held)


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Those who were passed over."""

    closed: int = 0
    """By their window."""
    opens: datetime | None = None
    """When the first of these opens."""
    over: int = 0
    """By the disruption budget."""
    group: str = ""
    """Of the first of these."""


def answer(
    chosen: Sequence[Member], count: int, strategy: Strategy, *, allowed: Allowance, successes: int, held: Held
) -> Admitted:
    """Return those chosen of `count`, and what holds the others back."""
    if len(chosen) == count:
        return Admitted(chosen=tuple(chosen))
    if len(chosen) == allowed.number:
        text = f"at most {rate_of(strategy.rate, successes)} devices a minute now" if strategy.rate else ""
        return Admitted(chosen=tuple(chosen), reason="RateLimited", message=text, wake_at=allowed.more_at)
    if held.over:
        group = name_group(strategy.disruption, held.group)
        text = f"the disruption budget of {group} is used up, {held.over} waiting"
        return Admitted(chosen=tuple(chosen), reason="DisruptionBudget", message=text, wake_at=held.opens)
    if held.closed:
        when = f", which opens at {windows.shown(held.opens)}" if held.opens else ""
        text = f"{held.closed} waiting for the download window{when}"
        return Admitted(chosen=tuple(chosen), reason="WindowClosed", message=text, wake_at=held.opens)
    return Admitted(chosen=tuple(chosen))


def opens_at(wanted: UpdateWindows, member: Member, now: datetime) -> datetime | None:
    """Return `now` if the device may begin to fetch, else when it may; None when that is years away."""
    told = windows.desired_of(wanted, member.uid) if wanted.download else None
    return now if told is None else windows.opening(told.download, now)


# --- rate ----------------------------------------------------------------------------------------------------------


def rate_of(rate: Rate, successes: int) -> int:
    """Return the devices a minute: base x factor^floor(successes / base), at most maxPerMinute, rounded down."""
    growth = max(successes, 0) // rate.base
    if rate.factor > 1 and growth * math.log(rate.factor) >= math.log(rate.max_per_minute / rate.base):
        return rate.max_per_minute
    return min(int(rate.base * rate.factor**growth + _SLACK), rate.max_per_minute)


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowance:
    """What the rate leaves."""

    number: int | None = None
    """How many more may be taken now; None: any number."""
    more_at: datetime | None = None
    """When that will be more."""


def is_recent(at: datetime, now: datetime) -> bool:
    """Return whether an assignment counts for the rate: a clock that was set back must not stop it for long."""
    return abs(now - at) < MINUTE


def allowance(rate: Rate | None, times: Iterable[datetime], successes: int, now: datetime) -> Allowance:
    """Return what the rate leaves where devices were assigned at these times."""
    if rate is None:
        return Allowance()
    recent = [at for at in times if is_recent(at, now)]
    left = max(rate_of(rate, successes) - len(recent), 0)
    return Allowance(number=left, more_at=max(min(recent, default=now), now - MINUTE) + MINUTE)


# --- disruption ----------------------------------------------------------------------------------------------------


def is_available(member: Member) -> bool:
    """Return whether a device serves undisturbed: online, serving, and done with what it was last told, well or not."""
    serves = member.online and member.report is not None and member.report.running is not None
    if not serves or member.assignment is None:
        return serves
    report = member.current_report
    return report is not None and report.phase in ("Running", "Failed")


def group_of(disruption: Disruption | None, member: Member) -> str:
    """Return the label's value that a device shares with others."""
    key = disruption.group_by if disruption is not None else ""
    return member.labels.get(key, "") if key else ""


def name_group(disruption: Disruption | None, group: str) -> str:
    """Return how people call the group."""
    key = disruption.group_by if disruption is not None else ""
    if not key:
        return "all devices"
    return f"{key}={group}" if group else f"devices without the label {key}"


class Budget:
    """How many devices of each group may still be disturbed."""

    def __init__(self, disruption: Disruption | None, selected: Iterable[Member] = ()) -> None:
        self._disruption = disruption
        self._size: Counter[str] = Counter()
        self._down: Counter[str] = Counter()
        for member in selected:
            self.count(member)

    def count(self, member: Member, sign: int = 1) -> None:
        """Count one of the deployment's devices, or with -1 not any more."""
        if self._disruption is not None:
            group = group_of(self._disruption, member)
            self._size[group] += sign
            self._down[group] += sign * (not is_available(member))

    def left(self, group: str) -> int:
        """Return how many more of the group may be unavailable; below 0 when too many are."""
        wanted, size = self._disruption, self._size[group]
        if wanted is None:
            return size
        if wanted.max_unavailable is not None:
            return amount.round_down(wanted.max_unavailable, size) - self._down[group]
        return max(size - amount.round_up(wanted.min_available or "0", size), 0) - self._down[group]

    def allows(self, member: Member) -> bool:
        """Return whether the device may be disturbed now."""
        if self._disruption is None or not is_available(member):
            return True
        return self.left(group_of(self._disruption, member)) > 0

    def take(self, member: Member) -> None:
        """Count a device that is being disturbed from now on."""
        if self._disruption is not None and is_available(member):
            self._down[group_of(self._disruption, member)] += 1
