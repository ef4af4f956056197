"""One simulated device: boots, connects, obeys, reports, loses its power, and comes back with what was on its disk.

The session and every decision about a workload are the agent's own (`core.session`, `core.workload`). Must not live
here: what a workload's work takes (`hands`), the network (`link`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from skerry.api.errors import SkerryError, TimedOutError, UnavailableError
from skerry.api.kinds.device import Measurement, WorkloadStatus
from skerry.core import messages, trust
from skerry.core.journal import Resumed, State, Unwanted, Wanted
from skerry.core.messages import Command, CommandResult, DesiredState, WorkloadDesired
from skerry.core.ports import Clock, DeviceConnection
from skerry.core.session import Session
from skerry.kit.cancellation import in_own_task
from skerry.sim import draws
from skerry.sim.artifacts import Catalogue
from skerry.sim.benchmarks import SimulatedBenchmarks
from skerry.sim.disk import SimulatedDisk
from skerry.sim.draws import Traits
from skerry.sim.hands import SimulatedWorkload, Tools, measure
from skerry.sim.link import SimulatedLink
from skerry.sim.profiles import Profile

log = logging.getLogger(__name__)

SEND_SECONDS = 60.0
POWER_CUT_SECONDS = 1.0
"""Until the power is cut again, should anything have survived it."""
RETRY_CEILING_SECONDS = 60.0
STEADY_SECONDS = 30.0
"""A connection that held this long was a good one: the next attempt comes soon."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What all devices of a simulation share."""

    seed: int
    profile: Profile
    clock: Clock
    keys: Mapping[str, trust.VerifyingKey]
    """The hub's signing keys by id."""
    catalogue: Catalogue
    door: asyncio.Semaphore
    """At most so many connect at a time."""
    spoiled: frozenset[str] = frozenset()
    """Model versions that answer wrongly everywhere."""


@dataclass(kw_only=True)
class Counts:
    """What happened to one device so far."""

    boots: int = 0
    connections: int = 0
    reports: int = 0
    accepted: int = 0
    refused: int = 0
    commands: int = 0


class SimulatedDevice:
    """One device, from its first boot to the simulation's end."""

    def __init__(self, uid: str, name: str, world: World, link: SimulatedLink) -> None:
        self.uid = uid
        self.name = name
        self.online = False
        self.powered = False
        self.counts = Counts()
        self.link = link
        self._world = world
        self._traits: Traits = draws.traits(world.profile, world.seed, name)
        self._chance: random.Random = draws.dice(world.seed, name, "events")
        self._disk = SimulatedDisk(world.profile, self._chance)
        self._workloads: dict[str, SimulatedWorkload] = {}
        self._changed = asyncio.Event()
        self._session: Session
        self._benchmarks: SimulatedBenchmarks
        self._tools: Tools
        self._tasks: asyncio.TaskGroup

    @property
    def workloads(self) -> Mapping[str, SimulatedWorkload]:
        """What is on the device."""
        return self._workloads

    async def run(self) -> None:
        """Live for ever: boot, until the power goes; cancel it to end."""
        while True:
            # A task a boot: in one that outlives them, each connection that a task group lost would leave a
            # cancellation uncounted (CPython 3.11), and the power cut would pass for the simulation's end.
            boot = asyncio.create_task(self._live(), name=f"boot-{self.name}")
            try:
                await asyncio.wait(
                    (boot,), timeout=draws.wait_for(self._chance, self._world.profile.between_power_cuts)
                )
            finally:
                while not boot.done():  # a connection that is lost at that very moment may swallow one
                    boot.cancel()
                    await asyncio.wait((boot,), timeout=POWER_CUT_SECONDS)
                self.powered = self.online = False
            if not boot.cancelled():
                boot.result()  # it never returns, so it raises
            log.debug("device.power_cut name=%s", self.name)
            await asyncio.sleep(draws.between(self._chance, self._world.profile.power_off))

    async def _live(self) -> None:
        """One boot, to its end."""
        self._boot()
        async with asyncio.TaskGroup() as self._tasks:
            for state in self._disk.read_journals():
                self._start(state).post(Resumed())
            if self._session.accepted is not None:
                self._apply(self._session.accepted)
            self._tasks.create_task(self._benchmarks.run())
            await self._stay_connected()

    def _boot(self) -> None:
        world = self._world
        self.counts.boots += 1
        self.powered = True
        boot = f"{self.uid}-{self.counts.boots}-{self._chance.getrandbits(32):08x}"
        floor, accepted = self._read_accepted()
        self._session = Session(
            uid=self.uid,
            boot_id=boot,
            keys=world.keys,
            heartbeat_seconds=world.profile.heartbeat,
            floor=floor,
            accepted=accepted,
        )
        self._session.update(facts=draws.facts(self._traits.machine, self.name, boot_id=boot))
        self._workloads = {}
        self._tools = Tools(
            name=self.name,
            seed=world.seed,
            profile=world.profile,
            traits=self._traits,
            chance=self._chance,
            clock=world.clock,
            disk=self._disk,
            catalogue=world.catalogue,
            spoiled=world.spoiled,
            boot=boot,
            changed=self._changed.set,
            prune=self._prune,
        )
        self._benchmarks = SimulatedBenchmarks(self._disk, world.clock, self._measure, self._changed.set)

    def _read_accepted(self) -> tuple[int, DesiredState | None]:
        kept = self._disk.read_desired()
        if kept is None:
            return 0, None
        version, raw = kept
        return version, trust.open_envelope(raw, DesiredState, uid=self.uid, keys=self._world.keys)

    # --- workloads ------------------------------------------------------------------------------------------------

    def statuses(self) -> list[WorkloadStatus]:
        """Return every workload as the hub is told of it."""
        return [one.status() for _, one in sorted(self._workloads.items())]

    def _apply(self, desired: DesiredState) -> None:
        wanted = {one.name: one for one in desired.workloads}
        for name, known in self._workloads.items():
            if name not in wanted:
                known.post(Unwanted())
        for name, one in wanted.items():
            (self._workloads.get(name) or self._start(State(name=name))).post(Wanted(one))
        self._benchmarks.want(desired.benchmarks)
        self._changed.set()

    def _start(self, state: State) -> SimulatedWorkload:
        started = self._workloads[state.name] = SimulatedWorkload(state, self._tools)
        self._tasks.create_task(self._supervise(started))
        return started

    async def _supervise(self, one: SimulatedWorkload) -> None:
        """Run a workload to its end; it may be wanted again by then."""
        await one.run()
        name = one.state.name
        del self._workloads[name]
        wanted = self._wanted(name)
        if wanted is not None:
            self._start(State(name=name)).post(Wanted(wanted))
        self._changed.set()

    def _wanted(self, name: str) -> WorkloadDesired | None:
        accepted = self._session.accepted
        return None if accepted is None else next((one for one in accepted.workloads if one.name == name), None)

    def _prune(self) -> None:
        named = [slot.desired for one in self._workloads.values() for slot in one.state.slots]
        self._disk.prune({blob.digest for one in named for blob in (one.blob, one.golden) if blob is not None})

    async def _measure(self, desired: WorkloadDesired) -> Measurement:
        """Start a server for a benchmark, run the golden samples, stop it."""
        profile = self._world.profile
        await asyncio.sleep(draws.between(self._chance, profile.start) + draws.between(self._chance, profile.probe))
        return await measure(self._tools, desired)

    # --- the connection -------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        clock, failures = self._world.clock, 0
        while True:
            began = clock.monotonic()
            try:
                await in_own_task(self._converse())
            except* SkerryError as group:
                log.debug("device.link_lost name=%s error=%s", self.name, group.exceptions[0])
            finally:
                self.online = False
            steady = clock.monotonic() - began >= STEADY_SECONDS
            failures = 1 if steady else min(failures + 1, 30)
            await asyncio.sleep(self._chance.uniform(0, min(RETRY_CEILING_SECONDS, 0.5 * 2 ** (failures - 1))))

    async def _converse(self) -> None:
        """One connection, to its end."""
        async with AsyncExitStack() as stack:
            async with self._world.door:
                connection = await stack.enter_async_context(self.link.connect(boot_id=self._session.boot_id))
            stack.callback(self._session.disconnected)
            self.online = True
            self.counts.connections += 1
            self._session.connected()
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._report(connection))
                    await self._listen(connection)
            except asyncio.CancelledError:
                self.link.cut()  # a device without power says no goodbye
                raise

    async def _report(self, connection: DeviceConnection) -> None:
        clock, session = self._world.clock, self._session
        while True:
            self._changed.clear()
            session.update(workloads=self.statuses(), benchmarks=self._benchmarks.statuses())
            due = session.poll(now=clock.now(), monotonic=clock.monotonic())
            if due is not None:
                await _within(SEND_SECONDS, connection.send(due))
                self.counts.reports += 1
                continue
            try:
                async with asyncio.timeout(session.seconds_to_heartbeat(clock.monotonic())):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _listen(self, connection: DeviceConnection) -> None:
        async for channel, raw in connection.incoming():
            if channel == "desired":
                await self._take_desired(raw)
            else:
                await self._take_command(raw, connection)
        raise UnavailableError("the connection ended", element="link")

    async def _take_desired(self, raw: bytes) -> None:
        """Verify, make durable, act: in this order."""
        try:
            offer = self._session.offer(raw)
            if offer is not None:
                await self._disk.write_desired(offer.desired.manifest_version, offer.raw)
                self._apply(self._session.accept(offer))
                self.counts.accepted += 1
        except SkerryError as error:
            self.counts.refused += 1
            log.debug("device.desired_refused name=%s error=%s", self.name, error)
            self._session.refuse(error)
        self._changed.set()

    async def _take_command(self, raw: bytes, connection: DeviceConnection) -> None:
        try:
            command = self._session.receive_command(raw, self._world.clock.now())
        except SkerryError as error:
            log.debug("device.command_refused name=%s error=%s", self.name, error)
            return
        if command is not None:
            self.counts.commands += 1
            await _within(SEND_SECONDS, connection.send(self._answer(command)))

    def _answer(self, command: Command) -> messages.CommandResult:
        known = self._workloads.get(command.workload)
        if known is None:
            cause = f"{self.name} has no workload {command.workload}"
            return CommandResult(uid=self.uid, id=command.id, error=cause[:4000], reason="NotFound")
        if command.verb == "logs":
            text = f"simulated: {known.phase} {known.state.message or known.state.failure}".rstrip()
            return CommandResult(uid=self.uid, id=command.id, text=f"{text}\n")
        return CommandResult(
            uid=self.uid, id=command.id, error="a simulated device has nothing to talk to", reason="Unsupported"
        )


async def _within(seconds: float, work: object) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work  # type: ignore[misc]
    except TimeoutError:
        raise TimedOutError(f"could not be sent within {seconds:g} s", element="report") from None
