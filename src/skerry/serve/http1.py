"""HTTP/1.1 connections on asyncio and llhttp (httptools): bounded, in order, and nothing else.

Lives here: one connection's state, its bounds and timeouts, keep-alive, pipelining, refusals, draining at the end,
several listening sockets. Must not live here: a path or a meaning; the handler gets whole requests and gives whole
responses.

Source: RFC 9110, RFC 9112. Why not a general server: docs/adr/0020-inference-server-http.md.
"""

from __future__ import annotations

import asyncio
import functools
import http
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import httptools
import msgspec

from skerry.serve.limits import Limits

log = logging.getLogger(__name__)

JSON = b"application/json"
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in http.HTTPStatus if s >= 200}
_KEPT_HEADERS = frozenset(
    {b"host", b"expect", b"content-length", b"content-encoding", b"inference-header-content-length"}
)
_JOIN_BYTES = 64 * 1024
"""Up to here an answer is written in one piece."""
_FOREVER = float("inf")
BACKLOG = 512
_TURNS_OF_ACCEPT = 3
"""Turns of the event loop between a connection's accept and its `connection_made`, and one to spare. asyncio drops,
with a reset, what was accepted but not made when its server is closed (CPython's `Server._attach`)."""


@dataclass(kw_only=True, slots=True)
class Request:
    """One request, received to its end; of the headers only those that somebody reads."""

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body: bytes | bytearray
    keep_alive: bool
    http10: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """One response; `body` is written piece by piece."""

    status: int = 200
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: tuple[bytes | memoryview, ...] = ()


Handler = Callable[[Request], Response | asyncio.Future[Response]]


def error_response(status: int, sentence: str, *headers: tuple[bytes, bytes]) -> Response:
    """Return the protocol's error object."""
    return Response(status=status, headers=headers, body=(msgspec.json.encode({"error": sentence}),))


def busy_response(sentence: str) -> Response:
    """Return a 503 that says when to come back."""
    return error_response(503, sentence, (b"Retry-After", b"1"))


class Server:
    """Accepts connections on bound sockets; `stop` ends them when their requests are answered, `retire` gently."""

    def __init__(self, handler: Handler, limits: Limits) -> None:
        self.handler = handler
        self.limits = limits
        self.stopping = False
        self.connections: set[Connection] = set()
        self._buffered = 0
        self.retiring_until = _FOREVER
        """When connections that ask nothing more are closed; for ever while it is not retiring."""
        self._listeners: dict[int, asyncio.Server] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._date = (0, b"")

    @property
    def retiring(self) -> bool:
        """Whether it accepts nothing more and sees its connections off."""
        return self.retiring_until != _FOREVER

    async def listen(self, bound: socket.socket) -> None:
        """Accept connections on this socket too, which is the server's from now on."""
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: Connection(self, loop), sock=bound, backlog=BACKLOG)
        self._listeners[bound.fileno()] = listener

    async def withdraw(self, bound: socket.socket) -> None:
        """Accept nothing more on this socket and close this process's descriptor of it; its connections stay."""
        listener = self._listeners.pop(bound.fileno(), None)
        if listener is not None:
            _accept_no_more(listener)
            await _turn_over()
            listener.close()

    def retire(self, idle_seconds: float) -> None:
        """Accept nothing more; each connection is closed after its next answer, or when it is idle for so long.

        What waits in the queue of a socket that another process holds too is that one's.
        """
        if self.retiring or self.stopping:
            return
        self.retiring_until = time.monotonic() + idle_seconds
        for listener in self._listeners.values():
            _accept_no_more(listener)
        for connection in self.connections:
            connection.retire()

    async def retired(self, seconds: float) -> bool:
        """Wait until a retiring server's connections are gone; False when they are not, after so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._close_listeners()
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self, grace_seconds: float) -> bool:
        """Accept nothing more and wait for the requests under way; say whether all were answered in time.

        Idle connections are closed at once, those of a retiring server when it has promised.
        """
        await self._close_listeners()
        self.stopping = True
        for connection in list(self.connections):
            if not self.retiring:
                connection.finish()
        try:
            async with asyncio.timeout(grace_seconds):
                await self._empty.wait()
        except TimeoutError:
            log.warning("serve.grace_exceeded connections=%s", len(self.connections))
            for connection in list(self.connections):
                connection.abort()
            return False
        finally:
            if self._sweeper is not None:
                self._sweeper.cancel()
        return True

    def opened(self, connection: Connection) -> bool:
        """Take a connection in; False when there are too many."""
        if len(self.connections) >= self.limits.connections or (self.stopping and not self.retiring):
            return False
        self.connections.add(connection)
        self._empty.clear()
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self.limits.sweep_seconds, self._sweep)
        return True

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def reserve(self, size: int) -> bool:
        """Count bytes of bodies in, if there is room."""
        if self._buffered + size > self.limits.buffered_bytes:
            return False
        self._buffered += size
        return True

    def release(self, size: int) -> None:
        """Count bytes of bodies out."""
        self._buffered -= size

    def date(self) -> bytes:
        """Return the Date header's value (RFC 9110, 5.6.7)."""
        now = int(time.time())
        if now != self._date[0]:
            self._date = (now, time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now)).encode())
        return self._date[1]

    async def _close_listeners(self) -> None:
        for listener in self._listeners.values():
            _accept_no_more(listener)
        await _turn_over()  # what was accepted a moment ago is about to become a connection
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in list(self.connections):
            connection.sweep(now)
        again = bool(self.connections)  # an idle server without connections does not wake up
        self._sweeper = asyncio.get_running_loop().call_later(self.limits.sweep_seconds, self._sweep) if again else None


def _accept_no_more(listener: asyncio.Server) -> None:
    loop = asyncio.get_running_loop()
    for one in listener.sockets:
        loop.remove_reader(one.fileno())


async def _turn_over() -> None:
    for _ in range(_TURNS_OF_ACCEPT):
        await asyncio.sleep(0)


class Connection(asyncio.Protocol):
    """One client. Answers in the order of the requests; one request runs at a time."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._limits = server.limits
        self._loop = loop
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        # the request that is being received
        self._receiving = False
        self._in_body = False
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_count = 0
        self._head_size = 0
        self._body: bytes | bytearray = b""
        self._size = 0
        self._silent = 0
        self._request_deadline = _FOREVER
        # what is to be answered
        self._ready: deque[Request] = deque()
        self._running: asyncio.Future[Response] | None = None
        self._busy = False
        self._refusal: Response | None = None
        self._last = False
        self._lingering = False
        self._write_paused = False
        self._unsent = 0
        self._deadline = _FOREVER

    # --- asyncio's side ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or turn it away."""
        self._transport = cast("asyncio.Transport", transport)
        self._deadline = min(time.monotonic() + self._limits.keep_alive_seconds, self._server.retiring_until)
        if not self._server.opened(self):
            self._lingering = True
            response = busy_response("too many connections")
            self._transport.write(b"".join((self._head(None, response, keep=False), *response.body)))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio passes it)
        """Drop everything that was for this client; a request that waits for the engine is withdrawn."""
        self._lingering = True
        self._server.release(self._size + sum(len(request.body) for request in self._ready))
        self._size = 0
        self._ready.clear()
        if self._running is not None:
            self._running.cancel()
        self._server.closed(self)
        self._transport = None
        self._parser = None  # it refers to us; nothing but the collector would untie that knot

    def data_received(self, data: bytes) -> None:
        """Parse; then answer what is complete."""
        if self._lingering or self._refusal is not None:
            return
        self._silent += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._last = True  # the request itself is answered; what follows it would be another protocol
        except httptools.HttpParserError as error:
            self._refuse(error_response(400, f"not a valid HTTP request: {str(error)[:200]}"))
        if self._silent > self._limits.head_bytes and self._receiving:
            self._refuse(self._head_too_large())
        self._advance()

    def eof_received(self) -> bool:
        """Take it for the client's departure: what did not begin yet is not begun any more."""
        return False

    def pause_writing(self) -> None:
        """Start nothing while the client does not read."""
        self._write_paused = True
        self._unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
        self._deadline = time.monotonic() + self._limits.write_idle_seconds

    def resume_writing(self) -> None:
        """Go on."""
        self._write_paused = False
        self._deadline = time.monotonic() + self._limits.keep_alive_seconds
        self._advance()

    # --- llhttp's side ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._refusal is not None:
            return
        self._receiving, self._in_body = True, False
        self._target, self._headers, self._header_count, self._head_size = b"", {}, 0, 0
        self._body, self._size = b"", 0
        self._request_deadline = time.monotonic() + self._limits.head_seconds

    def on_url(self, piece: bytes) -> None:
        """Collect the request's target."""
        self._target += piece
        if len(self._target) > self._limits.target_bytes:
            self._refuse(error_response(414, f"the request's target exceeds {self._limits.target_bytes} bytes"))

    def on_header(self, name: bytes, value: bytes | None) -> None:
        """Keep a header that somebody reads; trailers are nobody's."""
        self._header_count += 1
        self._head_size += len(name) + len(value or b"")
        if self._head_size > self._limits.head_bytes:
            self._refuse(self._head_too_large())
        elif self._header_count > self._limits.headers:
            self._refuse(error_response(431, f"more than {self._limits.headers} headers"))
        elif not self._in_body and (lowered := name.lower()) in _KEPT_HEADERS:
            self._headers[lowered] = value or b""

    def on_headers_complete(self) -> None:
        """Refuse early what is too large."""
        if self._refusal is not None:
            return
        self._in_body = True
        self._request_deadline += self._limits.request_seconds
        length = self._headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._limits.body_bytes:
            self._refuse(self._too_large())
        elif b"host" not in self._headers and self._parser.get_http_version() == "1.1":
            self._refuse(error_response(400, "the Host header is missing"))
        elif self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._invite()

    def on_body(self, piece: bytes) -> None:
        """Collect the body within its bound."""
        self._silent = 0
        if self._refusal is not None:
            return
        if self._size + len(piece) > self._limits.body_bytes:
            self._refuse(self._too_large())
        elif not self._server.reserve(len(piece)):
            self._refuse(busy_response("too many large requests at once; try again"))
        else:
            if not self._size:
                self._body = piece  # most bodies come in one piece
            elif isinstance(self._body, bytes):
                self._body = bytearray(self._body) + piece
            else:
                self._body += piece
            self._size += len(piece)

    def on_message_complete(self) -> None:
        """Line the request up."""
        self._silent = 0
        if self._refusal is not None:
            return
        if len(self._ready) >= self._limits.pipelined:
            self._refuse(busy_response("too many requests without reading the answers"))
            return
        self._ready.append(
            Request(
                method=self._parser.get_method(),
                target=self._target,
                headers=self._headers,
                body=self._body,
                keep_alive=self._parser.should_keep_alive(),
                http10=self._parser.get_http_version() == "1.0",
            )
        )
        self._body, self._size = b"", 0
        self._receiving = False
        self._request_deadline = _FOREVER

    # --- answering --------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Answer what was received, then close: the server is stopping."""
        self._last = True
        if (self._lingering or not (self._busy or self._ready or self._receiving)) and self._transport is not None:
            self._transport.close()

    def retire(self) -> None:
        """The server is retiring: if nothing more is asked, close in time; `_write` closes after the next answer."""
        if not (self._lingering or self._busy or self._ready or self._receiving or self._write_paused):
            self._deadline = min(self._deadline, self._server.retiring_until)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def sweep(self, now: float) -> None:
        """Close the connection if its time is up."""
        if self._transport is None:
            return
        left = self._transport.get_write_buffer_size()
        if left < self._unsent:
            self._deadline = now + (self._limits.write_idle_seconds if left else self._limits.linger_seconds)
        self._unsent = left
        if self._busy and not left:
            return
        if now < min(self._deadline, self._request_deadline):
            return
        if self._receiving and not (left or self._lingering):
            self._refuse(error_response(408, "the request did not arrive in time"))
            self._advance()
        else:
            self._transport.abort()

    def _refuse(self, response: Response) -> None:
        """Answer this after what came before it, then close; nothing more is read of this client."""
        if self._refusal is None:
            self._refusal = response
            self._receiving = False
            self._server.release(self._size)
            self._body, self._size = b"", 0
            self._request_deadline = _FOREVER

    def _invite(self) -> None:
        if self._transport is not None and not (self._busy or self._ready):  # it must not stand before a due answer
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _head_too_large(self) -> Response:
        return error_response(431, f"the headers exceed {self._limits.head_bytes} bytes")

    def _too_large(self) -> Response:
        return error_response(413, f"the body exceeds {self._limits.body_bytes} bytes")

    def _advance(self) -> None:
        """Answer as far as it goes, then set what to wait for."""
        transport = self._transport
        while transport is not None and not (self._busy or self._write_paused or self._lingering):
            if self._ready:
                self._start(self._ready.popleft())
            elif self._refusal is not None:
                self._write(None, self._refusal)
            else:
                break
        if transport is None or transport.is_closing() or self._lingering:
            return
        if self._ready:
            transport.pause_reading()
        elif not transport.is_reading():
            transport.resume_reading()
        if not self._write_paused:
            wait = self._limits.body_idle_seconds if self._receiving else self._limits.keep_alive_seconds
            self._deadline = time.monotonic() + wait

    def _start(self, request: Request) -> None:
        self._busy = True
        try:
            outcome = self._server.handler(request)
        except Exception:
            log.exception("serve.handler_failed target=%s", request.target[:100])
            outcome = error_response(500, "the server failed; see its log")
        if isinstance(outcome, Response):
            self._busy = False
            self._server.release(len(request.body))
            self._write(request, outcome)
        else:
            self._running = outcome
            outcome.add_done_callback(functools.partial(self._finished, request))

    def _finished(self, request: Request, outcome: asyncio.Future[Response]) -> None:
        self._running, self._busy = None, False
        self._server.release(len(request.body))
        if outcome.cancelled() or self._transport is None:
            return
        error = outcome.exception()
        if error is not None:
            log.error("serve.handler_failed target=%s", request.target[:100], exc_info=error)
            self._write(request, error_response(500, "the server failed; see its log"))
        else:
            self._write(request, outcome.result())
        self._advance()

    def _write(self, request: Request | None, response: Response) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        keep = request is not None and request.keep_alive and not self._last and not self._server.stopping
        if self._server.retiring and not (self._ready or self._receiving):
            keep = False  # whatever it has sent already is answered first
        head = self._head(request, response, keep=keep)
        body = () if request is not None and request.method == b"HEAD" else response.body
        if sum(len(piece) for piece in body) <= _JOIN_BYTES:
            transport.write(b"".join((head, *body)))
        else:
            transport.write(head)
            for piece in body:
                transport.write(piece)
        if not keep:
            self._linger(transport)

    def _head(self, request: Request | None, response: Response, *, keep: bool) -> bytes:
        size = sum(len(piece) for piece in response.body)
        lines = [
            _STATUS_LINES[response.status],
            b"Date: %b\r\nContent-Type: %b\r\n" % (self._server.date(), response.content_type),
            b"Content-Length: %d\r\n" % size,
            *(b"%b: %b\r\n" % header for header in response.headers),
        ]
        if not keep:
            lines.append(b"Connection: close\r\n")
        elif request is not None and request.http10:
            lines.append(b"Connection: keep-alive\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def _linger(self, transport: asyncio.Transport) -> None:
        """Close our half; the client's is read and dropped for a while, or its answer might be lost (RFC 9112, 9.6)."""
        self._lingering = True
        self._request_deadline = _FOREVER
        self._server.release(sum(len(request.body) for request in self._ready))
        self._ready.clear()
        if self._server.stopping:
            transport.close()
        else:
            transport.write_eof()
            if not transport.is_reading():
                transport.resume_reading()
        self._unsent = transport.get_write_buffer_size()
        wait = self._limits.write_idle_seconds if self._unsent else self._limits.linger_seconds
        self._deadline = time.monotonic() + wait
