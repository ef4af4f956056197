"""Connections that become streams of bytes: `Upgrade: SPDY/3.1` over HTTP/1.1, which older kubectl asks for.

The request is one like any other up to its answer: identity, permission and audit see it, and every answer but 101 is
sent as what it is. With 101 the connection is taken from the HTTP server, with nothing of it read ahead. Lives here:
asking, taking over, backpressure both ways. Must not live here: what the bytes mean (`hub.command_streams`).
Source: RFC 9110, section 7.8; Kubernetes `apimachinery/pkg/util/httpstream`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skerry.hub.upgrade import LINGER_SECONDS, UPGRADE, Gone, words
from skerry.kit.hangup import abort, hung_up

HIGH_WATER_BYTES = 64 * 1024
"""Of what was not read yet; beyond it the peer waits."""
_PROTOCOL = "SPDY/3.1"
_VERSION = b"x-stream-protocol-version"
"""Kubernetes' header for what is spoken inside."""


class Connection(asyncio.Protocol):
    """The bytes of one connection that was taken over."""

    def __init__(self, transport: asyncio.Transport, connections: set[Any], *, paused: bool) -> None:
        self.transport = transport
        self._connections = connections
        self._buffer = bytearray()
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False
        self._lost = asyncio.Event()
        if not paused:
            self._room.set()
        connections.add(self)

    async def receive(self) -> bytes | None:
        """Return what has come; None when the peer has said its last."""
        while not self._buffer:
            if self._ended:
                return None
            self._more.clear()
            await self._more.wait()
        data = bytes(self._buffer)
        self._buffer.clear()
        if not self._lost.is_set() and not self.transport.is_closing():
            self.transport.resume_reading()  # of one that reads already it is nothing
        return data

    async def send(self, data: bytes) -> None:
        """Send; returns when there is room for more. Raises Gone."""
        if self._lost.is_set() or self.transport.is_closing():
            raise Gone
        self.transport.write(data)
        await self._room.wait()
        if self._lost.is_set():
            raise Gone

    async def gone(self) -> None:
        """Return when the peer has hung up."""
        await hung_up(self.transport, self._lost)

    def close(self) -> None:
        """End it, when what was sent has been taken; who does not take it is not waited for."""
        if not self._lost.is_set():
            self.transport.close()
            asyncio.get_running_loop().call_later(LINGER_SECONDS, self._abort)

    def shutdown(self) -> None:
        """Nothing: whoever talks is cancelled next, and says so."""

    def data_received(self, data: bytes) -> None:
        """Keep it, and have the peer wait when there is much."""
        self._buffer += data
        self._more.set()
        if len(self._buffer) > HIGH_WATER_BYTES:
            self.transport.pause_reading()

    def eof_received(self) -> None:
        """Note that nothing more comes; the connection ends with it."""
        self._ended = True
        self._more.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Tell whoever waits."""
        self._connections.discard(self)
        self._ended = True
        self._lost.set()
        self._more.set()
        self._room.set()

    def pause_writing(self) -> None:
        """Have senders wait."""
        self._room.clear()

    def resume_writing(self) -> None:
        """Have senders go on."""
        self._room.set()

    def _abort(self) -> None:
        if not self._lost.is_set():
            abort(self.transport)


class RawUpgrade:
    """What an endpoint may do with a connection that asks for SPDY: as with one that asks for WebSocket."""

    def __init__(self, protocols: tuple[str, ...]) -> None:
        self.protocols = protocols
        """What the client offers to speak inside, best first."""
        self.code = 1000
        self.reason = ""
        self.connection: Connection | None = None
        """Once it was switched."""

    def headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """Return the headers of the answer that switches."""
        chosen = [(_VERSION, protocol.encode("ascii"))] if protocol else []
        return [(b"connection", b"Upgrade"), (b"upgrade", _PROTOCOL.encode("ascii")), *chosen]

    async def receive(self) -> bytes | None:
        """Return what has come; None when the peer has said its last."""
        return None if self.connection is None else await self.connection.receive()

    async def send(self, data: bytes) -> None:
        """Send; returns when there is room for more. Raises Gone."""
        if self.connection is None:
            raise Gone
        await self.connection.send(data)

    async def close(self, code: int = 1000, reason: str = "", *, patience: float = LINGER_SECONDS) -> None:  # noqa: ARG002 - bytes have no word for it
        """End it; an end that is there already is fine."""
        if self.connection is not None:
            self.connection.close()

    async def gone(self) -> None:
        """Return once the peer is no more there."""
        if self.connection is not None:
            await self.connection.gone()


def asked(scope: Scope) -> RawUpgrade | None:
    """Return what a request asks for, if it does so in due form: no body, and this protocol alone."""
    found: dict[bytes, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name, []).append(value.decode("latin-1"))
    if scope["http_version"] != "1.1" or scope["method"] not in ("GET", "POST"):
        return None
    if [word.strip().lower() for word in found.get(b"upgrade", [])] != [_PROTOCOL.lower()]:
        return None
    if "upgrade" not in (word.lower() for word in words(found.get(b"connection", []))):
        return None
    if b"transfer-encoding" in found or found.get(b"content-length", ["0"]) != ["0"]:
        return None
    return RawUpgrade(words(found.get(_VERSION, [])))


def offering(app: ASGIApp, upgrade: RawUpgrade, take: Callable[[], Connection]) -> ASGIApp:
    """Wrap the application for one request that may switch; `take` hands the connection over."""

    async def offer(scope: Scope, receive: Receive, send: Send) -> None:
        scope[UPGRADE] = upgrade

        async def sending(message: Message) -> None:
            if upgrade.connection is not None:
                return  # the end of the response is the end of the connection
            if message["type"] == "http.response.start" and message["status"] == 101:
                connection = take()
                lines = [b"%b: %b\r\n" % (name, value) for name, value in message["headers"]]
                upgrade.connection = connection
                connection.transport.write(b"HTTP/1.1 101 Switching Protocols\r\n" + b"".join(lines) + b"\r\n")
            else:
                await send(message)

        try:
            await app(scope, receive, sending)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except ConnectionAbortedError:
            if upgrade.connection is None:
                raise
        finally:
            await upgrade.close()

    return offer
