"""Plain HTTP/1.1 to the inference servers of this device, over the loopback, on asyncio's streams.

An HTTP library costs a small device megabytes for what is needed here: one request at a time on a kept connection,
answers with a Content-Length, bounds on everything. Lives here: the transport. Must not live here: what is asked.
Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from skerry.api.errors import TimedOutError, TooLargeError, UnavailableError

MAX_HEAD_BYTES = 32 * 1024
CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class LoopbackClient:
    """One kept connection to one port. Errors are UnavailableError, TimedOutError, TooLargeError."""

    def __init__(self, port: int, *, max_body_bytes: int, timeout_seconds: float) -> None:
        self._port = port
        self._max_body = max_body_bytes
        self._timeout = timeout_seconds
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> LoopbackClient:
        """Connections are made when first needed."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self._close()

    async def request(
        self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request and return its response, within the time allowed."""
        head = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self._port}", f"Content-Length: {len(body)}"]
        head += [f"{name}: {value}" for name, value in (headers or {}).items()]
        raw = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + body
        try:
            async with asyncio.timeout(self._timeout):
                return await self._exchange(raw)
        except TimeoutError:
            await self._close()
            raise TimedOutError(f"no answer within {self._timeout:g} s", element=self._name) from None
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            await self._close()
            raise UnavailableError(_cause(error), element=self._name) from None
        except BaseException:
            await self._close()  # a half-read answer must not be taken for the next one's
            raise

    @property
    def _name(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def _exchange(self, raw: bytes) -> Answer:
        if self._reader is None or self._writer is None:
            async with asyncio.timeout(CONNECT_SECONDS):
                opened = asyncio.open_connection("127.0.0.1", self._port, limit=MAX_HEAD_BYTES)
                self._reader, self._writer = await opened
        self._writer.write(raw)
        await self._writer.drain()
        status, headers = _parse_head(await self._reader.readuntil(b"\r\n\r\n"))
        length = headers.get("content-length", "")
        if status in (204, 304):
            length = "0"
        if not (length.isascii() and length.isdigit()) or len(length) > 15:
            raise ValueError("the answer does not say how long it is")
        if int(length) > self._max_body:
            raise TooLargeError(f"the answer has {length} bytes, more than {self._max_body}", element=self._name)
        body = await self._reader.readexactly(int(length))
        if headers.get("connection", "").lower() == "close":
            await self._close()
        return Answer(status=status, headers=headers, body=body)

    async def _close(self) -> None:
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            writer.close()
            try:
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()
            except (OSError, TimeoutError):
                return


def _parse_head(raw: bytes) -> tuple[int, dict[str, str]]:
    lines = raw.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise ValueError("the answer is not HTTP")
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return int(rest[:3]), headers


def _cause(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, asyncio.IncompleteReadError | ConnectionResetError | BrokenPipeError):
        return "the connection was closed in the middle of an answer"
    if isinstance(error, asyncio.LimitOverrunError):
        return f"the answer's head is longer than {MAX_HEAD_BYTES} bytes"
    return str(error)[:200] or type(error).__name__
