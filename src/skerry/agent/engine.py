"""The agent's loop: bring back what was running, obey the hub when it is there, report, answer.

Workloads and the connection do not wait for each other: without a hub everything accepted earlier runs. Lives here:
one TaskGroup with an installer for each workload, the connection with its retries, reports and commands. Must not live
here: what to accept (`core.session`), what to do for a workload (`core.workload`), which drivers (`app`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from weakref import WeakValueDictionary

import msgspec

from skerry.agent import commands, facts, room
from skerry.agent import settings as configured
from skerry.agent.admission import Admission
from skerry.agent.benchmark import Benchmarks, ordinary
from skerry.agent.disk import AcceptedDesired, Disk, Freed
from skerry.agent.hold import Holds
from skerry.agent.installer import JOURNAL_RETRY_SECONDS, Installer
from skerry.agent.local import LocalSocket
from skerry.agent.peers import Neighbourhood, Peers
from skerry.agent.policy import Policy
from skerry.agent.remote.door import Dial, Door, Place
from skerry.agent.room import Room
from skerry.agent.servers import Servers
from skerry.agent.settings import AgentSettings
from skerry.agent.telemetry import Telemetry, open_spool
from skerry.agent.trust import Trust
from skerry.agent.work import Tools
from skerry.api import duration
from skerry.api.errors import SkerryError, StorageFullError, TimedOutError, TooLargeError, UnavailableError
from skerry.api.kinds.device import DeviceFacts, Network, WorkloadStatus
from skerry.core.journal import Resumed, Slot, State, Trusting, Unwanted, Wanted
from skerry.core.messages import Command, CommandResult, DesiredState, WorkloadDesired
from skerry.core.ports import ArtifactSource, Clock, DeviceConnection, DeviceLink, Executed, Usage
from skerry.core.session import Offer, Session
from skerry.core.trust import VerifyingKey
from skerry.kit.cancellation import in_own_task

log = logging.getLogger(__name__)

SETTLE_SECONDS = 2.0
"""How long the first report waits for servers of an earlier agent to be adopted."""
SEND_SECONDS = 60.0
STEADY_SECONDS = 30.0
"""A connection that held this long was a good one: the next attempt comes soon."""
FACTS_SECONDS = 600.0
RESTART_SECONDS = 5.0
MAX_FETCHES = 2
MAX_COMMANDS = 4
"""At a time; the next ones wait, the rest are told to come back."""
MAX_WAITING_COMMANDS = 32


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the engine is made of."""

    disk: Disk
    link: DeviceLink
    source: ArtifactSource
    servers: Servers
    session: Session
    clock: Clock
    settings: AgentSettings
    facts: Callable[[], DeviceFacts]
    """Blocks for a moment."""
    limit_bandwidth: Callable[[int | None], None] = lambda _: None
    """Takes the bound of all downloads together, in bytes per second."""
    trust: Trust | None = None
    """None: this device asks for no signatures."""
    neighbourhood: Neighbourhood | None = None
    """None: this device has no neighbours."""
    dial: Dial | None = None
    """Connects to the hub for one conversation; None: there are none."""


class Engine:
    """One agent, from its start to its end."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._session = parts.session
        self._installers: dict[str, Installer] = {}
        self._changed = asyncio.Event()
        self._facts = parts.facts()
        self._facts_at = parts.clock.monotonic()
        self._running_commands = asyncio.Semaphore(MAX_COMMANDS)
        self._waiting_commands = 0
        self._noting = asyncio.Lock()
        self._noted: dict[str, datetime] = {}
        self._unkept: Offer | None = None
        """The newest desired state that the disk would not take; nobody sends it again while the connection lasts."""
        self._retry: asyncio.TimerHandle | None = None
        self._refused = b""
        """The hub's last word, if it was not accepted: other keys may find it good."""
        self._retry_ceiling = duration.to_seconds(parts.settings.link.retry_ceiling)
        self._holds = Holds(
            parts.disk,
            parts.clock,
            boot=self._facts.boot_id,
            max_seconds=duration.to_seconds(parts.settings.hold.max),
            changed=self._holds_changed,
        )
        self._policy = Policy(
            parts.settings.network,
            self._holds,
            parts.clock,
            network=self._network,
            limit_bandwidth=parts.limit_bandwidth,
        )
        self._local = LocalSocket(self._holds, parts.settings.hold, parts.disk.root)
        self._peers = Peers(parts.disk, parts.clock, parts.settings.peers, parts.neighbourhood, named=self._named)
        self._admission = Admission(parts.settings.policy, self._memory_bytes, self._taken_bytes)
        self._tools = Tools(
            policy=self._policy,
            peers=self._peers,
            room=Room(parts.disk),
            disk=parts.disk,
            source=parts.source,
            servers=parts.servers,
            clock=parts.clock,
            boot=self._facts.boot_id,
            engines=self._engines,
            fetching=asyncio.Semaphore(MAX_FETCHES),
            blob_locks=WeakValueDictionary(),
            prune=self._prune,
            free=self._free,
            probe_samples=parts.settings.probes.samples,
            probe_seconds=duration.to_seconds(parts.settings.probes.max_time),
            probe_timeout_seconds=duration.to_seconds(parts.settings.probes.request_timeout),
            changed=self._note_change,
            admit=self._admit,
            trust=parts.trust,
        )
        self._telemetry = Telemetry(
            open_spool(parts.disk.root, parts.settings.telemetry),
            parts.settings.telemetry,
            parts.clock,
            self._ports,
            boot_id=parts.session.boot_id,
            processes=self._usage,
        )
        self._benchmarks = Benchmarks(parts.disk, self._tools, parts.settings.benchmarks, self._installing)
        self._door = Door(parts.settings.remote, dial=parts.dial, execute=self._execute, place=self._place)

    async def run(self) -> None:
        """Run for ever; cancel it to end. Servers go on without it."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._holds.load()
                self._tasks.create_task(self._holds.run(), name="holds")
                self._tasks.create_task(self._local.run(), name="local socket")
                self._tasks.create_task(self._peers.run(), name="peers")
                await self._bring_back()
                self._tasks.create_task(self._telemetry.run(), name="telemetry")
                self._tasks.create_task(self._benchmarks.run(), name="benchmarks")
                self._tasks.create_task(self._door.run(), name="conversations")
                await self._stay_connected()
        finally:
            if self._retry is not None:
                self._retry.cancel()
            self._parts.servers.close()

    def replace_keys(self, keys: Mapping[str, VerifyingKey]) -> None:
        """Trust these keys from now on, also in what was refused last; for while it runs."""
        self._session.replace_keys(keys)
        if self._refused and self._take_desired(self._refused):
            self._refused = b""

    def _accept_again(self, accepted: DesiredState) -> None:
        """Take from a desired state that is not new what its anchor and policy say to this device now."""
        try:
            if self._parts.trust is not None:
                self._parts.trust.accept(accepted.trust)
        except (SkerryError, OSError) as error:  # a full disk: what counted before counts until the next word
            log.error("trust.not_written error=%s", error)
        self._look_again()

    def _look_again(self, *, changed: bool = False) -> None:
        """Have workloads try what was not trusted, when something else is trusted than before."""
        trust = self._parts.trust
        if trust is not None and (trust.take_change() or changed) and trust.asks:
            for installer in self._installers.values():
                installer.post(Trusting())

    def _ports(self) -> dict[str, int]:
        return {name: one.server_port for name, one in self._installers.items() if one.server_port}

    async def _usage(self) -> dict[str, dict[str, Usage]]:
        return await self._parts.servers.usage(list(self._installers))

    def _place(self, workload: str) -> Place | None:
        """Where a workload is, for who wants to look at it."""
        installer = self._installers.get(workload)
        if installer is None:
            return None
        return Place(name=workload, log=self._parts.disk.log(workload), endpoint=installer.endpoint)

    async def _execute(self, workload: str, argv: list[str], *, terminal: bool) -> Executed:
        installer = self._installers.get(workload)
        current = None if installer is None else installer.state.current
        if current is None:
            raise UnavailableError("does not run at the moment", element=f"deployment {workload[:253]}")
        return await self._parts.servers.execute(workload, current.serial, argv, terminal=terminal)

    async def stop_servers(self) -> None:
        """Stop all servers of this agent; their workloads come back at the next start."""
        await self._parts.servers.stop_strangers([])

    def statuses(self) -> list[WorkloadStatus]:
        """Return every workload as the hub is told of it."""
        return [one.status() for _, one in sorted(self._installers.items())]

    # --- workloads ------------------------------------------------------------------------------------------------

    async def _bring_back(self) -> None:
        """Take up every journal, then what was accepted last: the one may be older than the other after a power cut."""
        journals, damaged = await asyncio.to_thread(self._parts.disk.read_journals)
        states = ordinary(journals)
        for name in damaged:
            log.error("journal.damaged workload=%s", name)
        desired = self._session.accepted
        if desired is not None:  # an anchor may be newer than what was accepted last
            self._accept_again(desired)
        for state in states:
            self._start(state).post(Resumed())
        self._look_again(changed=True)
        if desired is not None:
            self._apply(desired)
        known = [*self._installers, *([] if desired is None else [w.name for w in desired.workloads])]
        try:
            stopped = await self._parts.servers.stop_strangers(known)
            if stopped:
                log.warning("servers.stopped_strangers count=%d", stopped)
        except SkerryError as error:
            log.error("servers.stranger_not_stopped error=%s", error)
        swept = await self._parts.servers.sweep()
        if swept:
            log.warning("remote.swept processes=%d", swept)
        await asyncio.to_thread(self._forget_rest, known)
        if states:
            waiting = [asyncio.ensure_future(one.settled()) for one in self._installers.values()]
            _, late = await asyncio.wait(waiting, timeout=SETTLE_SECONDS)
            for task in late:
                task.cancel()

    def _forget_rest(self, known: list[str]) -> None:
        """A removal that a power cut interrupted has left a directory without a journal."""
        for name in set(self._parts.disk.workloads()) - set(known):
            log.warning("workload.leftover workload=%s", name)
            try:
                self._parts.disk.delete_workload(name)
            except OSError as error:  # it waits for the next start; the others do not wait for it
                log.error("workload.leftover_stays workload=%s error=%s", name, error)

    def _apply(self, desired: DesiredState) -> None:
        self._policy.accept(desired)
        self._apply_workloads(desired)

    def _apply_workloads(self, desired: DesiredState) -> None:
        wanted = {one.name: one for one in desired.workloads}
        self._benchmarks.want(desired.benchmarks)
        for name, installer in self._installers.items():
            if name not in wanted and not self._policy.held:  # a hold also keeps what serves; see `_holds_changed`
                installer.post(Unwanted())
        for name, one in wanted.items():
            installer = self._installers.get(name) or self._start(State(name=name))
            installer.post(Wanted(one))
        self._changed.set()

    def _start(self, state: State) -> Installer:
        installer = self._installers[state.name] = Installer(state, self._tools)
        self._tasks.create_task(self._supervise(installer), name=f"workload {state.name}")
        return installer

    async def _supervise(self, installer: Installer) -> None:
        """Run an installer to its end; when it breaks, go on from its journal, which is the truth."""
        name = installer.state.name
        try:
            await installer.run()
        except Exception:
            log.exception("workload.broke workload=%s", name)
            await asyncio.sleep(RESTART_SECONDS)
            self._start(installer.state).post(Resumed())
        else:
            del self._installers[name]
        wanted = self._wanted(name)
        if wanted is not None:
            installer = self._installers.get(name) or self._start(State(name=name))
            installer.post(Wanted(wanted))
        elif name in self._installers and self._session.accepted is not None and not self._policy.held:
            self._installers[name].post(Unwanted())
        self._changed.set()

    def _wanted(self, name: str) -> WorkloadDesired | None:
        accepted = self._session.accepted
        return None if accepted is None else next((one for one in accepted.workloads if one.name == name), None)

    def _note_change(self) -> None:
        self._changed.set()
        self._benchmarks.look()

    def _holds_changed(self) -> None:
        """What had to wait for the end of a hold may go on: installers ask for themselves, removals begin here."""
        self._policy.changed()
        if not self._policy.held and self._session.accepted is not None:
            self._apply_workloads(self._session.accepted)
        self._changed.set()

    def _network(self) -> Network:
        network = self._parts.settings.network
        return configured.network(network) if network.kind else facts.find_network(self._parts.settings)

    def _installing(self) -> bool:
        return any(one.state.candidate is not None for one in self._installers.values())

    def _admit(self, desired: WorkloadDesired) -> None:
        if self._parts.trust is not None:
            self._parts.trust.expect(desired)
        self._admission.check(desired)

    def _memory_bytes(self) -> int:
        return self._facts.hardware.memory_bytes

    def _taken_bytes(self, name: str) -> int:
        """Memory that all workloads but that one need."""
        others = [one.state.current for other, one in self._installers.items() if other != name]
        return sum(slot.desired.needs.memory_bytes for slot in others if slot is not None)

    def _engines(self) -> Iterable[str]:
        return [engine.name for engine in self._facts.engines]

    async def _prune(self) -> Freed:
        return await asyncio.to_thread(room.prune, self._parts.disk, self._named(), others=self._benchmarks.digests())

    async def _free(self) -> Freed:
        return await asyncio.to_thread(room.free, self._parts.disk, self._named(), others=self._benchmarks.digests())

    def _named(self) -> dict[str, list[Slot]]:
        return {name: one.state.slots for name, one in self._installers.items()}

    # --- the connection -------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        failures = 0
        while True:
            began = self._parts.clock.monotonic()
            try:
                await in_own_task(self._converse())
            except* SkerryError as group:
                log.warning("link.lost error=%s", _first(group))
            except* Exception:
                log.exception("link.broke")
            steady = self._parts.clock.monotonic() - began >= STEADY_SECONDS
            failures = 1 if steady else min(failures + 1, 30)
            ceiling = min(self._retry_ceiling, 0.5 * 2 ** (failures - 1))
            await asyncio.sleep(random.uniform(0, ceiling))  # noqa: S311 - jitter, not a secret

    async def _converse(self) -> None:
        """One connection, to its end."""
        async with self._parts.link.connect(boot_id=self._session.boot_id) as connection:
            log.info("link.connected")
            self._session.connected()
            try:
                async with asyncio.TaskGroup() as tasks:
                    told = asyncio.Event()
                    tasks.create_task(self._report(connection, told))
                    tasks.create_task(self._forward(connection, told))
                    tasks.create_task(self._listen(connection, tasks))
            finally:
                self._session.disconnected()

    async def _forward(self, connection: DeviceConnection, told: asyncio.Event) -> None:
        """What the device is goes first, then what it used while nobody listened."""
        await told.wait()
        await self._telemetry.forward(connection, self._session.uid)

    async def _report(self, connection: DeviceConnection, told: asyncio.Event) -> None:
        clock, session = self._parts.clock, self._session
        while True:
            self._changed.clear()
            if clock.monotonic() - self._facts_at >= FACTS_SECONDS:
                self._facts, self._facts_at = await asyncio.to_thread(self._parts.facts), clock.monotonic()
            session.update(
                facts=self._told_facts(),
                workloads=self.statuses(),
                benchmarks=self._benchmarks.statuses(),
                holds=self._holds.in_force(),
            )
            due = session.poll(now=clock.now(), monotonic=clock.monotonic())
            if due is not None:
                await _within(SEND_SECONDS, connection.send(due), "report")
                told.set()
                continue
            try:
                async with asyncio.timeout(session.seconds_to_heartbeat(clock.monotonic())):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _told_facts(self) -> DeviceFacts:
        trust = self._parts.trust
        return self._facts if trust is None else msgspec.structs.replace(self._facts, trust=trust.facts())

    async def _listen(self, connection: DeviceConnection, tasks: asyncio.TaskGroup) -> None:
        async for channel, raw in connection.incoming():
            if channel == "desired":
                self._refused = b"" if self._take_desired(raw) else raw
            else:
                self._take_command(raw, connection, tasks)
        raise UnavailableError("the connection ended", element="link")

    def _take_desired(self, raw: bytes) -> bool:
        """Verify, make durable, act: in this order. False: it is refused, and the next report says why."""
        try:
            offer = self._session.offer(raw)
            if offer is not None:
                self._keep(offer)  # on the loop: it is rare, short, and must not be cancelled half-way
                accepted = self._session.accept(offer)
                log.info("desired.accepted version=%d", accepted.manifest_version)
                if self._unkept is not None and self._unkept.desired.manifest_version <= accepted.manifest_version:
                    self._unkept = None
                self._apply(accepted)
            elif self._session.accepted is not None:
                self._accept_again(self._session.accepted)
        except SkerryError as error:
            log.warning("desired.refused error=%s", error)
            self._session.refuse(error)
            return False
        finally:
            self._look_again()
            self._changed.set()
        return True

    def _keep(self, offer: Offer) -> None:
        kept = AcceptedDesired(
            manifest_version=offer.desired.manifest_version, envelope=offer.raw, uid=self._session.uid
        )
        try:
            if self._parts.trust is not None:  # first: what is desired is judged by it
                self._parts.trust.accept(offer.desired.trust)
            self._parts.disk.write_desired(kept)
        except StorageFullError as error:
            self._keep_later(offer)
            raise StorageFullError(
                "the desired state cannot be kept", element=error.element, hint="free some space; nothing was changed"
            ) from error
        except OSError as error:
            self._keep_later(offer)
            raise UnavailableError(
                f"the desired state cannot be kept: {error.strerror}",
                element=str(error.filename),
                hint="check the disk",
            ) from error

    def _keep_later(self, offer: Offer) -> None:
        """Offer it again in a while, unless a newer one waits already."""
        waiting = self._unkept
        if waiting is None or waiting.desired.manifest_version <= offer.desired.manifest_version:
            self._unkept = offer
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(JOURNAL_RETRY_SECONDS, self._offer_again)

    def _offer_again(self) -> None:
        offer, self._unkept = self._unkept, None
        if offer is not None and self._take_desired(offer.raw) and self._refused == offer.raw:
            self._refused = b""

    # --- commands -------------------------------------------------------------------------------------------------

    def _take_command(self, raw: bytes, connection: DeviceConnection, tasks: asyncio.TaskGroup) -> None:
        try:
            command = self._session.receive_command(raw, self._parts.clock.now())
        except SkerryError as error:
            log.warning("command.refused error=%s", error)
            return
        if command is None:
            log.info("command.repeated")
        elif self._waiting_commands >= MAX_WAITING_COMMANDS:
            log.warning("command.dropped id=%s reason=too-many", command.id[:80])
        else:
            self._waiting_commands += 1
            tasks.create_task(self._answer(command, connection))

    async def _answer(self, command: Command, connection: DeviceConnection) -> None:
        try:
            await self._note_command(command)
            if command.verb == "remote":
                await _within(SEND_SECONDS, connection.send(await self._door.answer(command)), "answer")
                return
            async with self._running_commands:
                installer = self._installers.get(command.workload)
                current = None if installer is None else installer.state.current
                result = await commands.answer(
                    command,
                    log=None if installer is None else self._parts.disk.log(command.workload),
                    model="" if current is None else current.desired.model,
                    port=0 if installer is None else installer.server_port,
                )
                try:
                    await _within(SEND_SECONDS, connection.send(result), "answer")
                except TooLargeError as error:  # a link may carry less than the protocol allows
                    short = CommandResult(uid=command.uid, id=command.id, error=error.sentence[:4000])
                    await _within(SEND_SECONDS, connection.send(short), "answer")
        finally:
            self._waiting_commands -= 1

    async def _note_command(self, command: Command) -> None:
        """Have its id on the disk before it is carried out, so that a restart does not make it new.

        A disk that cannot be written keeps nobody from asking what is wrong with it.
        """
        async with self._noting:
            if command.id in self._noted:
                return
            taken = self._session.taken_commands(self._parts.clock.now())
            writing = asyncio.ensure_future(asyncio.to_thread(self._parts.disk.write_commands, taken))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait({writing})  # nobody else writes the file meanwhile
                writing.exception()
                raise
            except (StorageFullError, OSError) as error:
                log.warning("command.not_noted id=%s error=%s", command.id[:80], error)
            else:
                self._noted = taken


async def _within(seconds: float, work: object, element: str) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work  # type: ignore[misc]
    except TimeoutError:
        raise TimedOutError(f"could not be sent within {seconds:g} s", element=element) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
