"""WebSocket connections as HTTP requests that switch protocols: one way through who asks, what they may, and the log.

An upgrade reaches the application as the GET that it is, so that whatever looks at requests (identity, permission,
audit) looks at it too, and nothing can be reached beside them. An endpoint that wants to switch answers `Switching`;
every other answer is sent as the HTTP response that it is. Lives here: RFC 6455's server side by way of the listener's
library. Must not live here: what is said over such a connection (`tunnels`, `server.remote`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import ssl
import sys
import termios
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol
from urllib.parse import unquote

import httptools
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from skerry.api.errors import BadRequestError
from skerry.hub.identity import PEER, PeerCertificate
from skerry.kit.hangup import abort, hung_up

log = logging.getLogger(__name__)
UPGRADE = "skerry.upgrade"
"""Scope key of what a request asks for: an `Upgrade` to WebSocket, or `hub.raw_upgrade`'s to bytes."""
MAX_MESSAGE_BYTES = 1024 * 1024
PING_SECONDS = 20.0
"""Keeps the way open through NAT; who does not answer may be busy, so nobody is cut off for it."""
MAX_ANSWER_BYTES = 1024 * 1024
"""Of an answer that is no switch: what would last, as a watch does, is not for WebSocket."""


FAILED = 1011
ABNORMAL = 1006
POLICY_VIOLATION = 1008
TOO_BIG = 1009
MAX_PINGS = 10_000
"""From a peer that takes no answers: several hours of those that clients send."""
MAX_FRAGMENTS = 4096
"""Of one message."""
TAKEN_SECONDS = 0.2
"""How often it is looked whether a peer has taken the last of what it was sent, of which no system tells."""
MAX_PROTOCOLS = 16
MAX_PROTOCOL_CHARACTERS = 1000
LINGER_SECONDS = 10.0
"""For the peer to take the last of what it was sent."""
LEAVE_SECONDS = 2.0
"""For the other end of a conversation to take what was said last by a peer that is gone."""
_NEEDED = (b"host", b"upgrade", b"connection", b"sec-websocket-key", b"sec-websocket-version")
_NO_HANDSHAKE = (
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 40\r\n\r\nThis is no opening handshake (RFC 6455)."
)


class Gone(Exception):  # noqa: N818 - an end, not an error
    """The peer has left."""


class Wire(Protocol):
    """One end of a conversation."""

    code: int
    reason: str
    """With which the peer ended it."""

    async def receive(self) -> bytes | None:
        """Return what comes next; None when the peer has said its last."""
        ...

    async def send(self, data: bytes) -> None:
        """Send; returns when there is room for more. Raises Gone."""
        ...

    async def close(self, code: int = 1000, reason: str = "", *, patience: float = LINGER_SECONDS) -> None:
        """End it; the peer has so many seconds to take what it was sent. An end that is there already is fine."""
        ...

    async def gone(self) -> None:
        """Return once the peer is no more there, also while nobody receives what it has said before."""
        ...


class Switchable(Wire, Protocol):
    """What an endpoint may do with a connection that asks for another protocol."""

    protocols: tuple[str, ...]
    """What the client offers to speak, best first."""

    def headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """Return the headers of the answer that switches to one of them; "" for none."""
        ...


def words(values: Iterable[str]) -> tuple[str, ...]:
    """Return the elements of a header that is a list, as far as anybody needs it."""
    every = (word.strip() for value in values for word in value[:MAX_PROTOCOL_CHARACTERS].split(","))
    return tuple(word for word in every if word)[:MAX_PROTOCOLS]


class Upgrade:
    """What an endpoint may do with a connection that asks for WebSocket."""

    def __init__(self, protocol: UpgradingProtocol) -> None:
        self.protocols: tuple[str, ...] = protocol.offered
        """What the client offers to speak, best first."""
        self.code = 1000
        self.reason = ""
        """With which the peer ended it."""
        self._protocol = protocol

    def headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """Return the headers of the answer that switches."""
        return [(b"sec-websocket-protocol", protocol.encode("ascii"))] if protocol else []

    async def receive(self) -> bytes | None:
        """Return the next message, text as UTF-8; None when the peer has said its last."""
        while True:
            message: Any = await self._protocol.receive()
            if message["type"] == "websocket.disconnect":
                self.code, self.reason = message.get("code", 1005), message.get("reason") or ""
                return None
            if message["type"] == "websocket.receive":
                data = message.get("bytes")
                return data if data is not None else str(message.get("text") or "").encode()

    async def send(self, data: bytes) -> None:
        """Send one binary message; returns when there is room for more. Raises Gone."""
        try:
            await self._protocol.send({"type": "websocket.send", "bytes": data})
        except (ClientDisconnected, RuntimeError) as error:
            raise Gone from error

    async def close(self, code: int = 1000, reason: str = "", *, patience: float = LINGER_SECONDS) -> None:
        """End it; a peer has so many seconds to take what it was sent. An end that is there already is fine."""
        reason = reason.encode()[:123].decode(errors="ignore")
        try:
            async with asyncio.timeout(patience):
                await self._protocol.send({"type": "websocket.close", "code": code, "reason": reason})
                await self._protocol.taken()
        except (ClientDisconnected, RuntimeError):
            return
        except TimeoutError:
            self._protocol.abort()

    async def gone(self) -> None:
        """Return once the peer is no more there; the listener's pings find out."""
        await self._protocol.gone()


class Switching(Response):
    """The answer to an upgrade: switches to one of the offered protocols and talks until `talk` returns."""

    def __init__(self, talk: Callable[[Switchable], Awaitable[None]], *, protocol: str = "") -> None:
        super().__init__(status_code=101)
        self._talk = talk
        self._protocol = protocol

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Switch and talk."""
        upgrade: Switchable = scope[UPGRADE]
        await send({"type": "http.response.start", "status": 101, "headers": upgrade.headers(self._protocol)})
        code = FAILED  # a client takes a connection that ends well for a conversation that did
        try:
            await self._talk(upgrade)
            code = 1000
        finally:
            await upgrade.close(code)


def upgrade_of(request: Request | Scope) -> Upgrade:
    """Return a request's upgrade. Raises BadRequestError when it asks for none."""
    scope = request.scope if isinstance(request, Request) else request
    found = scope.get(UPGRADE)
    if not isinstance(found, Upgrade):
        raise BadRequestError("asks for no WebSocket", element="Upgrade", hint="this path is for WebSocket alone")
    return found


def peer_of(transport: asyncio.BaseTransport) -> PeerCertificate | None:
    """Return the certificate that a connection's peer has shown and TLS has verified."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if tls is None or tls.context.verify_mode is ssl.CERT_NONE:
        return None
    der = tls.getpeercert(binary_form=True)
    return PeerCertificate(der) if der else None


class UpgradingProtocol(WebSocketsSansIOProtocol):
    """One connection that asks for WebSocket, from the end of its request's head on."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.logger = log
        self.offered: tuple[str, ...] = ()
        self._target = b"/"
        self._headers: list[tuple[bytes, bytes]] = []
        self._peer: PeerCertificate | None = None
        self._lost = asyncio.Event()
        self._asked = False
        self._switched = False
        self._sent = 0
        self._failed = False
        self._pings = 0
        """That came since the peer took nothing."""
        self._pong = b""
        """To be sent when it does."""

    def ask(self, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Begin with a request that was read already: it is not read a second time, by another parser's rules.

        The library is shown what it needs for its handshake alone.
        """
        self._target, self._headers = target, list(headers)
        needed = [b"%b: %b\r\n" % (name, value) for name, value in headers if name in _NEEDED]
        if method == "GET":
            self.data_received(b"GET / HTTP/1.1\r\n" + b"".join(needed) + b"\r\n")
        if not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(_NO_HANDSHAKE)
            self.transport.close()
        if self.transport.is_closing():
            self.loop.call_later(LINGER_SECONDS, abort, self.transport)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note who the peer is."""
        super().connection_made(transport)
        self._peer = peer_of(transport)

    def handle_connect(self, event: Any) -> None:
        """Begin; the subprotocols are read here, for Kubernetes' names have characters that RFC 6455 does not allow."""
        super().handle_connect(event)
        if self.transport.is_closing():
            return  # no handshake, and answered so
        url = httptools.parse_url(self._target)
        self.scope["raw_path"], self.scope["query_string"] = url.path, url.query or b""
        self.scope["path"] = unquote(url.path.decode("ascii"))
        self.scope["headers"] = self._headers
        listed = [value.decode("latin-1") for name, value in self._headers if name == b"sec-websocket-protocol"]
        self.offered = words(listed)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits; that nothing was said at the end is no end like others."""
        self.queue.put_nowait({"type": "websocket.disconnect", "code": ABNORMAL})
        super().connection_lost(exc)
        self._lost.set()

    async def gone(self) -> None:
        """Return when the peer has hung up."""
        await hung_up(self.transport, self._lost)

    async def taken(self) -> None:
        """Wait until the peer has what it was sent, or is gone, before the library ends the connection."""
        if self.close_timer is None or self._lost.is_set():
            return
        self.close_timer.cancel()
        pause = TAKEN_SECONDS / 64
        while self._unsent() and not self._lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._lost.wait()
            pause = min(2 * pause, TAKEN_SECONDS)
        if not self._lost.is_set():
            self.close_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def abort(self) -> None:
        """Close without a word."""
        abort(self.transport)

    def _unsent(self) -> int:
        """Return how many bytes the peer's system has not acknowledged, as far as this one says."""
        if self.transport.is_closing():
            return 0
        waiting = self.transport.get_write_buffer_size()
        with contextlib.suppress(OSError, ValueError, AttributeError):
            count = bytearray(4)
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, count)
            waiting += int.from_bytes(count, sys.byteorder)
        return waiting

    def pause_writing(self) -> None:
        """Have senders wait, and pings."""
        super().pause_writing()
        self._pings = 0

    def resume_writing(self) -> None:
        """Go on, with an answer to the last ping that waited."""
        super().resume_writing()
        self._answer_ping()

    def handle_ping(self) -> None:
        """Answer, when the peer takes answers; of those that wait, the last is enough (RFC 6455, 5.5.3)."""
        answers = [answer for answer in self.conn.data_to_send() if answer]
        if self.writable.is_set() and self.handshake_complete:
            self.transport.write(b"".join(answers))
            return
        self._pong, self._pings = answers[-1] if answers else self._pong, self._pings + 1
        if self._pings > MAX_PINGS and not self._failed:
            self._fail(POLICY_VIOLATION, "pings, and takes no answer")

    def _answer_ping(self) -> None:
        pong, self._pong = self._pong, b""
        if pong and not self.close_sent and not self.transport.is_closing():
            self.transport.write(pong)

    def handle_cont(self, event: Any) -> None:
        """Take a piece of a message, whose number is bounded as its bytes are."""
        if self._failed:
            return
        if len(self.frames) >= MAX_FRAGMENTS:
            self._fail(TOO_BIG, f"a message has more than {MAX_FRAGMENTS} pieces")
            return
        super().handle_cont(event)

    def handle_parser_exception(self) -> None:
        """End a connection whose peer breaks the protocol; before the switch there are no words for it."""
        self._failed = True
        if self.conn.close_sent is not None and self.handshake_complete:
            super().handle_parser_exception()
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": ABNORMAL})
        abort(self.transport)

    def _fail(self, code: int, reason: str) -> None:
        log.info("upgrade.refused client=%s cause=%r", self.client, reason)
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    async def run_asgi(self) -> None:
        """Have the application answer the request."""
        scope: dict[str, Any] = {
            **self.scope,
            "type": "http",
            "method": "GET",
            "scheme": "https" if self.scheme == "wss" else "http",
            "extensions": {},
            PEER: self._peer,
            UPGRADE: Upgrade(self),
        }
        del scope["subprotocols"]
        try:
            await self.app(scope, self._http_receive, self._http_send)
        except (ClientDisconnected, ConnectionAbortedError):
            pass
        except Exception:
            log.exception("upgrade.failed path=%r", str(scope.get("path", ""))[:200])
            self.send_500_response()
        if self.close_timer is None:
            self.transport.close()
        self.loop.call_later(LINGER_SECONDS, abort, self.transport)

    async def _http_receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._lost.wait()
        return {"type": "http.disconnect"}

    async def _http_send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 101:
            self._switched = True
            headers = [(name, value) for name, value in message.get("headers", [])]
            await self.send({"type": "websocket.accept", "headers": headers})
            self._answer_ping()
        elif self._switched:
            return  # the end of the response is the end of the connection
        else:
            self._sent += len(message.get("body", b""))
            if self._sent > MAX_ANSWER_BYTES:
                abort(self.transport)
                raise ConnectionAbortedError("an answer without an end")
            await self.send({**message, "type": f"websocket.{message['type']}"})  # type: ignore[arg-type] # one of the two that ASGI has
