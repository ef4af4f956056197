"""Worker processes, as many at once as the memory bound and the processors allow, watched until they end.

The rule of memory: a job starts when its need fits into what the running jobs leave of the bound (a job alone always
starts). All workers together are watched: when they take more than the bound, the youngest is stopped and runs again by
itself; one that takes too much alone has "too little memory". Between two looks the kernel watches each one: `worker`
limits its own data to the bound. Lives here: starting, watching, stopping. Must not live here: what the jobs are.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import psutil

from skerry.optimize import standby
from skerry.optimize.standby import Standby

WATCH_SECONDS = 0.2
STOP_SECONDS = 5.0
_MOST_SAID = 4096

Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One worker process that is wanted."""

    name: str
    arguments: Sequence[str]
    """Of the Python interpreter; what it prints are events, one JSON object on a line."""
    need: int
    """Memory it is expected to take, in bytes."""
    given: bytes = b""
    """The line that it finds on standard input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """What became of a job."""

    job: Job
    problem: str
    """Why it ended without a result of its own; empty when it has one."""
    peak_bytes: int
    """The most memory it was seen to take, children included."""
    seconds: float


@dataclass(kw_only=True, eq=False)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    started: float
    alone: bool
    peak: int = 0
    said: bytes = b""
    line: bytes = b""
    verdict: str = ""
    open: set[int] = field(default_factory=set)


class Pool:
    """Runs jobs. `tell` gets every event that a worker writes, as soon as it is written; `started` each job's start.

    `ready` may have processes that wait for jobs with the same arguments: they are taken first, and count as memory.
    """

    def __init__(
        self,
        *,
        memory: int,
        parallel: int,
        timeout_seconds: float,
        tell: Callable[[Job, Event], None],
        started: Callable[[Job], None],
        ready: Standby | None = None,
    ) -> None:
        self._ready = Standby(own_groups=True) if ready is None else ready
        self._memory = memory
        self._parallel = parallel
        self._timeout = timeout_seconds
        self._tell = tell
        self._started = started

    def run(self, jobs: Sequence[Job]) -> Iterator[Ended]:
        """Run all jobs; yield each as it ends. Whoever stops listening stops those that run."""
        waiting, alone = deque(jobs), deque[Job]()
        running: list[_Running] = []
        with selectors.DefaultSelector() as selector, _stopping(running):
            while waiting or alone or running:
                self._start(waiting, alone, running, selector)
                for chosen, _ in selector.select(WATCH_SECONDS):
                    self._read(chosen, selector)
                self._watch(running)
                for worker in [w for w in running if w.process.poll() is not None]:
                    if worker.open:  # what it started holds its streams
                        _kill(worker)
                        continue
                    running.remove(worker)
                    if worker.verdict == "again":
                        _close(worker)
                        alone.append(worker.job)
                    else:
                        yield self._end(worker)

    def _start(
        self, waiting: deque[Job], alone: deque[Job], running: list[_Running], selector: selectors.BaseSelector
    ) -> None:
        if any(worker.alone for worker in running):
            return
        while waiting and len(running) < self._parallel:
            left = self._memory - sum(max(worker.job.need, worker.peak) for worker in running)
            fits = next((job for job in waiting if job.need <= left), None)
            if fits is None and running:
                return
            job = fits or waiting[0]
            waiting.remove(job)
            self._spawn(job, running, selector, alone=False)
        if alone and not waiting and not running:
            self._spawn(alone.popleft(), running, selector, alone=True)

    def _spawn(self, job: Job, running: list[_Running], selector: selectors.BaseSelector, *, alone: bool) -> None:
        process = self._ready.take(job.arguments)
        standby.give(process, job.given)
        assert process.stdout is not None
        assert process.stderr is not None
        worker = _Running(job=job, process=process, started=time.monotonic(), alone=alone)
        running.append(worker)
        for stream, events in ((process.stdout, True), (process.stderr, False)):
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ, (worker, events))
            worker.open.add(stream.fileno())
        self._started(job)

    def _read(self, chosen: selectors.SelectorKey, selector: selectors.BaseSelector) -> None:
        worker, events = chosen.data
        part = os.read(chosen.fd, 1 << 16)
        if not part:
            selector.unregister(chosen.fileobj)
            worker.open.discard(chosen.fd)
        elif events:
            *lines, worker.line = (worker.line + part).split(b"\n")
            for line in lines:
                self._tell(worker.job, msgspec.json.decode(line, type=dict[str, Any]))
        else:
            worker.said = (worker.said + part)[-_MOST_SAID:]
            sys.stderr.write(part.decode(errors="replace"))

    def _watch(self, running: Sequence[_Running]) -> None:
        """Take the workers' memory; stop the youngest when all together are beyond the bound, or one's time is over."""
        total = 0
        for worker in running:
            taken = memory_of(worker.process.pid)
            worker.peak = max(worker.peak, taken)
            total += taken
            if time.monotonic() - worker.started > self._timeout and not worker.verdict:
                worker.verdict = f"not done within {self._timeout:.0f} s"
                _kill(worker)
        waiting = sum(memory_of(pid) for pid in self._ready.pids)
        if waiting and total + waiting > self._memory:
            self._ready.close()
        if total > self._memory and not any(worker.verdict for worker in running):
            youngest = max(running, key=lambda worker: worker.started)
            youngest.verdict = "again" if len(running) > 1 else _too_little(youngest.peak, self._memory)
            _kill(youngest)

    def _end(self, worker: _Running) -> Ended:
        _close(worker)
        code = worker.process.returncode
        problem = worker.verdict
        if code and not problem:
            last = worker.said.decode(errors="replace").strip().rpartition("\n")[2][:240]
            problem = f"its process ended with {_ending(code)}" + (f" ({last})" if last else "")
        return Ended(job=worker.job, problem=problem, peak_bytes=worker.peak, seconds=time.monotonic() - worker.started)


def memory_of(pid: int) -> int:
    """Return the resident memory of a process and all below it, in bytes; 0 when it has ended."""
    total = 0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            try:
                total += each.memory_info().rss
            except psutil.Error:
                continue
    except psutil.Error:
        return 0
    return total


def _too_little(peak: int, bound: int) -> str:
    return (
        f"too little memory: it takes more than {peak / 2**20:.0f} MiB, {bound / 2**20:.0f} MiB are allowed; "
        "allow more with --memory, or run it on a larger machine"
    )


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "SIGKILL, most likely because there was too little memory"
    if code < 0:
        return signal.Signals(-code).name
    return f"code {code}"


def _kill(worker: _Running) -> None:
    try:
        os.killpg(worker.process.pid, signal.SIGKILL)
    except ProcessLookupError:
        worker.process.kill()


@contextmanager
def _stopping(running: list[_Running]) -> Iterator[None]:
    """Leave no worker behind, whatever ends the block."""
    try:
        yield
    finally:
        for worker in running:
            _kill(worker)
            worker.process.wait(STOP_SECONDS)
            _close(worker)


def _close(worker: _Running) -> None:
    for stream in (worker.process.stdout, worker.process.stderr):
        if stream is not None:
            stream.close()
