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
MAX_EARLY_BYTES = 256 * 1024
"""Kept for all connections that are being made; the rest waits, and with it the others, as kubectl does itself."""
HALF_SECONDS = 30.0
"""From one stream of a connection to the other, as kubelets have it."""
_FRAME_BYTES = 256
"""What keeping a frame takes beside its content."""

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
    whole: asyncio.Event = field(default_factory=asyncio.Event)
    """Both streams are open."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """There is a connection, or there will be none."""
    writer: asyncio.StreamWriter | None = None
    task: asyncio.Task[None] | None = None

    begun: bool = False
    refused: bool = False

    def give_up(self) -> None:
        """End it; a task that has not begun would, cancelled, not even tidy up."""
        self.refused = True
        self.whole.set()
        if self.begun and self.task is not None:
            self.task.cancel()


class _Streams:
    def __init__(self, asked: Conversation) -> None:
        self._asked = asked
        self._spdy = spdy.Spdy()
        self._requests: dict[str, _Pair] = {}
        self._pairs: dict[int, _Pair] = {}
        """By the streams' numbers."""
        self._early = 0
        """Bytes that wait for connections."""
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
                    pair.give_up()

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
                if pair is not None:
                    pair.give_up()
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
        if pair.task is None:
            pair.task = self._tasks.create_task(self._carry(request, pair))
        if pair.error and pair.data:
            pair.whole.set()

    async def _data(self, frame: spdy.Data) -> None:
        pair = self._pairs.get(frame.stream)
        if pair is None or frame.stream != pair.data:
            return
        if not pair.whole.is_set():  # clients open both before they say anything
            pair.give_up()
            return
        if pair.writer is None and self._early + len(frame.data) + _FRAME_BYTES > MAX_EARLY_BYTES:
            await pair.settled.wait()
        if pair.writer is not None:
            await self._pass_on(pair.writer, frame)
        elif not pair.settled.is_set():
            self._early += len(frame.data) + _FRAME_BYTES
            pair.early.append(frame)

    async def _pass_on(self, writer: asyncio.StreamWriter, frame: spdy.Data) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            if frame.data:
                writer.write(frame.data)
                await writer.drain()
            if frame.last and writer.can_write_eof():
                writer.write_eof()

    async def _carry(self, request: str, pair: _Pair) -> None:
        """Carry one connection, from its first stream to its end."""
        pair.begun = True
        ending: Callable[[int], bytes] = self._spdy.reset
        try:
            async with asyncio.timeout(HALF_SECONDS):
                await pair.whole.wait()
            if not pair.refused:
                ending = self._last
                await self._forward(pair)
        except TimeoutError:
            log.info("remote.half_opened port=%d", pair.port)
        except UnavailableError as error:
            with contextlib.suppress(SkerryError):
                await self._say(self._spdy.data(pair.error, error.sentence.encode()))
        finally:
            pair.settled.set()
            self._drop_early(pair)
            streams = [stream for stream in (pair.data, pair.error) if stream]
            with contextlib.suppress(SkerryError):
                for stream in streams:
                    await self._say(ending(stream))
            for stream in streams:
                self._pairs.pop(stream, None)
            self._requests.pop(request, None)

    async def _forward(self, pair: _Pair) -> None:
        reader, writer = await connect(self._asked, pair.port)
        try:
            while pair.early:
                await self._pass_on(writer, pair.early[0])
                self._early -= len(pair.early.pop(0).data) + _FRAME_BYTES
            pair.writer = writer
            pair.settled.set()

            async def send(data: bytes) -> None:
                await self._say(self._spdy.data(pair.data, data))

            await _copy(reader, send)
        finally:
            await _close(writer)

    def _last(self, stream: int) -> bytes:
        return self._spdy.data(stream, last=True)

    def _drop_early(self, pair: _Pair) -> None:
        self._early -= sum(len(frame.data) + _FRAME_BYTES for frame in pair.early)
        pair.early.clear()

    async def _say(self, raw: bytes) -> None:
        await self._asked.socket.send(raw)
