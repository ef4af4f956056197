"""Connections that devices open to the hub for one conversation each, and their joining with whoever asked for it.

A device has no port that could be reached. It is told by a signed command to connect, with an id that only it and this
hub know; its certificate says who it is. Lives here: waiting for it, joining, bounds, both ends' log. Must not live
here: what Kubernetes' clients ask (`server.remote`), what is said inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from skerry.api.errors import ExpiredError, TimedOutError, UnavailableError
from skerry.api.kinds.device import Device
from skerry.core import answers, channels, messages
from skerry.core.access import Identity
from skerry.core.shares import Shed, has_room
from skerry.hub.upgrade import LEAVE_SECONDS, LINGER_SECONDS, Gone, Wire

if TYPE_CHECKING:
    from skerry.hub.gateway import Gateway

log = logging.getLogger(__name__)

OPEN_SECONDS = 20.0
"""From the question to the device's connection: a TLS handshake over a slow link."""
MAX_TUNNELS = 1000
"""Open at a time, on one hub."""
MAX_OF_DEVICE = 32
WATCH_SECONDS = 15.0
"""How often it is asked whether the device still exists, and whether anything moves."""
IDLE_SECONDS = 4 * 3600.0
"""Without a byte either way, as Kubernetes' kubelet has it; a device may be stricter."""
CLOSE_SECONDS = 5.0
GOING = 1001
FAILED = 1011
ENDED = "ended"
BROKEN = "the connection to the device broke"
DELETED = "the device was deleted"


@dataclass(eq=False)
class Tunnel:
    """One conversation, from the question to its end."""

    uid: str
    id: str
    namespace: str
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """The device's connection is there, and waits."""
    begin: asyncio.Future[bool] = field(default_factory=asyncio.Future)
    """Whether the connection is wanted; False: nobody is there any more."""
    ready: asyncio.Future[Wire] = field(default_factory=asyncio.Future)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> Wire:
        """Have the device begin, and return its connection. Raises UnavailableError when it has left meanwhile."""
        if not self.begin.done():
            self.begin.set_result(True)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                return await self.ready
        except TimeoutError:
            raise UnavailableError("has left again", element="device", hint="try again") from None


class Tunnels:
    """All tunnels of this hub."""

    def __init__(self, shed: Shed | None = None) -> None:
        self._open: dict[str, Tunnel] = {}
        self._shed = shed or Shed()

    @asynccontextmanager
    async def open(
        self, gateway: Gateway, device: Device, workload: str, session: messages.RemoteSession, *, tail_lines: int = 0
    ) -> AsyncIterator[Tunnel]:
        """Have a device connect, and hand out what waits then; it is given up when the context is left.

        Raises UnavailableError, TimedOutError, and what the device answers that does not want to.
        """
        uid, element = device.metadata.uid, f"device {device.metadata.name}"
        self._check_room(device, element)
        tunnel = Tunnel(uid, secrets.token_urlsafe(32), device.metadata.namespace)
        self._open[tunnel.id] = tunnel
        log.info("tunnel.asked uid=%s purpose=%s workload=%s user=%s", uid, session.purpose, workload, session.user)
        try:
            asking = asyncio.ensure_future(
                gateway.command(
                    uid,
                    "remote",
                    workload,
                    tail_lines=tail_lines,
                    remote=msgspec.structs.replace(session, tunnel=tunnel.id),
                    timeout_seconds=OPEN_SECONDS,
                )
            )
            await self._arrival(tunnel, asking, element)
            yield tunnel
        finally:
            del self._open[tunnel.id]
            tunnel.over.set()
            if not tunnel.begin.done():
                tunnel.begin.set_result(False)
            tunnel.ready.cancel()

    async def arrive(self, identity: Identity, tunnel_id: str) -> Tunnel:
        """Return the tunnel that a device connects for, once it is wanted.

        Raises ExpiredError when nobody waits for it: an id that is unknown, another device's, or used.
        """
        tunnel = self._open.get(tunnel_id)
        gone = ExpiredError("nobody waits for this connection", element="tunnel")
        if tunnel is None or identity.role != "device" or identity.name != tunnel.uid or tunnel.arrived.is_set():
            raise gone
        tunnel.arrived.set()
        if not await tunnel.begin:
            raise gone
        return tunnel

    def _check_room(self, device: Device, element: str) -> None:
        uid, namespace = device.metadata.uid, device.metadata.namespace
        held = sum(one.namespace == namespace for one in self._open.values())
        if not has_room(held, len(self._open), MAX_TUNNELS):
            self._shed.count("conversations", namespace)
            raise UnavailableError("too many conversations with devices are open", element=element, hint="try again")
        if sum(one.uid == uid for one in self._open.values()) >= MAX_OF_DEVICE:
            raise UnavailableError("too many conversations are open with it", element=element, hint="end one of them")

    async def _arrival(self, tunnel: Tunnel, asking: asyncio.Future[messages.CommandResult], element: str) -> None:
        arriving = asyncio.ensure_future(tunnel.arrived.wait())
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                both: set[asyncio.Future[Any]] = {arriving, asking}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if not arriving.done():
                    asking.result()  # what the device has against it
                    await arriving
        except TimeoutError:
            raise TimedOutError(
                f"did not connect within {OPEN_SECONDS:g} s",
                element=element,
                hint="it must reach the hub over HTTPS, as it does for models, and its agent must not be too old",
            ) from None
        finally:
            for one in (arriving, asking):
                one.cancel()
            await asyncio.gather(arriving, asking, return_exceptions=True)


def why_ended(device: Wire) -> str:
    """Return why a device's connection ended; `ENDED` when the device says that all is well."""
    return ENDED if device.code in (1000, 1005) else answers.shown(device.reason) or BROKEN


async def tell(client: Wire, failure: str, *, patience: float = CLOSE_SECONDS) -> None:
    """Say on a command's last channel that it failed, to a client that still listens."""
    with contextlib.suppress(Gone, TimeoutError):
        async with asyncio.timeout(patience):
            await client.send(channels.failed(failure))


@dataclass(kw_only=True, eq=False)
class Splice:
    """The joining of a client's connection with a device's: messages pass as they are, as quickly as they are taken."""

    client: Wire
    device: Wire
    known: Callable[[], bool]
    """Whether the device still exists."""
    status_channel: bool
    """Whether the last word is a status that clients wait for; without one they would take any end for success."""
    idle_seconds: float = IDLE_SECONDS
    sent: int = 0
    received: int = 0
    """Bytes to the client."""
    why: str = ENDED
    _told: bool = False
    _all_said: bool = False
    """The device has said its last, so that the client alone is waited for."""

    async def run(self) -> None:
        """Pass messages until either end has said its last."""
        up = asyncio.ensure_future(self._up())
        down = asyncio.ensure_future(self._down())
        going = asyncio.ensure_future(self._left(up))
        try:
            await self._watch(up, down, going)
        finally:
            for task in (up, down, going):
                task.cancel()
            await asyncio.gather(up, down, going, return_exceptions=True)
            await asyncio.gather(self._end_client(), self.device.close(GOING, self.why))

    async def _left(self, up: asyncio.Future[None]) -> None:
        """Wait until the client has left; what it said last still has a while to be taken."""
        await self.client.gone()
        await asyncio.wait({up}, timeout=LEAVE_SECONDS)

    async def _watch(self, up: asyncio.Future[None], down: asyncio.Future[None], going: asyncio.Future[None]) -> None:
        quiet, seen = 0.0, -1
        while True:
            done, _ = await asyncio.wait({up, down, going}, timeout=WATCH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if down in done:
                self._all_said = True
                return
            if up in done or going in done:
                self.why = "the client has left"
                return
            moved = self.sent + self.received
            quiet, seen = (0.0 if moved != seen else quiet + WATCH_SECONDS), moved
            if not self.known():
                self.why = DELETED
                return
            if quiet >= self.idle_seconds:
                self.why = "nothing was said for too long"
                return

    async def _up(self) -> None:
        with contextlib.suppress(Gone):
            while (message := await self.client.receive()) is not None:
                self.sent += len(message)
                await self.device.send(message)
            self.why = "the client has left"

    async def _down(self) -> None:
        with contextlib.suppress(Gone):
            while (message := await self.device.receive()) is not None:
                self.received += len(message)
                self._told = self._told or message[:1] == bytes((channels.ERROR,))
                await self.client.send(message)
            self.why = why_ended(self.device)

    async def _end_client(self) -> None:
        if self.status_channel and not self._told:
            said = self.why if self.why != ENDED else BROKEN
            await tell(self.client, said, patience=self.idle_seconds if self._all_said else CLOSE_SECONDS)
        await self.client.close(
            1000 if self.why == ENDED else FAILED,
            self.why,
            patience=self.idle_seconds if self._all_said else LINGER_SECONDS,
        )
