"""Connections of one fetch that ask for parts of a blob, each kept open from one part to the next.

An answer is taken only if it is exactly the part that was asked for. Lives here: these connections. Must not live here:
how many of them (`ahead`), files.
"""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

from skerry.api.errors import SkerryError, UnavailableError
from skerry.drivers.registry.ahead import CutError

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_PIECE = 256 * 1024


class NoPartsError(Exception):
    """The registry answers with something else than a part: it is asked for everything then, which shows what it is."""


class Lanes:
    """The connections; `shut` may be called from any thread, and ends what they do."""

    def __init__(
        self,
        url: str,
        digest: str,
        *,
        connect: Callable[[SplitResult], http.client.HTTPConnection],
        accept: Callable[[socket.socket], None],
        wanted: Callable[[], None],
        took: Callable[[int], None],
        refused: Callable[[http.client.HTTPResponse], SkerryError],
    ) -> None:
        """`wanted` raises when the fetch is given up, `took` gets counts of bytes; both are called in workers."""
        self._url = urlsplit(url)
        self._digest = digest
        self._connect = connect
        self._accept = accept
        self._wanted = wanted
        self._took = took
        self._refused = refused
        self._lock = threading.Lock()
        self._lines: set[http.client.HTTPConnection] = set()
        self._idle: list[http.client.HTTPConnection] = []
        self._shut = False

    def ask(self, start: int, end: int) -> bytes:
        """Bring the bytes from one offset to another. Raises CutError: any of what `stream` does, and what had come."""
        content = bytearray()
        try:
            for piece in self.stream(start, end):
                content += piece
        except (NoPartsError, SkerryError, OSError, http.client.HTTPException) as error:
            raise CutError(bytes(content)) from error
        return bytes(content)

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        """Give the bytes as they come. Raises NoPartsError, SkerryError, OSError, HTTPException."""
        self._wanted()
        with self._lock:
            line = self._idle.pop() if self._idle else None
        if line is not None:
            try:
                answer = self._asked(line, start, end)
            except (http.client.BadStatusLine, ConnectionError):  # closed since, as a registry may: once anew
                line = None
        if line is None:
            line = self._new()
            answer = self._asked(line, start, end)
        yield from self._pieces(line, answer, end - start)

    def shut(self) -> None:
        """End all connections; whoever waits for one gets an error."""
        with self._lock:
            self._shut = True
            for line in self._lines:
                with suppress(OSError):
                    if line.sock is not None:
                        socket.socket.shutdown(
                            line.sock, socket.SHUT_RDWR
                        )  # not TLS's own: it is not for other threads

    def close(self) -> None:
        """Let go of all connections; for when no worker runs any more."""
        for line in self._lines:
            line.close()
        self._lines.clear()

    def _new(self) -> http.client.HTTPConnection:
        line = self._connect(self._url)
        with self._lock:
            self._lines.add(line)
        try:
            line.connect()
            with self._lock:
                if self._shut:
                    raise UnavailableError("was given up", element=self._digest)
            self._accept(line.sock)
        except BaseException:
            self._drop(line)
            raise
        return line

    def _drop(self, line: http.client.HTTPConnection) -> None:
        with self._lock:
            self._lines.discard(line)
        line.close()

    def _asked(self, line: http.client.HTTPConnection, start: int, end: int) -> http.client.HTTPResponse:
        target = f"{self._url.path}?{self._url.query}" if self._url.query else self._url.path
        headers = {"Accept-Encoding": "identity", "User-Agent": "skerry", "Range": f"bytes={start}-{end - 1}"}
        try:
            line.request("GET", target, headers=headers)
            answer = line.getresponse()
            self._check(answer, start, end)
        except BaseException:
            self._drop(line)
            raise
        return answer

    def _pieces(self, line: http.client.HTTPConnection, answer: http.client.HTTPResponse, size: int) -> Iterator[bytes]:
        try:
            yield from self._read(answer, size)
        except BaseException:
            self._drop(line)
            raise
        if answer.will_close or not answer.isclosed():
            self._drop(line)
        else:
            with self._lock:
                self._idle.append(line)

    def _check(self, answer: http.client.HTTPResponse, start: int, end: int) -> None:
        if answer.status >= 400 and answer.status != 416:
            raise self._refused(answer)
        match = _CONTENT_RANGE.fullmatch(answer.getheader("Content-Range", ""))
        exact = match is not None and (int(match.group(1)), int(match.group(2))) == (start, end - 1)
        plain = answer.getheader("Content-Encoding", "identity").lower() == "identity"
        if answer.status != 206 or not exact or not plain or answer.length not in (None, end - start):
            raise NoPartsError

    def _read(self, answer: http.client.HTTPResponse, size: int) -> Iterator[bytes]:
        came = 0
        while came < size and (piece := answer.read1(min(_PIECE, size - came))):
            came += len(piece)
            yield piece  # it is kept, whatever comes next
            self._wanted()
            self._took(len(piece))
        if came < size:
            raise UnavailableError(f"a part ended after {came} of {size} bytes", element=self._digest)
        if answer.length != 0 and answer.read1(1):
            raise NoPartsError
        answer.read()  # nothing, but it tells the connection that this answer is over
