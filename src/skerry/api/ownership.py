"""Who set which field: Kubernetes' managed fields, and what applying on the server does with them.

Lives here: sets of fields, the merge of an applied configuration, conflicts, giving up fields. Must not live here:
HTTP, the store, validation. Lists are one field each (atomic), maps and objects are as many as they have leaves.
Source: Kubernetes "Server-Side Apply", KEP-555; the form of `fieldsV1` is structured-merge-diff's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from skerry.api.errors import BadRequestError, FieldConflictError
from skerry.api.meta import API_VERSION, Struct

Path = tuple[str, ...]
"""The names on the way to a field, from the object's root: ("spec", "paused")."""
Fields = frozenset[Path]
Operation = Literal["Apply", "Update"]

MAX_MANAGER = 128
"""Characters of a field manager's name."""
MAX_UPDATERS = 10
"""Entries of updates an object keeps; the oldest beyond are put together."""
OLDEST = "ancient-changes"
BEFORE_FIRST_APPLY = "before-first-apply"
"""Who is said to have set what was there before anybody's fields were recorded."""

_IDENTITY: Fields = frozenset(
    {("apiVersion",), ("kind",), ("metadata",)}
    | {
        ("metadata", name)
        for name in (
            "name",
            "namespace",
            "uid",
            "generateName",
            "resourceVersion",
            "generation",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "managedFields",
            "selfLink",
        )
    }
)


class Entry(Struct, frozen=True, kw_only=True):
    """One manager's fields, as `metadata.managedFields` has them."""

    manager: str = ""
    operation: Operation
    api_version: str = API_VERSION
    time: datetime | None = None
    fields_type: Literal["FieldsV1"] = "FieldsV1"
    fields_v1: dict[str, Any] = msgspec.field(default={}, name="fieldsV1")
    subresource: str = ""

    @property
    def fields(self) -> Fields:
        """The fields as a set. Raises BadRequestError for a form that is none of ours."""
        return decode_fields(self.fields_v1)


Entries = tuple[Entry, ...]


class Writer(Struct, frozen=True, kw_only=True):
    """Who writes, how, and when."""

    manager: str
    operation: Operation
    now: datetime
    subresource: str = ""
    api_version: str = API_VERSION

    def owns(self, entry: Entry) -> bool:
        """Whether an entry is this writer's."""
        return (entry.manager, entry.operation, entry.subresource) == (self.manager, self.operation, self.subresource)


def fields_of(value: Mapping[str, Any]) -> Fields:
    """Return the leaves of an object: values, lists and empty maps. What identifies the object is left out."""
    return frozenset(path for path in _leaves(value, ()) if path not in _IDENTITY)


def encode_fields(fields: Iterable[Path]) -> dict[str, Any]:
    """Return the fields in the form of `fieldsV1`, in a settled order."""
    root: dict[str, Any] = {}
    for path in sorted(fields):
        node = root
        for name in path:
            node = node.setdefault(f"f:{name}", {})
        node["."] = {}
    return _without_dots(root)


def decode_fields(raw: Mapping[str, Any]) -> Fields:
    """Return the fields of a `fieldsV1`. Raises BadRequestError for items of lists, which are no fields here."""
    found: set[Path] = set()
    pending: list[tuple[Path, Any]] = [((), raw)]
    while pending:
        path, node = pending.pop()
        if not isinstance(node, Mapping):
            raise _malformed(path)
        if path and (not node or "." in node):
            found.add(path)
        for key, inner in node.items():
            if key == ".":
                continue
            if not key.startswith("f:"):
                raise _malformed((*path, key))
            pending.append(((*path, key[2:]), inner))
    return frozenset(found)


def read_entries(raw: Sequence[Any]) -> Entries | None:
    """Return the entries in `metadata.managedFields`; none for a reset (`[{}]`), None for what cannot be read."""
    if list(raw) == [{}]:
        return ()
    try:
        entries = tuple(msgspec.convert(list(raw), list[Entry]))
        for entry in entries:
            entry.fields  # noqa: B018 - raises for what is no field
    except (msgspec.ValidationError, BadRequestError):
        return None
    return entries


def write_entries(entries: Entries) -> list[dict[str, Any]]:
    """Return the entries as `metadata.managedFields`."""
    return [
        msgspec.to_builtins(entry) | {"fieldsType": "FieldsV1", "apiVersion": entry.api_version} for entry in entries
    ]


def created(sent: Mapping[str, Any], writer: Writer) -> Entries:
    """Return the entries of a new object: what was sent is its creator's."""
    return _entry(writer, fields_of(_of_subresource(sent, writer)), None)


def updated(entries: Entries, before: Mapping[str, Any], after: Mapping[str, Any], writer: Writer) -> Entries:
    """Return the entries after an update: what changed is the writer's, and nobody's where it is gone.

    `before` and `after` are the whole object with its defaults, so that a default is no field that was set.
    """
    old, new = _of_subresource(before, writer), _of_subresource(after, writer)
    touched = frozenset(path for path in fields_of(old) | fields_of(new) if _at(old, path) != _at(new, path))
    if not touched:
        return entries
    mine = next((entry for entry in entries if writer.owns(entry)), None)
    others = _given_up(tuple(entry for entry in entries if entry is not mine), touched)
    kept = mine.fields - touched if mine is not None else frozenset()
    return _capped((*others, *_entry(writer, kept | (touched & fields_of(new)), mine)))


def merged(current: Mapping[str, Any], applied: Mapping[str, Any], entries: Entries, writer: Writer) -> dict[str, Any]:
    """Return the object with an applied configuration merged into it, and without what the writer has given up.

    `current` is the object as it is stored. A field that the writer applied before and now left out goes, unless
    another manager has set it as well.
    """
    wanted = fields_of(applied)
    grown = _prefixes(wanted)
    before = frozenset[Path]().union(*(entry.fields for entry in entries if writer.owns(entry)))
    others = frozenset[Path]().union(*(entry.fields for entry in entries if not writer.owns(entry)))
    result: dict[str, Any] = _merge(copy.deepcopy(dict(current)), applied)
    for path in sorted(before - wanted - others, key=len, reverse=True):
        if path not in grown:  # else it has become a map of what is wanted
            _remove(result, path, others | wanted)
    return result


def applied(
    entries: Entries,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    wanted: Fields,
    writer: Writer,
    *,
    yielding: Fields | None = None,
) -> Entries:
    """Return the entries after an apply. Raises FieldConflictError for what others set and this would change.

    `before` and `after` are the whole object with its defaults. The others lose `yielding` of what is changed without a
    conflict, all of it with None.
    """
    old, new = _of_subresource(before, writer), _of_subresource(after, writer)
    mine = next((entry for entry in entries if writer.owns(entry)), None)
    others = tuple(entry for entry in entries if entry is not mine)
    touched = frozenset(path for path in fields_of(old) | fields_of(new) | wanted if _at(old, path) != _at(new, path))
    if yielding is not None:
        grown = frozenset(path for path in touched if _is_map(_at(old, path)) and _is_map(_at(new, path)))
        _refuse_conflicts(others, touched - yielding - grown, wanted)
    return (*_given_up(others, touched), *_entry(writer, wanted, mine))


def _refuse_conflicts(others: Entries, touched: Fields, wanted: Fields) -> None:
    """Return when nobody else set what is wanted otherwise. Raises FieldConflictError with every such field."""
    around = _prefixes(wanted)

    def is_wanted(path: Path) -> bool:
        """Whether the field is wanted, holds what is, or lies in what is."""
        return path in around or any(path[:length] in wanted for length in range(1, len(path)))

    found = [(entry, path) for entry in others for path in sorted(entry.fields & touched) if is_wanted(path)]
    if found:
        raise FieldConflictError.of_fields([(_named(entry), dotted(path)) for entry, path in found])


def first_apply(current: Mapping[str, Any], writer: Writer) -> Entries:
    """Return the entries of an object that has none yet: what is there was set by somebody unknown."""
    unknown = msgspec.structs.replace(writer, manager=BEFORE_FIRST_APPLY, operation="Update")
    return _entry(unknown, fields_of(_of_subresource(current, writer)), None)


def same(fields: Fields, one: Mapping[str, Any], other: Mapping[str, Any]) -> Fields:
    """Return those of the fields that both objects have alike."""
    return frozenset(path for path in fields if _at(one, path) == _at(other, path))


def dotted(path: Path) -> str:
    """Return a path as people read it: `.spec.paused`, `.metadata.labels[example.com/role]`."""
    return "".join(f".{name}" if name.replace("-", "").isalnum() else f"[{name}]" for name in path)


_MISSING = object()


def _leaves(value: Any, path: Path) -> Iterator[Path]:
    if value is None:
        return
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    elif path:
        yield path


def _without_dots(node: dict[str, Any]) -> dict[str, Any]:
    """A leaf is an empty map; only a field that is one itself and has others below says so by a dot."""
    return {key: {} if inner == {".": {}} else _without_dots(inner) for key, inner in node.items()}


def _of_subresource(value: Mapping[str, Any], writer: Writer) -> Mapping[str, Any]:
    """Return the part that a writer at this path can change."""
    if writer.subresource == "status":
        return {"status": value.get("status") or {}}
    return {key: inner for key, inner in value.items() if key != "status"}


def _at(value: Any, path: Path) -> Any:
    for name in path:
        if not isinstance(value, Mapping):
            return _MISSING
        value = value.get(name, _MISSING)
        if value is None or value is _MISSING:
            return _MISSING
    return value


def _merge(current: Any, wanted: Any) -> Any:
    if not isinstance(current, Mapping) or not isinstance(wanted, Mapping):
        return wanted
    result = dict(current)
    for key, inner in wanted.items():
        if inner is not None:
            result[key] = _merge(current.get(key), inner)
    return result


def _remove(value: dict[str, Any], path: Path, kept: Fields) -> None:
    """Remove a field, and the maps that it leaves empty unless they are somebody's fields."""
    chain: list[dict[str, Any]] = []
    node: Any = value
    for name in path:
        if not isinstance(node, dict) or name not in node:
            return
        chain.append(node)
        node = node[name]
    if isinstance(node, dict) and node:
        return  # it has grown below, by somebody else
    for depth in range(len(path) - 1, -1, -1):
        if depth < len(path) - 1 and (chain[depth][path[depth]] or path[: depth + 1] in kept):
            return
        del chain[depth][path[depth]]


def _prefixes(fields: Fields) -> Fields:
    """Return the fields and all that they lie in."""
    return frozenset(path[:length] for path in fields for length in range(1, len(path) + 1))


def _is_map(value: Any) -> bool:
    """Whether it is a map, or the empty one that is left out: nobody's value changes where only others' fields come."""
    return value is _MISSING or isinstance(value, Mapping)


def _given_up(others: Entries, touched: Fields) -> Entries:
    """Return the others' entries without what has changed."""
    kept = []
    for entry in others:
        fields = entry.fields
        if fields.isdisjoint(touched):
            kept.append(entry)
        elif fields - touched:
            kept.append(msgspec.structs.replace(entry, fields_v1=encode_fields(fields - touched)))
    return tuple(kept)


def _entry(writer: Writer, fields: Fields, old: Entry | None) -> Entries:
    if old is not None and old.fields == fields:
        return (old,)  # with its time: nothing has changed
    if not fields:
        return ()
    return (
        Entry(
            manager=writer.manager,
            operation=writer.operation,
            api_version=writer.api_version,
            time=writer.now.astimezone(UTC).replace(microsecond=0),
            fields_v1=encode_fields(fields),
            subresource=writer.subresource,
        ),
    )


def _capped(entries: Entries) -> Entries:
    updates = [entry for entry in entries if entry.operation == "Update"]
    if len(updates) <= MAX_UPDATERS:
        return entries
    early = datetime.min.replace(tzinfo=UTC)
    updates.sort(key=lambda entry: (entry.manager != OLDEST, entry.time or early))
    old = updates[: len(updates) - MAX_UPDATERS + 1]
    together = Entry(
        manager=OLDEST,
        operation="Update",
        api_version=old[-1].api_version,
        time=max((entry.time for entry in old if entry.time is not None), default=None),
        fields_v1=encode_fields(frozenset[Path]().union(*(entry.fields for entry in old))),
    )
    return (together, *(entry for entry in entries if all(entry is not one for one in old)))


def _named(entry: Entry) -> str:
    said = f'conflict with "{entry.manager}"'
    if entry.subresource:
        said += f' with subresource "{entry.subresource}"'
    said += f" using {entry.api_version}"
    if entry.operation == "Update" and entry.time is not None:
        said += f" at {entry.time.strftime('%Y-%m-%dT%H:%M:%SZ')}"
    return said


def _malformed(path: Path) -> BadRequestError:
    return BadRequestError(f"{'.'.join(path)[:200]!r} is no field", element="metadata.managedFields")
