"""A WebSocket connection to a server, on asyncio's streams: backpressure both ways, every wait bounded.

Lives here: the transport. Must not live here: the protocol (`websocket`), what messages mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from skerry.api.errors import TimedOutError, UnavailableError
from skerry.kit import websocket
from skerry.kit.hangup import abort, hung_up
from skerry.kit.websocket import Closed, Frames, Handshake, Message, ProtocolError, RefusedError

MAX_HEAD_BYTES = 32 * 1024
MAX_BODY_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 1024 * 1024
CLOSE_SECONDS = 2.0
PING_SECONDS = 15.0
"""While somebody waits for the other end to be gone."""
_CHUNK = 64 * 1024


class WebSocket:
    """One open connection. One task receives, another may send meanwhile."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frames: Frames, name: str) -> None:
        self.protocol = ""
        """The one that the server chose."""
        self.ended: Closed | None = None
        """Why nothing comes any more."""
        self.moved = 0
        """Bytes that messages had, both ways."""
        self._reader = reader
        self._writer = writer
        self._frames = frames
        self._name = name
        self._waiting: list[Message] = []
        self._sending = asyncio.Lock()
        self._said_goodbye = False

    async def receive(self) -> bytes | None:
        """Return the next message; None once the other end says no more or is gone, see `ended`."""
        while not self._waiting and self.ended is None:
            try:
                data = await self._reader.read(_CHUNK)
            except OSError as error:
                self.ended = Closed(websocket.ABNORMAL, str(error)[:100])
                break
            if not data:
                self.ended = Closed(websocket.ABNORMAL, "the connection ended")
                break
            await self._take(data)
        return self._waiting.pop(0).data if self._waiting else None

    async def send(self, data: bytes) -> None:
        """Send one binary message; returns when the transport has room for more. Raises UnavailableError."""
        if self._said_goodbye:
            raise UnavailableError("was closed", element=self._name)
        self.moved += len(data) + 1
        await self._write(self._frames.message(data))

    async def finish(self) -> None:
        """Say goodbye, and wait until the other end has taken everything and says so too, or is gone.

        As long as it takes; nobody else may receive any more. Raises UnavailableError.
        """
        if not self._said_goodbye:
            self._said_goodbye = True
            await self._write(self._frames.close())
        while await self.receive() is not None:
            pass

    async def close(self, code: int = websocket.NORMAL, reason: str = "") -> None:
        """Say goodbye and close; never raises."""
        if not self._said_goodbye:
            self._said_goodbye = True
            with contextlib.suppress(UnavailableError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._write(self._frames.close(code, reason))
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._writer.wait_closed()
        abort(self._writer.transport)

    async def gone(self) -> None:
        """Return once the other end is no more there, also while nobody receives; it is pinged meanwhile."""
        transport = self._writer.transport
        hanging = asyncio.ensure_future(hung_up(transport, asyncio.Event()))
        try:
            while not transport.is_closing() and not (await asyncio.wait({hanging}, timeout=PING_SECONDS))[0]:
                # With something under way it is known whether it arrives.
                if not self._said_goodbye and not transport.is_closing() and not transport.get_write_buffer_size():
                    self._writer.write(self._frames.ping())
        finally:
            hanging.cancel()
            await asyncio.gather(hanging, return_exceptions=True)

    async def _take(self, data: bytes) -> None:
        try:
            events = self._frames.feed(data)
        except ProtocolError as error:
            self.ended = Closed(error.code, str(error))
            return
        for event in events:
            match event:
                case Message():
                    self.moved += len(event.data) + 1
                    self._waiting.append(event)
                case Closed():
                    self.ended = event
                case _:
                    with contextlib.suppress(UnavailableError):
                        await self._write(self._frames.pong(event.data))

    async def _write(self, raw: bytes) -> None:
        async with self._sending:
            try:
                self._writer.write(raw)
                await self._writer.drain()
            except OSError as error:
                raise UnavailableError(f"the connection broke ({error})"[:200], element=self._name) from None


@asynccontextmanager
async def connect(
    url: str,
    *,
    tls: ssl.SSLContext | None,
    protocols: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float,
    server_name: str = "",
) -> AsyncIterator[WebSocket]:
    """Connect to an `https:` URL (`http:` without TLS) and hand out the connection; it is closed afterwards.

    `server_name` is what the server's certificate must be for, where that is not the URL's host.
    Raises UnavailableError, TimedOutError, and RefusedError with what the server answered instead.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            socket = await _open(url, tls, protocols, headers or {}, server_name)
    except TimeoutError:
        raise TimedOutError(f"no connection within {timeout_seconds:g} s", element=_name_of(url)) from None
    try:
        yield socket
    finally:
        await socket.close()


async def _open(
    url: str, tls: ssl.SSLContext | None, protocols: Sequence[str], headers: Mapping[str, str], server_name: str
) -> WebSocket:
    parts = urlsplit(url)
    host = parts.hostname or ""
    name = _name_of(url)
    secure = parts.scheme == "https"
    try:
        opened = asyncio.open_connection(
            host,
            parts.port or (443 if secure else 80),
            ssl=tls if secure else None,
            server_hostname=(server_name or host) if secure and tls else None,
            limit=_CHUNK,
        )
        reader, writer = await opened
    except OSError as error:  # SSLError is one
        raise UnavailableError(f"cannot be reached ({error})"[:300], element=name) from None
    try:
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        handshake = Handshake(host=parts.netloc.rpartition("@")[2], path=path, protocols=protocols, headers=headers)
        writer.write(handshake.request())
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        status, found = _parse_head(head)
        if status != 101:
            raise RefusedError(status, await _body(reader, found))
        socket = WebSocket(reader, writer, Frames(max_message=MAX_MESSAGE_BYTES), name)
        socket.protocol = handshake.accept(found)
    except BaseException as error:
        abort(writer.transport)
        if isinstance(error, OSError | asyncio.IncompleteReadError | asyncio.LimitOverrunError | ValueError):
            raise UnavailableError(f"did not answer as a hub does ({error})"[:300], element=name) from None
        if isinstance(error, ProtocolError):
            raise UnavailableError(str(error), element=name) from None
        raise
    return socket


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and len(length) < 10:
        return await reader.readexactly(min(int(length), MAX_BODY_BYTES))
    return await reader.read(MAX_BODY_BYTES)


def _parse_head(raw: bytes) -> tuple[int, dict[str, str]]:
    lines = raw.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise ValueError("the answer is not HTTP")
    pairs = (line.partition(":") for line in lines[1:] if ":" in line)
    return int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in pairs}


def _name_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
