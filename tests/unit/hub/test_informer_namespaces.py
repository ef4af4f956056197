"""Asking an informer for a part of its keys gives what going through all of them would."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from skerry.api.meta import ObjectMeta
from skerry.core.ports import Record
from skerry.hub.controllers.informer import Informer

KEYS = st.sampled_from(["a/x", "a/xy", "a/y", "ab/x", "b/x", "plain"])


def read(record: Record) -> ObjectMeta:
    return ObjectMeta(name=record.key)


@given(steps=st.lists(st.tuples(st.sampled_from(["put", "forget"]), KEYS), max_size=30))
def test_values_below(steps: list[tuple[str, str]]) -> None:
    store: Any = None  # nothing is read: what there is comes by `observe`
    informer = Informer(store, "k/", read, lambda _old, _new: None)
    model: set[str] = set()
    for revision, (verb, key) in enumerate(steps, start=1):
        if verb == "put":
            informer.observe(key, ObjectMeta(name=key), revision)
            model.add(key)
        else:
            informer.forget(key)
            model.discard(key)
        for below in ("", "a", "a/", "a/x", "ab/", "b/", "c/", "plain"):
            found = sorted(item.name for item in informer.values(below))
            assert found == sorted(one for one in model if one.startswith(below)), below
