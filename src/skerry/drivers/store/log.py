"""What a write to the log means: preconditions, revisions, the change that watchers see. Pure.

Must not live here: SQL, I/O. A driver reads the newest rows of the keys concerned, asks `decide`, and appends what it
says in the same transaction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from skerry.api.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidError,
    NotFoundError,
    SkerryError,
    TooLargeError,
    UnavailableError,
)
from skerry.core.ports import Change, Guard, Record

MAX_KEY_LENGTH = 1024
MAX_VALUE_BYTES = 1536 * 1024
"""As etcd's limit on a request, which Kubernetes' clients are used to."""

_KEY = re.compile(rf"[!-~]{{1,{MAX_KEY_LENGTH}}}")
_END_OF_KEYS = "\x7f"  # the first character after all that a key may have


class Row(NamedTuple):
    """One row of the log, in the table's order. A deletion has no value: it must be possible when space is short."""

    revision: int
    key: str
    created: int
    previous: int
    deleted: bool
    value: bytes

    def record(self) -> Record:
        """Return what the port shows of a row that is no deletion."""
        return Record(key=self.key, value=self.value, revision=self.revision, created=self.created)


@dataclass(frozen=True, kw_only=True, slots=True)
class Write:
    """One write asked for. `expected` is the revision the caller saw; None takes whatever is there."""

    verb: Literal["create", "update", "delete"]
    key: str
    value: bytes = b""
    expected: int | None = None
    term: int | None = None
    """Of the leader whose write it is; worth nothing once another one leads. None: anybody's."""
    guard: Guard | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the keys whose newest rows decide what comes of it."""
        return (self.key,) if self.guard is None else (self.key, self.guard.key)


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """A row of the log, and the change it makes."""

    row: Row
    change: Change


Refusal = Callable[[], SkerryError]
"""Makes the error; one instance is raised in one place only."""


def check(write: Write, *, max_value_bytes: int = MAX_VALUE_BYTES) -> None:
    """Refuse what can never be stored. Raises InvalidError, NotFoundError, TooLargeError."""
    if not is_key(write.key):
        if write.verb != "create":
            raise NotFoundError(element=_shown(write.key))
        raise InvalidError(
            f"a key has 1 to {MAX_KEY_LENGTH} printable ASCII characters without spaces", element=_shown(write.key)
        )
    if len(write.value) > max_value_bytes:
        raise TooLargeError(
            f"{len(write.value)} bytes are more than a value may have ({max_value_bytes})",
            element=write.key,
            hint="put large content into an artifact",
        )


def is_key(text: str) -> bool:
    """Return whether something can be stored under this key."""
    return _KEY.fullmatch(text) is not None


def key_range(prefix: str, start: str = "") -> tuple[str, str]:
    """Return the half-open range of keys that begin with exactly this prefix, from `start` on.

    Raises InvalidError for a text that no key can begin with.
    """
    for text in (prefix, start):
        if text and not is_key(text):
            raise InvalidError("no key can begin like this", element=_shown(text))
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else _END_OF_KEYS
    return max(prefix, start), end


def decide(writes: Sequence[Write], newest: Mapping[str, Row], last: int, term: int = 0) -> list[Written | Refusal]:
    """Carry out writes one after the other on top of revision `last`, in that term; one outcome for each, in order.

    A refused write takes no revision, so revisions have no gaps.
    """
    current = dict(newest)
    outcomes: list[Written | Refusal] = []
    for write in writes:
        old = current.get(write.key)
        living = old if old is not None and not old.deleted else None
        refusal = _refusal(write, living, current, term)
        if refusal is not None:
            outcomes.append(refusal)
            continue
        last += 1
        row = Row(
            revision=last,
            key=write.key,
            created=living.created if living else last,
            previous=living.revision if living else 0,
            deleted=write.verb == "delete",
            value=write.value,
        )
        current[write.key] = row
        outcomes.append(Written(row=row, change=change_of(row, living.value if living else None)))
    return outcomes


def change_of(row: Row, value_before: bytes | None) -> Change:
    """Return the change that a row stands for, given the value it replaced (None for a creation)."""
    if value_before is None:
        return Change(type="ADDED", revision=row.revision, record=row.record())
    previous = Record(key=row.key, value=value_before, revision=row.previous, created=row.created)
    if row.deleted:
        last = Record(key=row.key, value=value_before, revision=row.revision, created=row.created)
        return Change(type="DELETED", revision=row.revision, record=last, previous=previous)
    return Change(type="MODIFIED", revision=row.revision, record=row.record(), previous=previous)


def _is_kept(guard: Guard, current: Mapping[str, Row]) -> bool:
    row = current.get(guard.key)
    return row is not None and not row.deleted and row.revision == guard.revision


def _refusal(write: Write, living: Row | None, current: Mapping[str, Row], term: int) -> Refusal | None:
    key = write.key
    if write.term is not None and write.term != term:
        return lambda: UnavailableError("another hub leads by now", element=key, hint="it carries on with this")
    if write.guard is not None and not _is_kept(write.guard, current):
        other = write.guard.key
        return lambda: ConflictError("has been modified, and this depends on it; look at it again", element=other)
    if write.verb == "create":
        return None if living is None else lambda: AlreadyExistsError(element=key)
    if living is None:
        return lambda: NotFoundError(element=key)
    if write.expected is not None and write.expected != living.revision:
        return lambda: ConflictError(element=key)
    return None


def _shown(text: str) -> str:
    return ascii(text[:80])
