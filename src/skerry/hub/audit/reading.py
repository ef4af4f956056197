"""The audit log as it is read: page by page, oldest first, bounded in time and memory however large the log is.

Must not live here: what is asked for (`core.audit_query`), HTTP.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import msgspec

from skerry.api.audit import AuditEvent
from skerry.api.errors import BadRequestError
from skerry.core.audit_query import Question
from skerry.drivers import audit_files
from skerry.drivers.audit_files import Segment

MAX_ITEMS = 1000
MAX_PAGE_BYTES = 2 * 1024 * 1024
MAX_SCANNED_BYTES = 4 * 1024 * 1024
"""Of the log, for one page: a page may be empty and have one after it."""

_DECODER = msgspec.json.Decoder(AuditEvent)


class Place(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where in the log a page begins; `continue` is its opaque form."""

    v: int = 1
    file: int = 0
    """The number of its file's first entry; 0 is the log's beginning."""
    offset: int = 0

    @property
    def text(self) -> str:
        """The opaque form."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).decode().rstrip("=")


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some of the entries that were asked for."""

    items: Sequence[bytes]
    """Lines as they are in the log."""
    next: Place
    """Where reading goes on."""
    at_end: bool
    """There is nothing more at the moment."""


@dataclass(kw_only=True)
class _Reading:
    """A page in the making."""

    question: Question
    limit: int
    items: list[bytes] = field(default_factory=list)
    size: int = 0
    scanned: int = 0

    @property
    def is_full(self) -> bool:
        return len(self.items) >= self.limit or self.size >= MAX_PAGE_BYTES or self.scanned >= MAX_SCANNED_BYTES

    def take(self, line: bytes) -> None:
        self.scanned += len(line) + 1
        try:
            event = _DECODER.decode(line)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return  # `skerry audit verify` says so
        if self.question.takes(event):
            self.items.append(line)
            self.size += len(line)


def parse_place(text: str) -> Place:
    """Return the place of a `continue` token. Raises BadRequestError."""
    if not text:
        return Place()
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(raw, type=Place)
    except (binascii.Error, msgspec.DecodeError, ValueError, RecursionError):
        place = None
    if place is None or place.v != 1 or not 0 <= place.file < 2**62 or not 0 <= place.offset < 2**62:
        raise BadRequestError("is not a token this hub gave out", element="continue", hint="begin again without it")
    return place


def read_page(directory: Path, question: Question, place: Place, *, limit: int) -> Page:
    """Return up to `limit` entries from a place on; blocking, for a thread. Raises OSError.

    A place whose file has expired goes on with what is left. Only whole lines are read, so that what is being written
    at the same time is read the next time.
    """
    reading = _Reading(question=question, limit=min(limit, MAX_ITEMS))
    everything = audit_files.segments(directory)
    following = [segment for segment in everything if segment.first >= place.file]
    if place == Place() and question.since is not None:
        following = _from(following, question.since)
    here = place
    for segment in following:
        begins = _begins(segment) if question.until is not None and segment.first != place.file else None
        if begins is not None and question.until is not None and begins > question.until:
            return Page(items=reading.items, next=here, at_end=True)
        offset = here.offset if segment.first == here.file else 0
        here = Place(file=segment.first, offset=_read(reading, segment.path, offset))
        if reading.is_full:
            return Page(items=reading.items, next=here, at_end=False)
    return Page(items=reading.items, next=here, at_end=True)


def _read(reading: _Reading, path: Path, offset: int) -> int:
    """Read until the page is full or the file ends; returns where that is."""
    try:
        file = path.open("rb")
    except FileNotFoundError:  # it has expired
        return offset
    with file:
        file.seek(offset)
        for line, whole in audit_files.lines(file):
            if not whole and len(line) <= audit_files.MAX_LINE:
                break
            offset += len(line) + whole
            reading.take(line)
            if reading.is_full:
                break
    return offset


def _from(everything: list[Segment], since: datetime) -> list[Segment]:
    """Leave out the files that end before a time: those after which another one begins that is still too early."""
    kept = list(everything)
    while len(kept) > 1:
        begins = _begins(kept[1])
        if begins is None or begins >= since:
            break
        kept.pop(0)
    return kept


def _begins(segment: Segment) -> datetime | None:
    try:
        with segment.path.open("rb") as file:
            return _DECODER.decode(next(audit_files.lines(file), (b"", False))[0]).stage_timestamp
    except (OSError, msgspec.DecodeError, ValueError, RecursionError):
        return None
