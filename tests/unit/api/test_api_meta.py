"""Metadata: names, conditions, and errors as sentences."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api import meta, rules
from skerry.api.errors import InvalidError, NotFoundError
from skerry.api.kinds import KINDS, find_kind
from skerry.api.kinds.device import DeviceName

NOW = datetime(2026, 1, 31, tzinfo=UTC)


def condition(kind: str, status: str, *, at: datetime = NOW, message: str = "") -> meta.Condition:
    return meta.Condition(type=kind, status=status, reason="R", message=message, last_transition_time=at)  # type: ignore[arg-type]


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    later = NOW + timedelta(hours=1)
    first = meta.set_condition([], condition("Ready", "True"))
    same = meta.set_condition(first, condition("Ready", "True", at=later, message="still"))
    assert [(c.last_transition_time, c.message) for c in same] == [(NOW, "still")]
    flipped = meta.set_condition(same, condition("Ready", "False", at=later))
    assert [c.last_transition_time for c in flipped] == [later]
    both = meta.set_condition(flipped, condition("Other", "True"))
    assert {c.type for c in both} == {"Ready", "Other"}
    assert meta.find_condition(both, "Other") is not None
    assert meta.find_condition(both, "None") is None


@pytest.mark.parametrize("name", ["a", "a-b", "a.b", "0", "a" * 253])
def test_names(name: str) -> None:
    assert msgspec.convert(name, meta.Name) == name
    assert rules.is_name(name)


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", ".a", "a..b", "a.-b", "a/b", "a\n", "ä", "a" * 254, "a b"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(name, meta.Name)
    assert not rules.is_name(name)


@given(st.text("ab-.\n", max_size=12))
def test_a_device_s_name_is_a_namespace_s_kind_of_name(text: str) -> None:
    try:
        msgspec.convert(text, DeviceName)
        typed = True
    except msgspec.ValidationError:
        typed = False
    assert typed == rules.is_namespace(text)
    assert not (typed and not rules.is_name(text))


def test_digests() -> None:
    good = "sha256:" + "0" * 64
    assert msgspec.convert(good, meta.Digest) == good
    for bad in (good + "\n", good.upper(), "sha256:" + "0" * 63, "md5:" + "0" * 32):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(bad, meta.Digest)


def test_words_for_kinds_are_unique_and_found_in_any_case() -> None:
    for info in KINDS:
        assert find_kind(info.resource.upper()) is info
        if info.storage is not None:
            continue  # shares its words with the kind that it is a view of, which comes first
        for word in (info.kind, info.plural, info.singular, *info.short_names, *info.aliases):
            assert find_kind(word.upper()) is info
    assert find_kind("pods") is None


def test_an_error_is_a_sentence() -> None:
    assert NotFoundError(element='devices "a"', hint="look").sentence == 'devices "a": Not found; look'
    one = InvalidError("is wrong", element="spec.a")
    assert InvalidError.of([one]) is one
    both = InvalidError.of([one, InvalidError("is missing", element="spec.b", hint="add it")])
    assert both.each == both.problems
    assert both.sentence == "2 problems:\n  - spec.a: is wrong\n  - spec.b: is missing; add it"
    assert one.each == (one,)
