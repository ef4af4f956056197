"""Benchmarks: what the hub wants measured once on this device, one after the other, beside what serves.

Each is installed as a workload of its own, by the same `Installer` and under its limits, on a port of its own; nobody
is told where, and it is removed as soon as its golden samples are answered. What was learnt is on the disk before the
hub is told, and so is every beginning: one that takes the machine down with it is not begun for ever. A workload that
is being installed goes first; what a power cut leaves behind is removed before the next one begins.

Lives here: the order, the bounds, the results. Must not live here: how something is installed and probed
(`installer`), what is worth measuring (the hub's `core.benchmarks`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import msgspec

from skerry.agent.disk import Disk, kept_name
from skerry.agent.installer import Installer
from skerry.agent.settings import BenchmarkSettings
from skerry.agent.work import Tools
from skerry.api import duration
from skerry.api.errors import InvalidError, NotFoundError, SkerryError, StorageFullError
from skerry.api.kinds.device import BenchmarkStatus, WorkloadStatus
from skerry.api.kinds.variants import Blob
from skerry.core.journal import State, Unwanted, Wanted
from skerry.core.messages import BENCHMARK_PREFIX, MAX_BENCHMARKS, WorkloadDesired

log = logging.getLogger(__name__)

FILE = "benchmarks.json"
MAX_BEGINNINGS = 2
"""Of one benchmark; after that many it is taken for what ended the agent, or the machine."""
REMOVE_SECONDS = 30.0
RETRY_SECONDS = 30.0
"""After the agent's own failure, not the variant's."""
_MAX_TEXT = 1000
_LONGEST_DEPLOYMENT = 63  # characters; a benchmark's name has more


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The file's content: results, and how often each was begun."""

    results: list[BenchmarkStatus] = []
    begun: dict[str, int] = {}


class Benchmarks:
    """All benchmarks of one agent. `busy()` says whether a workload is being installed."""

    def __init__(self, disk: Disk, tools: Tools, settings: BenchmarkSettings, busy: Callable[[], bool]) -> None:
        self._disk, self._tools, self._settings, self._busy = disk, tools, settings, busy
        self._max_seconds = duration.to_seconds(settings.max_time)
        self._wanted: dict[str, WorkloadDesired] | None = None
        self._kept = self._read()
        self._running = ""
        self._news = asyncio.Event()

    def want(self, wanted: Sequence[WorkloadDesired]) -> None:
        """Replace what is to be measured; what is not named any more is stopped and forgotten."""
        self._wanted = {one.name: one for one in wanted[:MAX_BENCHMARKS] if is_benchmark(one.name)}
        self.look()

    def look(self) -> None:
        """Something on this device has changed: there may be room now, or none any more."""
        self._news.set()

    def statuses(self) -> list[BenchmarkStatus]:
        """Return every benchmark that is wanted, as the hub is told of it."""
        done = {one.name: one for one in self._kept.results}
        return [done.get(name) or self._pending(one) for name, one in sorted(self._known().items())]

    def digests(self) -> set[str]:
        """Return the names of blobs to keep: of the one that runs; the others' too, while there is plenty of room."""
        running = [one for name, one in self._known().items() if name == self._running]
        blobs = {name: blob for one in self._known().values() for name, blob in _blobs(one).items()}
        try:
            self._disk.check_room(sum(blob.size for blob in blobs.values()), "benchmarks")
        except StorageFullError:
            return {name for one in running for name in _blobs(one)}
        return set(blobs)

    def _known(self) -> dict[str, WorkloadDesired]:
        return self._wanted or {}

    async def run(self) -> None:
        """Measure what is wanted, for ever."""
        while True:
            self._news.clear()
            try:
                await self._measure_next()
            except Exception as error:
                log.error("benchmark.broke error=%s", error, exc_info=not isinstance(error, SkerryError))
                await asyncio.sleep(RETRY_SECONDS)
                self.look()
            await self._news.wait()

    async def _measure_next(self) -> None:
        self._forget_unwanted()
        done = {one.name for one in self._kept.results}
        waiting = [one for name, one in sorted(self._known().items()) if name not in done]
        if not waiting or self._busy():
            return
        desired = waiting[0]
        begun = self._kept.begun.get(desired.name, 0)
        if not self._settings.enabled:
            result = self._failed(desired, "this device does not measure for the hub", refusal="Policy")
        elif begun >= MAX_BEGINNINGS:
            result = self._failed(desired, f"the agent was interrupted {begun} times while it measured this")
        else:
            self._write(_begun(self._kept, desired.name, begun + 1))
            measured = await self._measure(desired)
            if measured is None:
                log.info("benchmark.yielded variant=%s", desired.variant)
                self._write(_begun(self._kept, desired.name, begun))
                self.look()
                return
            result = measured
        log.info("benchmark.done variant=%s phase=%s message=%s", desired.variant, result.phase, result.message or "-")
        results = [one for one in self._kept.results if one.name != result.name]
        self._write(_Kept(results=[*results, result], begun=self._kept.begun))
        self._tools.changed()
        self.look()

    # --- one benchmark ----------------------------------------------------------------------------------------------

    async def _measure(self, desired: WorkloadDesired) -> BenchmarkStatus | None:
        """Install, probe, remove; returns what came of it, None when it was left for something else."""
        await asyncio.to_thread(self._disk.delete_workload, desired.name)
        tools = replace(self._tools, changed=self.look)
        installer = Installer(State(name=desired.name), tools)
        self._running = desired.name
        self._tools.changed()
        try:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(installer.run(), name=f"benchmark {desired.variant}")
                try:
                    installer.post(Wanted(desired))
                    async with asyncio.timeout(self._max_seconds):
                        said = await self._settle(installer, desired.name)
                    return None if said is None else self._result(desired, said)
                except TimeoutError:
                    return self._overdue(desired, installer.status())
                finally:
                    await self._remove(installer, task)
        finally:
            self._running = ""
            await self._clean(desired.name)
            self._tools.changed()

    async def _settle(self, installer: Installer, name: str) -> WorkloadStatus | None:
        """Wait for the end; None when a workload needs the machine now, or nobody wants to know any more."""
        while True:
            self._news.clear()
            status = installer.status()
            if status.phase in ("Running", "Failed"):
                return status
            if name not in self._known() or self._busy():
                return None
            await self._news.wait()

    def _overdue(self, desired: WorkloadDesired, said: WorkloadStatus) -> BenchmarkStatus | None:
        """What was still on its way, or had to wait for a window, says nothing of the variant: it is begun again."""
        if said.phase in ("Pending", "Fetching") or said.waiting_for:
            return None
        text = f"not measured within {self._settings.max_time}, it was {said.phase}"
        return self._failed(desired, f"{text}: {said.message}" if said.message else text)

    async def _remove(self, installer: Installer, task: asyncio.Task[None]) -> None:
        """Have it stop its server and erase its files; one that cannot is cancelled, and `_clean` does the rest."""
        installer.post(Unwanted())
        _, late = await asyncio.wait({task}, timeout=REMOVE_SECONDS)
        if late:
            task.cancel()

    async def _clean(self, name: str) -> None:
        """Leave nothing behind, whatever happened before."""
        with contextlib.suppress(SkerryError):  # stopped with the strangers at the next start
            await self._tools.servers.stop_all(name, keep=frozenset())
        await asyncio.to_thread(self._disk.delete_workload, name)

    def _result(self, desired: WorkloadDesired, status: WorkloadStatus) -> BenchmarkStatus:
        if status.measurement is None:
            said = status.message or "it brings no golden samples"
            return self._failed(desired, said, refusal=status.refusal)
        return BenchmarkStatus(
            name=desired.name,
            model_version=desired.model_version,
            variant=desired.variant,
            phase="Measured",
            measurement=status.measurement,
            finished_at=self._tools.clock.now(),
        )

    def _failed(self, desired: WorkloadDesired, cause: str, *, refusal: str = "") -> BenchmarkStatus:
        plain = {
            "name": desired.name,
            "modelVersion": desired.model_version,
            "variant": desired.variant,
            "phase": "Failed",
            "message": cause[:_MAX_TEXT],
            "refusal": refusal,
            "finishedAt": self._tools.clock.now(),
        }
        return msgspec.convert(plain, BenchmarkStatus)

    def _pending(self, desired: WorkloadDesired) -> BenchmarkStatus:
        running = desired.name == self._running
        waits = "" if running or not self._busy() else "waits until a workload is installed"
        return BenchmarkStatus(
            name=desired.name,
            model_version=desired.model_version,
            variant=desired.variant,
            phase="Running" if running else "Pending",
            message=waits,
        )

    # --- what is kept -----------------------------------------------------------------------------------------------

    def _read(self) -> _Kept:
        """Return what is known; nothing when it is damaged: then it is measured again."""
        try:
            return msgspec.json.decode(self._disk.read(FILE), type=_Kept)
        except NotFoundError:
            return _Kept()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidError) as error:
            log.warning("benchmark.unreadable error=%s", error)
            return _Kept()

    def _write(self, kept: _Kept) -> None:
        """Make it durable. Raises StorageFullError: then nothing is begun."""
        if kept != self._kept:
            self._disk.write(FILE, msgspec.json.encode(kept))
            self._kept = kept

    def _forget_unwanted(self) -> None:
        if self._wanted is None:
            return  # it is not known yet, since the agent started
        results = [one for one in self._kept.results if one.name in self._wanted]
        begun = {name: count for name, count in self._kept.begun.items() if name in self._wanted}
        self._write(_Kept(results=results, begun=begun))


def _blobs(desired: WorkloadDesired) -> dict[str, Blob]:
    """What one of them needs, by the names under which it is kept."""
    found = {kept_name(desired, blob): blob for blob in (desired.blob, desired.golden) if blob}
    return found | {blob.digest: blob for blob in (*desired.signatures, desired.card) if blob}


def is_benchmark(name: str) -> bool:
    """Return whether a workload's name is one of a benchmark."""
    return name.startswith(BENCHMARK_PREFIX) and len(name) > _LONGEST_DEPLOYMENT


def ordinary(states: Iterable[State]) -> list[State]:
    """Return the journals of workloads; those of interrupted benchmarks are begun anew, not taken up."""
    return [state for state in states if not is_benchmark(state.name)]


def _begun(kept: _Kept, name: str, count: int) -> _Kept:
    """Return what is kept with another number of beginnings for one benchmark."""
    return msgspec.structs.replace(kept, begun={**kept.begun, name: count})
