"""Leases of update holds on a device: how long one still lasts, whatever its clocks do. Pure.

Rules:

1. Within one boot the monotonic clock alone counts: a wall clock that is set, forwards or backwards, changes nothing.
2. Across a reboot only the wall clock can tell what has passed. If it went backwards (a device without a battery for
   it), nothing has passed; it never ends a hold before its time, nor makes it longer than it was when last noted.
3. An operator's hold lasts from its acceptance until its end, where the device's clock is believed only as far as it
   is not before the time at which the hub issued the state; at most `MAX_HOLD`.

Lives here: the lease and its arithmetic. Must not live here: the disk, timers (`agent.hold`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Annotated

import msgspec

from skerry.api.kinds.device import MAX_HOLD, HoldStatus, UpdateHold
from skerry.api.meta import Struct
from skerry.core.journal import Moment

_ROUNDING = timedelta(seconds=2)
OPERATOR = "operator"
"""Holder of what the hub desires."""


class Lease(Struct, frozen=True, kw_only=True):
    """One hold, as it was when it was noted."""

    holder: str
    reason: str = ""
    seconds: Annotated[float, msgspec.Meta(ge=0, le=MAX_HOLD.total_seconds())]
    """What was left of it then."""
    wall: Annotated[datetime, msgspec.Meta(tz=True)]
    monotonic: float
    boot: str
    source: str = ""
    """Which of the hub's holds this is; empty for those taken on the device."""


def take(holder: str, *, seconds: float, reason: str, now: Moment) -> Lease:
    """Return a lease that begins now."""
    return Lease(holder=holder, reason=reason, seconds=seconds, wall=now.wall, monotonic=now.monotonic, boot=now.boot)


def left(lease: Lease, now: Moment) -> float:
    """Return the seconds for which the hold still lasts, at least 0."""
    same_boot = now.boot != "" and now.boot == lease.boot
    passed = now.monotonic - lease.monotonic if same_boot else (now.wall - lease.wall).total_seconds()
    return min(max(lease.seconds - max(passed, 0.0), 0.0), lease.seconds)


def note(lease: Lease, now: Moment) -> Lease:
    """Return the same lease as of now: what is left is no longer a matter of what the clock was before."""
    return msgspec.structs.replace(
        lease, seconds=left(lease, now), wall=now.wall, monotonic=now.monotonic, boot=now.boot
    )


def follow_hub(known: Lease | None, hold: UpdateHold | None, *, issued_at: datetime, now: Moment) -> Lease | None:
    """Return the operator's lease after a desired state was accepted; a hold that is known goes on as it is."""
    if hold is None:
        return None
    source = f"{hold.until.isoformat()} {hold.reason}"
    if known is not None and known.source == source:
        return known
    length = min(hold.until - max(now.wall, issued_at), MAX_HOLD)
    fresh = take(OPERATOR, seconds=max(length.total_seconds(), 0.0), reason=hold.reason, now=now)
    return msgspec.structs.replace(fresh, source=source)


def in_force(leases: Iterable[Lease], now: Moment) -> list[HoldStatus]:
    """Return the holds that last, the longest first."""
    lasting = sorted(((left(lease, now), lease) for lease in leases), key=lambda pair: (-pair[0], pair[1].holder))
    return [
        HoldStatus(holder=lease.holder, until=_until(now, seconds), reason=lease.reason)
        for seconds, lease in lasting
        if seconds > 0
    ]


def refresh(shown: Iterable[HoldStatus], fresh: Iterable[HoldStatus]) -> list[HoldStatus]:
    """Return the fresh list with the ends that were shown before, where they differ by no more than rounding."""
    before = {(one.holder, one.reason): one for one in shown}
    result = []
    for one in fresh:
        old = before.get((one.holder, one.reason))
        result.append(old if old is not None and abs(old.until - one.until) <= _ROUNDING else one)
    return result


def _until(now: Moment, seconds: float) -> datetime:
    """By the wall clock as it is now, in whole seconds."""
    until = now.wall + timedelta(seconds=seconds)
    return (until + timedelta(milliseconds=500)).replace(microsecond=0)
