"""Values of an object by dotted path, as columns and field selectors name them.

`status.engines[].name` gives all engines' names; `status.conditions[type=Progressing].reason` those that match. Paths
are in the wire's camelCase and see defaults that the wire leaves out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from skerry.api.kinds import KindInfo, Resource

_STEP = re.compile(r"([A-Za-z0-9]+)(\[(?:([A-Za-z0-9]+)=([^\]]*))?\])?")


def values_at(item: Resource, path: str) -> list[Any]:
    """Return every value at the path; what is None or missing on the way is left out."""
    values: list[Any] = [item]
    for name, listed, key, wanted in _steps(path):  # plain loops: a page of a table asks for some ten thousand values
        found: list[Any] = []
        for value in values:
            attribute = _ATTRIBUTES[type(value)].get(name)
            inner = getattr(value, attribute) if attribute else None
            if inner is None:
                continue
            if not listed:
                found.append(inner)
            elif not key:
                found += inner
            else:
                found += [entry for entry in inner if _inner(entry, key) == [wanted]]
        values = found
    return values


def selectable(info: KindInfo) -> tuple[str, ...]:
    """Return the field selectors that this kind supports."""
    status = next((field.type for field in msgspec.structs.fields(info.type) if field.name == "status"), None)
    has_phase = status is not None and any(field.name == "phase" for field in msgspec.structs.fields(status))
    return ("metadata.name", "metadata.namespace", *(("status.phase",) if has_phase else ()), *info.selectable)


def matches(item: Resource, terms: Sequence[tuple[str, bool, str]]) -> bool:
    """Return whether an object meets all terms of a field selector."""
    return all((values_at(item, path) == [value]) == equal for path, equal, value in terms)


@functools.cache
def _steps(path: str) -> tuple[tuple[str, bool, str, str], ...]:
    def parsed() -> Iterator[tuple[str, bool, str, str]]:
        for step in path.split("."):
            match = _STEP.fullmatch(step)
            if match is None:
                raise ValueError(f"{step!r} in {path!r} is no step of a path")
            yield match[1], match[2] is not None, match[3] or "", match[4] or ""

    return tuple(parsed())


class _Attributes(dict[type[object], dict[str, str]]):
    """Structs' attributes by their names on the wire; other values have nothing inside."""

    def __missing__(self, kind: type[object]) -> dict[str, str]:
        names: dict[str, str] = {}
        if issubclass(kind, msgspec.Struct):
            names = dict(zip(kind.__struct_encode_fields__, kind.__struct_fields__, strict=True))
        self[kind] = names
        return names


_ATTRIBUTES = _Attributes()


def _inner(value: Any, name: str) -> list[Any]:
    attribute = _ATTRIBUTES[type(value)].get(name)
    found = getattr(value, attribute) if attribute else None
    return [] if found is None else [found]
