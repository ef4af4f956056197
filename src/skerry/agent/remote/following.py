"""A workload's log as it grows, over a connection of its own; also what `attach` shows, which is the same as a channel.

A log that is too long is moved aside and goes on empty, at any moment, and a reader that its client slows down may be
far behind then: it knows its place by what stands before it, and looks for it in both. Lives here: reading a file that
others write. Must not live here: which lines (`core.logs`), moving it (`drivers.runtime.spawn`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from skerry.agent.commands import MAX_LOG_BYTES
from skerry.agent.remote.door import Conversation
from skerry.api.errors import SkerryError, UnavailableError
from skerry.core import channels, logs

log = logging.getLogger(__name__)

CHUNK = 64 * 1024
POLL_SECONDS = 0.25
"""From look to look: a file has no event without more than the standard library."""


MARK_BYTES = 1024
"""Of what was read last, by which a place is known."""
LOST = b" WARNING remote.lines_lost: the log was cut before they were read (skerry.agent)\n"


@dataclass(kw_only=True)
class Tail:
    """One log, read on as it grows."""

    path: Path
    _position: int = 0
    _mark: bytes = b""
    _older: BinaryIO | None = None
    """What was moved aside, and is read first."""
    _known: tuple[int, int] = (0, 0)
    """Which file was the one that was moved aside when this one's place was taken: it is no news."""

    def last(self, lines: int) -> bytes:
        """Return its last lines, of what is kept in memory at a time, and stand at its end."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - MAX_LOG_BYTES))
                raw = file.read(MAX_LOG_BYTES)
                self._position, self._mark = file.tell(), raw[-MARK_BYTES:]
                older = self._open_older()
                if older is not None:
                    with older:
                        self._known = _which(older)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise UnavailableError(f"cannot be read: {error.strerror}", element=str(self.path)) from None
        return logs.tail(raw, lines)

    def more(self) -> bytes:
        """Return what came since, a piece of it."""
        try:
            if self._older is None:
                with self.path.open("rb", buffering=0) as file:
                    file.seek(self._position - len(self._mark))
                    raw = file.read(len(self._mark) + CHUNK)
                if raw.startswith(self._mark):
                    return self._took(raw[len(self._mark) :])
                return self._turn()
            return self._older.read(CHUNK) or self._turn_on(self._older)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise UnavailableError(f"cannot be read: {error.strerror}", element=str(self.path)) from None

    def close(self) -> None:
        """Let go of what was moved aside."""
        if self._older is not None:
            self._older.close()
            self._older = None

    def _took(self, raw: bytes) -> bytes:
        self._position += len(raw)
        self._mark = (self._mark + raw)[-MARK_BYTES:]
        return raw

    def _turn(self) -> bytes:
        """Go on where this log was moved to; what is lost is said."""
        mark, self._mark, self._position = self._mark, b"", 0
        older = self._open_older()
        if older is not None and _which(older) == self._known:
            older.close()
            older = None
        if older is None:  # emptied, by somebody or for want of room: of what was in it nothing is known
            log.info("remote.log_emptied log=%s", self.path)
            return b""
        self._older, self._known = older, _which(older)
        content = older.read()
        found = content.rfind(mark)
        older.seek(found + len(mark) if found >= 0 else content.find(b"\n") + 1)  # a line's beginning was cut off
        return b"" if found >= 0 else self._lost()

    def _turn_on(self, done: BinaryIO) -> bytes:
        """Go on with what comes after a log that was moved aside, which may have been moved meanwhile itself."""
        with done:
            self._older = self._open_older()
            if self._older is None or os.path.sameopenfile(self._older.fileno(), done.fileno()):
                self.close()
                return b""
        self._known = _which(self._older)
        self._older.readline()  # of which the beginning was cut off, and what was before it
        return self._lost()

    def _open_older(self) -> BinaryIO | None:
        try:
            return self.path.with_name(f"{self.path.name}.1").open("rb")
        except FileNotFoundError:
            return None

    def _lost(self) -> bytes:
        log.warning("remote.lines_lost log=%s", self.path)
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return stamp.encode("ascii") + LOST


def _which(file: BinaryIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_ino, found.st_mtime_ns


async def talk(asked: Conversation) -> None:
    """Send the log until the client leaves. Raises UnavailableError."""
    leaving = asyncio.ensure_future(_until_left(asked))
    sending = asyncio.ensure_future(_follow(asked))
    try:
        await asyncio.wait({leaving, sending}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
    finally:
        for task in (leaving, sending):
            task.cancel()
        await asyncio.gather(leaving, sending, return_exceptions=True)


async def _until_left(asked: Conversation) -> None:
    with contextlib.suppress(SkerryError):
        while await asked.socket.receive() is not None:
            pass


async def _follow(asked: Conversation) -> None:
    attached = asked.session.purpose == "attach"
    tail, lines = Tail(path=asked.place.log), logs.Lines(asked.session.log, fallback=datetime.now(UTC))
    try:
        data = await asyncio.to_thread(tail.last, asked.tail_lines)
        while not lines.full:
            wanted = lines.take(data)
            if wanted:
                await asked.socket.send(channels.frame(channels.STDOUT, wanted) if attached else wanted)
            if not data:
                await asyncio.sleep(POLL_SECONDS)
            data = await asyncio.to_thread(tail.more)
    finally:
        tail.close()
    if attached:
        await asked.socket.send(channels.ended(0))
