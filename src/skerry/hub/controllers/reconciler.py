"""Reconcilers: keys are handled one worker each, again at the time they ask for, and again after errors, ever later.

A key whose handling takes long rests in proportion before it is handled again: what changes meanwhile is then dealt
with at once. So a deployment with many devices that all report at the same time leaves the hub time to listen to them.

One bad object must not stop the others: an error belongs to its key. Must not live here: what handling a key means.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from skerry.api.errors import ConflictError, SkerryError
from skerry.kit.workqueue import WorkQueue

log = logging.getLogger(__name__)

FIRST_DELAY = 0.1
MAX_DELAY = 60.0
REST = 2.0
"""Times as much as the handling took of the event loop: at most a third of its time is spent on one key."""
MAX_REST = 2.0
QUICK = 0.01
"""Seconds of CPU; a handling this short needs no rest after it."""
_FARTHEST = 24 * 3600.0
"""Seconds; timers further away are looked at once a day."""

K = TypeVar("K", bound=Hashable)


class Reconciler(Generic[K]):
    """Calls `handle(key)` for every key added. It returns the seconds until it wants to look again, or None.

    `failed(key, error)` is told of errors other than conflicts, to show them on the object.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[K], Awaitable[float | None]],
        failed: Callable[[K, Exception], Awaitable[None]],
        *,
        workers: int = 4,
    ) -> None:
        self.name = name
        self._handle, self._failed, self._workers = handle, failed, workers
        self._queue: WorkQueue[K] = WorkQueue()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._resting: dict[K, asyncio.TimerHandle] = {}
        self._asked: set[K] = set()
        """Keys that were added while they rest."""
        self._began: dict[K, float] = {}
        """When the handling of a key began, by the monotonic clock; for those under way."""

    def add(self, key: K) -> None:
        """Ask for the key to be handled."""
        if key in self._resting:
            self._asked.add(key)
        else:
            self._queue.add(key)

    def longest(self) -> float:
        """Return for how many seconds the key has been handled that is under way longest; 0 when none is."""
        return time.monotonic() - min(self._began.values()) if self._began else 0.0

    async def run(self) -> None:
        """Handle keys, for ever."""
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._workers):
                    group.create_task(self._work(), name=f"{self.name}-{number}")
        finally:
            for timer in (*self._timers.values(), *self._resting.values()):
                timer.cancel()
            self._timers.clear()
            self._resting.clear()

    async def _work(self) -> None:
        while True:
            async with self._queue.take() as key:
                if key in self._resting:  # it was asked for while it was handled
                    self._asked.add(key)
                    continue
                began = time.thread_time()
                self._began[key] = time.monotonic()
                try:
                    delay = await self._attempt(key)
                finally:
                    del self._began[key]
                self._rest(key, time.thread_time() - began)
                self._schedule(key, delay)

    async def _attempt(self, key: K) -> float | None:
        try:
            delay = await self._handle(key)
        except ConflictError:  # somebody else wrote at the same time: look again
            return self._back_off(key)
        except Exception as error:  # whatever is wrong with one object must not stop the others
            expected = isinstance(error, SkerryError)
            log.error("controller.failed controller=%s key=%s error=%s", self.name, key, error, exc_info=not expected)
            await self._tell(key, error)
            return self._back_off(key)
        self._failures.pop(key, None)
        return delay

    def _rest(self, key: K, took: float) -> None:
        """Put off what is asked of the key from now on."""
        if took > QUICK:
            seconds = min(REST * took, MAX_REST)
            self._resting[key] = asyncio.get_running_loop().call_later(seconds, self._awake, key)

    def _awake(self, key: K) -> None:
        del self._resting[key]
        if key in self._asked:
            self._asked.discard(key)
            self._queue.add(key)

    async def _tell(self, key: K, error: Exception) -> None:
        try:
            await self._failed(key, error)
        except Exception:
            log.exception("controller.untold controller=%s key=%s", self.name, key)

    def _back_off(self, key: K) -> float:
        count = self._failures[key] = min(self._failures.get(key, 0) + 1, 30)
        return min(FIRST_DELAY * 2.0 ** (count - 1), MAX_DELAY)

    def _schedule(self, key: K, delay: float | None) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if delay is None:
            return
        self._timers[key] = asyncio.get_running_loop().call_later(min(max(delay, 0.0), _FARTHEST), self._fire, key)

    def _fire(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)
