"""Patches: the RFCs' own examples, and what must hold for any values."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api import patch
from skerry.api.errors import BadRequestError, InvalidError, SkerryError

keys = st.sampled_from(["a", "b", "c", "~", "/", ""])
scalars = st.one_of(st.booleans(), st.integers(-3, 3), st.text("xy", max_size=2))
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)
objects = st.dictionaries(keys, trees, max_size=5)
with_nulls = st.dictionaries(
    keys,
    st.recursive(
        st.one_of(st.none(), scalars),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=4)),
        max_leaves=12,
    ),
    max_size=5,
)


@pytest.mark.parametrize(
    ("target", "change", "result"),
    [  # RFC 7386, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: Any, change: Any, result: Any) -> None:
    assert patch.merge_patch(target, change) == result


@given(objects, with_nulls)
def test_merge_patches_are_idempotent_and_leave_their_inputs(target: Any, change: Any) -> None:
    before = copy.deepcopy((target, change))
    once = patch.merge_patch(target, change)
    assert patch.merge_patch(once, change) == once
    assert (target, change) == before


@given(objects, objects)
def test_a_diff_makes_the_one_of_the_other(source: Any, target: Any) -> None:
    change = patch.diff(source, target)
    assert same(patch.merge_patch(source, change), target)
    assert (change == {}) == same(source, target)


@given(objects, objects, objects)
def test_what_is_wanted_holds_after_an_apply(last: Any, wanted: Any, live: Any) -> None:
    change = patch.three_way_merge(last, wanted, live)
    result = patch.merge_patch(live, change)
    assert holds(wanted, result)
    assert not lingers(last, wanted, result)
    assert untouched(last, wanted, live, result)
    assert patch.three_way_merge(wanted, wanted, result) == {}


@given(objects, objects)
def test_applying_the_same_again_changes_nothing(wanted: Any, others: Any) -> None:
    live = patch.merge_patch(others, patch.three_way_merge({}, wanted, others))
    assert patch.three_way_merge(wanted, wanted, live) == {}


def test_explicit_nulls_remove() -> None:
    assert patch.three_way_merge({}, {"a": None, "b": {"c": None}}, {"a": 1, "b": {"c": 2, "d": 3}}) == {
        "a": None,
        "b": {"c": None},
    }
    assert patch.three_way_merge({}, {"a": None, "b": {"c": None}}, {}) == {"b": {}}


def test_true_is_not_one() -> None:
    assert patch.diff({"a": 1}, {"a": True}) == {"a": True}
    assert patch.diff({"a": 1}, {"a": 1.0}) == {}
    assert patch.diff({"a": [0]}, {"a": [False]}) == {"a": [False]}


def holds(wanted: Any, result: Any) -> bool:
    """Everything wanted is there; only objects may have more."""
    if isinstance(wanted, dict):
        return isinstance(result, dict) and all(key in result and holds(wanted[key], result[key]) for key in wanted)
    return same(wanted, result)


def lingers(last: Any, wanted: Any, result: Any) -> bool:
    """Something applied before and no longer wanted is still there."""
    if not (isinstance(last, dict) and isinstance(wanted, dict) and isinstance(result, dict)):
        return False
    return any(
        (key not in wanted and key in result) or (key in wanted and lingers(last[key], wanted[key], result.get(key)))
        for key in last
    )


def untouched(last: Any, wanted: Any, live: Any, result: Any) -> bool:
    """What nobody applied stays as it was."""
    return all(same(live[key], result.get(key)) for key in live if key not in last and key not in wanted)


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 is not true."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


# --- JSON patch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "operations", "result"),
    [  # RFC 6902, appendix A
        ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"foo": "bar", "baz": "qux"}),
        ({"foo": ["a", "b"]}, [{"op": "add", "path": "/foo/1", "value": "q"}], {"foo": ["a", "q", "b"]}),
        ({"baz": 1, "foo": 2}, [{"op": "remove", "path": "/baz"}], {"foo": 2}),
        ({"foo": ["a", "q", "b"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["a", "b"]}),
        ({"baz": 1}, [{"op": "replace", "path": "/baz", "value": 2}], {"baz": 2}),
        (
            {"foo": {"bar": 1, "waldo": 2}, "qux": {"corge": 3}},
            [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
            {"foo": {"bar": 1}, "qux": {"corge": 3, "thud": 2}},
        ),
        ({"foo": [1, 2, 3, 4]}, [{"op": "move", "from": "/foo/1", "path": "/foo/3"}], {"foo": [1, 3, 4, 2]}),
        ({"a": 1, "b": ["x", 2]}, [{"op": "test", "path": "/b/1", "value": 2.0}], {"a": 1, "b": ["x", 2]}),
        ({"foo": "bar"}, [{"op": "add", "path": "/child", "value": {"g": {}}}], {"foo": "bar", "child": {"g": {}}}),
        ({"foo": ["bar"]}, [{"op": "add", "path": "/foo/-", "value": ["x"]}], {"foo": ["bar", ["x"]]}),
        ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
        ({"a": 1}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": 1, "b": 1}),
        ({"a": 1}, [{"op": "add", "path": "", "value": [1]}], [1]),
        ({"a": {"b": 1}}, [{"op": "move", "from": "/a", "path": "/a"}], {"a": {"b": 1}}),
        ({"a": [1]}, [{"op": "replace", "path": "/a/0", "value": 2}], {"a": [2]}),
        ({"": 1}, [{"op": "replace", "path": "/", "value": 2}], {"": 2}),
    ],
)
def test_json_patch(target: Any, operations: Any, result: Any) -> None:
    before = copy.deepcopy(target)
    assert patch.json_patch(target, operations) == result
    assert target == before


@pytest.mark.parametrize(
    "operations",
    [
        [{"op": "test", "path": "/a", "value": "1"}],
        [{"op": "test", "path": "/a", "value": True}],
        [{"op": "remove", "path": "/x"}],
        [{"op": "remove", "path": ""}],
        [{"op": "remove", "path": "/list/2"}],
        [{"op": "remove", "path": "/list/-"}],
        [{"op": "replace", "path": "/x", "value": 1}],
        [{"op": "add", "path": "/x/y", "value": 1}],
        [{"op": "add", "path": "/a/b", "value": 1}],
        [{"op": "add", "path": "/list/3", "value": 1}],
        [{"op": "add", "path": "/list/01", "value": 1}],
        [{"op": "move", "from": "/list", "path": "/list/0"}],
        [{"op": "copy", "from": "/x", "path": "/y"}],
        [{"op": "add", "path": "/new", "value": 1}, {"op": "remove", "path": "/x"}],
    ],
)
def test_json_patches_that_do_not_fit(operations: Any) -> None:
    target = {"a": 1, "list": [1, 2]}
    with pytest.raises(InvalidError, match="operation"):
        patch.json_patch(target, operations)
    assert target == {"a": 1, "list": [1, 2]}


@pytest.mark.parametrize(
    "operations",
    [
        {},
        [1],
        [{}],
        [{"op": "add", "path": "/a"}],
        [{"op": "add", "path": "a", "value": 1}],
        [{"op": "add", "path": "/a~2", "value": 1}],
        [{"op": "add", "value": 1}],
        [{"op": "move", "path": "/a"}],
        [{"op": "ADD", "path": "/a", "value": 1}],
        [{"op": ["add"], "path": "/a", "value": 1}],
        [{"op": "test", "path": "/a", "value": 1}] * 10_001,
    ],
)
def test_json_patches_that_are_none(operations: Any) -> None:
    with pytest.raises(BadRequestError):
        patch.json_patch({"a": 1}, operations)


def test_copies_cannot_grow_without_bound() -> None:
    doubling = [{"op": "copy", "from": "/a", "path": f"/a/{n}"} for n in "bcdefghijklmnopqrstuvwxyz"]
    with pytest.raises(BadRequestError):
        patch.json_patch({"a": {"x": 1}}, doubling)
    wide = [{"op": "copy", "from": "", "path": f"/x{n}"} for n in range(40)]
    with pytest.raises(BadRequestError):
        patch.json_patch({"a": list(range(100))}, wide)


operations = st.fixed_dictionaries(
    {"op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test", "x"])},
    optional={
        "path": st.one_of(st.sampled_from(["", "/a", "/a/0", "/b/-", "/c/a", "/~0", "/~1", "/"]), st.text(max_size=5)),
        "from": st.sampled_from(["", "/a", "/a/0", "/b", "/c/a"]),
        "value": trees,
    },
)


@given(objects, st.one_of(st.lists(operations, max_size=6), trees))
@settings(max_examples=300)
def test_any_json_patch_is_applied_or_refused(target: Any, listed: Any) -> None:
    before = copy.deepcopy(target)
    try:
        patch.json_patch(target, listed)
    except SkerryError as error:
        element = error.element
    else:
        element = "the patch fits"
    assert element.startswith("the patch")
    assert target == before


# --- last applied -------------------------------------------------------------------------------------------------


def test_the_annotation_is_kubectl_s() -> None:
    wanted = {"kind": "Device", "metadata": {"name": "a", "namespace": "default"}, "spec": {"x": "<&>"}, "status": {}}
    noted = patch.with_last_applied(wanted)
    text = noted["metadata"]["annotations"][patch.LAST_APPLIED]
    assert text == (
        '{"kind":"Device","metadata":{"annotations":{},"name":"a","namespace":"default"},'
        '"spec":{"x":"\\u003c\\u0026\\u003e"}}\n'
    )
    assert patch.last_applied_of(noted)["spec"] == {"x": "<&>"}
    assert patch.with_last_applied(noted) == noted
    assert "status" not in noted


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "[" * 100_000])
def test_an_annotation_that_cannot_be_read_counts_as_none(text: str) -> None:
    assert patch.last_applied_of({"metadata": {"annotations": {patch.LAST_APPLIED: text}}}) == {}
    assert patch.last_applied_of({}) == {}
