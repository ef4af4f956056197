"""Inference servers on this device: on which port, started how, when they answer, which are ours.

Lives here: the command line of `skerry.serve` and the choice of ports, over the `Runtime` port. Must not live here:
when to start or stop one (`core.workload`), or what a model answers (`probes`).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from skerry.agent.disk import SIGNATURE_FILE, Disk
from skerry.agent.loopback import LoopbackClient
from skerry.agent.settings import ServerSettings
from skerry.api import duration
from skerry.api.errors import SkerryError, TimedOutError, UnavailableError
from skerry.core.journal import Serve, Slot
from skerry.core.ports import Instance, Launch, Runtime

HOST = "127.0.0.1"
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


class Servers:
    """All inference servers of this agent."""

    def __init__(self, runtime: Runtime, disk: Disk, settings: ServerSettings) -> None:
        self._runtime = runtime
        self._disk = disk
        self._python = settings.python or sys.executable
        self._start_seconds = duration.to_seconds(settings.start_timeout)
        self._grace_seconds = duration.to_seconds(settings.stop_grace)

    @asynccontextmanager
    async def launched(self, action: Serve) -> AsyncIterator[Server]:
        """Adopt the slot's server, or start it; the port is kept from others until the context is left.

        Raises IntegrityError and NotFoundError when the slot's files are not what was verified, UnavailableError.
        """
        slot = action.slot
        name = instance_name(slot.desired.name, slot.serial)
        same = [one for one in await self._runtime.list() if one.name == name]
        if slot.port and len(same) == 1 and await self._runtime.alive(same[0]):
            yield Server(same[0], slot.port)
            return
        for stale in same:
            await self._runtime.stop(stale, grace_seconds=self._grace_seconds)
        await asyncio.to_thread(self._disk.check_slot, slot)
        with _reserve(action.ports, strict=action.strict) as reserved:
            port = reserved.getsockname()[1]
            yield Server(await self._runtime.start(self._launch(name, slot, port)), port)

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
        """Return why it ended, once it has."""
        return await self._runtime.wait(server.instance)

    async def alive(self, server: Server) -> bool:
        """Return whether it still runs."""
        return await self._runtime.alive(server.instance)

    async def peak_memory(self, server: Server) -> int:
        """Return its peak resident memory in bytes; 0 when unknown."""
        return await self._runtime.peak_memory(server.instance)

    async def stop_all(self, workload: str, *, keep: frozenset[int]) -> None:
        """Stop every server of a workload but those of these slots. Raises UnavailableError."""
        kept = {instance_name(workload, serial) for serial in keep}
        await self._stop(
            [one for one in await self._runtime.list() if _is_of(one.name, workload) and one.name not in kept]
        )

    async def stop_strangers(self, workloads: Sequence[str]) -> int:
        """Stop every server that belongs to none of these workloads; return how many there were."""
        found = [one for one in await self._runtime.list() if not any(_is_of(one.name, w) for w in workloads)]
        await self._stop(found)
        return len(found)

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

    def _launch(self, name: str, slot: Slot, port: int) -> Launch:
        desired, model = slot.desired, self._disk.model(slot)
        return Launch(
            name=name,
            argv=[
                self._python,
                "-m",
                "skerry.serve",
                f"--model={desired.model}",
                f"--version={desired.version}",
                f"--file={model}",
                f"--signature={model.with_name(SIGNATURE_FILE)}",
                f"--engine={desired.needs.engine}",
                f"--host={HOST}",
                f"--port={port}",
                f"--threads={desired.serving.threads}",
                f"--grace-seconds={self._grace_seconds * 0.8:g}",
            ],
            directory=model.parent,
            environment=_environment(),
            log=self._disk.log(desired.name),
            memory_limit_bytes=desired.memory_limit_bytes,
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


def _environment() -> Mapping[str, str]:
    return {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}


def _reserve(ports: Sequence[int], *, strict: bool) -> socket.socket:
    """Return a socket bound to the first of these ports that is free, else to any; it never listens.

    Bound with SO_REUSEADDR on both sides, the server may listen on the same port, while the kernel gives it to nobody
    who asks for any port: several agents on one machine do not collide.
    Raises UnavailableError when the one port that is allowed is taken.
    """
    for port in [*ports, *([] if strict else [0])]:
        reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind((HOST, port))
        except OSError as error:
            reserved.close()
            if strict:
                raise UnavailableError(
                    f"port {port} is taken: {error.strerror}",
                    element=f"{HOST}:{port}",
                    hint="set serving.port to another",
                ) from None
            continue
        return reserved
    raise UnavailableError("no port is free", element=HOST)
