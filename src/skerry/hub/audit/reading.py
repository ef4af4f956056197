"""The audit log as it is read: page by page, oldest first, bounded in time and memory however large the log is.

Its two parts are read as one, by time, unless one of them is asked for.
Must not live here: what is asked for (`core.audit_query`), HTTP.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Place(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where in the log a page begins; `continue` is its opaque form."""

    v: int = 1
    file: int = 0
    """The number of its file's first entry; 0 is the log's beginning."""
    offset: int = 0
    bulk_file: int = 0
    """The same in the bulk part."""
    bulk_offset: int = 0

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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    """One line, with the place after it."""

    raw: bytes
    event: AuditEvent | None
    """None: it cannot be read; `skerry audit verify` says so."""
    file: int
    offset: int


@dataclass(kw_only=True)
class _Part:
    """One chain as it is gone through: up to where, and what is next."""

    lines: Iterator[_Line]
    file: int
    offset: int
    next: _Line | None = None

    def advance(self) -> None:
        if self.next is not None:
            self.file, self.offset = self.next.file, self.next.offset
        self.next = next(self.lines, None)


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

    def take(self, line: _Line) -> None:
        self.scanned += len(line.raw) + 1
        if line.event is not None and self.question.takes(line.event):
            self.items.append(line.raw)
            self.size += len(line.raw)


def parse_place(text: str) -> Place:
    """Return the place of a `continue` token. Raises BadRequestError."""
    if not text:
        return Place()
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(raw, type=Place)
    except (binascii.Error, msgspec.DecodeError, ValueError, RecursionError):
        place = None
    if place is None or place.v != 1 or not all(0 <= number < 2**62 for number in _numbers(place)):
        raise BadRequestError("is not a token this hub gave out", element="continue", hint="begin again without it")
    return place


def _numbers(place: Place) -> tuple[int, ...]:
    return place.file, place.offset, place.bulk_file, place.bulk_offset


def read_page(directory: Path, question: Question, place: Place, *, limit: int) -> Page:
    """Return up to `limit` entries from a place on; blocking, for a thread. Raises OSError.

    A place whose file has expired goes on with what is left. Only whole lines are read, so that what is being written
    at the same time is read the next time.
    """
    reading = _Reading(question=question, limit=min(limit, MAX_ITEMS))
    asked = (
        ("main", directory, place.file, place.offset),
        ("bulk", directory / audit_files.BULK, place.bulk_file, place.bulk_offset),
    )
    with ExitStack() as stack:
        parts: list[_Part] = []
        for name, where, file, offset in asked:
            wanted = question.part in ("", name) and (name == "main" or where.is_dir())
            lines: Iterator[_Line] = iter(())
            if wanted:
                lines = stack.enter_context(closing(_lines(where, question, file, offset)))
            parts.append(_Part(lines=lines, file=file, offset=offset))
            parts[-1].advance()
        while not reading.is_full and (part := _earliest(parts)) is not None and part.next is not None:
            reading.take(part.next)
            part.advance()
        main, bulk = parts
        here = Place(file=main.file, offset=main.offset, bulk_file=bulk.file, bulk_offset=bulk.offset)
        return Page(items=reading.items, next=here, at_end=not reading.is_full)


def _earliest(parts: Sequence[_Part]) -> _Part | None:
    """Return the part whose next line is the older one; what cannot be read is gone past at once."""
    left = [part for part in parts if part.next is not None]
    return min(left, key=_when, default=None)


def _when(part: _Part) -> datetime:
    event = part.next.event if part.next is not None else None
    when = event.stage_timestamp if event is not None else _LONG_AGO
    return when if when.tzinfo is not None else _LONG_AGO


def _lines(directory: Path, question: Question, file: int, offset: int) -> Generator[_Line]:
    """Yield the lines of one chain from a place on, as far as they may be asked for."""
    following = [segment for segment in audit_files.segments(directory) if segment.first >= file]
    if not file and question.since is not None:
        following = _from(following, question.since)
    for segment in following:
        begins = _begins(segment) if question.until is not None and segment.first != file else None
        if begins is not None and question.until is not None and begins > question.until:
            return
        yield from _lines_of(segment, offset if segment.first == file else 0)


def _lines_of(segment: Segment, offset: int) -> Iterator[_Line]:
    try:
        file = segment.path.open("rb")
    except FileNotFoundError:  # it has expired
        return
    with file:
        file.seek(offset)
        for line, whole in audit_files.lines(file):
            if not whole and len(line) <= audit_files.MAX_LINE:
                return
            offset += len(line) + whole
            yield _Line(raw=line, event=_event(line), file=segment.first, offset=offset)


def _event(line: bytes) -> AuditEvent | None:
    try:
        return _DECODER.decode(line)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


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
