"""Typed resources over the store: the one place that knows keys, encodings and metadata rules.

Keys are `<plural>/<namespace>/<name>` for our own kinds and `<plural>.<group>/<namespace>/<name>` for those of other
groups (`core` is the group without a name); kinds that are in no namespace have none in their keys. Internal records
(`desired/<uid>`) have typed access of their own at the end.
Lives here: what create, update and status update mean for metadata (uid, generation, resourceVersion). Must not live
here: HTTP, validation of user input, controllers' decisions.
"""

from __future__ import annotations

import logging
import secrets
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import msgspec

from skerry.api import codec
from skerry.api import selector as selectors
from skerry.api.errors import (
    AlreadyExistsError,
    ConflictError,
    IntegrityError,
    NamespaceTerminatingError,
    NotFoundError,
    UnreadableError,
)
from skerry.api.kinds import KINDS, KindInfo, Resource
from skerry.api.kinds.namespace import NAME_LABEL, Namespace
from skerry.api.meta import GROUP, LabelSelectorRequirement, ObjectMeta
from skerry.core.desired import DesiredRecord
from skerry.core.ports import Change, Clock, Guard, Record, Store

log = logging.getLogger(__name__)

DESIRED_PREFIX = "desired/"
UNREADABLE = (msgspec.DecodeError, ValueError)
"""What decoding a record raises that is damaged or from another version; text that is no UTF-8 is a ValueError."""
_ATTEMPTS = 20  # a conflict means that somebody else progressed, so this many in a row do not happen

T = TypeVar("T", bound=Resource)
_INFOS: dict[type[Any], KindInfo] = {info.type: info for info in KINDS}
_ENCODER = msgspec.json.Encoder()


def _root_of(info: KindInfo) -> str:
    """Return the store prefix of a kind; no plural has a dot, so those of other groups cannot meet ours."""
    return f"{info.plural}/" if info.group == GROUP else f"{info.plural}.{info.group or 'core'}/"


_ROOTS: dict[type[Any], str] = {
    info.type: _root_of(_INFOS[info.storage.type] if info.storage is not None else info) for info in KINDS
}


Written = Callable[[str, Resource | None, int], None]
"""Takes a key, what is stored there now (None: it was deleted), and the revision of that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectChange(Generic[T]):
    """One change of one object; a BOOKMARK has no object. `revision` is where a later watch can go on."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    revision: int
    object: T | None = None
    previous: T | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectPage(Generic[T]):
    """One page of a list; `next_key` goes into the next call's `start`."""

    items: list[T]
    revision: int
    next_key: str | None
    remaining: int | None
    unreadable: tuple[tuple[str, str], ...] = ()
    """Namespaces and names of those that were left out because they cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredDesired:
    """A device's record as it was written, with the revision of that write."""

    record: DesiredRecord
    revision: int


class Objects:
    """All resources of all kinds."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self._clock = clock
        self._told: dict[type[Any], list[Written]] = {}

    def tell(self, kind: type[Any], written: Written) -> None:
        """Have every write of this kind that goes through here told, before the writer knows that it is done."""
        self._told.setdefault(kind, []).append(written)

    async def get(self, kind: type[T], namespace: str, name: str) -> T:
        """Return the object. Raises NotFoundError, UnreadableError."""
        found = await self.find(kind, namespace, name)
        if found is None:
            raise NotFoundError(element=f'{_INFOS[kind].plural} "{name}"')
        return found

    async def find(self, kind: type[T], namespace: str, name: str) -> T | None:
        """Return the object, or None. Raises UnreadableError."""
        record = await self.store.get(key_of(kind, namespace, name))
        return None if record is None else _readable(kind, record)

    async def create(self, item: T) -> T:
        """Store a new object; sets uid (kept if given), creationTimestamp, generation.

        Raises AlreadyExistsError, NamespaceTerminatingError.
        """
        kind, meta = type(item), item.metadata
        name = meta.name or f"{meta.generate_name}{secrets.token_hex(4)}"
        meta = msgspec.structs.replace(meta, name=name)
        key, value = key_of(kind, meta.namespace, name), self._encode_new(_with_meta(item, meta))
        for _ in range(_ATTEMPTS):
            guard = await self._place(_INFOS[kind], meta) if _INFOS[kind].namespaced and meta.namespace else None
            try:
                record = await self.store.create(key, value, guard=guard)
            except AlreadyExistsError:
                raise AlreadyExistsError(element=f'{_INFOS[kind].plural} "{name}"') from None
            except ConflictError:
                continue  # the namespace is another one by now, or is being deleted
            return self._tell(decode(kind, record), record)
        raise ConflictError(element=f'namespaces "{meta.namespace}"')

    async def replace(self, item: T, *, expected: str | None = None) -> T:
        """Write metadata and spec, keeping the stored status; the generation rises if the spec changed.

        `expected` is the resourceVersion the caller read; None takes the item's own, "" takes whatever is stored.
        Raises NotFoundError, ConflictError. An unchanged object is not written again.
        """
        wanted = item.metadata.resource_version if expected is None else expected

        def change(current: T) -> T:
            if wanted and wanted != current.metadata.resource_version:
                raise ConflictError(element=f'{_INFOS[type(item)].plural} "{item.metadata.name}"')
            old = current.metadata
            meta = msgspec.structs.replace(
                item.metadata,
                uid=old.uid,
                creation_timestamp=old.creation_timestamp,
                deletion_timestamp=old.deletion_timestamp,
                generation=old.generation + (codec.spec_of(item) != codec.spec_of(current)),
                resource_version=old.resource_version,
            )
            return codec.with_status_of(_with_meta(item, meta), current)

        return await self._change(type(item), item.metadata.namespace, item.metadata.name, change)

    async def update_status(
        self, kind: type[T], namespace: str, name: str, change: Callable[[T], T], *, guard: Guard | None = None
    ) -> T:
        """Write what `change` makes of the object's status; runs again on a conflict, writes nothing when unchanged.

        `change` must not touch the spec; metadata (labels, annotations) may change. With a `guard` a conflict is not
        tried again. Raises NotFoundError, ConflictError.
        """
        return await self._change(kind, namespace, name, change, guard)

    async def delete(
        self,
        kind: type[T],
        namespace: str,
        name: str,
        *,
        uid: str = "",
        resource_version: str = "",
        guard: Guard | None = None,
    ) -> T:
        """Remove the object; the preconditions hold where given. Raises NotFoundError, ConflictError."""
        element = f'{_INFOS[kind].plural} "{name}"'
        for _ in range(_ATTEMPTS):
            current = await self.get(kind, namespace, name)
            if uid and uid != current.metadata.uid:
                raise ConflictError(f"its uid is {current.metadata.uid}, not {uid}", element=element)
            # What is removed is the very object that was looked at, not another one that has its name by now.
            expected = int(resource_version or current.metadata.resource_version)
            try:
                record = await self.store.delete(key_of(kind, namespace, name), expected=expected, guard=guard)
            except ConflictError:
                if resource_version or guard is not None:
                    raise
                continue
            return self._tell(current, record, deleted=True)
        raise ConflictError(element=element)

    async def list(
        self,
        kind: type[T],
        namespace: str = "",
        *,
        labels: Sequence[LabelSelectorRequirement] = (),
        limit: int = 0,
        start: str = "",
        revision: int = 0,
        leave_out_unreadable: bool = False,
    ) -> ObjectPage[T]:
        """Return objects in key order, of one namespace or (empty) of all. Raises ExpiredError for an old revision.

        With `labels` a page may hold fewer than `limit` items though more follow: follow `next_key`. One that cannot be
        read raises UnreadableError, for who does not see it may take it for gone; or it is left out, and named.
        """
        page = await self.store.list(prefix_of(kind, namespace), limit=limit, start=start, revision=revision)
        items: list[T] = []
        unreadable: list[tuple[str, str]] = []
        for record in page.records:
            try:
                items.append(_readable(kind, record))
            except UnreadableError as error:
                if not leave_out_unreadable:
                    raise
                log.error("objects.unreadable key=%s cause=%s", record.key, error.cause)
                unreadable.append(_place_of(kind, record.key))
        return ObjectPage(
            items=[item for item in items if selectors.matches(labels, item.metadata.labels)] if labels else items,
            revision=page.revision,
            next_key=page.next_key,
            remaining=page.remaining,
            unreadable=tuple(unreadable),
        )

    async def discard(self, kind: type[Any], namespace: str, name: str, *, guard: Guard | None = None) -> None:
        """Remove an object that cannot be read; its finalizers, if it has any, are not known.

        Raises NotFoundError, and ConflictError for one that can be read, by now perhaps.
        """
        record = await self._unreadable(kind, namespace, name)
        removed = await self.store.delete(record.key, expected=record.revision, guard=guard)
        log.warning("objects.discarded key=%s", record.key)
        for written in self._told.get(kind, ()):
            written(record.key, None, removed.revision)

    async def renew(self, item: T) -> T:
        """Store a new object, as `create` does, in the place of one that cannot be read.

        Raises NotFoundError, and ConflictError for one that can be read, by now perhaps.
        """
        kind, meta = type(item), item.metadata
        damaged = await self._unreadable(kind, meta.namespace, meta.name)
        record = await self.store.update(damaged.key, self._encode_new(item), expected=damaged.revision)
        log.warning("objects.renewed key=%s", record.key)
        return self._tell(decode(kind, record), record)

    @asynccontextmanager
    async def watch(
        self, kind: type[T], namespace: str = "", *, after: int
    ) -> AsyncIterator[AsyncIterator[ObjectChange[T]]]:
        """Every change of this kind after a revision, in order. Raises ExpiredError (list again, watch from there).

        One that cannot be read any more is told as deleted, and of one that could not be before, only the revision.
        """
        async with self.store.watch(prefix_of(kind, namespace), after=after) as changes:

            async def typed() -> AsyncGenerator[ObjectChange[T]]:
                async for change in changes:
                    yield _told(kind, change)

            async with aclosing(typed()) as stream:
                yield stream

    async def get_desired(self, uid: str) -> DesiredRecord | None:
        """Return what is assigned to a device, or None when nothing ever was. Raises IntegrityError."""
        record = await self.store.get(f"{DESIRED_PREFIX}{uid}")
        return None if record is None else _decode_desired(record)

    async def change_desired(
        self, empty: DesiredRecord, change: Callable[[DesiredRecord], DesiredRecord]
    ) -> DesiredRecord:
        """Write what `change` makes of a device's record, starting from `empty` when there is none yet.

        Raises IntegrityError where the record there is cannot be read.
        """
        return (await self.update_desired(empty, change)).record

    async def update_desired(
        self, empty: DesiredRecord, change: Callable[[DesiredRecord], DesiredRecord]
    ) -> StoredDesired:
        """Do what `change_desired` does and tell the revision too, for callers that keep a cache of their own.

        Nothing is written when nothing changes; the revision of a record that was never written is 0. Raises
        IntegrityError as `change_desired`.
        """
        key = f"{DESIRED_PREFIX}{empty.uid}"
        for _ in range(_ATTEMPTS):
            record = await self.store.get(key)
            current = empty if record is None else _decode_desired(record)
            changed = change(current)
            if changed == current:
                return StoredDesired(record=current, revision=record.revision if record else 0)
            try:
                if record is None:
                    written = await self.store.create(key, _ENCODER.encode(changed))
                else:
                    written = await self.store.update(key, _ENCODER.encode(changed), expected=record.revision)
            except (ConflictError, AlreadyExistsError, NotFoundError):
                continue
            return StoredDesired(record=changed, revision=written.revision)
        raise ConflictError(element=f"desired state of device {empty.uid}")

    def _encode_new(self, item: Resource) -> bytes:
        meta = msgspec.structs.replace(
            item.metadata,
            uid=item.metadata.uid or str(uuid.uuid4()),
            generation=int(_INFOS[type(item)].has_spec),
            creation_timestamp=self._clock.now().replace(microsecond=0),
            resource_version="",
        )
        return encode(_with_meta(item, meta))

    async def _unreadable(self, kind: type[Any], namespace: str, name: str) -> Record:
        """Return what is stored of an object that cannot be read. Raises NotFoundError, ConflictError."""
        element = f'{_INFOS[kind].plural} "{name}"'
        record = await self.store.get(key_of(kind, namespace, name))
        if record is None:
            raise NotFoundError(element=element)
        with suppress(UnreadableError):
            _readable(kind, record)
            raise ConflictError(element=element)
        return record

    async def _place(self, info: KindInfo, meta: ObjectMeta) -> Guard:
        """Return what an object's namespace must still be when it is stored; make one that is named for the first time.

        Raises NamespaceTerminatingError for one that is being deleted.
        """
        key = key_of(Namespace, "", meta.namespace)
        record = await self.store.get(key)
        while record is None:
            with suppress(AlreadyExistsError):
                await self.create(Namespace(metadata=ObjectMeta(name=meta.namespace)))
            record = await self.store.get(key)
        going = False
        with suppress(*UNREADABLE):  # damaged, which is no reason to take nothing into it
            going = decode(Namespace, record).metadata.deletion_timestamp is not None
        if going:
            raise NamespaceTerminatingError(meta.namespace, group=info.group, resource=info.plural, name=meta.name)
        return Guard(key=key, revision=record.revision)

    async def _change(
        self, kind: type[T], namespace: str, name: str, change: Callable[[T], T], guard: Guard | None = None
    ) -> T:
        key = key_of(kind, namespace, name)
        for _ in range(_ATTEMPTS):
            current = await self.get(kind, namespace, name)
            changed = change(current)
            if changed == current:
                return current
            try:
                expected = int(current.metadata.resource_version)
                record = await self.store.update(key, encode(changed), expected=expected, guard=guard)
            except ConflictError:
                if guard is not None:
                    raise
                continue
            return self._tell(decode(kind, record), record)
        raise ConflictError(element=f'{_INFOS[kind].plural} "{name}"')

    def _tell(self, item: T, record: Record, *, deleted: bool = False) -> T:
        for written in self._told.get(type(item), ()):
            written(record.key, None if deleted else item, record.revision)
        return item


def prefix_of(kind: type[Any], namespace: str = "") -> str:
    """Return the store prefix of a kind, or of one namespace of it."""
    return f"{_ROOTS[kind]}{namespace}/" if namespace else _ROOTS[kind]


def key_of(kind: type[Any], namespace: str, name: str) -> str:
    """Return an object's store key; kinds that are in no namespace take an empty one."""
    return f"{_ROOTS[kind]}{namespace}/{name}" if _INFOS[kind].namespaced else f"{_ROOTS[kind]}{name}"


def encode(item: Resource) -> bytes:
    """Return the object as it is stored: JSON without its resourceVersion, which is the record's revision."""
    storage = _INFOS[type(item)].storage
    kept: Resource = item if storage is None else storage.write(item)
    return _ENCODER.encode(_with_meta(kept, msgspec.structs.replace(kept.metadata, resource_version="")))


def decode(kind: type[T], record: Record) -> T:
    """Return the stored object with its resourceVersion."""
    storage = _INFOS[kind].storage
    kept: Any = msgspec.json.decode(record.value, type=kind if storage is None else storage.type)
    item: T = kept if storage is None else storage.read(kept)
    return _with_meta(item, msgspec.structs.replace(item.metadata, resource_version=str(record.revision)))


def _readable(kind: type[T], record: Record) -> T:
    """Return the stored object. Raises UnreadableError, which names it."""
    try:
        return decode(kind, record)
    except UNREADABLE as error:
        info, (namespace, name) = _INFOS[kind], _place_of(kind, record.key)
        where = f' in the namespace "{namespace}"' if namespace else ""
        raise UnreadableError(
            f"what is stored of it{where} cannot be read: {error}"[:300],
            element=f'{info.resource} "{name}"',
            hint="it is damaged, or of another version of the hub; delete it if it cannot be mended",
        ) from None


def _told(kind: type[T], change: Change) -> ObjectChange[T]:
    """Return a change of the store as a change of those objects that can be read."""
    shown, before = _shown(kind, change.record), _shown(kind, change.previous)
    if shown is None and change.type == "MODIFIED" and before is not None:
        meta = msgspec.structs.replace(before.metadata, resource_version=str(change.revision))
        return ObjectChange(type="DELETED", revision=change.revision, object=_with_meta(before, meta), previous=before)
    return ObjectChange(
        type="BOOKMARK" if shown is None else change.type, revision=change.revision, object=shown, previous=before
    )


def _shown(kind: type[T], record: Record | None) -> T | None:
    try:
        return None if record is None else _readable(kind, record)
    except UnreadableError as error:
        log.error("objects.unreadable key=%s cause=%s", record.key if record else "", error.cause)
        return None


def _place_of(kind: type[Any], key: str) -> tuple[str, str]:
    """Return the namespace and the name that a key is of."""
    namespace, _, name = key.removeprefix(_ROOTS[kind]).rpartition("/")
    return namespace, name


def _decode_desired(record: Record) -> DesiredRecord:
    try:
        return msgspec.json.decode(record.value, type=DesiredRecord)
    except UNREADABLE as error:
        element = f"desired state of device {record.key.removeprefix(DESIRED_PREFIX)}"
        raise IntegrityError(f"cannot be read: {error}"[:300], element=element) from None


def _with_meta(item: T, meta: ObjectMeta) -> T:
    if isinstance(item, Namespace) and meta.labels.get(NAME_LABEL) != meta.name:
        meta = msgspec.structs.replace(meta, labels={**meta.labels, NAME_LABEL: meta.name})
    changes: dict[str, Any] = {"metadata": meta}
    return msgspec.structs.replace(item, **changes)
