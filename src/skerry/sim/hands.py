"""The hands of one simulated workload: does what `core.workload` decides, in seeded time, and tells it the result.

The order is the agent's: step, journal, act. Long work runs in lanes, two a slot (installing, serving); a lane that was
replaced or tidied away has nothing more to say. Must not live here: decisions (`core.workload`), how often things go
wrong (`profiles`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from skerry.api.errors import SkerryError, TimedOutError, UnavailableError, UnsupportedError
from skerry.api.kinds.device import Comparison, Measurement, WorkloadPhase, WorkloadStatus
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
)
from skerry.core.messages import ShadowDesired, WorkloadDesired
from skerry.core.ports import Clock
from skerry.sim import draws, measurements
from skerry.sim.artifacts import Catalogue
from skerry.sim.disk import SimulatedDisk
from skerry.sim.draws import Traits
from skerry.sim.profiles import Profile, Span

log = logging.getLogger(__name__)

PORTS = Span(20_000, 60_000)
MIN_WINDOW = 1.0
"""Seconds of observation that are worth a report."""
LATER_WINDOW = 60.0
"""Seconds of all windows but the first, as with a real agent."""
CRASH_AFTER = Span(0.5, 5.0)
"""How long a crash-looping server answers, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tools:
    """What all workloads of one device share during one boot."""

    name: str
    """The device's."""
    seed: int
    profile: Profile
    traits: Traits
    chance: random.Random
    clock: Clock
    disk: SimulatedDisk
    catalogue: Catalogue
    spoiled: frozenset[str]
    """Model versions that answer wrongly everywhere."""
    boot: str
    changed: Callable[[], None]
    """Something that is reported has changed."""
    prune: Callable[[], None]


class SimulatedWorkload:
    """One workload, from its first wish to its removal or the next power cut."""

    def __init__(self, state: State, tools: Tools) -> None:
        self.state = state
        self._tools = tools
        self._events: asyncio.Queue[tuple[asyncio.Task[None] | None, Event]] = asyncio.Queue()
        self._lanes: dict[tuple[int, str], asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None

    def post(self, event: Event) -> None:
        """Tell it what happened."""
        self._events.put_nowait((None, event))

    def status(self) -> WorkloadStatus:
        """Return what is reported of it."""
        return workload.report(self.state)

    @property
    def phase(self) -> WorkloadPhase:
        """Where it stands."""
        return self.state.phase

    async def run(self) -> None:
        """Take events until the workload is gone."""
        async with asyncio.TaskGroup() as self._tasks:
            try:
                while True:
                    lane, event = await self._events.get()
                    if (lane is None or lane in self._lanes.values()) and not await self._handle(event):
                        return
            finally:
                for task in self._lanes.values():
                    task.cancel()

    async def _handle(self, event: Event) -> bool:
        tools, before = self._tools, self.state
        now = Moment(wall=tools.clock.now(), monotonic=tools.clock.monotonic(), boot=tools.boot)
        after, actions = workload.step(before, event, now)
        if after is None:
            await tools.disk.delete_workload(before.name)
            tools.changed()
            return False
        if after != before:
            await tools.disk.write_journal(after)
            self.state = after
            tools.changed()
        for action in actions:
            self._carry_out(action)
        return True

    def _carry_out(self, action: Action) -> None:
        match action:
            case Tidy():
                self._tidy(action)
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

    def _start(self, slot: Slot, kind: str, component: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._tasks is None:
            raise AssertionError("actions are carried out while it runs")
        replaced = self._lanes.pop((slot.serial, kind), None)
        if replaced is not None:
            replaced.cancel()
        self._lanes[slot.serial, kind] = self._tasks.create_task(self._guard(slot, component, work))

    async def _guard(self, slot: Slot, component: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Turn what goes wrong in a lane into an event."""
        try:
            await work()
        except SkerryError as error:
            passing = component == "the registry" and isinstance(error, UnavailableError | TimedOutError)
            self._say(
                Faulted(
                    serial=slot.serial,
                    component=component,
                    element=error.element[:300] or _element(slot),
                    cause=error.cause[:1000],
                    hint=error.hint[:300],
                    final=not passing,
                )
            )

    def _say(self, event: Event) -> None:
        self._events.put_nowait((asyncio.current_task(), event))

    def _tidy(self, action: Tidy) -> None:
        for key in [*self._lanes]:
            serial, kind = key
            if serial not in (action.files if kind == "install" else action.running):
                self._lanes.pop(key).cancel()
        self._tools.prune()
        self.post(Tidied())

    # --- the work -------------------------------------------------------------------------------------------------

    async def _fetch(self, action: Fetch) -> None:
        slot, desired, tools = action.slot, action.slot.desired, self._tools
        await self._pause(action.delay_ceiling)
        if desired.needs.engine not in {engine.name for engine in tools.traits.machine.engines}:
            raise UnsupportedError(f"the engine {desired.needs.engine} is not on this device", element=_element(slot))
        await tools.catalogue.find(desired, tools.name)
        blobs = {blob.digest: blob.size for blob in (desired.blob, desired.golden) if blob is not None}
        missing = sum(size for digest, size in blobs.items() if digest not in tools.disk.cached)
        failed = missing > 0 and tools.chance.random() < tools.profile.failed_fetches
        came = int(missing * tools.chance.random()) if failed else missing
        await asyncio.sleep(came / tools.traits.bandwidth)
        if failed:
            fault = Faulted(
                serial=slot.serial,
                component="the registry",
                element=_element(slot),
                cause="the connection was lost",
                final=False,
                network_bytes=came,
            )
            self._say(fault)
            return
        tools.disk.cached.update(blobs)
        self._say(Fetched(serial=slot.serial, network_bytes=came))

    async def _install(self, slot: Slot) -> None:
        await asyncio.sleep(draws.between(self._tools.chance, self._tools.profile.disk_write))
        self._say(Laid(serial=slot.serial))

    async def _serve(self, action: Serve) -> None:
        slot, tools = action.slot, self._tools
        await self._pause(action.delay_ceiling)
        self._say(Launched(serial=slot.serial, port=self._free_port()))
        await asyncio.sleep(draws.between(tools.chance, tools.profile.start))
        if tools.chance.random() < tools.profile.failed_starts:
            self._say(Exited(serial=slot.serial, cause="ended with code 1 before it answered", uptime_seconds=0.0))
            return
        where = 0 if action.endpoint is None else action.endpoint.port or self._free_port()
        self._say(Ready(serial=slot.serial, endpoint=where))
        if tools.traits.crash_looping:
            seconds = draws.between(tools.chance, CRASH_AFTER)
            await asyncio.sleep(seconds)
            self._say(Exited(serial=slot.serial, cause="ended by signal 11", uptime_seconds=seconds))

    async def _probe(self, action: Probe) -> None:
        slot, tools = action.slot, self._tools
        if slot.desired.golden is None:
            self._say(Probed(serial=slot.serial, measurement=None))
            return
        measured = await measure(tools, slot.desired)
        if action.beside is None and slot.desired.compare:
            measured = msgspec.structs.replace(measured, comparison=Comparison())  # with nothing
        elif action.beside is not None:
            other = await measure(tools, action.beside.desired)
            compared = measurements.comparison(measured, other, action.beside.desired.model_version)
            measured = msgspec.structs.replace(measured, comparison=compared)
        await asyncio.sleep(draws.between(tools.chance, tools.profile.probe))
        self._say(Probed(serial=slot.serial, measurement=measured))

    async def _shadow(self, action: ShadowBeside) -> None:
        slot, tools = action.slot, self._tools
        asked = slot.desired.shadow or ShadowDesired()
        await asyncio.sleep(asked.seconds)
        beside = action.beside.desired.model_version
        report = measurements.shadow(asked, beside, traits_for(tools, slot.desired), tools.seed, tools.name)
        self._say(Shadowed(serial=slot.serial, report=report))

    async def _observe(self, slot: Slot) -> None:
        tools, asked = self._tools, slot.desired.observe
        shortest = MIN_WINDOW
        while asked is not None:
            seconds = max(asked.seconds, shortest)
            await asyncio.sleep(seconds)
            known = traits_for(tools, slot.desired)
            seen = measurements.observation(slot.measurement, seconds, known, tools.seed, tools.name)
            if shortest == MIN_WINDOW or seen.errors:  # a server that works costs no messages
                self._say(Observed(serial=slot.serial, observation=seen))
            shortest = LATER_WINDOW

    async def _switch(self, action: Switch) -> None:
        self._say(Switched(serial=action.slot.serial, endpoint=action.endpoint.port or self._free_port()))

    def _free_port(self) -> int:
        return int(draws.between(self._tools.chance, PORTS))

    async def _pause(self, ceiling: float) -> None:
        """Full jitter: anything up to the ceiling."""
        if ceiling > 0:
            await asyncio.sleep(self._tools.chance.uniform(0, ceiling))


async def measure(tools: Tools, desired: WorkloadDesired) -> Measurement:
    """Return what the golden samples show of a variant on this device. Raises what `Catalogue.find` raises."""
    found = await tools.catalogue.find(desired, tools.name)
    known = traits_for(tools, desired)
    return measurements.measurement(found.variant, found.samples, known, tools.seed, tools.name)


def traits_for(tools: Tools, desired: WorkloadDesired) -> Traits:
    """Return the device's traits, as this model version meets them."""
    return draws.spoiled(tools.traits) if desired.model_version in tools.spoiled else tools.traits


def _element(slot: Slot) -> str:
    return f"{slot.desired.model_version} {slot.desired.variant}"[:200]
