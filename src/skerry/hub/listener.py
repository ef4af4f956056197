"""The HTTPS listener: uvicorn's protocol with the peer's certificate, and with bounds and timeouts that it lacks.

Lives here: sockets, connections and their limits. Must not live here: what a request means. uvicorn's own server is not
used: it takes over signals, ends the process on errors and wakes up ten times a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import time
from asyncio import sslproto
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from skerry.api.errors import InvalidError, UnavailableError
from skerry.hub import raw_upgrade, upgrade
from skerry.hub.identity import PEER, PeerCertificate
from skerry.kit.hangup import abort

log = logging.getLogger(__name__)
# What uvicorn's protocol says of single requests: malformed ones are an attacker's to choose, so they are not logged;
# an exception that the application let through is a bug and is, but not a request cancelled by our own shutdown, nor an
# answer that it broke off on purpose, for a reason that it has logged itself.
_request_log = logging.getLogger(f"{__name__}.requests")
_request_log.setLevel(logging.ERROR)
_NO_BUGS = (asyncio.CancelledError, ConnectionAbortedError)
_request_log.addFilter(lambda r: not (r.exc_info and isinstance(r.exc_info[1], _NO_BUGS)))

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 26\r\n\r\nThe request head is large."
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one listener bears. Seconds are of wall time, bytes of HTTP after TLS."""

    max_connections: int = 4096
    """Requests beyond it are answered 503."""
    max_head_bytes: int = 64 * 1024
    max_headers: int = 100
    handshake_seconds: float = 10.0
    head_seconds: float = 10.0
    """From a request's first byte (or the handshake) to the end of its head."""
    stall_seconds: float = 30.0
    """A body that does not come on for so long is given up."""
    take_seconds: float = 120.0
    """A peer that takes nothing of an answer for so long is given up; what is buffered for it is some tens of KB."""
    keep_alive_seconds: int = 75
    grace_seconds: float = 1.0
    """At shutdown, for requests under way; watches would never end by themselves."""


def bind(host: str, port: int, *, purpose: str, option: str) -> socket.socket:
    """Return a listening socket; port 0 lets the system choose.

    Raises UnavailableError that names the port and the option to choose another, InvalidError for a host that is none.
    """
    element = f"{purpose} port {port}" if port else f"{purpose} port"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except socket.gaierror as error:
        raise InvalidError(f'"{host}" is no address of this machine ({error.strerror})', element="host") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            cause, hint = f"in use by another program on {host}", f"stop that program, or choose another with {option}"
        elif error.errno == errno.EACCES:
            cause, hint = "not allowed for this user", f"choose one above 1023 with {option}"
        else:
            cause, hint = f"cannot listen on {host} ({error.strerror})", "choose an address of this machine with --host"
        raise UnavailableError(cause, element=element, hint=hint) from None


@contextlib.asynccontextmanager
async def serve(app: ASGIApp, sock: socket.socket, context: ssl.SSLContext, limits: Limits) -> AsyncIterator[None]:
    """Serve the application on a bound socket while the context lasts; nothing is left of it afterwards."""
    config = Config(
        app,
        interface="asgi3",
        http=HubProtocol,
        ws=upgrade.UpgradingProtocol,
        ws_max_size=upgrade.MAX_MESSAGE_BYTES,
        ws_ping_interval=upgrade.PING_SECONDS,
        ws_ping_timeout=None,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.max_connections,
        timeout_keep_alive=limits.keep_alive_seconds,
    )
    config.load()
    state = ServerState()

    loop = asyncio.get_running_loop()

    def protocol() -> _SmallTls:
        return _SmallTls(
            loop,
            HubProtocol(config=config, server_state=state, app_state={}, limits=limits),
            context,
            None,  # type: ignore[arg-type] # nobody waits for the handshake
            server_side=True,
            ssl_handshake_timeout=limits.handshake_seconds,  # type: ignore[arg-type] # any number does
            ssl_shutdown_timeout=limits.grace_seconds,
        )

    server = await loop.create_server(protocol, sock=sock)
    try:
        yield
    finally:
        server.close()
        await _end(state, limits.grace_seconds)


async def _end(state: ServerState, grace_seconds: float) -> None:
    for connection in list(state.connections):
        connection.shutdown()
    if state.tasks:
        await asyncio.wait(list(state.tasks), timeout=grace_seconds)
    if state.tasks:
        log.info("listener.cancelling requests=%d", len(state.tasks))
        pending = list(state.tasks)
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=grace_seconds)
    for connection in list(state.connections):
        abort(connection.transport)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_seconds):
            while state.connections:  # noqa: ASYNC110 - at shutdown only; uvicorn's set of connections signals nothing
                await asyncio.sleep(0.005)


class _SmallTls(sslproto.SSLProtocol):
    """asyncio's TLS with less memory for what a peer sends: by default a quarter of a megabyte for each connection."""

    max_size = 32 * 1024


class HubProtocol(HttpToolsProtocol):
    """One connection. Adds to uvicorn's: the peer's certificate in the scope, and bounds on time and size of a head."""

    def __init__(self, *, limits: Limits, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.logger = _request_log
        self._limits = limits
        self._peer: PeerCertificate | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None
        self._head_open = False
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Note who the peer is; it stays so for every request of the connection."""
        super().connection_made(transport)
        # asyncio does it only for sockets that were made with TCP's number. Without it, the second of an answer's two
        # writes, head and body, waits for the peer's delayed acknowledgement of the first: 40 ms.
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = upgrade.peer_of(transport)
        self._arm(self._limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and its timers."""
        self._disarm()
        self._taken()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Wait for the peer to take what is buffered, but not for ever."""
        super().pause_writing()
        self._taken()
        self._taking = self.loop.call_later(self._limits.take_seconds, abort, self.transport)

    def resume_writing(self) -> None:
        """Go on: the peer has taken enough."""
        self._taken()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Parse, and end a connection whose request head grows beyond the bound."""
        continues_head = self._head_open
        super().data_received(data)
        if self._head_open:
            # The piece in which a head begins may have begun with something else; the system bounds its size.
            self._head_bytes += len(data) if continues_head else 0
            if self._head_bytes > self._limits.max_head_bytes and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()
        elif self._timer is not None:
            self._arm(self._limits.stall_seconds)

    def on_message_begin(self) -> None:
        """Start a request: the peer goes into its scope, where no header can reach."""
        super().on_message_begin()
        self.scope[PEER] = self._peer  # type: ignore[literal-required]
        self._head_open, self._head_bytes = True, 0
        self._arm(self._limits.head_seconds)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header; the parser answers 400 when this raises."""
        if len(self.headers) >= self._limits.max_headers:
            raise ValueError("more headers than allowed")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to handle the request; its body may take longer than its head, as long as it keeps coming."""
        self._head_open = False
        self._arm(self._limits.stall_seconds)
        date = formatdate(int(time.time()), usegmt=True).encode()
        self.server_state.default_headers = [(b"date", date)]
        super().on_headers_complete()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over; its time is the session's from here on."""
        self._disarm()
        self._taken()
        self.connections.discard(self)
        protocol = upgrade.UpgradingProtocol(
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.ask(self.scope["method"], self.url, self.headers)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        wanted = raw_upgrade.asked(cycle.scope)  # type: ignore[arg-type] # one of ASGI's, by uvicorn's name
        if wanted is not None:
            app = raw_upgrade.offering(app, wanted, lambda: self._hand_over(cycle))
        elif cycle.scope["http_version"] == "1.0":
            app = _without_chunks(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _hand_over(self, cycle: RequestResponseCycle) -> raw_upgrade.Connection:
        """Give the connection away for the answer of a request; its time is the session's from here on.

        Raises ClientDisconnect for a peer that has left, or that did not wait for the answer: what it has sent was
        read as HTTP.
        """
        if cycle.disconnected or self.cycle is not cycle or self._head_open or self.transport.is_closing():
            cycle.disconnected = True
            abort(self.transport)
            raise ClientDisconnect
        self._disarm()
        self._taken()
        self.connections.discard(self)
        cycle.response_started = cycle.response_complete = True  # there is nothing more to be done for it here
        connection = raw_upgrade.Connection(self.transport, self.connections, paused=self.flow.write_paused)
        self.transport.set_protocol(connection)
        self.flow.resume_reading()
        return connection

    def on_message_complete(self) -> None:
        """Stop the clock: the next request's starts with its first byte, and idle connections have their own."""
        self._disarm()
        super().on_message_complete()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._timed_out)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _taken(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _timed_out(self) -> None:
        if self.flow.read_paused and not self._head_open:  # we are the slow one
            self._arm(self._limits.stall_seconds)
        else:
            abort(self.transport)


def _without_chunks(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """Answer HTTP/1.0, which knows no chunks: what has no length lasts until the connection's end (RFC 9112, 6.3)."""

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        lasts = False

        async def sending(message: Message) -> None:
            nonlocal lasts
            if message["type"] == "http.response.start":
                lasts = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                cycle.chunked_encoding = False if lasts else None
            elif lasts:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, sending)

    return answering
