"""A workload's log as it grows, over a connection of its own; also what `attach` shows, which is the same as a channel.

Lives here: reading a file that others write, and that is cut when it is too long. Must not live here: which lines
(`core.logs`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from skerry.agent.commands import MAX_LOG_BYTES
from skerry.agent.remote.door import Conversation
from skerry.api.errors import SkerryError, UnavailableError
from skerry.core import channels, logs

CHUNK = 64 * 1024
POLL_SECONDS = 0.25
"""From look to look: a file has no event without more than the standard library."""


@dataclass(kw_only=True)
class _Tail:
    """One log, read on as it grows."""

    path: Path
    position: int = 0
    inode: int = 0

    def last(self, lines: int) -> bytes:
        """Return its last lines, of what is kept in memory at a time, and stand at its end."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - MAX_LOG_BYTES))
                raw = file.read(MAX_LOG_BYTES)
                self.position, self.inode = file.tell(), os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise UnavailableError(f"cannot be read: {error.strerror}", element=str(self.path)) from None
        return logs.tail(raw, lines)

    def more(self) -> bytes:
        """Return what came since; a log that was cut or replaced is read from its beginning."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self.inode or found.st_size < self.position:
                    self.position, self.inode = 0, found.st_ino
                file.seek(self.position)
                raw = file.read(CHUNK)
                self.position = file.tell()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise UnavailableError(f"cannot be read: {error.strerror}", element=str(self.path)) from None
        return raw


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
    tail, lines = _Tail(path=asked.place.log), logs.Lines(asked.session.log, fallback=datetime.now(UTC))
    data = await asyncio.to_thread(tail.last, asked.tail_lines)
    while not lines.full:
        wanted = lines.take(data)
        if wanted:
            await asked.socket.send(channels.frame(channels.STDOUT, wanted) if attached else wanted)
        if len(data) < CHUNK:
            await asyncio.sleep(POLL_SECONDS)
        data = await asyncio.to_thread(tail.more)
    if attached:
        await asked.socket.send(channels.ended(0))
