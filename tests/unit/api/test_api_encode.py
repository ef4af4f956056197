"""Objects straight to JSON: the same as when they are made plain first, for all kinds and all that may be in them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from skerry.api import codec
from skerry.api.kinds import KINDS, KindInfo

LEAVES: dict[type[inspect.Type], list[Any]] = {
    inspect.StrType: ["", "x", 'ü"\n'],
    inspect.IntType: [0, 1, -3],
    inspect.FloatType: [0.0, 1.5],
    inspect.BoolType: [False, True],
    inspect.NoneType: [None],
    inspect.DateTimeType: [datetime(2026, 11, 24, 3, 20, tzinfo=UTC)],
    inspect.AnyType: [None, "", "x", {}, {"a": []}, 0],
}


def values(kind: inspect.Type, depth: int = 0) -> st.SearchStrategy[Any]:
    """Values of a type, whether they meet its rules or not."""
    match kind:
        case inspect.StructType(cls=cls, fields=fields):
            return structs(cls, fields, depth + 1)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return st.lists(values(item, depth), max_size=2) if depth < 6 else st.just([])
        case inspect.DictType(value_type=value):
            return st.dictionaries(st.sampled_from(["a", "b/c"]), values(value, depth), max_size=2)
        case inspect.UnionType(types=types):
            return st.one_of([values(one, depth) for one in types])
        case inspect.Metadata(type=inner):
            return values(inner, depth)
        case _:
            return st.sampled_from(kind.values if isinstance(kind, inspect.LiteralType) else LEAVES[type(kind)])


def structs(cls: type[Any], fields: tuple[inspect.Field, ...], depth: int) -> st.SearchStrategy[Any]:
    needed = {field.name: values(field.type, depth) for field in fields if field.required}
    further = {field.name: values(field.type, depth) for field in fields if not field.required and depth < 7}
    return st.fixed_dictionaries(needed, optional=further).map(lambda given_ones: cls(**given_ones))


@pytest.mark.parametrize("info", KINDS, ids=lambda info: f"{info.group}-{info.kind}")
def test_both_ways_are_the_same(info: KindInfo) -> None:
    @given(values(inspect.type_info(info.type)))
    def same(item: Any) -> None:
        shown = codec.present(item)
        encoded = codec.encode(item)
        assert encoded == msgspec.json.encode(shown)
        for part in (shown.get("spec"), shown.get("status")):
            assert part is None or all(inner not in ("", [], None) for inner in part.values())

    same()
