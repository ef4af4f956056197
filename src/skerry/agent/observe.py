"""Watching servers by their counters: windows of observation once a version serves, and shadow mode before it does.

A window that is fine is told once; after that only what went wrong, and that it is well again: a server that works
costs no messages. Lives here: reading counters, windows, the run of shadow mode. Must not live here: when either begins
(`core.trial`), what is good enough (there, and the hub's gates), how a server counts (`skerry.serve`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import msgspec

from skerry.agent.endpoint import ServerControl
from skerry.api.errors import SkerryError
from skerry.api.kinds.device import Observation, ShadowReport
from skerry.core import control, trial
from skerry.core.messages import ObserveDesired, ShadowDesired
from skerry.core.ports import Clock

LATER_SECONDS = 60.0
"""Windows after the first are at least so long."""
CHECKS = 20
"""In a window of moderate length."""
CHECK_SECONDS = (0.1, 30.0)
"""Shortest and longest pause between two checks."""
SHADOW_SECONDS = (0.1, 5.0)
"""The same for a look at the counts of shadow mode."""

Counters = Callable[[], Awaitable[control.Observation]]


class Windows:
    """One server's windows, from the counters as they are read. Pure: the caller brings the time."""

    def __init__(self, asked: ObserveDesired, at: float) -> None:
        self._asked = asked
        self._length = asked.seconds
        self._first = True
        self._last: control.Observation | None = None
        self._told: Observation | None = None
        self._began = self._due = at
        self._requests = self._errors = self._checks = self._unready = 0
        self._open(at)

    def look(self, at: float, seen: control.Observation | None) -> Observation | None:
        """Take a look at the counters, None when nobody answered; return the window when it is worth telling.

        A window closes when its time is over and, the first one, when it has seen the requests asked for.
        """
        self._checks += 1
        self._unready += seen is None or not seen.ready
        if seen is not None:
            self._count(seen)
        if at < self._due:
            return None
        window = Observation(
            seconds=round(at - self._began, 3),
            requests=self._requests,
            errors=self._errors,
            checks=self._checks,
            unready=self._unready,
        )
        more = self._first and window.requests < self._asked.min_requests
        told = window if self._worth(window, more) else None
        if more:
            self._due = at + self._length
        else:
            self._first, self._length = False, max(self._asked.seconds, LATER_SECONDS)
            self._open(at)
        self._told = told or self._told
        return told

    def pause(self, at: float) -> float:
        """Return the seconds until the next look."""
        shortest, longest = CHECK_SECONDS
        return max(min(self._due - at, longest, max(shortest, self._length / CHECKS)), 0.0)

    def _open(self, at: float) -> None:
        self._began, self._due = at, at + self._length
        self._requests = self._errors = self._checks = self._unready = 0

    def _count(self, seen: control.Observation) -> None:
        """Add what came since the last look; counters of another server, or that fell, begin at 0."""
        last = self._last
        if last is not None:
            known = last.boot == seen.boot and last.requests <= seen.requests and last.errors <= seen.errors
            requests = seen.requests - (last.requests if known else 0)
            self._requests += requests
            self._errors += min(seen.errors - (last.errors if known else 0), requests)
        self._last = seen

    def _worth(self, window: Observation, more: bool) -> bool:
        told = self._told
        if told is None or _bad(window) or _bad(told):
            return True
        return (more and window.requests > told.requests) or (told.requests < self._asked.min_requests and not more)


async def watch(
    counters: Counters,
    peak: Callable[[], Awaitable[int]],
    asked: ObserveDesired,
    clock: Clock,
    tell: Callable[[Observation], None],
) -> None:
    """Watch a server for ever; cancel it to end."""
    windows = Windows(asked, clock.monotonic())
    while True:
        seen = await read(counters)
        told = windows.look(clock.monotonic(), seen)
        if told is not None:
            tell(msgspec.structs.replace(told, peak_memory_bytes=await peak()))
        await asyncio.sleep(windows.pause(clock.monotonic()))


async def read(counters: Counters) -> control.Observation | None:
    """Return the counters of a server that is ready, asked twice; what it last said, or None when it did not."""
    seen = None
    for _ in range(2):
        with contextlib.suppress(SkerryError):
            seen = await counters()
            if seen.ready:
                break
    return seen


async def shadow(beside: ServerControl, port: int, asked: ShadowDesired, *, version: str, clock: Clock) -> ShadowReport:
    """Have the server that serves (of that version) mirror to this port, and return what came of it, once it is over.

    A server that does not answer for a while is asked again: when it has ended, it is started again, and so is this.
    """
    began = clock.monotonic()
    report = ShadowReport(beside=version)
    shortest, longest = SHADOW_SECONDS
    try:
        while True:
            with contextlib.suppress(SkerryError):
                await beside.shadow(port, asked.share)
                report = _report((await beside.observe()).shadow, report)
            passed = clock.monotonic() - began
            report = msgspec.structs.replace(report, seconds=round(passed, 3))
            left = asked.seconds - passed
            if left <= 0 and (asked.missing != "wait" or trial.enough(asked, report)):
                return report
            pause = min(longest, max(shortest, asked.seconds / CHECKS))
            await asyncio.sleep(min(pause, left) if left > 0 else pause)
    finally:
        with contextlib.suppress(SkerryError):
            await beside.stop_shadow()


def _report(counts: control.ShadowCounts | None, before: ShadowReport) -> ShadowReport:
    if counts is None:
        return before
    return msgspec.structs.replace(
        before,
        requests=counts.mirrored,
        answered=counts.answered,
        agreed=counts.agreed,
        errors=counts.errors,
        dropped=counts.dropped,
        max_abs_difference=counts.max_abs_difference if counts.answered else None,
    )


def _bad(window: Observation) -> bool:
    return bool(window.errors or window.unready or window.restarts)
