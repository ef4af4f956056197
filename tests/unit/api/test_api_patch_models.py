"""Merge patches and JSON patches against plain models that work in another way: flat paths, and trees never changed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api import patch as patches
from skerry.api.errors import BadRequestError, InvalidError

KEYS = st.sampled_from(["a", "b", "c/d", "e~f", "0"])
SCALARS = st.one_of(st.integers(-2, 2), st.booleans(), st.sampled_from(["", "x"]), st.none())


# --- merge patch: an object as a table of paths --------------------------------------------------------------------

Flat = dict[tuple[str, ...], Any]
LEAVES = st.one_of(st.integers(-2, 2), st.booleans(), st.lists(st.integers(0, 1), max_size=2))
TREES = st.dictionaries(
    KEYS, st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=6), max_size=3
)
CHANGES = st.dictionaries(
    KEYS,
    st.recursive(LEAVES | st.none(), lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=6),
    max_size=3,
)


def flat(tree: Any, path: tuple[str, ...] = ()) -> Flat:
    """Return the leaves by path; an object stands there, too, as an empty one."""
    if not isinstance(tree, dict):
        return {path: tree}
    result: Flat = {path: {}}
    for key, value in tree.items():
        result |= flat(value, (*path, key))
    return result


def written(table: Flat, change: Flat) -> Flat:
    """Return the table after a merge patch, shortest paths first: each line of it is one assignment."""
    result = dict(table)
    for path, value in sorted(change.items(), key=lambda line: len(line[0])):
        if value == {} and isinstance(value, dict) and result.get(path) == {} and isinstance(result[path], dict):
            continue  # an object is there already
        result = {other: kept for other, kept in result.items() if other[: len(path)] != path}
        if value is not None:
            result[path] = value
    return result


@given(target=TREES, change=CHANGES)
def test_a_merge_patch_is_a_list_of_assignments(target: Any, change: Any) -> None:
    assert flat(patches.merge_patch(target, change)) == written(flat(target), flat(change))


# --- JSON patch: trees that are never changed ----------------------------------------------------------------------

DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


class NotPossibleError(Exception):
    """The operation does not fit."""


def parts(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def place(step: str, most: int) -> int:
    if not (step.isdigit() and str(int(step)) == step and int(step) <= most):
        raise NotPossibleError
    return int(step)


def at(tree: Any, path: list[str]) -> Any:
    if not path:
        return tree
    if isinstance(tree, dict) and path[0] in tree:
        return at(tree[path[0]], path[1:])
    if isinstance(tree, list):
        return at(tree[place(path[0], len(tree) - 1)], path[1:])
    raise NotPossibleError


def without(tree: Any, path: list[str]) -> Any:
    at(tree, path)
    if not path:
        raise NotPossibleError
    if isinstance(tree, dict):
        rest = {key: value for key, value in tree.items() if key != path[0]}
        return rest if len(path) == 1 else {**tree, path[0]: without(tree[path[0]], path[1:])}
    index = int(path[0])
    inner = [] if len(path) == 1 else [without(tree[index], path[1:])]
    return [*tree[:index], *inner, *tree[index + 1 :]]


def with_(tree: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    if isinstance(tree, dict):
        if len(path) > 1 and path[0] not in tree:
            raise NotPossibleError
        return {**tree, path[0]: with_(tree.get(path[0]), path[1:], value)}
    if isinstance(tree, list):
        if len(path) == 1:
            index = len(tree) if path[0] == "-" else place(path[0], len(tree))
            return [*tree[:index], value, *tree[index:]]
        index = place(path[0], len(tree) - 1)
        return [*tree[:index], with_(tree[index], path[1:], value), *tree[index + 1 :]]
    raise NotPossibleError


def same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)


def after(tree: Any, operation: dict[str, Any]) -> Any:
    path = parts(operation["path"])
    match operation["op"]:
        case "add":
            return with_(tree, path, operation["value"])
        case "remove":
            return without(tree, path)
        case "replace":
            at(tree, path)
            return with_(without(tree, path) if path else tree, path, operation["value"])
        case "copy":
            return with_(tree, path, at(tree, parts(operation["from"])))
        case "move":
            source = parts(operation["from"])
            if path[: len(source)] == source and path != source:
                raise NotPossibleError
            value = at(tree, source)
            return with_(without(tree, source) if source else tree, path, value)
        case "test":
            if not same(at(tree, path), operation["value"]):
                raise NotPossibleError
            return tree
    raise AssertionError(operation)


def pointers(tree: Any, prefix: str = "") -> list[str]:
    """Return the pointers to all there is, and to where something could be added."""
    found = [prefix]
    if isinstance(tree, dict):
        for key, value in tree.items():
            found += pointers(value, f"{prefix}/{key.replace('~', '~0').replace('/', '~1')}")
        found.append(f"{prefix}/new")
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            found += pointers(value, f"{prefix}/{index}")
        found += [f"{prefix}/-", f"{prefix}/{len(tree)}", f"{prefix}/01"]
    return found


@given(document=DOCUMENTS, data=st.data())
def test_json_patches_do_what_the_model_does(document: Any, data: st.DataObject) -> None:
    """Operation by operation on places that are there, or nearly; both fail at the same one, or both give the same."""
    operations: list[dict[str, Any]] = []
    expected: Any = document
    possible = True
    for _ in range(data.draw(st.integers(1, 5))):
        where = st.sampled_from(pointers(expected))
        operation = {
            "op": data.draw(st.sampled_from(["add", "remove", "replace", "move", "copy", "test"])),
            "path": data.draw(where),
            "from": data.draw(where),
            "value": data.draw(DOCUMENTS),
        }
        if operation["op"] == "test" and data.draw(st.booleans()):
            operation["value"] = at(expected, parts(operation["path"])) if _is_there(expected, operation) else None
        operations.append(operation)
        try:
            expected = after(expected, operation)
        except NotPossibleError:
            possible = False
            break
    if possible:
        found = patches.json_patch(document, operations)
        assert same(found, expected), (found, expected)
    else:
        with pytest.raises((InvalidError, BadRequestError)):
            patches.json_patch(document, operations)


def _is_there(tree: Any, operation: dict[str, Any]) -> bool:
    try:
        at(tree, parts(operation["path"]))
    except NotPossibleError:
        return False
    return True


@pytest.mark.parametrize(
    "operations",
    [
        # Doubled at every step: 2**60 values, were it allowed.
        [{"op": "add", "path": "/x", "value": {"a": "b"}}]
        + [{"op": "copy", "from": "/x", "path": f"/x/{number}"} for number in range(60)],
        # Deeper at every step.
        [{"op": "add", "path": "/x", "value": {}}] + [{"op": "copy", "from": "", "path": "/x/y"}] * 80,
        [{"op": "add", "path": "/x" * 70, "value": 1}],
        [{"op": "add", "path": "/a", "value": 1}] * (patches.MAX_OPERATIONS + 1),
    ],
)
def test_what_would_grow_without_bound_is_refused(operations: Any) -> None:
    with pytest.raises((InvalidError, BadRequestError)):
        patches.json_patch({}, operations)
