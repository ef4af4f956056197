"""SPDY/3.1 frames, as kubectl sends them, by themselves or in WebSocket messages: bytes in, frames out, and back.

Pure, and only what that needs: streams with headers, data, pings, ends. There is no flow control but the connection's
own: kubectl's library neither opens windows nor minds them, so minding them would stop everything at 64 KiB. Every
length is bounded before it is believed, also of what compressed headers become. Lives here: framing. Must not live
here: which stream means what (`agent.remote.forwarding`, `hub.command_streams`).
Source: SPDY Protocol Draft 3.1, sections 2.2 and 2.6.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

_VERSION = 3
_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _PING, _GOAWAY = 1, 2, 3, 6, 7
_FIN = 1
MAX_FRAME_BYTES = 1024 * 1024
MAX_HEADER_BYTES = 16 * 1024
"""Of one header block, unpacked."""
MAX_HEADERS = 64
REFUSED = 3
"""Status of a stream that is not taken."""

_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status"
)
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    "404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,"
    "publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _word(text: str) -> bytes:
    return len(text).to_bytes(4) + text.encode("ascii")


DICTIONARY = b"".join(
    _word(text)
    for text in (
        *_WORDS.split(),
        "200 OK",
        "version",
        "HTTP/1.1",
        "url",
        "public",
        "set-cookie",
        "keep-alive",
        "origin",
    )
) + _TAIL.encode("ascii")
"""What compression begins with; its Adler-32 is in the draft."""


class SpdyError(Exception):
    """What was sent is not SPDY/3.1, or beyond a bound."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer opened a stream."""

    stream: int
    headers: Mapping[str, str]
    last: bool = False
    """Nothing more comes from the peer on it."""


@dataclass(frozen=True, slots=True)
class Data:
    """Content of a stream."""

    stream: int
    data: bytes
    last: bool = False


@dataclass(frozen=True, slots=True)
class Reset:
    """The peer gave a stream up."""

    stream: int


@dataclass(frozen=True, slots=True)
class Pinged:
    """The client's ping, to be answered with the same number."""

    number: int


@dataclass(frozen=True, slots=True)
class Left:
    """The peer opens no more streams."""


Frame = Opened | Data | Reset | Pinged | Left


@dataclass(kw_only=True)
class Spdy:
    """The server's side of one connection."""

    max_blocks: int = 0
    """Header blocks that are taken from the peer, each of which becomes up to `MAX_HEADER_BYTES`; 0: any number."""
    _blocks: int = 0
    _buffer: bytearray = field(default_factory=bytearray)
    _inflate: zlib._Decompress = field(default_factory=lambda: zlib.decompressobj(zdict=DICTIONARY))
    _deflate: zlib._Compress = field(default_factory=lambda: zlib.compressobj(zdict=DICTIONARY))

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes as they come, and return the frames that are complete. Raises SpdyError."""
        self._buffer += data
        frames: list[Frame] = []
        while len(self._buffer) >= 8:
            size = int.from_bytes(self._buffer[5:8])
            if size > MAX_FRAME_BYTES:
                raise SpdyError(f"a frame has {size} bytes")
            if len(self._buffer) < 8 + size:
                break
            head, content = bytes(self._buffer[:5]), bytes(self._buffer[8 : 8 + size])
            del self._buffer[: 8 + size]
            frame = self._parse(head, content)
            if frame is not None:
                frames.append(frame)
        return frames

    def reply(self, stream: int) -> bytes:
        """Return the acceptance of a stream."""
        block = self._deflate.compress((0).to_bytes(4)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return _control(_SYN_REPLY, stream.to_bytes(4) + block)

    def data(self, stream: int, data: bytes = b"", *, last: bool = False) -> bytes:
        """Return content of a stream; with `last` nothing more comes from here."""
        return stream.to_bytes(4) + bytes((_FIN if last else 0,)) + len(data).to_bytes(3) + data

    def reset(self, stream: int, status: int = REFUSED) -> bytes:
        """Return the refusal of a stream."""
        return _control(_RST_STREAM, stream.to_bytes(4) + status.to_bytes(4))

    def ping(self) -> bytes:
        """Return a ping of the server's, whose numbers are even; its answer is no ping to be answered."""
        return _control(_PING, (2).to_bytes(4))

    def pong(self, number: int) -> bytes:
        """Return the answer to a ping."""
        return _control(_PING, number.to_bytes(4))

    def _parse(self, head: bytes, content: bytes) -> Frame | None:
        last = bool(head[4] & _FIN)
        if not head[0] & 0x80:
            return Data(int.from_bytes(head[:4]), content, last)
        version, kind = int.from_bytes(head[:2]) & 0x7FFF, int.from_bytes(head[2:4])
        if version != _VERSION:
            raise SpdyError(f"version {version} is not {_VERSION}")
        match kind:
            case 1:
                return Opened(_number(content), self._headers(content[10:]), last)
            case 3:
                return Reset(_number(content))
            case 6:
                number = _number(content, 0xFFFFFFFF)
                return Pinged(number) if number % 2 else None  # an even one answers a ping from here
            case 7:
                return Left()
            case 2 | 8:
                self._headers(content[4:])  # later blocks are packed by what was in this one
        return None

    def _headers(self, block: bytes) -> dict[str, str]:
        self._blocks += 1
        if 0 < self.max_blocks < self._blocks:
            raise SpdyError(f"more than {self.max_blocks} streams were asked for")
        try:
            raw = self._inflate.decompress(block, MAX_HEADER_BYTES)
        except zlib.error as error:
            raise SpdyError(f"headers cannot be unpacked: {error}") from None
        if self._inflate.unconsumed_tail or len(raw) == MAX_HEADER_BYTES:  # then there may be more inside
            raise SpdyError(f"headers have more than {MAX_HEADER_BYTES} bytes")
        words, position = [], 4
        count = int.from_bytes(raw[:4])
        if len(raw) < 4 or count > MAX_HEADERS:
            raise SpdyError(f"a stream has {count} headers")
        for _ in range(2 * count):
            size = int.from_bytes(raw[position : position + 4])
            if position + 4 + size > len(raw):
                raise SpdyError("headers end too early")
            words.append(raw[position + 4 : position + 4 + size].decode("latin-1"))
            position += 4 + size
        return {name.lower(): value for name, value in zip(words[::2], words[1::2], strict=True)}


def _control(kind: int, content: bytes) -> bytes:
    return (0x8000 | _VERSION).to_bytes(2) + kind.to_bytes(2) + b"\0" + len(content).to_bytes(3) + content


def _number(content: bytes, mask: int = 0x7FFFFFFF) -> int:
    if len(content) < 4:
        raise SpdyError("a frame is too short")
    return int.from_bytes(content[:4]) & mask
