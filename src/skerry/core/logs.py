"""Which lines of a workload's log somebody wants, and in which form. Pure.

A server's lines begin with the time (`kit.logs`), what its libraries print may not: such a line counts with the one
above it. Lives here: since, timestamps, limit, and where one server's log ends and the next one's begins. Must not live
here: files (`agent.remote.following`), what a query is on the wire (`core.messages.LogQuery`).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from skerry.core.messages import LogQuery

MAX_LINE_BYTES = 16 * 1024
"""A longer one is passed on in pieces."""
STARTED = b" serve.listening "
"""What every server says first that begins to answer."""
_TIME = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)) ")


class Lines:
    """One reading of a log, from a place in it on."""

    def __init__(self, query: LogQuery, *, fallback: datetime) -> None:
        """`fallback` is the time of lines above the first that has one."""
        self._query = query
        self._at = fallback
        self._left = query.limit_bytes or None
        self._part = b""
        self._middle = False
        """The next piece goes on with a line that was too long."""

    @property
    def full(self) -> bool:
        """Whether the limit is reached: nothing more is wanted."""
        return self._left == 0

    def take(self, data: bytes, *, last: bool = False) -> bytes:
        """Take more of the log and return what is wanted of it; an unfinished line waits, unless it is the last."""
        self._part += data
        lines = self._part.splitlines(keepends=True)
        self._part = b""
        if lines and not last and not lines[-1].endswith((b"\n", b"\r")) and len(lines[-1]) < MAX_LINE_BYTES:
            self._part = lines.pop()
        wanted = b"".join(self._line(line) for line in lines)
        if self._left is not None:
            wanted = wanted[: self._left]
            self._left -= len(wanted)
        return wanted

    def _line(self, line: bytes) -> bytes:
        middle, self._middle = self._middle, not line.endswith((b"\n", b"\r"))
        if not middle:
            self._at = time_of(line) or self._at
        if self._query.since is not None and self._at < self._query.since:
            return b""
        if not self._query.timestamps or middle:
            return line
        stamp = self._at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return stamp.encode("ascii") + b" " + line


def time_of(line: bytes) -> datetime | None:
    """Return the time that a line begins with; None when it begins with none."""
    found = _TIME.match(line[:64])
    if found is None:
        return None
    try:
        return datetime.fromisoformat(found.group(1).decode("ascii"))
    except ValueError:
        return None


def tail(data: bytes, lines: int) -> bytes:
    """Return the last so many lines."""
    return b"".join(data.splitlines(keepends=True)[-lines:]) if lines else b""


def previous(data: bytes) -> bytes:
    """Return what the server before the last one logged; nothing when there is only one.

    A server's first line is the one that says it listens; what comes before it, of its start, counts with the former.
    """
    lines = data.splitlines(keepends=True)
    starts = [index for index, line in enumerate(lines) if STARTED in line and time_of(line) is not None]
    if len(starts) < 2:
        return b"".join(lines[: starts[0]]) if starts and starts[0] else b""
    return b"".join(lines[starts[-2] : starts[-1]])
