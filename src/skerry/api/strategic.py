"""Strategic merge patches: merge patches that know which lists are merged by a key, and that carry directives.

kubectl sends them for the kinds that it was built with (namespaces, roles, service accounts) and by default. Source:
Kubernetes, "Update API Objects in Place Using kubectl patch", and the design "Strategic Merge Patch". Pure: inputs are
never changed, results share nothing with them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from skerry.api.errors import BadRequestError

MERGED_LISTS: Mapping[tuple[str, ...], str] = {
    ("metadata", "finalizers"): "",
    ("metadata", "ownerReferences"): "uid",
    ("secrets",): "name",
    ("status", "conditions"): "type",
}
"""Lists that a patch adds to, with the key that tells their elements apart; "" for lists of plain values.

All others are replaced whole, as with Kubernetes' own kinds of these shapes.
"""

_PATCH, _RETAIN = "$patch", "$retainKeys"
_DELETE_VALUES, _ORDER = "$deleteFromPrimitiveList/", "$setElementOrder/"


def strategic_merge(target: Any, patch: Any) -> Any:
    """Return the target with the patch applied. Raises BadRequestError for a directive that cannot be followed."""
    if not isinstance(patch, dict):
        raise BadRequestError("is not a JSON object", element="the patch")
    return _merged(target, patch, ())


def _merged(target: Any, patch: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    directive = patch.get(_PATCH, "merge")
    if directive not in ("merge", "replace", "delete"):
        raise _wrong(path, f'"{str(directive)[:40]}" is no directive', "$patch is merge, replace or delete")
    fields = {key: value for key, value in patch.items() if not key.startswith("$")}
    if directive == "delete":
        return {}
    before = target if isinstance(target, dict) and directive == "merge" else {}
    result = {key: copy.deepcopy(value) for key, value in before.items() if key not in fields}
    for key, value in fields.items():
        if value is not None:
            result[key] = _field(before.get(key), value, (*path, key))
    for key, value in patch.items():
        if key.startswith(_DELETE_VALUES):
            _delete_values(result, key.removeprefix(_DELETE_VALUES), value, path)
        elif key.startswith(_ORDER):
            _order(result, key.removeprefix(_ORDER), value, path)
        elif key == _RETAIN:
            result = _retained(result, fields, value, path)
        elif key.startswith("$") and key != _PATCH:
            raise _wrong(path, f'"{key[:80]}" is no directive', "")
    return result


def _field(before: Any, value: Any, path: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return _merged(before, value, path)
    if not isinstance(value, list):
        return value
    key = MERGED_LISTS.get(path)
    if key is None:
        return [_plain(item, path) for item in value]
    old = before if isinstance(before, list) else []
    if not key:
        return [*old, *(item for item in dict.fromkeys(_words(value, path)) if item not in old)]
    return _merged_list(old, value, key, path)


def _merged_list(old: list[Any], value: list[Any], key: str, path: tuple[str, ...]) -> list[Any]:
    if any(isinstance(item, dict) and item.get(_PATCH) == "replace" for item in value):
        kept = [item for item in value if not (isinstance(item, dict) and _PATCH in item)]
        return [_plain(item, path) for item in kept]
    result = {_key_of(item, key, path): copy.deepcopy(item) for item in old}
    for item in value:
        name = _key_of(item, key, path)
        if item.get(_PATCH) == "delete":
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), item, path)
    return list(result.values())


def _key_of(item: Any, key: str, path: tuple[str, ...]) -> str:
    name = item.get(key) if isinstance(item, dict) else None
    if not isinstance(name, str):
        raise _wrong(path, f"an element has no {key}", f"its elements are told apart by {key}")
    return name


def _plain(item: Any, path: tuple[str, ...]) -> Any:
    """Return what stands in a list that is replaced: without nulls, and with no directive left in it."""
    return _merged({}, item, (*path, "[]")) if isinstance(item, dict) else copy.deepcopy(item)


def _delete_values(result: dict[str, Any], field: str, value: Any, path: tuple[str, ...]) -> None:
    gone, old = _words(value, path), result.get(field)
    if isinstance(old, list):
        result[field] = [item for item in old if item not in gone]


def _order(result: dict[str, Any], field: str, value: Any, path: tuple[str, ...]) -> None:
    """Put a list into the order that the client sees; what the client does not know of stays behind what it knows."""
    old, key = result.get(field), MERGED_LISTS.get((*path, field))
    if not isinstance(value, list):
        raise _wrong(path, f"{_ORDER}{field} is not a list", "")
    if not isinstance(old, list) or key is None:
        return
    wanted = [_key_of(item, key, path) for item in value] if key else _words(value, path)
    places = {name: position for position, name in enumerate(wanted)}
    names = [_key_of(item, key, path) if key else item for item in old]
    ordered = sorted(range(len(old)), key=lambda at: (places.get(names[at], len(places)), at))
    result[field] = [old[at] for at in ordered]


def _retained(result: dict[str, Any], fields: dict[str, Any], value: Any, path: tuple[str, ...]) -> dict[str, Any]:
    kept = set(_words(value, path))
    extra = sorted(key for key, inner in fields.items() if inner is not None and key not in kept)
    if extra:
        raise _wrong(path, f'sets "{extra[0][:80]}", which is not in {_RETAIN}', "")
    return {key: inner for key, inner in result.items() if key in kept}


def _words(value: Any, path: tuple[str, ...]) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(path, "has a directive or a list that is not a list of words", "")
    return value


def _wrong(path: tuple[str, ...], cause: str, hint: str) -> BadRequestError:
    return BadRequestError(cause, element=f"the patch, {'.'.join(path)[:200] or 'the object'}", hint=hint)
