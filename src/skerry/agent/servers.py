"""Inference servers on this device: on which port, started how, when they answer, which are ours, who is admitted.

Lives here: the command line of `skerry.serve`, and every server's way from its start to its end, over the `Runtime`
port and its control socket. Must not live here: when to start or stop one (`core.workload`), what a model answers
(`probes`), or the sockets themselves (`listeners`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from skerry.agent import revealing
from skerry.agent.disk import SIGNATURE_FILE, Disk
from skerry.agent.endpoint import ServerControl
from skerry.agent.listeners import HOST, Listeners, reserve
from skerry.agent.settings import ServerSettings
from skerry.api import duration
from skerry.api.errors import SkerryError, TimedOutError, UnavailableError
from skerry.core import control
from skerry.core.journal import Endpoint, Serve, Slot
from skerry.core.ports import Executed, Execution, Instance, Launch, Runtime, Usage
from skerry.kit.loopback import LoopbackClient

log = logging.getLogger(__name__)

_SEE_OFF_SECONDS = 75.0
"""A server that sees its callers off gives up before (`core.control.Retire`)."""
MAX_SILENCES = 3
"""Questions in a row that a server may leave without an answer before it counts as hanging."""
_FOREVER_SECONDS = 86_400.0
_READY_POLL_SECONDS = (0.02, 0.2)
"""First and longest pause between two questions whether a server answers yet."""
_READY_TIMEOUT_SECONDS = 5.0
_READY_BYTES = 64 * 1024
_KEPT_VARIABLES = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH")
"""Of the agent's own environment; whatever else is in it is none of a model's business."""


@dataclass(frozen=True, slots=True)
class Server:
    """A launched server."""

    instance: Instance
    port: int
    """Its private one."""
    control: ServerControl
    verified_at: datetime | None = None
    """See `Slot`; None also for one that was adopted."""


class Servers:
    """All inference servers of this agent."""

    def __init__(
        self,
        runtime: Runtime,
        disk: Disk,
        settings: ServerSettings,
        *,
        check_trust: Callable[[Slot], datetime | None] = lambda _: None,
    ) -> None:
        """`check_trust` raises RefusedError for a slot that this device does not start; it blocks.

        It returns `Slot.verified_at`.
        """
        self._runtime = runtime
        self._disk = disk
        self._check_trust = check_trust
        self._listeners = Listeners()
        self._python = settings.python or sys.executable
        self._start_seconds = duration.to_seconds(settings.start_timeout)
        self._grace_seconds = duration.to_seconds(settings.stop_grace)
        self._check_period = duration.to_seconds(settings.check_period)
        self._check_timeout = duration.to_seconds(settings.check_timeout)

    @asynccontextmanager
    async def launched(self, action: Serve) -> AsyncIterator[Server]:
        """Adopt the slot's server, or start it; the port is kept from others until the context is left.

        Raises IntegrityError and NotFoundError when the slot's files are not what was verified, UnavailableError.
        """
        slot = action.slot
        name = instance_name(slot.desired.name, slot.serial)
        way = self.control(slot.desired.name, slot.serial)
        same = [one for one in await self._runtime.list() if one.name == name]
        if slot.port and len(same) == 1 and await self._runtime.alive(same[0]) and await _stays(way):
            yield Server(same[0], slot.port, way)
            return
        for stale in same:
            await self._runtime.stop(stale, grace_seconds=self._grace_seconds)
        verified_at = await asyncio.to_thread(self._check_trust, slot)  # before anything opens the files
        with reserve([slot.port] if slot.port else [], avoid=slot.desired.serving.port) as reserved:
            port = reserved.getsockname()[1]
            async with revealing.model(self._disk, slot) as (file, descriptors):
                launch = self._launch(name, slot, port, file, descriptors)
                instance = await self._runtime.start(launch)
            yield Server(instance, port, way, verified_at)

    def control(self, workload: str, serial: int) -> ServerControl:
        """Return the way to ask a slot's server for its counters, or to mirror; it need not run."""
        return ServerControl(self._disk.slot(workload, serial))

    async def admit(self, workload: str, server: Server, endpoint: Endpoint) -> int:
        """Let a server accept connections at the workload's endpoint, beside who does already; return the port.

        Raises UnavailableError when the one port that is allowed is taken, and like `ServerControl`.
        """
        listener = await self._listeners.obtain(workload, endpoint, await self._lenders(workload))
        try:
            await server.control.handover(listener)
        except SkerryError:
            if not endpoint.port:  # nobody serves there: callers are refused rather than kept waiting
                self._listeners.release(workload)
            raise
        return int(listener.getsockname()[1])

    def close(self) -> None:
        """Let go of the endpoints; the servers go on serving them."""
        self._listeners.release_others([])

    async def refuse(self, workload: str) -> None:
        """Refuse callers until a server is admitted again, unless one of the workload runs."""
        if not any(_is_of(one.name, workload) for one in await self._runtime.list()):
            self._listeners.refuse(workload)

    async def until_ready(self, server: Server) -> None:
        """Wait until it answers. Raises UnavailableError when it ends first, TimedOutError (it is stopped then)."""
        async with asyncio.TaskGroup() as tasks:
            ended = tasks.create_task(self._runtime.wait(server.instance))
            ready = tasks.create_task(self._poll(server.port))
            try:
                async with asyncio.timeout(self._start_seconds):
                    await asyncio.wait({ended, ready}, return_when=asyncio.FIRST_COMPLETED)
            except TimeoutError:
                pass
            finally:
                ended.cancel()
                ready.cancel()
        if ended.done() and not ended.cancelled():
            raise UnavailableError(ended.result(), element=server.instance.name)
        if ready.cancelled():
            await self._runtime.stop(server.instance, grace_seconds=0)
            raise TimedOutError(
                f"did not answer within {self._start_seconds:g} s", element=server.instance.name, hint="see its log"
            )

    async def wait(self, server: Server) -> str:
        """Return why it ended, once it has; one that hangs is ended, and that is the reason then."""
        async with asyncio.TaskGroup() as tasks:
            ended = tasks.create_task(self._runtime.wait(server.instance))
            hangs = tasks.create_task(self._until_it_hangs(server))
            try:
                await asyncio.wait({ended, hangs}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
                hangs.cancel()
        if not ended.cancelled():
            return ended.result()
        log.warning("server.hangs name=%s cause=%s", server.instance.name, hangs.result())
        await self._runtime.stop(server.instance, grace_seconds=0)
        return hangs.result()

    async def alive(self, server: Server) -> bool:
        """Return whether it still runs."""
        return await self._runtime.alive(server.instance)

    async def peak_memory(self, server: Server) -> int:
        """Return its peak resident memory in bytes; 0 when unknown."""
        return await self._runtime.peak_memory(server.instance)

    async def discard(self, server: Server) -> None:
        """Stop one server, so that it is not adopted again. Raises UnavailableError."""
        await self._runtime.stop(server.instance, grace_seconds=self._grace_seconds)

    async def execute(self, workload: str, serial: int, argv: Sequence[str], *, terminal: bool) -> Executed:
        """Run a command beside a slot's server, in its directory and environment. Raises UnavailableError."""
        name = instance_name(workload, serial)
        found = next((one for one in await self._runtime.list() if one.name == name), None)
        if found is None:
            raise UnavailableError("does not run at the moment", element=name)
        execution = Execution(
            argv=argv, directory=self._disk.slot(workload, serial), environment=_environment(), terminal=terminal
        )
        return await self._runtime.execute(found, execution)

    async def sweep(self) -> int:
        """End commands that an agent which was killed has left running; return how many processes there were."""
        return await self._runtime.sweep()

    async def usage(self, workloads: Collection[str]) -> dict[str, dict[str, Usage]]:
        """Return what the servers of these workloads use, by workload and instance."""
        found: dict[str, dict[str, Usage]] = {}
        for instance in await self._runtime.list():
            workload = next((name for name in workloads if _is_of(instance.name, name)), None)
            used = await self._runtime.usage(instance) if workload is not None else None
            if workload is not None and used is not None:
                found.setdefault(workload, {})[instance.id] = used
        return found

    async def retire(self, workload: str, *, keep: frozenset[int], leaving: Collection[str] = ()) -> list[Instance]:
        """Let every server of a workload but those of these slots see its callers off; return those that will end.

        Only where another one stays, to which new callers go. `leaving` are ids of instances that were told already;
        their slots' directories, and with them their control sockets, may be gone.
        """
        going = [(serial, one) for serial, one in await self._of(workload) if serial not in keep]
        if not keep or not going:
            return []
        if not self._listeners.holds(workload):  # the agent was killed: it may be that only these still hold it
            await self._listeners.recover(workload, await self._lenders(workload))
        told = []
        for serial, instance in going:
            try:
                if instance.id not in leaving:
                    await self.control(workload, serial).retire()
                told.append(instance)
            except SkerryError as error:
                log.info("server.not_retired name=%s error=%s", instance.name, error)
        return told

    async def see_off(self, instance: Instance) -> None:
        """Wait for the end of a server that retires, and see to it. Raises UnavailableError."""
        try:
            async with asyncio.timeout(_SEE_OFF_SECONDS):
                await self._runtime.wait(instance)
        except TimeoutError:
            log.warning("server.not_gone name=%s seconds=%s", instance.name, _SEE_OFF_SECONDS)
        await self._runtime.stop(instance, grace_seconds=self._grace_seconds)

    async def stop_all(
        self, workload: str, *, keep: frozenset[int], leaving: Sequence[Instance] = (), endpoint: int = 0
    ) -> None:
        """Stop every server of a workload but those of these slots and those that are leaving. Raises UnavailableError.

        The listening socket at `endpoint` is held on to while any slot is kept; all others are let go.
        """
        found = [one for serial, one in await self._of(workload) if serial not in keep and one not in leaving]
        self._listeners.release(workload, keep=endpoint if keep else 0)
        await self._stop(found)

    async def stop_strangers(self, workloads: Sequence[str]) -> int:
        """Stop every server that belongs to none of these workloads; return how many there were."""
        found = [one for one in await self._runtime.list() if not any(_is_of(one.name, w) for w in workloads)]
        self._listeners.release_others(workloads)
        await self._stop(found)
        return len(found)

    async def _of(self, workload: str) -> list[tuple[int, Instance]]:
        """The workload's servers that run, by the serial of their slot, the newest first."""
        found = [one for one in await self._runtime.list() if _is_of(one.name, workload)]
        return sorted([(_serial(one), one) for one in found], key=lambda pair: -pair[0])

    async def _lenders(self, workload: str) -> list[ServerControl]:
        return [self.control(workload, serial) for serial, _ in await self._of(workload)]

    async def _stop(self, instances: Sequence[Instance]) -> None:
        errors: list[SkerryError] = []

        async def stop(instance: Instance) -> None:
            try:
                await self._runtime.stop(instance, grace_seconds=self._grace_seconds)
            except SkerryError as error:  # the others are stopped all the same
                errors.append(error)

        async with asyncio.TaskGroup() as tasks:
            for instance in instances:
                tasks.create_task(stop(instance))
        if errors:
            raise errors[0]

    async def _until_it_hangs(self, server: Server) -> str:
        """Ask now and then whether it still answers; return once it failed too often in a row."""
        failures, why = 0, ""
        client = LoopbackClient(server.port, max_body_bytes=_READY_BYTES, timeout_seconds=self._check_timeout)
        while failures < MAX_SILENCES:
            await asyncio.sleep(self._check_period if self._check_period else _FOREVER_SECONDS)
            if not self._check_period:
                continue
            try:
                async with client:
                    status = (await client.request("GET", "/v2/health/ready")).status
                failures, why = (0, "") if status == 200 else (failures + 1, f"it answered {status}")
            except SkerryError as error:
                failures, why = failures + 1, error.cause
        return f"{server.instance.name} ran but did not answer, {failures} times in a row ({why}), and was stopped"

    async def _poll(self, port: int) -> None:
        pause, longest = _READY_POLL_SECONDS
        async with LoopbackClient(port, max_body_bytes=_READY_BYTES, timeout_seconds=_READY_TIMEOUT_SECONDS) as client:
            while True:
                try:
                    if (await client.request("GET", "/v2/health/ready")).status == 200:
                        return
                except SkerryError:
                    pass  # not yet; whoever waits has a timeout, and is told when the server ends
                await asyncio.sleep(pause)
                pause = min(longest, pause * 1.2)

    def _launch(self, name: str, slot: Slot, port: int, file: Path, descriptors: Sequence[int]) -> Launch:
        desired, directory = slot.desired, self._disk.slot(slot.desired.name, slot.serial)
        return Launch(
            name=name,
            argv=[
                self._python,
                "-m",
                "skerry.serve",
                f"--model={desired.model}",
                f"--version={desired.version}",
                f"--file={file}",
                f"--signature={directory / SIGNATURE_FILE}",
                f"--engine={desired.needs.engine}",
                f"--host={HOST}",
                f"--port={port}",
                f"--control={control.SOCKET_FILE}",
                f"--threads={desired.serving.threads}",
                f"--grace-seconds={self._grace_seconds * 0.8:g}",
            ],
            directory=directory,
            descriptors=descriptors,
            environment=_environment(),
            log=self._disk.log(desired.name),
            memory_limit_bytes=desired.memory_limit_bytes,
            cpu_limit_millis=desired.cpu_limit_millis,
            memory_request_bytes=desired.memory_request_bytes,
            cpu_request_millis=desired.cpu_request_millis,
        )


def instance_name(workload: str, serial: int) -> str:
    """Return the name of a slot's server, `<workload>-<serial>`; a very long workload name is cut and hashed."""
    return f"{_stem(workload)}-{serial}"


def _stem(workload: str) -> str:
    if len(workload) <= 200:
        return workload
    return f"{workload[:180]}.{hashlib.sha256(workload.encode()).hexdigest()[:16]}"


def _is_of(instance: str, workload: str) -> bool:
    stem, _, serial = instance.rpartition("-")
    return stem == _stem(workload) and serial.isdigit()


def _serial(instance: Instance) -> int:
    return int(instance.name.rpartition("-")[2])


def _environment() -> Mapping[str, str]:
    return {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}


async def _stays(server: ServerControl) -> bool:
    """Whether a server that runs may be adopted: it can be asked and is not about to end; a busy one may be late."""
    try:
        seen = await server.observe()
        if seen.shadow is not None:
            await server.stop_shadow()  # begun by an agent that was killed; whoever still wants it asks again
        return not seen.retiring
    except TimedOutError:
        return True
    except SkerryError as error:
        log.warning("server.not_adopted error=%s", error)
        return False
