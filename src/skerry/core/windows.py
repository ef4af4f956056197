"""Update windows: whether one is open for a device, and when the next one opens. Pure.

A window opens at every minute whose local time the schedule matches; local times that the clocks skip count as the
first minute after the gap, and local times that come twice open it twice. It is open for a device from its own delay
after the opening until the duration after the opening. The delay is a hash's share of the spread, so that it is the
same every time and on every hub.

`WindowDesired` is the form that travels to the device, with the delay worked out: the hub asks the same questions of
the same values. Lives here: these questions. Must not live here: cron's syntax (`api.cron`), what waits for a window.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from hashlib import sha256

from skerry.api import cron, duration
from skerry.api.errors import InvalidError
from skerry.api.kinds.pacing import UpdateWindows, Window
from skerry.core.messages import WindowDesired, WindowsDesired

CLOCK_SLACK = timedelta(minutes=1)
"""A device's clock may be so far behind the hub's before it passes for wrong."""
_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)
_FARTHEST_DAYS = 9 * 366
"""29 February may be 8 years away, around 2100."""
_NEIGHBOURS = 2
"""Days whose local times may come in another order than their dates say, where clocks are set back over midnight."""
_MAX_PASSES = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Closed:
    """Why something has to wait, and when to look again."""

    message: str
    until: datetime | None = None
    """None where nobody can say."""


# --- for the hub ---------------------------------------------------------------------------------------------------


def desired_of(windows: UpdateWindows, uid: str) -> WindowsDesired | None:
    """Return a deployment's windows as one device is told of them; None when there are none. Raises InvalidError."""
    if not windows.download and not windows.switch_over:
        return None
    return WindowsDesired(
        download=[_desired(window, uid) for window in windows.download],
        switch_over=[_desired(window, uid) for window in windows.switch_over],
    )


def _desired(window: Window, uid: str) -> WindowDesired:
    seconds = duration.to_seconds(window.duration)
    spread = min(duration.to_seconds(window.spread), seconds)
    return WindowDesired(
        schedule=window.schedule,
        time_zone=window.time_zone,
        duration_seconds=seconds,
        delay_seconds=int(share_of(window, uid) * spread),
    )


def share_of(window: Window, uid: str) -> float:
    """Return a number in [0, 1) that only the device and the window's schedule decide."""
    raw = sha256(f"{window.schedule}/{window.time_zone}/{uid}".encode()).digest()
    return int.from_bytes(raw[:6]) / 2**48


def deadline(windows: Sequence[WindowDesired], start: datetime, timeout: timedelta) -> datetime:
    """Return when `timeout` has passed since `start`, counting only time in which one of the windows is open.

    No windows: all time counts. Windows that never let it pass: the farthest time that was looked at.
    """
    return _deadline(tuple(windows), start, timeout)


@functools.lru_cache(maxsize=16384)
def _deadline(windows: tuple[WindowDesired, ...], start: datetime, timeout: timedelta) -> datetime:
    at, left = start, timeout
    for _ in range(_MAX_PASSES if windows else 0):
        ends = [end for end in (_open_until(window, at) for window in windows) if end is not None]
        if ends:
            if max(ends) - at >= left:
                break
            left -= max(ends) - at
            at = max(ends)
            continue
        opens = opening(windows, at)
        if opens is None:
            return at + _FARTHEST_DAYS * _DAY
        at = opens
    return at + left


# --- for the device, and for the hub ------------------------------------------------------------------------------


def opening(windows: Sequence[WindowDesired], now: datetime) -> datetime | None:
    """Return `now` when one of the windows is open (or there are none), else when the first one opens next.

    None when that is years away. Raises InvalidError for a schedule or time zone that cannot be read here.
    """
    if not windows:
        return now
    return min((found for found in (_opening(window, now) for window in windows) if found is not None), default=None)


def open_until(windows: Sequence[WindowDesired], now: datetime) -> datetime | None:
    """Return until when the windows that are open now stay so, as far as their openings now go; None when none is."""
    return max((end for end in (_open_until(window, now) for window in windows) if end is not None), default=None)


def closed(windows: Sequence[WindowDesired], now: datetime, *, issued_at: datetime | None, what: str) -> Closed | None:
    """Say why a device has to wait with `what`, by its own clock; None when it may go on.

    A clock from before the assignment was made cannot tell whether a window is open: the device waits until it is
    right. So it does when its time zone tables lack a zone.
    """
    if not windows:
        return None
    if issued_at is not None and now < issued_at - CLOCK_SLACK:
        message = (
            f"waits with the {what}: its clock says {shown(now)}, before the assignment was made "
            f"({shown(issued_at)}); set the clock, or wait for NTP"
        )
        return Closed(message=message)
    try:
        opens = opening(windows, now)
    except InvalidError as error:
        return Closed(message=f"waits with the {what}: {error.cause}; install the tz database (tzdata)")
    if opens is None:
        return Closed(message=f"waits with the {what}: its window does not open in years")
    if opens <= now:
        return None
    return Closed(message=f"waits with the {what} for its window, which opens at {shown(opens)}", until=opens)


def _opening(window: WindowDesired, now: datetime) -> datetime | None:
    length, delay = timedelta(seconds=window.duration_seconds), timedelta(seconds=window.delay_seconds)
    begun = next_start(window.schedule, window.time_zone, now - length)
    if begun is None:
        return None
    return max(begun + delay, now) if begun + delay < begun + length else None


def _open_until(window: WindowDesired, now: datetime) -> datetime | None:
    """When the opening that is open now ends; None when none is."""
    length = timedelta(seconds=window.duration_seconds)
    begun = next_start(window.schedule, window.time_zone, now - length)
    if begun is None or begun + timedelta(seconds=window.delay_seconds) > now:
        return None
    return begun + length


def shown(when: datetime) -> str:
    """Return a time as sentences have it."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- openings ------------------------------------------------------------------------------------------------------


def next_start(schedule: str, time_zone: str, after: datetime) -> datetime | None:
    """Return the first time after `after` at which the schedule matches, in UTC; None when that is years away."""
    try:
        return _next_start(schedule, time_zone, after.astimezone(UTC).replace(second=0, microsecond=0))
    except OverflowError:  # a clock at the end of the calendar
        return None


@functools.lru_cache(maxsize=4096)
def _next_start(schedule: str, time_zone: str, after: datetime) -> datetime | None:
    """The same for a whole minute, which remembers its answers: a fleet asks about few windows at one time."""
    parsed, zone = cron.parse(schedule), cron.zone(time_zone)
    first = after.astimezone(zone).date() - _NEIGHBOURS * _DAY
    found: datetime | None = None
    left = _FARTHEST_DAYS
    for offset in range(_FARTHEST_DAYS):
        if left == 0:
            break
        left -= 1
        day = first + offset * _DAY
        if not parsed.matches_day(day):
            continue
        later = next((start for start in _starts_on(schedule, time_zone, day) if start > after), None)
        if later is not None and (found is None or later < found):
            left = _NEIGHBOURS if found is None else left
            found = later
    return found


@functools.lru_cache(maxsize=256)
def _starts_on(schedule: str, time_zone: str, day: date) -> tuple[datetime, ...]:
    """All starts that a local day has, in order."""
    parsed, zone = cron.parse(schedule), cron.zone(time_zone)
    found: set[datetime] = set()
    for hour in parsed.hours:
        for minute in parsed.minutes:
            found.update(_instants(datetime.combine(day, time(hour, minute)), zone))
    return tuple(sorted(found))


def _instants(local: datetime, zone: tzinfo) -> tuple[datetime, ...]:
    """When a clock in that zone shows this: once, twice where it is set back, at the gap's end where it skips it."""
    early = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    late = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    if early <= late:
        return (early,) if early == late else (early, late)
    before, after = late, early  # in a gap the two readings change places, and the change lies between them
    offset = before.astimezone(zone).utcoffset()
    while after - before > _MINUTE:
        middle = before + (after - before) // 2 // _MINUTE * _MINUTE
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return (after,)
