"""Patches on plain JSON values: merge patch, JSON patch, and the three-way merge behind `apply`.

Sources: RFC 7386 (JSON Merge Patch), RFC 6902 (JSON Patch), RFC 6901 (JSON Pointer), and what `kubectl apply` does for
custom resources. Pure: inputs are never changed, results share nothing with them.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from typing import Any

from skerry.api.errors import BadRequestError, InvalidError

MAX_OPERATIONS = 10_000
MAX_NODES = 200_000
"""Values in a result; `copy` operations could otherwise double it again and again."""
MAX_DEPTH = 64
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""The annotation in which kubectl, and `skerry apply`, keep what was applied last."""

_INDEX = re.compile(r"0|[1-9][0-9]{0,9}")
_BAD_ESCAPE = re.compile(r"~(?![01])")


def merge_patch(target: Any, patch: Any) -> Any:
    """Return the target with the merge patch applied: objects merge, null removes, all else replaces (RFC 7386)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = copy.deepcopy(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def diff(source: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
    """Return the merge patch that makes `target` of `source`; nulls in the target count as absent."""
    return three_way_merge(source, target, source)


def three_way_merge(
    last_applied: Mapping[str, Any], wanted: Mapping[str, Any], live: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the merge patch for `live` that sets what is wanted and removes what was applied before and no longer is.

    Fields that others set and the user never mentioned stay; an explicit null removes. Lists are replaced whole.
    """
    patch: dict[str, Any] = {
        key: None for key in live if (wanted[key] is None if key in wanted else key in last_applied)
    }
    for key, value in wanted.items():
        old = live.get(key)
        if value is None:
            continue
        if isinstance(old, dict) and isinstance(value, dict):
            before = last_applied.get(key)
            inner = three_way_merge(before if isinstance(before, dict) else {}, value, old)
            if inner:
                patch[key] = inner
        elif key not in live or not _same(old, value):
            patch[key] = _without_nulls(value)
    return patch


def json_patch(target: Any, operations: Any) -> Any:
    """Return the target with the operations applied in order, or none of them.

    Raises BadRequestError for a malformed patch, InvalidError for one that does not fit the target (RFC 6902).
    """
    if not isinstance(operations, list):
        raise BadRequestError("is not a list of operations", element="the patch")
    if len(operations) > MAX_OPERATIONS:
        raise BadRequestError(f"has more than {MAX_OPERATIONS} operations", element="the patch")
    document = copy.deepcopy(target)
    budget = MAX_NODES
    for position, operation in enumerate(operations):
        element = f"the patch, operation {position}"
        document, cost = _operate(document, operation, element)
        budget -= cost
        if budget < 0:
            raise BadRequestError(f"makes more than {MAX_NODES} values", element=element)
    return document


def last_applied_of(live: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was applied last, or {} when the object was made otherwise or the annotation cannot be read."""
    annotations = (live.get("metadata") or {}).get("annotations") or {}
    try:
        value = json.loads(annotations.get(LAST_APPLIED) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def with_last_applied(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object with itself noted in its last-applied annotation, byte for byte as kubectl writes it."""
    result = copy.deepcopy(dict(wanted))
    result.pop("status", None)
    metadata = result["metadata"] = dict(result.get("metadata") or {})
    annotations = {key: value for key, value in (metadata.get("annotations") or {}).items() if key != LAST_APPLIED}
    metadata["annotations"] = annotations
    text = json.dumps(result, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    for character in "<>&\u2028\u2029":  # as Go's encoder does
        text = text.replace(character, f"\\u{ord(character):04x}")
    metadata["annotations"] = {**annotations, LAST_APPLIED: text}
    return result


def _same(one: Any, other: Any) -> bool:
    """JSON equality: 1 and 1.0 are the same number, 1 and true are not the same value."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return copy.deepcopy(value)


def _operate(document: Any, operation: Any, element: str) -> tuple[Any, int]:
    """Return the document after one operation, and how many values it handled. The document may be changed in place."""
    if not isinstance(operation, dict):
        raise BadRequestError("is not an object", element=element)
    path = _pointer(operation, "path", element)
    match operation.get("op"):
        case "add":
            return _insert(document, path, _operand(operation, element), element)
        case "replace":
            value = _operand(operation, element)
            _find(document, path, element)
            document = _remove(document, path, element) if path else document
            return _insert(document, path, value, element)
        case "remove":
            return _remove(document, path, element), 1
        case "copy":
            value = _find(document, _pointer(operation, "from", element), element)
            return _insert(document, path, value, element)
        case "move":
            origin = _pointer(operation, "from", element)
            if path[: len(origin)] == origin and path != origin:
                raise InvalidError("moves a value into itself", element=element)
            value = _find(document, origin, element)
            document = _remove(document, origin, element) if origin else document
            return _insert(document, path, value, element)
        case "test":
            if not _same(_find(document, path, element), _operand(operation, element)):
                raise InvalidError(f'the value at "{operation["path"][:200]}" is another', element=element)
            return document, 1
    raise BadRequestError(
        f'"{str(operation.get("op"))[:40]}" is no operation',
        element=element,
        hint="operations: add, remove, replace, move, copy, test",
    )


def _operand(operation: Mapping[str, Any], element: str) -> Any:
    if "value" not in operation:
        raise BadRequestError("has no value", element=element)
    return operation["value"]


def _pointer(operation: Mapping[str, Any], name: str, element: str) -> tuple[str, ...]:
    text = operation.get(name)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise BadRequestError(f'its {name} is not a JSON pointer such as "/spec/paused"', element=element)
    if _BAD_ESCAPE.search(text):
        raise BadRequestError(f"its {name} has a ~ that is neither ~0 nor ~1", element=element)
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:])


def _find(document: Any, path: tuple[str, ...], element: str) -> Any:
    for step in path:
        if isinstance(document, dict) and step in document:
            document = document[step]
        elif isinstance(document, list):
            document = document[_index(step, len(document) - 1, element)]
        else:
            raise _missing(path, element)
    return document


def _insert(document: Any, path: tuple[str, ...], value: Any, element: str) -> tuple[Any, int]:
    nodes, height = _measure(value, element)
    if len(path) + height > MAX_DEPTH:
        raise BadRequestError(f"nests deeper than {MAX_DEPTH} levels", element=element)
    value = copy.deepcopy(value)
    if not path:
        return value, nodes
    parent, step = _find(document, path[:-1], element), path[-1]
    if isinstance(parent, dict):
        parent[step] = value
    elif isinstance(parent, list):
        parent.insert(len(parent) if step == "-" else _index(step, len(parent), element), value)
    else:
        raise _missing(path, element)
    return document, nodes


def _remove(document: Any, path: tuple[str, ...], element: str) -> Any:
    if not path:
        raise InvalidError("removes the whole object", element=element)
    parent, step = _find(document, path[:-1], element), path[-1]
    if isinstance(parent, list):
        del parent[_index(step, len(parent) - 1, element)]
    elif isinstance(parent, dict) and step in parent:
        del parent[step]
    else:
        raise _missing(path, element)
    return document


def _index(step: str, last: int, element: str) -> int:
    if not _INDEX.fullmatch(step) or int(step) > last:
        raise InvalidError(f'"{step[:40]}" is no place in a list of {last + 1}', element=element)
    return int(step)


def _missing(path: tuple[str, ...], element: str) -> InvalidError:
    return InvalidError(f'there is nothing at "/{"/".join(path)[:200]}"', element=element)


def _measure(value: Any, element: str) -> tuple[int, int]:
    pending, nodes, height = [(value, 1)], 0, 0
    while pending:
        item, level = pending.pop()
        nodes, height = nodes + 1, max(height, level)
        if nodes > MAX_NODES:
            raise BadRequestError(f"makes more than {MAX_NODES} values", element=element)
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        pending.extend((child, level + 1) for child in inner)
    return nodes, height
