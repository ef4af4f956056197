"""A command's channels as SPDY streams, one for each: what kubectl before 1.30 speaks in exec, attach and cp.

To the tunnel it looks like a client that speaks v5.channel.k8s.io, so that devices know of no third way, and a client
is told of a device that is lost: it takes streams that just end for success. Lives here: which stream is which, their
bounds, their end. Must not live here: framing (`core.spdy`), the connection (`hub.raw_upgrade`).
Source: Kubernetes `apimachinery/pkg/util/remotecommand`, client-go `tools/remotecommand/v{1,2,3,4}.go`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque

from skerry.api.errors import UnavailableError
from skerry.core import channels, spdy
from skerry.core.messages import RemoteSession
from skerry.hub.upgrade import PING_SECONDS, Gone, Wire

log = logging.getLogger(__name__)

OPEN_SECONDS = 10.0
"""For the client to open its streams, less than devices wait for their answer."""
MAX_BLOCKS = 16
"""Header blocks of one conversation: there are five streams at most."""
MAX_EARLY_BYTES = 256 * 1024
"""Of input that comes before the last stream was opened."""
PIECE_BYTES = 64 * 1024
"""Of input as the device gets it, whose messages are bounded."""
SILENCE_SECONDS = 30.0
"""At the end, for the client to take what it was sent and leave; kubectl pings meanwhile."""
LEAVE_SECONDS = 3600.0
"""At the end, at most: what comes out may be read by a person, page by page."""


class CommandStreams:
    """A client's end of a command, in messages of v5.channel.k8s.io."""

    def __init__(self, wire: Wire, session: RemoteSession, protocol: str) -> None:
        self.code = 1000
        self.reason = ""
        self._wire = wire
        self._spdy = spdy.Spdy(max_blocks=MAX_BLOCKS)
        self._has_status = protocol == channels.V4
        resizes = session.tty and protocol in channels.STREAM_COMMAND_PROTOCOLS[:2]
        wanted = {channels.ERROR: True, channels.STDIN: session.stdin, channels.STDOUT: session.stdout}
        wanted |= {channels.STDERR: session.stderr, channels.RESIZE: resizes}
        self._awaited = {channel for channel, is_wanted in wanted.items() if is_wanted}
        self._streams: dict[int, int] = {}
        """The number of each channel's stream, while it is open from here."""
        self._channels: dict[int, int] = {}
        """The channel of each stream, while it is open from there."""
        self._messages: deque[bytes] = deque()
        self._is_broken = False

    async def open(self) -> None:
        """Wait until the client has opened every stream that it has asked for. Raises UnavailableError."""
        early = 0
        with contextlib.suppress(TimeoutError, Gone):
            async with asyncio.timeout(OPEN_SECONDS):
                while self._awaited and early <= MAX_EARLY_BYTES and await self._read():
                    early = sum(map(len, self._messages))
        if self._awaited:
            raise UnavailableError("did not open the streams that it asked for", element="the client")

    async def receive(self) -> bytes | None:
        """Return the next message; None when the client has left, or speaks no SPDY."""
        with contextlib.suppress(Gone):
            while not self._messages:
                if not await self._read():
                    return None
            return self._messages.popleft()
        return None

    async def send(self, data: bytes) -> None:
        """Send a message on its stream; returns when there is room for more. Raises Gone."""
        stream = self._streams.get(data[0]) if data else None
        if stream is None:
            return
        content = data[1:]
        if data[0] == channels.ERROR and not self._has_status:
            content = channels.sentence(content)
        await self._wire.send(self._spdy.data(stream, content))

    async def close(self, code: int = 1000, reason: str = "", *, patience: float = 0.0) -> None:  # noqa: ARG002 - the status says it
        """End every stream, and wait for the client to leave: it loses what it has not read yet when we leave first."""
        ending = [self._spdy.data(stream, last=True) for stream in self._streams.values()]
        self._streams.clear()
        until = time.monotonic() + LEAVE_SECONDS
        with contextlib.suppress(Gone, TimeoutError):
            async with asyncio.timeout(SILENCE_SECONDS):
                for one in ending:
                    await self._wire.send(one)
            while time.monotonic() < until:
                async with asyncio.timeout(SILENCE_SECONDS):
                    if not await self._read():
                        break
                self._messages.clear()
        await self._wire.close()

    async def gone(self) -> None:
        """Return once the client is no more there; it is pinged, for one without room to send cannot say so."""
        going = asyncio.ensure_future(self._wire.gone())
        try:
            while not (await asyncio.wait({going}, timeout=PING_SECONDS))[0]:
                # Who takes nothing at all has something under way already, and whether it arrives is known.
                with contextlib.suppress(Gone, TimeoutError):
                    async with asyncio.timeout(PING_SECONDS):
                        await self._wire.send(self._spdy.ping())
        finally:
            going.cancel()
            await asyncio.gather(going, return_exceptions=True)

    async def _read(self) -> bool:
        """Take what comes next; False when nothing more does. Raises Gone."""
        data = None if self._is_broken else await self._wire.receive()
        if data is None:
            return False
        try:
            answers = b"".join([self._take(frame) for frame in self._spdy.feed(data)])
        except spdy.SpdyError as error:
            log.info("remote.not_spdy error=%s", error)
            self._is_broken = True
            return False
        if answers:  # at once: whoever sends thousands of pings at a time costs one write
            await self._wire.send(answers)
        return True

    def _take(self, frame: spdy.Frame) -> bytes:
        """Take one frame, and return what is to be said to it."""
        match frame:
            case spdy.Opened():
                return self._open(frame)
            case spdy.Data(stream, data, last):
                channel = self._channels.get(stream, channels.ERROR)
                if channel in (channels.STDIN, channels.RESIZE):
                    pieces = range(0, len(data), PIECE_BYTES)
                    self._messages.extend(channels.frame(channel, data[at : at + PIECE_BYTES]) for at in pieces)
                if last:
                    self._end(stream)
            case spdy.Reset(stream):
                self._streams = {channel: one for channel, one in self._streams.items() if one != stream}
                self._end(stream)
            case spdy.Pinged(number):
                return self._spdy.pong(number)
            case spdy.Left():
                pass
        return b""

    def _open(self, frame: spdy.Opened) -> bytes:
        channel = channels.STREAM_TYPES.get(frame.headers.get("streamtype", ""))
        if channel not in self._awaited or channel is None or frame.stream in self._channels:
            return self._spdy.reset(frame.stream)
        self._awaited.discard(channel)
        self._streams[channel] = frame.stream
        self._channels[frame.stream] = channel
        if frame.last:
            self._end(frame.stream)
        return self._spdy.reply(frame.stream)

    def _end(self, stream: int) -> None:
        """Note that nothing more comes on a stream."""
        if self._channels.pop(stream, None) == channels.STDIN:
            self._messages.append(bytes((channels.CLOSE, channels.STDIN)))
