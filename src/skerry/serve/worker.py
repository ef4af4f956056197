"""Where the engine runs: in a thread of its own, one job at a time, a bounded queue before it; or at once, if that is
known to be quicker than the hand-over.

Lives here: the queue, the hand-over, and learning what is quick. Must not live here: what a job is.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from skerry.api.errors import UnavailableError

STACK_BYTES = 4 * 1024 * 1024
_Result = TypeVar("_Result")


QUICK_SECONDS = 0.001
"""A run below this may hold the event loop up: handing it to a thread and back costs a good part of it."""
QUICK_BYTES = 64 * 1024
"""No larger request is ever run in the event loop."""
MISJUDGED_SECONDS = 0.02
"""A run in the event loop beyond this shows that the time depends on more than the size: no more of that."""


class Quick:
    """What has proved to be quick: requests up to a size, learned from each run."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._bytes = 0

    def expects(self, size: int) -> bool:
        """Whether a request of that many bytes may run in the event loop."""
        return size <= self._bytes

    def learn(self, size: int, cpu_seconds: float, *, at_once: bool) -> None:
        """Take one run's cost into account, wherever it ran."""
        if at_once and cpu_seconds > MISJUDGED_SECONDS:
            self._enabled = False
        if not self._enabled or cpu_seconds > QUICK_SECONDS:
            self._bytes = min(self._bytes, size - 1) if self._enabled else -1
        elif size <= QUICK_BYTES:
            self._bytes = max(self._bytes, size)


class _Job(Generic[_Result]):
    __slots__ = ("outcome", "work")

    def __init__(self, work: Callable[[], _Result], outcome: asyncio.Future[_Result]) -> None:
        self.work = work
        self.outcome = outcome


class Worker:
    """One thread; it ends with the process, or when it is told to."""

    def __init__(self, *, max_queued: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._max_queued = max_queued
        self._pending = 0
        threading.stack_size(STACK_BYTES)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Jobs that wait or run."""
        return self._pending

    def submit(self, work: Callable[[], _Result]) -> asyncio.Future[_Result]:
        """Line a job up. A future that is cancelled in time is not worked on. Raises UnavailableError when full."""
        if self._pending > self._max_queued:
            raise UnavailableError(f"{self._max_queued} requests wait already", hint="try again")
        outcome: asyncio.Future[_Result] = self._loop.create_future()
        self._pending += 1
        self._jobs.put(_Job(work, outcome))
        return outcome

    def close(self) -> None:
        """Let the thread end after what is lined up."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            result, failure = None, None
            if not job.outcome.cancelled():
                try:
                    result = job.work()
                except BaseException as error:  # noqa: BLE001 (handed to the waiter)
                    failure = error
            try:
                self._loop.call_soon_threadsafe(self._settle, job.outcome, result, failure)
            except RuntimeError:
                return  # the loop is closed: the program ends

    def _settle(self, outcome: asyncio.Future[Any], result: object, failure: BaseException | None) -> None:
        self._pending -= 1
        if outcome.done():
            return
        if failure is not None:
            outcome.set_exception(failure)
        else:
            outcome.set_result(result)
