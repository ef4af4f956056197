"""Strategic merge patches: directives, lists by key, and what must agree with a plain merge patch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api import patch as patches
from skerry.api.errors import BadRequestError
from skerry.api.strategic import strategic_merge

KEYS = st.sampled_from(["a", "b", "c"])
SCALARS = st.one_of(st.integers(-3, 3), st.text("xy", max_size=2), st.booleans())
VALUES = st.recursive(SCALARS, lambda inner: st.lists(SCALARS, max_size=2) | st.dictionaries(KEYS, inner, max_size=3))
PATCHES = st.recursive(
    SCALARS | st.none(), lambda inner: st.lists(SCALARS, max_size=2) | st.dictionaries(KEYS, inner, max_size=3)
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=3)


@given(target=OBJECTS, change=st.dictionaries(KEYS, PATCHES, max_size=3))
def test_without_keyed_lists_and_directives_it_is_a_merge_patch(target: dict[str, Any], change: dict[str, Any]) -> None:
    before = copy.deepcopy((target, change))
    assert strategic_merge(target, change) == patches.merge_patch(target, change)
    assert (target, change) == before


NAMES = st.lists(st.sampled_from("pqrst"), unique=True, max_size=5)


@given(old=NAMES, new=st.dictionaries(st.sampled_from("pqrstuv"), st.none() | st.integers(0, 9), max_size=5))
def test_a_keyed_list_is_a_table(old: list[str], new: dict[str, int | None]) -> None:
    """Model: a mapping by key, where None deletes and a number is written over what was there."""
    model: dict[str, dict[str, Any]] = {name: {"name": name, "kept": True} for name in old}
    for name, number in new.items():
        if number is None:
            model.pop(name, None)
        else:
            model[name] = {**model.get(name, {"name": name}), "number": number}
    change = [
        {"name": name, "$patch": "delete"} if number is None else {"name": name, "number": number}
        for name, number in new.items()
    ]
    target = {"secrets": [{"name": name, "kept": True} for name in old]}
    assert strategic_merge(target, {"secrets": change}) == {"secrets": list(model.values())}


@given(old=NAMES, added=NAMES, removed=NAMES, order=NAMES)
def test_finalizers_are_a_set_with_an_order(
    old: list[str], added: list[str], removed: list[str], order: list[str]
) -> None:
    change = {
        "finalizers": added,
        "$deleteFromPrimitiveList/finalizers": removed,
        "$setElementOrder/finalizers": order,
    }
    found = strategic_merge({"metadata": {"finalizers": old}}, {"metadata": change})["metadata"]["finalizers"]
    assert sorted(found) == sorted((set(old) | set(added)) - set(removed))
    known = [name for name in found if name in order]
    assert known == [name for name in order if name in found]
    assert found[: len(known)] == known


def test_what_kubectl_apply_sends_for_owners() -> None:
    """The patch of `kubectl apply` for an object whose list lost one element and got another."""
    target = {"metadata": {"ownerReferences": [{"uid": "1", "name": "a"}, {"uid": "2", "name": "b"}]}}
    change = {
        "metadata": {
            "$setElementOrder/ownerReferences": [{"uid": "3"}, {"uid": "1"}],
            "ownerReferences": [{"uid": "3", "name": "c"}, {"$patch": "delete", "uid": "2"}],
        }
    }
    assert strategic_merge(target, change) == {
        "metadata": {"ownerReferences": [{"uid": "3", "name": "c"}, {"uid": "1", "name": "a"}]}
    }


def test_directives() -> None:
    target = {"a": {"x": 1, "y": 2}, "secrets": [{"name": "p", "v": 1}], "b": 1}
    assert strategic_merge(target, {"a": {"$patch": "replace", "z": 3}})["a"] == {"z": 3}
    assert strategic_merge(target, {"a": {"$patch": "delete"}})["a"] == {}
    assert strategic_merge(target, {"a": {"$retainKeys": ["x", "z"], "z": 3}})["a"] == {"x": 1, "z": 3}
    replaced = {"secrets": [{"$patch": "replace"}, {"name": "q"}]}
    assert strategic_merge(target, replaced)["secrets"] == [{"name": "q"}]
    assert strategic_merge(target, {"rules": [{"verbs": ["get"], "names": None}]})["rules"] == [{"verbs": ["get"]}]


@pytest.mark.parametrize(
    "change",
    [
        [],
        "text",
        {"a": {"$patch": "sideways"}},
        {"$unheard": 1},
        {"secrets": [{"value": 1}]},
        {"secrets": ["p"]},
        {"metadata": {"finalizers": [1]}},
        {"metadata": {"$deleteFromPrimitiveList/finalizers": "x"}},
        {"metadata": {"$setElementOrder/finalizers": "x"}},
        {"metadata": {"finalizers": ["a"], "$setElementOrder/finalizers": [{}]}},
        {"a": {"$retainKeys": ["x"], "y": 1}},
    ],
)
def test_what_cannot_be_followed(change: Any) -> None:
    with pytest.raises(BadRequestError):
        strategic_merge({}, change)


@given(target=OBJECTS, change=st.dictionaries(KEYS | st.sampled_from(["$patch", "$x", "secrets"]), PATCHES, max_size=3))
def test_nothing_else_is_ever_raised(target: dict[str, Any], change: dict[str, Any]) -> None:
    try:
        strategic_merge(target, change)
    except BadRequestError as error:
        assert error.element.startswith("the patch")  # noqa: PT017 - most patches can be followed
