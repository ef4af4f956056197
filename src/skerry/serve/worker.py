"""The thread the engine runs in: one job at a time, a bounded queue before it, the event loop never waiting.

Lives here: the queue and the hand-over. Must not live here: what a job is.
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
