"""The hands of one workload: carries out what `core.workload` decides, and tells it what came of it.

One task takes events in order: step, journal, act. Long work runs in lanes, three a slot (installing, serving,
watching), whose results are the next events; a lane that was replaced or tidied away has nothing more to say.
Lives here: that order. Must not live here: decisions.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from skerry.agent import compare, inference, observe, probes
from skerry.agent.admission import RefusedError
from skerry.agent.disk import GOLDEN_FILE, Disk, Freed
from skerry.agent.loopback import LoopbackClient
from skerry.agent.policy import POLL_SECONDS, Policy, Wait
from skerry.agent.room import Promise, Room
from skerry.agent.servers import Server, Servers
from skerry.api.errors import (
    IntegrityError,
    InvalidError,
    NotFoundError,
    SkerryError,
    StorageFullError,
    TimedOutError,
    UnavailableError,
    UnsupportedError,
)
from skerry.api.kinds.device import Comparison, Refusal, WorkloadStatus
from skerry.api.kinds.variants import Blob
from skerry.core import workload
from skerry.core.journal import (
    Action,
    Endpoint,
    Event,
    Exited,
    Faulted,
    Fetch,
    Fetched,
    Install,
    Laid,
    Launched,
    Moment,
    Observe,
    Observed,
    Probe,
    Probed,
    Ready,
    Serve,
    ShadowBeside,
    Shadowed,
    Slot,
    State,
    Switch,
    Switched,
    Tidied,
    Tidy,
    Waits,
)
from skerry.core.messages import ShadowDesired, WorkloadDesired
from skerry.core.ports import ArtifactSource, Clock, Instance

log = logging.getLogger(__name__)

JOURNAL_RETRY_SECONDS = 5.0
STOP_ATTEMPTS = 3
REFUSE_SECONDS = 5.0
"""Callers wait in the endpoint's queue while a server is started again; when that may take longer, they are refused."""


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
    prune: Callable[[], Coroutine[Any, Any, Freed]]
    """Remove what no workload names, and return what that was."""
    free: Callable[[], Coroutine[Any, Any, Freed]]
    """The same when there is no room: also what can be done without."""
    room: Room
    probe_samples: int
    probe_seconds: float
    probe_timeout_seconds: float
    changed: Callable[[], None]
    """Something that is reported has changed."""
    policy: Policy
    """What has to wait for now."""
    admit: Callable[[WorkloadDesired], None] = lambda _: None
    """Raises RefusedError for what this device does not take."""


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
        self._leaving: dict[str, asyncio.Task[None]] = {}
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
                for task in self._leaving.values():
                    task.cancel()

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
                await self._tools.free()
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
                self._start(slot, "install", "the probe", partial(self._probe, action))
            case ShadowBeside(slot=slot):
                self._start(slot, "install", "shadow mode", partial(self._shadow, action))
            case Observe(slot=slot):
                self._start(slot, "observe", "the observation", partial(self._observe, slot))
            case Switch(slot=slot):
                self._start(slot, "install", "the endpoint", partial(self._switch, action))
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
            if serial not in (action.files if kind == "install" else action.running):
                _cancel(lane)
                del self._lanes[key]
                running += [lane.task] if lane.task is not None else []
        self._servers = {serial: one for serial, one in self._servers.items() if serial in action.running}
        if running:
            await asyncio.wait(running)
        leaving = await self._tools.servers.retire(name, keep=action.running, leaving=self._leaving)
        for attempt in range(STOP_ATTEMPTS):
            try:
                await self._tools.servers.stop_all(
                    name, keep=action.running, leaving=leaving, endpoint=self.state.endpoint
                )
                break
            except SkerryError as error:
                log.error("workload.not_stopped workload=%s attempt=%d error=%s", name, attempt, error)
        for instance in leaving:
            self._see_off(instance)
        await asyncio.to_thread(self._tools.disk.erase_slots, name, keep=action.files)
        await self._tools.prune()
        self.post(Tidied())

    def _see_off(self, instance: Instance) -> None:
        """Behind the events' back: whoever still talks to the version before must not hold up what comes next."""
        if self._tasks is None or instance.id in self._leaving:
            return

        async def see_off() -> None:
            try:
                await self._tools.servers.see_off(instance)
            except SkerryError as error:
                log.error("workload.not_stopped workload=%s error=%s", self.state.name, error)
            finally:
                self._leaving.pop(instance.id, None)

        self._leaving[instance.id] = self._tasks.create_task(see_off())

    # --- waiting by policy ----------------------------------------------------------------------------------------

    async def _cleared(self, slot: Slot, lane: _Lane, verdict: Callable[[], Wait | None]) -> None:
        """Wait until a policy lets the slot's work go on, and say so as long as it does not."""
        while (wait := verdict()) is not None:
            said = (self.state.waiting_for, self.state.message)
            if said != (wait.reason, wait.message) and not lane.void:
                self._say(lane, Waits(serial=slot.serial, waiting_for=wait.reason, message=wait.message))
            await self._tools.policy.until_changed()
        if self.state.waiting_for:
            self._say(lane, Waits(serial=slot.serial, waiting_for=""))

    def _newest(self, slot: Slot) -> WorkloadDesired:
        """What is desired of the slot now: how it may be fetched can change while it waits."""
        candidate = self.state.candidate
        return candidate.desired if candidate is not None and candidate.serial == slot.serial else slot.desired

    def _may_switch(self, slot: Slot) -> Wait | None:
        return self._tools.policy.may_switch(self._newest(slot))

    def _may_fetch(self, slot: Slot) -> Wait | None:
        return self._tools.policy.may_fetch(self._newest(slot), self._missing(slot))

    def _missing(self, slot: Slot) -> int:
        """Bytes that have still to come over the network."""
        return self._tools.disk.missing_bytes(blob for blob in (slot.desired.blob, slot.desired.golden) if blob)

    # --- the work -------------------------------------------------------------------------------------------------

    async def _fetch(self, action: Fetch, lane: _Lane) -> None:
        slot, desired, tools = action.slot, action.slot.desired, self._tools
        await _pause(action.delay_ceiling)
        tools.admit(desired)
        if desired.needs.engine not in set(tools.engines()):
            raise UnsupportedError(
                f"the engine {desired.needs.engine} is not on this device",
                element=_element(slot),
                hint="install it, or deploy a variant for another engine",
            )
        await self._cleared(slot, lane, lambda: tools.policy.may_begin_to_fetch(self._newest(slot)))
        came, promise = 0, Promise(0)

        def progress(count: int) -> None:
            nonlocal came
            came += count
            promise.came(count)

        try:
            await self._cleared(slot, lane, lambda: self._may_fetch(slot))
            needed, freed = await asyncio.to_thread(tools.room.needed, desired), None
            if not tools.room.fits(needed):
                freed = await tools.free()
            with tools.room.kept(needed, _element(slot), freed=freed) as promise:
                for blob in (desired.blob, desired.golden):
                    if blob is not None:
                        await self._fetch_blob(slot, lane, blob, progress)
        except SkerryError as error:
            self._say(lane, replace(_fault(slot, "the registry", error), network_bytes=came))
            return
        self._say(lane, Fetched(serial=slot.serial, network_bytes=came))

    async def _fetch_blob(self, slot: Slot, lane: _Lane, blob: Blob, progress: Callable[[int], None]) -> None:
        """Fetch when it is allowed and somebody's turn; whoever has to wait for the link keeps nobody else waiting."""
        tools, done = self._tools, False
        lock = tools.blob_locks.setdefault(blob.digest, asyncio.Lock())
        while not done:
            await self._cleared(slot, lane, lambda: self._may_fetch(slot))
            async with lock, tools.fetching:
                if await asyncio.to_thread(tools.disk.has_blob, blob):
                    return
                if self._may_fetch(slot) is not None:
                    continue
                target = tools.disk.blob(blob)
                fetching = asyncio.ensure_future(
                    tools.source.fetch(slot.desired.repository, blob, target, progress=progress)
                )
                try:
                    done = await self._ends_while_allowed(fetching, slot)
                finally:
                    if not fetching.done():
                        fetching.cancel()
                        await asyncio.wait({fetching})

    async def _ends_while_allowed(self, fetching: asyncio.Future[None], slot: Slot) -> bool:
        """Return whether a fetch has ended; False as soon as the link must not be used for it any more."""
        while True:
            ended, _ = await asyncio.wait({fetching}, timeout=POLL_SECONDS)
            if ended:
                fetching.result()
                return True
            if self._may_fetch(slot) is not None:
                log.info("workload.fetch_broken_off workload=%s", slot.desired.name)
                return False

    async def _install(self, slot: Slot, lane: _Lane) -> None:
        await asyncio.to_thread(self._tools.disk.lay_slot, slot)
        self._say(lane, Laid(serial=slot.serial))

    async def _serve(self, action: Serve, lane: _Lane) -> None:
        slot, servers, endpoint = action.slot, self._tools.servers, 0
        if action.endpoint is not None and action.delay_ceiling > REFUSE_SECONDS:
            await servers.refuse(slot.desired.name)
        await _pause(action.delay_ceiling)
        if self._is_new(slot):
            await self._cleared(slot, lane, lambda: self._may_switch(slot))
        async with servers.launched(action) as server:
            self._servers[slot.serial] = server
            self._say(lane, Launched(serial=slot.serial, port=server.port))
            await servers.until_ready(server)
        if action.endpoint is not None:
            endpoint = await self._admit(server, slot, action.endpoint)
        ready = self._tools.clock.monotonic()
        self._say(lane, Ready(serial=slot.serial, endpoint=endpoint))
        cause = await servers.wait(server)
        self._say(lane, Exited(serial=slot.serial, cause=cause, uptime_seconds=self._tools.clock.monotonic() - ready))

    async def _admit(self, server: Server, slot: Slot, endpoint: Endpoint) -> int:
        servers = self._tools.servers
        try:
            return await servers.admit(slot.desired.name, server, endpoint)
        except (TimedOutError, InvalidError):
            await servers.discard(server)  # or it would be adopted, and fail, for ever
            raise

    def _is_new(self, slot: Slot) -> bool:
        """Whether it is being installed; what served before is brought back at any time."""
        return self.state.candidate is not None and self.state.candidate.serial == slot.serial

    async def _switch(self, action: Switch, lane: _Lane) -> None:
        slot, server = action.slot, self._servers[action.slot.serial]
        await self._cleared(slot, lane, lambda: self._may_switch(slot))
        try:
            endpoint = await self._tools.servers.admit(slot.desired.name, server, action.endpoint)
        except (UnavailableError, TimedOutError):
            if not await self._tools.servers.alive(server):
                return  # its end is the news, and the serving lane tells it with the reason
            raise
        self._say(lane, Switched(serial=slot.serial, endpoint=endpoint))

    async def _probe(self, action: Probe, lane: _Lane) -> None:
        slot, tools = action.slot, self._tools
        desired, server = slot.desired, self._servers[slot.serial]
        if desired.golden is None:
            self._say(lane, Probed(serial=slot.serial, measurement=None))
            return
        golden = tools.disk.slot(desired.name, slot.serial) / GOLDEN_FILE
        client = LoopbackClient(
            server.port, max_body_bytes=inference.MAX_ANSWER_BYTES, timeout_seconds=tools.probe_timeout_seconds
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
                if desired.compare:
                    compared = await self._compare(client, golden, desired, action.beside)
                    measured = msgspec.structs.replace(measured, comparison=compared)
        except UnavailableError:
            if not await tools.servers.alive(server):
                return  # its end is the news, and the serving lane tells it with the reason
            raise
        peak = await tools.servers.peak_memory(server)
        self._say(
            lane,
            Probed(serial=slot.serial, measurement=msgspec.structs.replace(measured, peak_memory_bytes=peak)),
        )

    async def _compare(
        self, client: LoopbackClient, golden: Path, desired: WorkloadDesired, beside: Slot | None
    ) -> Comparison:
        """Ask the version that serves the same, over its private port; one that is down is a reason."""
        tools = self._tools
        if beside is None:
            return Comparison()
        replaced, server = beside.desired.model_version, self._servers.get(beside.serial)
        if server is None:
            return Comparison(replaced=replaced, reason="it does not run")
        old = LoopbackClient(
            server.port, max_body_bytes=inference.MAX_ANSWER_BYTES, timeout_seconds=tools.probe_timeout_seconds
        )
        async with old:
            return await compare.run(
                compare.Side(client=client, model=desired.model),
                compare.Side(client=old, model=beside.desired.model),
                golden,
                signature=desired.signature,
                replaced=replaced,
                max_samples=tools.probe_samples,
                max_seconds=tools.probe_seconds,
            )

    async def _shadow(self, action: ShadowBeside, lane: _Lane) -> None:
        slot, beside = action.slot, action.beside
        report = await observe.shadow(
            self._tools.servers.control(beside.desired.name, beside.serial),
            self._servers[slot.serial].port,
            slot.desired.shadow or ShadowDesired(),
            version=beside.desired.model_version,
            clock=self._tools.clock,
        )
        self._say(lane, Shadowed(serial=slot.serial, report=report))

    async def _observe(self, slot: Slot, lane: _Lane) -> None:
        asked, server, tools = slot.desired.observe, self._servers.get(slot.serial), self._tools
        if asked is None or server is None:
            return
        try:
            await observe.watch(
                server.control.observe,
                partial(tools.servers.peak_memory, server),
                asked,
                tools.clock,
                lambda seen: self._say(lane, Observed(serial=slot.serial, observation=seen)),
            )
        except Exception:  # a server that cannot be watched serves all the same
            log.exception("workload.not_observed workload=%s", slot.desired.name)


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
    about_slot, refusal = component != "the registry", _refusal(component, error)
    return Faulted(
        serial=slot.serial,
        component=f"the device's own check ({refusal})" if refusal else component,
        refusal=refusal,
        element=error.element[:300] or _element(slot),
        cause=error.cause[:1000],
        hint=error.hint[:300],
        final=_is_final(component, error),
        damaged=lost and about_slot,
    )


def _refusal(component: str, error: SkerryError) -> Refusal:
    """Which refusal an error is: the device's word, or a disk that had no room before anything was fetched."""
    if isinstance(error, RefusedError):
        return error.refusal
    return "Disk" if isinstance(error, StorageFullError) and component == "the registry" else ""


def _is_final(component: str, error: SkerryError) -> bool:
    if component == "the inference server":
        return isinstance(error, UnsupportedError)
    if component == "the registry":
        return not isinstance(error, UnavailableError | TimedOutError)
    return True
