"""The audit log as a chain: each line holds the SHA-256 of the line before, so that none can go or change unseen. Pure.

    line, link = seal(event, link)          # as it is written
    check = Check(); problem = check.take(line)   # as it is read

What the chain cannot show is that its newest lines are missing: whoever wants to know that keeps the number and the
digest of the newest one elsewhere. Must not live here: files (`hub.audit`), what is recorded (`core.audit_policy`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec

from skerry.api.audit import EXPIRED, PREVIOUS, SEQUENCE, AuditEvent

_ENCODER = msgspec.json.Encoder()
_DIGITS = 18
_HEX = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """An entry by its number and by the digest of its line; the default is what comes before the first one."""

    sequence: int = 0
    digest: str = "0" * _HEX

    @property
    def text(self) -> str:
        """The form in which people keep it: `<sequence>:<digest>`."""
        return f"{self.sequence}:{self.digest}"


class _Chained(msgspec.Struct, frozen=True, kw_only=True):
    """A line, as far as it is a link of the chain."""

    annotations: dict[str, str]


_DECODER = msgspec.json.Decoder(_Chained)


def parse_link(text: str) -> Link | None:
    """Return the link that `text` stands for, or None."""
    number, _, digest = text.partition(":")
    if not (number.isascii() and number.isdigit()) or len(number) > _DIGITS or not _is_digest(digest):
        return None
    return Link(sequence=int(number), digest=digest)


def seal(event: AuditEvent, after: Link) -> tuple[bytes, Link]:
    """Return the entry's line, without a line break, and the link that the next one follows."""
    chained = {**event.annotations, SEQUENCE: str(after.sequence + 1), PREVIOUS: after.digest}
    line = _ENCODER.encode(msgspec.structs.replace(event, annotations=chained))
    return line, Link(sequence=after.sequence + 1, digest=sha256(line).hexdigest())


def read_link(line: bytes) -> tuple[Link, Link, Mapping[str, str]] | None:
    """Return what a line says it follows, the link that it is itself, and its annotations; None if it is no entry.

    The number in the first is the line's own less one.
    """
    try:
        annotations = _DECODER.decode(line).annotations
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    number, previous = annotations.get(SEQUENCE, ""), annotations.get(PREVIOUS, "")
    if not (number.isascii() and number.isdigit()) or not 0 < len(number) <= _DIGITS or not _is_digest(previous):
        return None
    own = Link(sequence=int(number), digest=sha256(line).hexdigest())
    return Link(sequence=own.sequence - 1, digest=previous), own, annotations


@dataclass(kw_only=True)
class Check:
    """Takes a log's lines one after the other and says what is wrong with them."""

    kept: Link | None = None
    """An entry that somebody noted elsewhere: that very entry must be in the log, or have expired."""
    link: Link = field(default_factory=Link)
    """The newest entry."""
    first: int = 0
    """The number of the first entry that was seen; 0 before that."""
    entries: int = 0
    _begins_after: Link | None = None
    _expiries: set[str] = field(default_factory=set)
    _met: Link | None = None

    def take(self, line: bytes) -> str:
        """Return what is wrong between the line before and this one, as a sentence; empty when nothing is."""
        found = read_link(line)
        if found is None:
            return f"what follows entry {self.link.sequence} cannot be read: it was changed or damaged"
        before, own, annotations = found
        if EXPIRED in annotations:
            self._expiries.add(annotations[EXPIRED])
        if self.kept is not None and own.sequence == self.kept.sequence:
            self._met = own
        known, self.link, self.entries = self.link, own, self.entries + 1
        if not self.first:
            self.first = own.sequence
            if before != known:
                self._begins_after = before
            return ""
        if before.sequence != known.sequence:
            return _gap(known.sequence, own.sequence)
        if before.digest != known.digest:
            return f"entry {known.sequence} is not the one that entry {own.sequence} was written after: it was changed"
        return ""

    def end(self) -> list[str]:
        """Return what is wrong with the log as a whole, once all lines were taken."""
        problems = []
        begins, kept = self._begins_after, self.kept
        if begins is not None and begins.text not in self._expiries:
            problems.append(
                f"the log begins with entry {self.first}, and no entry says that what came before was removed by age"
            )
        if kept is None or not kept.sequence or (begins is not None and kept.sequence <= begins.sequence):
            return problems
        if self._met is None:
            problems.append(f"entry {kept.sequence} is missing: the log ends with entry {self.link.sequence}")
        elif self._met != kept:
            problems.append(f"entry {kept.sequence} is another one than it was")
        return problems


def _gap(known: int, own: int) -> str:
    if own <= known:
        return f"entry {own} comes after entry {known}: entries were repeated or moved"
    missing = f"entry {known + 1} is" if own == known + 2 else f"entries {known + 1} to {own - 1} are"
    return f"{missing} missing"


def _is_digest(text: str) -> bool:
    return len(text) == _HEX and all(c in "0123456789abcdef" for c in text)
