"""Connections to a workload's port, carried by one conversation: SPDY's streams (kubectl) or channels (libraries).

Lives here: which stream is which, copying with backpressure. Must not live here: framing (`core.spdy`).
Source: Kubernetes `portforward.go` (client-go), `websocket.go` of kubelet's portforward.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from skerry.agent.remote.door import Conversation
from skerry.api.errors import SkerryError, UnavailableError
from skerry.core import channels, spdy

log = logging.getLogger(__name__)

CHUNK = 32 * 1024
CONNECT_SECONDS = 5.0
PING_SECONDS = 20.0
MAX_STREAMS = 128
"""Two for each connection."""
MAX_EARLY = 8
"""Frames kept for a connection that is being made; the rest waits, and with it the others, as kubectl does itself."""

Send = Callable[[bytes], Awaitable[None]]


async def talk(asked: Conversation) -> None:
    """Forward until the client leaves. Raises InvalidError for what is no SPDY."""
    if asked.session.protocol == channels.SPDY_FORWARD:
        await _Streams(asked).run()
    else:
        await _channels(asked)


async def connect(asked: Conversation, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a port that may be. Raises UnavailableError with the reason as a sentence."""
    element = f"port {port} of {asked.place.name}"
    if port not in asked.ports:
        known = ", ".join(map(str, sorted(asked.ports))) or "none"
        raise UnavailableError(
            f"is not one of its own ({known})", element=element, hint="`ports` in [remote] of agent.toml allows others"
        )
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            return await asyncio.open_connection("127.0.0.1", asked.ports[port], limit=CHUNK)
    except (OSError, TimeoutError) as error:
        raise UnavailableError(f"cannot be connected to ({error or 'no answer'})", element=element) from None


async def _copy(reader: asyncio.StreamReader, send: Send) -> None:
    with contextlib.suppress(OSError, SkerryError):
        while data := await reader.read(CHUNK):
            await send(data)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1.0):
            await writer.wait_closed()


# --- channels: one connection for each port that was named ------------------------------------------------------------


async def _channels(asked: Conversation) -> None:
    socket, writers = asked.socket, dict[int, asyncio.StreamWriter]()
    async with asyncio.TaskGroup() as tasks:
        copies = []
        try:
            for index, port in enumerate(asked.session.ports):
                for channel in (2 * index, 2 * index + 1):
                    await socket.send(channels.frame(channel, port.to_bytes(2, "little")))
                try:
                    reader, writers[2 * index] = await connect(asked, port)
                except UnavailableError as error:
                    await socket.send(channels.frame(2 * index + 1, error.sentence.encode()))
                    continue

                async def send(data: bytes, channel: int = 2 * index) -> None:
                    await socket.send(channels.frame(channel, data))

                copies.append(tasks.create_task(_copy(reader, send)))
            listening = tasks.create_task(_listen(asked, writers))
            await asyncio.wait({listening, tasks.create_task(_all(copies))}, return_when=asyncio.FIRST_COMPLETED)
            listening.cancel()
        finally:
            for task in copies:
                task.cancel()
            for writer in writers.values():
                await _close(writer)


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    if tasks:
        await asyncio.wait(tasks)


async def _listen(asked: Conversation, writers: dict[int, asyncio.StreamWriter]) -> None:
    while (message := await asked.socket.receive()) is not None:
        ended = len(message) == 2 and message[0] == channels.CLOSE
        writer = writers.get(message[ended]) if message else None
        if writer is not None and ended:
            with contextlib.suppress(OSError):
                writer.write_eof()
        elif writer is not None:
            with contextlib.suppress(OSError):
                writer.write(message[1:])
                await writer.drain()


# --- SPDY: a pair of streams for each connection ----------------------------------------------------------------------


@dataclass(kw_only=True, eq=False)
class _Pair:
    """The two streams of one connection."""

    error: int = 0
    data: int = 0
    port: int = 0
    early: list[spdy.Data] = field(default_factory=list)
    """What came before there was a connection."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """There is a connection, or there will be none."""
    writer: asyncio.StreamWriter | None = None
    task: asyncio.Task[None] | None = None


class _Streams:
    def __init__(self, asked: Conversation) -> None:
        self._asked = asked
        self._spdy = spdy.Spdy()
        self._requests: dict[str, _Pair] = {}
        self._pairs: dict[int, _Pair] = {}
        """By the streams' numbers."""
        self._tasks: asyncio.TaskGroup

    async def run(self) -> None:
        async with asyncio.TaskGroup() as self._tasks:
            pinging = self._tasks.create_task(self._ping())
            try:
                while (message := await self._asked.socket.receive()) is not None:
                    for frame in self._spdy.feed(message):
                        await self._take(frame)
            except spdy.SpdyError as error:
                log.info("remote.not_spdy error=%s", error)
                await self._asked.socket.close(1002, str(error))
            finally:
                pinging.cancel()
                for pair in self._requests.values():
                    if pair.task is not None:
                        pair.task.cancel()

    async def _ping(self) -> None:
        """Have the client's end of the connection tell whether there is a client; hubs pass SPDY on as it is."""
        with contextlib.suppress(SkerryError):
            while True:
                await asyncio.sleep(PING_SECONDS)
                await self._say(self._spdy.ping())

    async def _take(self, frame: spdy.Frame) -> None:
        match frame:
            case spdy.Opened():
                await self._open(frame)
            case spdy.Data():
                await self._data(frame)
            case spdy.Reset(stream):
                pair = self._pairs.get(stream)
                if pair is not None and pair.task is not None:
                    pair.task.cancel()
            case spdy.Pinged(number):
                await self._say(self._spdy.pong(number))

    async def _open(self, frame: spdy.Opened) -> None:
        kind, request, port = (frame.headers.get(name, "") for name in ("streamtype", "requestid", "port"))
        valid = kind in ("error", "data") and port.isascii() and port.isdigit() and len(port) < 6
        if not valid or len(request) > 100 or len(self._pairs) >= MAX_STREAMS or frame.stream in self._pairs:
            await self._say(self._spdy.reset(frame.stream))
            return
        pair = self._requests.setdefault(request, _Pair(port=int(port)))
        if getattr(pair, kind):
            await self._say(self._spdy.reset(frame.stream))
            return
        setattr(pair, kind, frame.stream)
        self._pairs[frame.stream] = pair
        await self._say(self._spdy.reply(frame.stream))
        if pair.error and pair.data:
            pair.task = self._tasks.create_task(self._forward(request, pair))

    async def _data(self, frame: spdy.Data) -> None:
        pair = self._pairs.get(frame.stream)
        if pair is None or frame.stream != pair.data:
            return
        if pair.writer is None and len(pair.early) >= MAX_EARLY:
            if pair.task is None:  # a client that opens one of the two and never the other
                await self._say(self._spdy.reset(frame.stream))
                return
            await pair.settled.wait()
        if pair.writer is not None:
            await self._pass_on(pair.writer, frame)
        elif not pair.settled.is_set():
            pair.early.append(frame)

    async def _pass_on(self, writer: asyncio.StreamWriter, frame: spdy.Data) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            if frame.data:
                writer.write(frame.data)
                await writer.drain()
            if frame.last and writer.can_write_eof():
                writer.write_eof()

    async def _forward(self, request: str, pair: _Pair) -> None:
        """One connection, from its beginning to its end."""
        try:
            reader, writer = await connect(self._asked, pair.port)
            try:
                while pair.early:
                    await self._pass_on(writer, pair.early.pop(0))
                pair.writer = writer
                pair.settled.set()

                async def send(data: bytes) -> None:
                    await self._say(self._spdy.data(pair.data, data))

                await _copy(reader, send)
            finally:
                await _close(writer)
        except UnavailableError as error:
            with contextlib.suppress(SkerryError):
                await self._say(self._spdy.data(pair.error, error.sentence.encode()))
        finally:
            pair.settled.set()
            with contextlib.suppress(SkerryError):
                await self._say(self._spdy.data(pair.data, last=True))
                await self._say(self._spdy.data(pair.error, last=True))
            for stream in (pair.data, pair.error):
                self._pairs.pop(stream, None)
            self._requests.pop(request, None)

    async def _say(self, raw: bytes) -> None:
        await self._asked.socket.send(raw)
