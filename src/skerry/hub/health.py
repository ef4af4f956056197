"""Whether the hub is alive and ready: checks that its parts bring, asked when somebody wants to know.

Alive is what a restart would mend: a hub that is not should be ended. Ready is what a request needs: a hub that is not
should be sent none. Lives here: the checks, each bounded in time. Must not live here: how the answer is worded for
HTTP (`hub.server.health`). Source: Kubernetes documentation, "Kubernetes API health endpoints".
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from skerry.api.errors import SkerryError, TimedOutError, UnavailableError

log = logging.getLogger(__name__)

CHECK_SECONDS = 3.0
"""For one check; what takes longer has failed."""
STUCK_SECONDS = 900.0
"""One object's handling takes seconds; with the deltas of a large model, a minute or two."""

Check = Callable[[], Awaitable[None]]
"""Returns when all is well. Raises SkerryError."""


class Progressing(Protocol):
    """Something that works on one thing after the other."""

    name: str

    def longest(self) -> float:
        """Return for how many seconds the oldest thing under way has been worked on; 0 for none."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What one check found."""

    name: str
    ok: bool


@dataclass(kw_only=True)
class Health:
    """The checks of one hub, in the order in which they were added."""

    live: dict[str, Check] = field(default_factory=dict)
    ready: dict[str, Check] = field(default_factory=dict)
    workers: weakref.WeakSet[Progressing] = field(default_factory=weakref.WeakSet)
    """Controllers, which are checked together as `controllers`, for as long as they are there."""

    def __post_init__(self) -> None:
        """Begin with what needs nothing."""
        self.add("ping", _ping, live=True)
        self.add("controllers", self._progress, live=True)

    def add(self, name: str, check: Check, *, live: bool = False) -> None:
        """Add a check for being ready, and where `live` for being alive; the name is a path segment."""
        if live:
            self.live[name] = check
        self.ready[name] = check

    async def ask(self, checks: Iterable[tuple[str, Check]], *, seconds: float = CHECK_SECONDS) -> list[Result]:
        """Ask them all at once; why one failed is logged, for the answer is open to everybody."""
        asked = list(checks)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_bounded(name, check, seconds)) for name, check in asked]
        return [Result(name=name, ok=task.result()) for (name, _), task in zip(asked, tasks, strict=True)]

    async def _progress(self) -> None:
        stuck = [worker.name for worker in self.workers if worker.longest() > STUCK_SECONDS]
        if stuck:
            raise UnavailableError(f"no progress for {STUCK_SECONDS:.0f} s", element=", ".join(sorted(set(stuck))))


async def _ping() -> None:
    """Nothing more than that somebody answers."""


async def _bounded(name: str, check: Check, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await check()
    except TimeoutError:
        error: SkerryError = TimedOutError()
    except (SkerryError, OSError) as raised:
        error = raised if isinstance(raised, SkerryError) else UnavailableError(str(raised))
    else:
        return True
    log.warning("health.failed check=%s cause=%s", name, error)
    return False
