"""The client's side of WebSocket, without a transport: the handshake's bytes, frames in, frames out.

Only what is needed to carry messages: no extensions, a message whole or not at all, every length bounded before it is
believed. Lives here: RFC 6455. Must not live here: connections (`websocket_client`), what messages mean.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
NORMAL = 1000
GOING_AWAY = 1001
PROTOCOL_ERROR = 1002
INVALID_TEXT = 1007
TOO_BIG = 1009
FAILED = 1011
ABNORMAL = 1006
"""Never sent: the connection ended without a word."""
MAX_REASON = 123


class ProtocolError(Exception):
    """The other end broke the protocol; `code` is what it is told."""

    def __init__(self, code: int, cause: str) -> None:
        super().__init__(cause)
        self.code = code


class RefusedError(Exception):
    """The server answered the handshake with another status than 101."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"the server answered {status}")
        self.status = status
        self.body = body


@dataclass(frozen=True, slots=True)
class Message:
    """One whole message; text is still UTF-8."""

    data: bytes
    text: bool = False


@dataclass(frozen=True, slots=True)
class Ping:
    """To be answered with the same content."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The other end says no more."""

    code: int = NORMAL
    reason: str = ""


Event = Message | Ping | Closed


@dataclass(kw_only=True)
class Handshake:
    """One opening handshake."""

    host: str
    path: str
    protocols: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    key: bytes = field(default_factory=lambda: base64.b64encode(os.urandom(16)))

    def request(self) -> bytes:
        """Return the bytes to send. Raises ValueError for what would break out of its line."""
        lines = [
            f"GET {self.path} HTTP/1.1",
            f"Host: {self.host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {self.key.decode('ascii')}",
            "Sec-WebSocket-Version: 13",
            *([f"Sec-WebSocket-Protocol: {', '.join(self.protocols)}"] if self.protocols else []),
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        if any(not line.isprintable() or not line.isascii() for line in lines):
            raise ValueError("a line of the request is not printable ASCII")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")

    def accept(self, head: Mapping[str, str]) -> str:
        """Return the protocol chosen by a 101 with these headers (names in lower case). Raises ProtocolError."""
        expected = base64.b64encode(hashlib.sha1(self.key + _GUID, usedforsecurity=False).digest()).decode("ascii")
        words = {word.strip().lower() for word in head.get("connection", "").split(",")}
        if head.get("upgrade", "").lower() != "websocket" or "upgrade" not in words:
            raise ProtocolError(PROTOCOL_ERROR, "the answer switches to something else than WebSocket")
        if head.get("sec-websocket-accept", "") != expected:
            raise ProtocolError(PROTOCOL_ERROR, "the answer does not belong to this request")
        chosen = head.get("sec-websocket-protocol", "")
        if (chosen and chosen not in self.protocols) or head.get("sec-websocket-extensions"):
            raise ProtocolError(PROTOCOL_ERROR, "the server chose what was not offered")
        return chosen


class Frames:
    """Frames of one connection, after the handshake."""

    def __init__(self, *, max_message: int, mask: Callable[[], bytes] = lambda: os.urandom(4)) -> None:
        self._max = max_message
        self._mask = mask
        self._buffer = bytearray()
        self._parts = bytearray()
        self._kind = 0
        self._closed = False

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes as they come, and return what is complete. Raises ProtocolError; nothing comes after `Closed`."""
        self._buffer += data
        events: list[Event] = []
        while not self._closed:
            frame = self._next()
            if frame is None:
                break
            event = self._take(*frame)
            if event is not None:
                events.append(event)
        return events

    def message(self, data: bytes, *, text: bool = False) -> bytes:
        """Return a message as it is sent."""
        return self._frame(_TEXT if text else _BINARY, data)

    def ping(self) -> bytes:
        """Return a ping."""
        return self._frame(_PING, b"")

    def pong(self, data: bytes) -> bytes:
        """Return the answer to a ping."""
        return self._frame(_PONG, data)

    def close(self, code: int = NORMAL, reason: str = "") -> bytes:
        """Return a closing frame; its reason is cut to what fits."""
        return self._frame(_CLOSE, code.to_bytes(2) + reason.encode()[:MAX_REASON].decode(errors="ignore").encode())

    def _frame(self, opcode: int, data: bytes) -> bytes:
        size = len(data)
        if size < 126:
            head = bytes((0x80 | opcode, 0x80 | size))
        elif size < 1 << 16:
            head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2)
        else:
            head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8)
        mask = self._mask()
        return head + mask + masked(data, mask)

    def _next(self) -> tuple[int, bool, bytes] | None:
        """Cut the next frame off the buffer: its opcode, whether it is the last of its message, its content."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        first, second = buffer[0], buffer[1]
        opcode, last, size, start = first & 0x0F, bool(first & 0x80), second & 0x7F, 2
        if first & 0x70 or second & 0x80:
            raise ProtocolError(PROTOCOL_ERROR, "a frame has bits that were not agreed upon, or a mask")
        if size >= 126:
            start += 2 if size == 126 else 8
            if len(buffer) < start:
                return None
            size = int.from_bytes(buffer[2:start])
        if opcode >= _CLOSE and (size > 125 or not last):
            raise ProtocolError(PROTOCOL_ERROR, "a control frame is too long or in pieces")
        if size + len(self._parts) > self._max:
            raise ProtocolError(TOO_BIG, f"a message has more than {self._max} bytes")
        if len(buffer) < start + size:
            return None
        content = bytes(memoryview(buffer)[start : start + size])
        del buffer[: start + size]
        return opcode, last, content

    def _take(self, opcode: int, last: bool, content: bytes) -> Event | None:
        if opcode == _PING:
            return Ping(content)
        if opcode == _PONG:
            return None
        if opcode == _CLOSE:
            self._closed = True
            return _closed(content)
        if opcode not in (_CONTINUATION, _TEXT, _BINARY) or (opcode == _CONTINUATION) != bool(self._kind):
            raise ProtocolError(PROTOCOL_ERROR, "a frame is out of order")
        self._kind = self._kind or opcode
        self._parts += content
        if not last:
            return None
        message = Message(bytes(self._parts), self._kind == _TEXT)
        self._parts.clear()
        self._kind = 0
        return message


def masked(data: bytes, mask: bytes) -> bytes:
    """Return the data with a mask of four bytes laid over it; done again, it is the data."""
    size = len(data)
    if not size:
        return b""
    laid = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(laid, "little")).to_bytes(size, "little")


def _closed(content: bytes) -> Closed:
    if not content:
        return Closed()
    if len(content) == 1:
        raise ProtocolError(PROTOCOL_ERROR, "a closing frame has half a code")
    try:
        return Closed(int.from_bytes(content[:2]), content[2:].decode())
    except UnicodeDecodeError:
        raise ProtocolError(INVALID_TEXT, "a closing frame's reason is not UTF-8") from None
