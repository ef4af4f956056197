"""The hands of one workload: carries out what `core.workload` decides, and tells it what came of it.

One task takes events in order: step, journal, act. Long work runs in lanes, two a slot (installing, serving), whose
results are the next events; a lane that was replaced or tidied away has nothing more to say.
Lives here: that order. Must not live here: decisions.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from skerry.agent import probes
from skerry.agent.disk import GOLDEN_FILE, Disk
from skerry.agent.loopback import LoopbackClient
from skerry.agent.servers import Server, Servers
from skerry.api.errors import (
    IntegrityError,
    NotFoundError,
    SkerryError,
    StorageFullError,
    TimedOutError,
    UnavailableError,
    UnsupportedError,
)
from skerry.api.kinds.device import WorkloadStatus
from skerry.api.kinds.variants import Blob
from skerry.core import workload
from skerry.core.journal import (
    Action,
    Event,
    Exited,
    Faulted,
    Fetch,
    Fetched,
    Install,
    Laid,
    Launched,
    Moment,
    Probe,
    Probed,
    Ready,
    Serve,
    Slot,
    State,
    Tidied,
    Tidy,
)
from skerry.core.ports import ArtifactSource, Clock

log = logging.getLogger(__name__)

JOURNAL_RETRY_SECONDS = 5.0
STOP_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What all workloads of one agent share."""

    disk: Disk
    source: ArtifactSource
    servers: Servers
    clock: Clock
    boot: str
    """The kernel's boot id."""
    engines: Callable[[], Iterable[str]]
    """Names of the engines of this device."""
    fetching: asyncio.Semaphore
    """How many artifacts may be on their way at a time."""
    blob_locks: WeakValueDictionary[str, asyncio.Lock]
    """One for each digest being fetched: two workloads may want the same blob."""
    prune: Callable[[], Coroutine[Any, Any, None]]
    """Remove cached blobs that no workload names."""
    probe_samples: int
    probe_seconds: float
    probe_timeout_seconds: float
    changed: Callable[[], None]
    """Something that is reported has changed."""


@dataclass
class _Lane:
    """One piece of long work; `void` once nobody wants its result any more."""

    void: bool = False
    task: asyncio.Task[None] | None = None


class Installer:
    """One workload, from its first wish to its removal."""

    def __init__(self, state: State, tools: Tools) -> None:
        self.state = state
        self._tools = tools
        self._events: asyncio.Queue[tuple[_Lane | None, Event]] = asyncio.Queue()
        self._lanes: dict[tuple[int, str], _Lane] = {}
        self._servers: dict[int, Server] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._settled = asyncio.Event()

    def post(self, event: Event) -> None:
        """Tell it what happened."""
        self._events.put_nowait((None, event))

    def status(self) -> WorkloadStatus:
        """Return what is reported of it."""
        return workload.report(self.state)

    @property
    def server_port(self) -> int:
        """Where the current version answers; 0 while it does not."""
        return self.state.current.port if self.state.current is not None and self.state.up else 0

    async def settled(self) -> None:
        """Wait until its server answers or is known not to."""
        await self._settled.wait()

    async def run(self) -> None:
        """Take events until the workload is gone."""
        async with asyncio.TaskGroup() as self._tasks:
            try:
                while True:
                    lane, event = await self._events.get()
                    if (lane is None or not lane.void) and not await self._handle(event):
                        return
            finally:
                self._settled.set()
                for lane in self._lanes.values():
                    _cancel(lane)

    async def _handle(self, event: Event) -> bool:
        tools, before = self._tools, self.state
        now = Moment(wall=tools.clock.now(), monotonic=tools.clock.monotonic(), boot=tools.boot)
        after, actions = workload.step(before, event, now)
        if after is None:
            await asyncio.to_thread(tools.disk.delete_workload, before.name)
            log.info("workload.removed workload=%s", before.name)
            tools.changed()
            return False
        if after != before:
            await self._journal(after)
            self.state = after
            if after.phase != before.phase or after.message != before.message:
                log.info(
                    "workload.phase workload=%s phase=%s message=%s", after.name, after.phase, after.message or "-"
                )
            tools.changed()
        if after.up or isinstance(event, Faulted) or after.current is None:
            self._settled.set()
        for action in actions:
            await self._carry_out(action)
        return True

    async def _journal(self, state: State) -> None:
        """Nothing that names other slots is acted on before it is on the disk: when that is full, wait for room."""
        while True:
            try:
                await asyncio.to_thread(self._tools.disk.write_journal, state)
            except (StorageFullError, OSError) as error:
                log.error("journal.not_written workload=%s error=%s", state.name, error)
                await self._tools.prune()
                if not workload.must_be_durable(self.state, state):
                    return  # what is installed is served, full disk or not
                await asyncio.sleep(JOURNAL_RETRY_SECONDS)
            else:
                return

    async def _carry_out(self, action: Action) -> None:
        match action:
            case Tidy():
                await self._tidy(action)
            case Fetch(slot=slot):
                self._start(slot, "install", "the registry", partial(self._fetch, action))
            case Install(slot=slot):
                self._start(slot, "install", "the disk", partial(self._install, slot))
            case Probe(slot=slot):
                self._start(slot, "install", "the probe", partial(self._probe, slot))
            case Serve(slot=slot):
                self._start(slot, "serve", "the inference server", partial(self._serve, action))

    # --- lanes ----------------------------------------------------------------------------------------------------

    def _start(self, slot: Slot, kind: str, component: str, work: Callable[[_Lane], Coroutine[Any, Any, None]]) -> None:
        replaced = self._lanes.pop((slot.serial, kind), None)
        if replaced is not None:
            _cancel(replaced)
        if self._tasks is None:
            raise AssertionError("actions are carried out while it runs")
        lane = self._lanes[slot.serial, kind] = _Lane()
        before = None if replaced is None else replaced.task
        lane.task = self._tasks.create_task(self._guard(lane, slot, component, work, before))

    async def _guard(
        self,
        lane: _Lane,
        slot: Slot,
        component: str,
        work: Callable[[_Lane], Coroutine[Any, Any, None]],
        before: asyncio.Task[None] | None,
    ) -> None:
        """Turn whatever goes wrong in a lane into an event: no failure of one workload may touch another."""
        if before is not None:
            await asyncio.wait({before})
        try:
            await work(lane)
        except SkerryError as error:
            self._say(lane, _fault(slot, component, error))
        except Exception as error:
            log.exception("workload.unexpected workload=%s", slot.desired.name)
            cause = f"{type(error).__name__}: {error}"[:500]
            self._say(
                lane,
                Faulted(serial=slot.serial, component=component, element=_element(slot), cause=cause, final=False),
            )

    def _say(self, lane: _Lane, event: Event) -> None:
        self._events.put_nowait((lane, event))

    async def _tidy(self, action: Tidy) -> None:
        name, running = self.state.name, []
        for key, lane in list(self._lanes.items()):
            serial, kind = key
            if serial not in (action.running if kind == "serve" else action.files):
                _cancel(lane)
                del self._lanes[key]
                running += [lane.task] if lane.task is not None else []
        self._servers = {serial: one for serial, one in self._servers.items() if serial in action.running}
        if running:
            await asyncio.wait(running)
        for attempt in range(STOP_ATTEMPTS):
            try:
                await self._tools.servers.stop_all(name, keep=action.running)
                break
            except SkerryError as error:
                log.error("workload.not_stopped workload=%s attempt=%d error=%s", name, attempt, error)
        await asyncio.to_thread(self._tools.disk.erase_slots, name, keep=action.files)
        await self._tools.prune()
        self.post(Tidied())

    # --- the work -------------------------------------------------------------------------------------------------

    async def _fetch(self, action: Fetch, lane: _Lane) -> None:
        slot, desired, tools = action.slot, action.slot.desired, self._tools
        await _pause(action.delay_ceiling)
        if desired.needs.engine not in set(tools.engines()):
            raise UnsupportedError(
                f"the engine {desired.needs.engine} is not on this device",
                element=_element(slot),
                hint="install it, or deploy a variant for another engine",
            )
        came = 0

        def progress(count: int) -> None:
            nonlocal came
            came += count

        try:
            for blob in (desired.blob, desired.golden):
                if blob is not None:
                    lock = tools.blob_locks.setdefault(blob.digest, asyncio.Lock())
                    async with lock, tools.fetching:
                        await self._fetch_blob(desired.repository, blob, progress)
        except SkerryError as error:
            self._say(lane, replace(_fault(slot, "the registry", error), network_bytes=came))
            return
        self._say(lane, Fetched(serial=slot.serial, network_bytes=came))

    async def _fetch_blob(self, repository: str, blob: Blob, progress: Callable[[int], None]) -> None:
        tools = self._tools
        if await asyncio.to_thread(tools.disk.has_blob, blob):
            return
        missing = blob.size - tools.disk.partial_size(blob)
        try:
            tools.disk.check_room(missing, blob.digest)
        except StorageFullError:
            await tools.prune()
            tools.disk.check_room(missing, blob.digest)
        await tools.source.fetch(repository, blob, tools.disk.blob(blob), progress=progress)

    async def _install(self, slot: Slot, lane: _Lane) -> None:
        await asyncio.to_thread(self._tools.disk.lay_slot, slot)
        self._say(lane, Laid(serial=slot.serial))

    async def _serve(self, action: Serve, lane: _Lane) -> None:
        slot, servers = action.slot, self._tools.servers
        await _pause(action.delay_ceiling)
        async with servers.launched(action) as server:
            self._servers[slot.serial] = server
            self._say(lane, Launched(serial=slot.serial, port=server.port))
            await servers.until_ready(server)
        ready = self._tools.clock.monotonic()
        self._say(lane, Ready(serial=slot.serial))
        cause = await servers.wait(server)
        self._say(lane, Exited(serial=slot.serial, cause=cause, uptime_seconds=self._tools.clock.monotonic() - ready))

    async def _probe(self, slot: Slot, lane: _Lane) -> None:
        desired, tools, server = slot.desired, self._tools, self._servers[slot.serial]
        if desired.golden is None:
            self._say(lane, Probed(serial=slot.serial, measurement=None))
            return
        golden = tools.disk.slot(desired.name, slot.serial) / GOLDEN_FILE
        client = LoopbackClient(
            server.port, max_body_bytes=probes.MAX_ANSWER_BYTES, timeout_seconds=tools.probe_timeout_seconds
        )
        try:
            async with client:
                measured = await probes.run(
                    client,
                    golden,
                    model=desired.model,
                    signature=desired.signature,
                    max_samples=tools.probe_samples,
                    max_seconds=tools.probe_seconds,
                )
        except UnavailableError:
            if not await tools.servers.alive(server):
                return  # its end is the news, and the serving lane tells it with the reason
            raise
        peak = await tools.servers.peak_memory(server)
        self._say(
            lane,
            Probed(serial=slot.serial, measurement=msgspec.structs.replace(measured, peak_memory_bytes=peak)),
        )


def _cancel(lane: _Lane) -> None:
    lane.void = True
    if lane.task is not None:
        lane.task.cancel()


async def _pause(ceiling: float) -> None:
    """Full jitter: anything up to the ceiling."""
    if ceiling > 0:
        await asyncio.sleep(random.uniform(0, ceiling))  # noqa: S311 - jitter, not a secret


def _element(slot: Slot) -> str:
    return f"{slot.desired.model_version} {slot.desired.variant}"[:200]


def _fault(slot: Slot, component: str, error: SkerryError) -> Faulted:
    lost = isinstance(error, IntegrityError | NotFoundError)
    about_slot = component != "the registry"
    return Faulted(
        serial=slot.serial,
        component=component,
        element=error.element[:300] or _element(slot),
        cause=error.cause[:1000],
        hint=error.hint[:300],
        final=_is_final(component, error),
        damaged=lost and about_slot,
    )


def _is_final(component: str, error: SkerryError) -> bool:
    if component == "the inference server":
        return isinstance(error, UnsupportedError)
    if component == "the registry":
        return not isinstance(error, UnavailableError | TimedOutError)
    return True
