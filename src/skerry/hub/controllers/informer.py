"""Informers: a local copy of everything under one store prefix, kept by list and watch, with a signal for each change.

Own writes are put in at once (`observe`), so that a controller never decides on a state older than what it wrote
itself; revisions keep the order. A record that cannot be read is left out, logged, and known by its key (`unreadable`):
it must not hide the others, and must not pass for deleted: where `changed` tells that it went, ask `is_unreadable`.
Must not live here: what a change means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Generic, TypeVar

import msgspec

from skerry.api.errors import ExpiredError, SkerryError
from skerry.api.kinds import Resource
from skerry.core.desired import DesiredRecord
from skerry.core.messages import TrustDesired
from skerry.core.ports import Change, Record, Store
from skerry.hub import objects

log = logging.getLogger(__name__)

PAGE = 500
"""Records read at a time."""
_RETRY_SECONDS = 1.0
_MAX_HANDED = 64
"""Anchors with policies of which one copy is kept."""

V = TypeVar("V", bound=msgspec.Struct)
R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry(Generic[V]):
    value: V
    revision: int


class Informer(Generic[V]):
    """A copy of the records under `prefix`, by key. `changed(old, new)` is called for every difference, in order.

    `doubted(key)` is called when a record turns out unreadable of which nothing was known, and when one is deleted
    that could not be read: of neither is there a value to tell.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        decode: Callable[[Record], V],
        changed: Callable[[V | None, V | None], None],
        doubted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store, self._prefix, self._decode = store, prefix, decode
        self._changed, self._doubted = changed, doubted
        self._entries: dict[str, _Entry[V]] = {}
        self._namespaces: dict[str, dict[str, _Entry[V]]] = {}
        """The same by what stands before a key's first slash, below the prefix: who asks for one is not to go through
        all."""
        self._unreadable: set[str] = set()
        self._gone: dict[str, int] = {}
        """What was deleted by this hub's own hand, and at which revision, until the watch has passed it."""
        self._synced = asyncio.Event()
        self._reached = 0
        """Revision up to which everything that happened under the prefix has been taken in."""

    async def run(self) -> None:
        """List, watch, and list again when the watch has fallen behind; for ever."""
        while True:
            try:
                revision = await self._relist()
                self._reached = max(self._reached, revision)
                self._synced.set()
                async with self._store.watch(self._prefix, after=revision) as changes:
                    async for change in changes:
                        self._apply(change)
            except ExpiredError:
                log.info("informer.relist prefix=%s", self._prefix)
            except SkerryError as error:
                log.warning("informer.retry prefix=%s error=%s", self._prefix, error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def wait_synced(self) -> None:
        """Wait for the first list."""
        await self._synced.wait()

    def get(self, key: str) -> V | None:
        """Return the value under that key (below the prefix), or None."""
        entry = self._entries.get(self._prefix + key)
        return entry.value if entry else None

    def values(self, below: str = "") -> Iterator[V]:
        """Go through the values whose key, below the prefix, starts so."""
        start = self._prefix + below
        namespace, slash, _ = below.partition("/")
        entries = self._namespaces.get(namespace, {}) if slash else self._entries
        return (entry.value for key, entry in list(entries.items()) if key.startswith(start))

    def unreadable(self, below: str = "") -> list[str]:
        """Return the keys, below the prefix, of records that are there but cannot be read."""
        size = len(self._prefix)
        return sorted(key[size:] for key in self._unreadable if key.startswith(self._prefix + below))

    def is_unreadable(self, key: str) -> bool:
        """Return whether there is a record of that key, below the prefix, that cannot be read."""
        return self._prefix + key in self._unreadable

    def observe(self, key: str, value: V, revision: int) -> None:
        """Take in what the caller has just written or read, unless something newer is known.

        What the watch has passed is known, also where nothing is left of it: the object may have been deleted since.
        """
        if revision > self._reached:
            self._unreadable.discard(self._prefix + key)
            self._put(self._prefix + key, value, revision)

    def forget(self, key: str, revision: int = 0) -> None:
        """Take out what the caller has just deleted; with the deletion's revision, what is newer stays.

        Nothing older comes back then, whichever of its writers hears later of it.
        """
        known = self._entries.get(self._prefix + key)
        if not revision:
            self._drop(self._prefix + key)
        elif revision > self._reached:
            self._gone[self._prefix + key] = revision
            if known is not None and known.revision <= revision:
                self._drop(self._prefix + key)

    async def _relist(self) -> int:
        """Read everything as of one revision; what is gone since leaves, what is newer here stays."""
        seen: set[str] = set()
        start, revision = "", 0
        while True:
            page = await self._store.list(self._prefix, limit=PAGE, start=start, revision=revision)
            revision = page.revision
            for record in page.records:
                seen.add(record.key)
                self._take(record)
            if page.next_key is None:
                break
            start = page.next_key
        for key in self._unreadable - seen:
            self._settle(key)
        for key, entry in list(self._entries.items()):
            if key not in seen and entry.revision <= revision:
                self._drop(key)
        return revision

    def _apply(self, change: Change) -> None:
        self._reached = max(self._reached, change.revision)
        if self._gone:
            self._gone = {key: revision for key, revision in self._gone.items() if revision > self._reached}
        if change.record is None:
            return
        if change.type != "DELETED":
            self._take(change.record)
            return
        if change.record.key in self._unreadable:
            self._settle(change.record.key)
        known = self._entries.get(change.record.key)
        if known is not None and known.revision <= change.revision:
            self._drop(change.record.key)

    def _take(self, record: Record) -> None:
        known = self._entries.get(record.key)
        if known is not None and known.revision >= record.revision:
            self._unreadable.discard(record.key)
            return  # `observe` had it first, which spares reading it
        try:
            value = self._decode(record)
        except (SkerryError, *objects.UNREADABLE) as error:
            log.error("informer.unreadable key=%s error=%s", record.key, error)
            new = record.key not in self._unreadable
            self._unreadable.add(record.key)
            self._drop(record.key)
            if known is None and new:
                self._doubted(record.key.removeprefix(self._prefix))
            return
        self._unreadable.discard(record.key)
        self._put(record.key, value, record.revision)

    def _settle(self, key: str) -> None:
        """A record is gone that could not be read."""
        self._unreadable.discard(key)
        self._doubted(key.removeprefix(self._prefix))

    def _put(self, key: str, value: V, revision: int) -> None:
        known = self._entries.get(key)
        if (known is not None and known.revision >= revision) or revision <= self._gone.get(key, 0):
            return
        entry = self._entries[key] = _Entry(value=value, revision=revision)
        self._namespaces.setdefault(self._namespace_of(key), {})[key] = entry
        self._changed(known.value if known else None, value)

    def _drop(self, key: str) -> None:
        known = self._entries.pop(key, None)
        if known is not None:
            namespace = self._namespace_of(key)
            del self._namespaces[namespace][key]
            if not self._namespaces[namespace]:
                del self._namespaces[namespace]
            self._changed(known.value, None)

    def _namespace_of(self, key: str) -> str:
        return key[len(self._prefix) :].partition("/")[0]


def of_kind(
    store: Store,
    kind: type[R],
    changed: Callable[[R | None, R | None], None],
    doubted: Callable[[str], None] = lambda _: None,
    *,
    read: Callable[[Record], R] | None = None,
) -> Informer[R]:
    """Return an informer of one kind; keys are `<namespace>/<name>`. `read` decodes otherwise than `objects` does."""
    decode = read or (lambda record: objects.decode(kind, record))
    return Informer(store, objects.prefix_of(kind), decode, changed, doubted)


def of_desired(
    store: Store,
    changed: Callable[[DesiredRecord | None, DesiredRecord | None], None],
    doubted: Callable[[str], None] = lambda _: None,
) -> Informer[DesiredRecord]:
    """Return an informer of the devices' records; keys are device uids."""
    handed: dict[bytes, TrustDesired] = {}

    def decode(record: Record) -> DesiredRecord:
        """A namespace's devices are handed the same anchor and policy: one copy of it is kept for all."""
        found = msgspec.json.decode(record.value, type=DesiredRecord)
        if found.trust is None:
            return found
        digest = sha256(msgspec.json.encode(found.trust)).digest()
        if digest not in handed and len(handed) >= _MAX_HANDED:
            handed.clear()
        return msgspec.structs.replace(found, trust=handed.setdefault(digest, found.trust))

    return Informer(store, objects.DESIRED_PREFIX, decode, changed, doubted)
