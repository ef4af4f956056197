"""The end of the audit log as it is found at the start: where it ends, and what a power cut left unfinished.

What is after the last whole entry is cut off, and is told in the log itself. What was changed elsewhere is left as it
is: the chain shows it, and the log goes on after the last entry that can be read. Must not live here: appending.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from skerry.api.audit import REQUEST, AuditEvent
from skerry.core import audit
from skerry.core.audit import Link
from skerry.drivers import audit_files
from skerry.drivers.audit_files import Segment
from skerry.kit import files

log = logging.getLogger(__name__)

_DECODER = msgspec.json.Decoder(AuditEvent)


@dataclass(frozen=True, kw_only=True)
class End:
    """Where the log goes on."""

    link: Link
    """The newest entry."""
    segment: Segment | None
    """The newest file; None: there is none."""
    size: int
    """Bytes of it."""
    torn: int
    """Bytes that were cut off."""
    unanswered: Mapping[str, AuditEvent]
    """Requests that were received and not answered, by their keys, as far as the two newest files tell."""


@dataclass(kw_only=True)
class _Found:
    """What one file has."""

    link: Link | None = None
    good: int = 0
    """Bytes up to the end of the last entry that can be read."""
    damaged: bool = False
    """Something before it cannot be read."""
    open: dict[str, AuditEvent] = field(default_factory=dict)
    """What was begun here and not answered here, by its key."""
    answered: set[str] = field(default_factory=set)
    """What was answered here and not begun here."""


def find_end(directory: Path) -> End:
    """Find the log's end, and cut off what is unfinished. Raises OSError."""
    torn, older = 0, audit_files.segments(directory)
    while older:
        segment = older.pop()
        found, size = _read(segment.path)
        if size > found.good:
            torn += size - found.good
            log.warning("audit.torn file=%s bytes=%d", segment.path.name, size - found.good)
            _cut(segment.path, found.good)
        if found.link is None:  # a power cut came between a file and its first entry
            segment.path.unlink()
            files.sync_directory(directory)
            continue
        if found.damaged:
            log.error("audit.damaged file=%s hint=%r", segment.path.name, "run `skerry audit verify`")
        if older:  # what was begun at the end of one file may have been answered in the next
            before, _ = _read(older[-1].path)
            found.open = {**before.open, **found.open}
            for key in found.answered:
                found.open.pop(key, None)
        return End(link=found.link, segment=segment, size=found.good, torn=torn, unanswered=found.open)
    return End(link=Link(), segment=None, size=0, torn=torn, unanswered={})


def last_link(path: Path) -> Link | None:
    """Return the newest entry of a file; None where it has none. Raises OSError."""
    return _read(path)[0].link


def _read(path: Path) -> tuple[_Found, int]:
    found, at, doubtful = _Found(), 0, False
    with path.open("rb") as file:
        for line, whole in audit_files.lines(file):
            at += len(line) + whole
            read = audit.read_link(line) if whole else None
            if read is None:
                doubtful = True
                continue
            found.damaged = found.damaged or doubtful
            found.link, found.good = read[1], at
            _follow(found, line)
    return found, at


def _follow(found: _Found, line: bytes) -> None:
    try:
        event = _DECODER.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return
    key = _key(event)
    if event.stage == "RequestReceived":
        found.open[key] = event
    elif found.open.pop(key, None) is None:
        found.answered.add(key)


def _key(event: AuditEvent) -> str:
    """Return what the entries of one request have in common and those of no other one.

    Clients choose the Audit-Id, and may choose one twice; it is all that a log of an older hub has.
    """
    name = event.annotations.get(REQUEST, "")
    return f"request/{name}" if name else f"id/{event.audit_id}"


def _cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
