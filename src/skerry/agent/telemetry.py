"""Telemetry: a sample now and then, sent in batches while there is a hub, kept in the spool while there is none.

Lives here: when to sample, when to send, what waits where. Must not live here: the formulas (`usage`), the files
(`spool`), the connection (`engine`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from skerry.agent.settings import TelemetrySettings
from skerry.agent.spool import Spool
from skerry.agent.usage import MAX_PAGE_BYTES, Counters, Reading, parse_cpu, parse_memory, parse_metrics, sample
from skerry.api import duration, quantity
from skerry.api.errors import SkerryError, TimedOutError
from skerry.core import messages
from skerry.core.ports import Clock, Usage
from skerry.kit.loopback import LoopbackClient

log = logging.getLogger(__name__)

METRICS_SECONDS = 5.0
SEND_SECONDS = 60.0
MAX_MESSAGE_BYTES = 128 * 1024
"""Of samples in one message; its topic takes twice as much."""
MAX_PENDING = 64
"""Samples in memory, while connected, between two messages."""


class Ports(Protocol):
    """Where the workloads that serve answer, on the loopback."""

    def __call__(self) -> Mapping[str, int]:
        """Return each one's port."""
        ...


class Processes(Protocol):
    """What the workloads' servers use."""

    async def __call__(self) -> Mapping[str, Mapping[str, Usage]]:
        """Return it by workload and server."""
        ...


async def _unknown() -> Mapping[str, Mapping[str, Usage]]:
    return {}


class Connection(Protocol):
    """What telemetry needs of `core.ports.DeviceConnection`."""

    async def send(self, message: messages.Telemetry) -> None:
        """Return when it has arrived. Raises UnavailableError, TooLargeError."""
        ...


class Telemetry:
    """One agent's samples; `run` takes them for ever, `forward` sends them as long as a connection holds."""

    def __init__(
        self,
        spool: Spool,
        settings: TelemetrySettings,
        clock: Clock,
        ports: Ports,
        *,
        boot_id: str,
        processes: Processes = _unknown,
    ) -> None:
        self._spool = spool
        self._interval = duration.to_seconds(settings.interval)
        self._send_seconds = max(duration.to_seconds(settings.send), self._interval)
        self._clock = clock
        self._ports = ports
        self._processes = processes
        self._boot_id = boot_id
        self._pending: list[messages.Sample] = []
        self._connected = False

    async def run(self) -> None:
        """Sample, for ever; with an interval of 0 never."""
        if not self._interval:
            return
        before = Reading()
        try:
            while True:
                try:
                    before = await self._take(before)
                except Exception:  # telemetry must not end the agent
                    log.exception("telemetry.broke")
                await asyncio.sleep(self._interval)
        finally:
            self._spool.append(self._pending)
            self._pending = []

    async def _take(self, before: Reading) -> Reading:
        """Take a sample of what happened since the reading before, and return the new one; the first says nothing."""
        after = await self._read()
        if before.total:
            self._pending.append(sample(before, after, self._clock.now().replace(microsecond=0)))
        if len(self._pending) >= MAX_PENDING or not self._connected:
            await self._put_away()
        return after

    async def forward(self, connection: Connection, uid: str) -> None:
        """Send what waits, oldest first, then what comes, until the connection fails. Raises UnavailableError.

        Called once the device's state was told.
        """
        if not self._interval:
            return
        self._connected = True
        try:
            pause = random.uniform(0, self._send_seconds)  # noqa: S311 - a fleet that returns at once spreads out
            while True:
                await asyncio.sleep(pause)
                await self._put_away()
                while await self._send_oldest(connection, uid):
                    pass
                pause = self._send_seconds
        finally:
            self._connected = False

    async def _send_oldest(self, connection: Connection, uid: str) -> bool:
        batch = await asyncio.to_thread(self._spool.read, max_bytes=MAX_MESSAGE_BYTES, max_samples=messages.MAX_SAMPLES)
        if batch is None:
            return False
        dropped = self._spool.dropped
        message = messages.Telemetry(uid=uid, boot_id=self._boot_id, samples=list(batch.samples), dropped=dropped)
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await connection.send(message)
        except TimeoutError:
            raise TimedOutError(f"could not be sent within {SEND_SECONDS:g} s", element="telemetry") from None
        self._spool.dropped -= dropped
        await asyncio.to_thread(self._spool.forget, batch)
        return True

    async def _put_away(self) -> None:
        waiting, self._pending = self._pending, []
        await asyncio.to_thread(self._spool.append, waiting)

    async def _read(self) -> Reading:
        busy, total = parse_cpu(await asyncio.to_thread(_text, "/proc/stat"))
        memory = parse_memory(await asyncio.to_thread(_text, "/proc/meminfo"))
        servers = {}
        for name, port in self._ports().items():
            counters = await _ask(port)
            if counters is not None:
                servers[name] = counters
        try:
            processes = await self._processes()
        except SkerryError as error:
            log.debug("telemetry.no_processes error=%s", error)
            processes = {}
        return Reading(
            busy=busy,
            total=total,
            memory_bytes=memory,
            servers=servers,
            at=self._clock.monotonic(),
            processes=processes,
        )


async def _ask(port: int) -> Counters | None:
    client = LoopbackClient(port, max_body_bytes=MAX_PAGE_BYTES, timeout_seconds=METRICS_SECONDS)
    try:
        async with client:
            answer = await client.request("GET", "/metrics")
    except SkerryError as error:
        log.debug("telemetry.no_metrics port=%d error=%s", port, error)
        return None
    return parse_metrics(answer.body) if answer.status == 200 else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def open_spool(root: Path, settings: TelemetrySettings) -> Spool:
    """Return the spool below an agent's state directory."""
    return Spool(root / "spool", limit_bytes=quantity.to_bytes(settings.spool))
