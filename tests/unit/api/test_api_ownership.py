"""Managed fields: whose a field is, held to a model that keeps one set of owners for each field and nothing else."""

from __future__ import annotations

import string
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api import ownership
from skerry.api.errors import BadRequestError, FieldConflictError
from skerry.api.ownership import Entries, Fields, Operation, Path, Writer

NOW = datetime(2026, 11, 1, tzinfo=UTC)
NONE: Entries = ()


def writer(name: str, operation: Operation = "Apply", *, later: int = 0, subresource: str = "") -> Writer:
    return Writer(manager=name, operation=operation, now=NOW + timedelta(seconds=later), subresource=subresource)


def apply(
    current: dict[str, Any], entries: Entries, wanted: dict[str, Any], who: Writer, *, force: bool = False
) -> Any:
    after = ownership.merged(current, wanted, entries, who)
    fields = ownership.fields_of(wanted)
    return after, ownership.applied(entries, current, after, fields, who, yielding=None if force else frozenset())


def owners(entries: Entries) -> dict[str, Fields]:
    return {entry.manager: entry.fields for entry in entries}


def spec(**fields: Any) -> dict[str, Any]:
    return {"spec": fields}


def paths(*dots: str) -> Fields:
    return frozenset(("spec", *dot.split(".")) for dot in dots)


def test_what_is_applied_is_owned_and_what_is_left_out_goes() -> None:
    one, entries = apply({}, NONE, spec(a=1, deep={"b": 2, "c": [1, 2]}), writer("ci"))
    assert owners(entries) == {"ci": paths("a", "deep.b", "deep.c")}
    two, entries = apply(one, entries, spec(a=1), writer("ci"))
    assert (two, owners(entries)) == (spec(a=1), {"ci": paths("a")})


def test_what_two_have_applied_stays_until_the_last_leaves_it() -> None:
    one, entries = apply({}, NONE, spec(a=1, b=2), writer("ci"))
    one, entries = apply(one, entries, spec(a=1), writer("ops"))
    one, entries = apply(one, entries, spec(b=2), writer("ci"))
    assert (one, owners(entries)) == (spec(a=1, b=2), {"ci": paths("b"), "ops": paths("a")})
    one, entries = apply(one, entries, {}, writer("ops"))
    assert (one, owners(entries)) == (spec(b=2), {"ci": paths("b")})
    one, entries = apply(one, entries, spec(), writer("ci"))
    assert (one, owners(entries)) == (spec(), {"ci": frozenset({("spec",)})}), "an empty map is a wish, too"


def test_another_value_conflicts_and_force_takes_the_field() -> None:
    one, entries = apply({}, NONE, spec(a=1, b=2), writer("ci"))
    with pytest.raises(
        FieldConflictError, match=r'1 conflict: conflict with "ci" using skerry.dev/v1alpha1: \.spec\.a$'
    ):
        apply(one, entries, spec(a=5), writer("ops"))
    with pytest.raises(FieldConflictError, match="2 conflicts:\n- ") as told:
        apply(one, entries, spec(a=5, b=6), writer("ops"))
    assert [error.element for error in told.value.each] == [".spec.a", ".spec.b"]
    one, entries = apply(one, entries, spec(a=5), writer("ops"), force=True)
    assert (one, owners(entries)) == (spec(a=5, b=2), {"ci": paths("b"), "ops": paths("a")})


def test_a_value_in_place_of_a_map_conflicts_with_what_was_in_the_map() -> None:
    one, entries = apply({}, NONE, spec(a={"x": 1}), writer("ci"))
    with pytest.raises(FieldConflictError, match=r"\.spec\.a\.x"):
        apply(one, entries, spec(a=[1]), writer("ops"))
    two, entries = apply(one, entries, spec(a=[1]), writer("ops"), force=True)
    with pytest.raises(FieldConflictError, match=r"\.spec\.a$"):
        apply(two, entries, spec(a={"x": 1}), writer("ci"))


def test_an_update_takes_what_it_changes_and_nothing_else() -> None:
    one, entries = apply({}, NONE, spec(a=1, b=2), writer("ci"))
    entries = ownership.updated(entries, one, spec(a=7, b=2), writer("edit", "Update"))
    assert owners(entries) == {"ci": paths("b"), "edit": paths("a")}
    with pytest.raises(FieldConflictError, match=r'"edit" using skerry.dev/v1alpha1 at 2026-11-01T00:00:00Z'):
        apply(spec(a=7, b=2), entries, spec(a=1, b=2), writer("ci"))
    gone = ownership.updated(entries, spec(a=7, b=2), spec(a=7), writer("edit", "Update"))
    assert owners(gone) == {"edit": paths("a")}


def test_a_map_that_its_owner_left_empty_stays_when_another_wanted_it_there() -> None:
    one, entries = apply({}, NONE, spec(a={}), writer("ops"))
    one, entries = apply(one, entries, spec(a={"x": 1}), writer("ci"), force=True)
    one, entries = apply(one, entries, spec(b=1), writer("ci"))
    assert one == spec(b=1), "the empty map was given up when it was filled"


def test_an_empty_map_conflicts_with_nothing_that_others_put_into_it() -> None:
    one, entries = apply({}, NONE, spec(a={}, b=1), writer("helm"))
    one, entries = apply(one, entries, spec(a={"x": 1}), writer("ops"))
    assert one == spec(a={"x": 1}, b=1)
    one, entries = apply(one, entries, spec(a={}, b=1), writer("helm"))
    assert one == spec(a={"x": 1}, b=1)
    one, _ = apply(one, entries, spec(a={}), writer("ops"))
    assert one == spec(a={}, b=1)


def test_thousands_of_fields_are_compared_at_once() -> None:
    first, second = ({f"{name}{number}": "x" for number in range(16_000)} for name in "ab")
    one, entries = apply({}, NONE, spec(**first), writer("ci"))
    one, entries = apply(one, entries, spec(**second), writer("ci"))
    assert one == spec(**second)
    with pytest.raises(FieldConflictError, match="16000 conflicts"):
        apply(one, entries, spec(**dict.fromkeys(second, "y")), writer("ops"))


def test_the_time_stays_where_nothing_changed() -> None:
    one, entries = apply({}, NONE, spec(a=1), writer("ci"))
    _, again = apply(one, entries, spec(a=1), writer("ci", later=60))
    assert again == entries
    assert ownership.updated(entries, one, one, writer("edit", "Update", later=60)) == entries


def test_status_has_owners_of_its_own() -> None:
    before, after = spec(a=1) | {"status": {}}, spec(a=1) | {"status": {"phase": "Online"}}
    (entry,) = ownership.updated(NONE, before, after, writer("device", "Update", subresource="status"))
    assert (entry.subresource, entry.fields) == ("status", frozenset({("status", "phase")}))
    assert ownership.updated(NONE, before, after, writer("device", "Update")) == ()


def test_many_updaters_are_put_together() -> None:
    entries: Entries = NONE
    before: dict[str, Any] = spec()
    for number in range(30):
        after = spec(**before["spec"], **{f"f{number}": number})
        entries = ownership.updated(entries, before, after, writer(f"m{number}", "Update", later=number))
        before = after
    assert len(entries) == ownership.MAX_UPDATERS
    assert entries[0].manager == ownership.OLDEST
    assert frozenset().union(*(e.fields for e in entries)) == ownership.fields_of(before)
    assert "m29" in owners(entries)


def test_identity_is_nobody_s_field() -> None:
    metadata = {"name": "a", "namespace": "b", "uid": "c", "labels": {"x": "y"}, "managedFields": [{}]}
    fields = ownership.fields_of({"apiVersion": "v", "kind": "K", "metadata": metadata})
    assert fields == {("metadata", "labels", "x")}


@pytest.mark.parametrize(
    "entry",
    [
        {"operation": "Apply", "fieldsV1": {"f:spec": {'k:{"name":"x"}': {}}}},
        {"operation": "Apply", "fieldsV1": {"spec": {}}},
        {"operation": "Apply", "fieldsV1": {"f:spec": 1}},
        {"operation": "Steal"},
        {"manager": 5, "operation": "Apply"},
        "text",
        None,
    ],
)
def test_entries_that_are_none(entry: Any) -> None:
    assert ownership.read_entries([entry]) is None


def test_a_reset() -> None:
    assert ownership.read_entries([{}]) == ()


def test_paths_as_people_read_them() -> None:
    assert ownership.dotted(("metadata", "labels", "example.com/role")) == ".metadata.labels[example.com/role]"


NAMES = st.text(string.ascii_letters + ".:/-", min_size=1, max_size=3)
PATHS = st.frozensets(st.lists(NAMES, min_size=1, max_size=4).map(tuple), max_size=12)


@given(PATHS)
def test_fields_survive_their_form(fields: frozenset[Path]) -> None:
    assert ownership.decode_fields(ownership.encode_fields(fields)) == fields


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(JSON)
def test_whatever_is_sent_as_fields_is_read_or_refused(raw: Any) -> None:
    if isinstance(raw, dict):
        try:
            ownership.decode_fields(raw)
        except BadRequestError:
            return
    entries = ownership.read_entries(raw if isinstance(raw, list) else [raw])
    assert entries is None or ownership.read_entries(ownership.write_entries(entries)) in (entries, ())


KEYS = st.sampled_from(["a", "b", "c.x", "c.y", "c.z"])
WISHES = st.dictionaries(KEYS, st.integers(0, 2), max_size=4)
STEPS = st.lists(
    st.tuples(st.sampled_from(["ci", "ops", "edit"]), st.sampled_from(["apply", "force", "update"]), WISHES),
    max_size=12,
)


def nested(flat: dict[str, int]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in flat.items():
        head, _, rest = key.partition(".")
        if rest:
            result.setdefault(head, {})[rest] = value
        else:
            result[head] = value
    return {"spec": result} if result else {}


@given(STEPS)
def test_any_order_of_applies_and_updates_is_the_model_s(  # noqa: C901, PLR0912 - the model in full
    steps: list[tuple[str, str, dict[str, int]]],
) -> None:
    """The model: a value and a set of (manager, operation) for each field."""
    values: dict[str, int] = {}
    owned: dict[str, set[tuple[str, str]]] = {}
    current: dict[str, Any] = {}
    entries: Entries = NONE
    for name, how, wish in steps:
        if how == "update":
            after = nested(wish)
            entries = ownership.updated(entries, current, after, writer(name, "Update"))
            current = after
            for key in {*values, *wish}:
                if values.get(key) != wish.get(key):
                    owned[key] = {(name, "Update")} if key in wish else set()
            values = dict(wish)
        else:
            me = (name, "Apply")
            conflicts = {k for k in wish if k in values and values[k] != wish[k] and owned.get(k, set()) - {me}}
            if conflicts and how == "apply":
                with pytest.raises(FieldConflictError) as told:
                    apply(current, entries, nested(wish), writer(name))
                assert {one.element.removeprefix(".spec.") for one in told.value.each} == conflicts
                continue
            current, entries = apply(current, entries, nested(wish), writer(name), force=how == "force")
            for key in {*owned, *wish}:
                mine = owned.setdefault(key, set())
                if key in wish:
                    if values.get(key) != wish[key]:
                        mine.clear()
                    mine.add(me)
                    values[key] = wish[key]
                elif me in mine:
                    mine.discard(me)
                    if not mine:
                        values.pop(key, None)
        assert current == nested(values)
        found = {(entry.manager, entry.operation): entry.fields for entry in entries}
        wanted: dict[tuple[str, str], set[Path]] = {}
        for key, managers in owned.items():
            for manager in managers:
                wanted.setdefault((manager[0], manager[1]), set()).add(("spec", *key.split(".")))
        assert {key: set(fields) for key, fields in found.items()} == wanted
