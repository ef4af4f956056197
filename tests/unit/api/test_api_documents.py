"""Text from outside: read as kubectl reads it, bounded, and never anything but BadRequestError."""

import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api import codec, documents
from skerry.api.errors import BadRequestError

texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], include_characters="\n\t"), max_size=20)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-documents.MAX_INT, documents.MAX_INT),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=20,
)


@given(values)
def test_json_comes_back(value: Any) -> None:
    assert documents.read_json(json.dumps(value).encode()) == value


@given(st.dictionaries(texts.filter(lambda key: key != "<<"), values, min_size=1, max_size=4))
def test_yaml_comes_back(value: Any) -> None:
    assert documents.read_yaml(codec.to_yaml(value).encode()) == [value]


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for read in (documents.read_json, documents.read_yaml):
        with contextlib.suppress(BadRequestError):
            read(data)


@given(st.text(alphabet="&*!|>[]{}:,-?# \n\t\"'ab1%@`<~", max_size=60))
@settings(max_examples=500)
def test_any_punctuation_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(BadRequestError):
        documents.read_yaml(text.encode())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1", {"a": 1}),
        ("a: yes", {"a": True}),
        ("a: 'yes'", {"a": "yes"}),
        ("a: off", {"a": False}),
        ("a: ~", {"a": None}),
        ("a:", {"a": None}),
        ("a: 2026-01-31", {"a": "2026-01-31"}),
        ("a: 1:30", {"a": "1:30"}),
        ("a: 1e3", {"a": 1000.0}),
        ("a: 0x1f", {"a": 31}),
        ("a: 012", {"a": "012"}),
        ("a: .inf", {"a": ".inf"}),
        ("a: !!str 1", {"a": "1"}),
        ("a: !!int 1", {"a": 1}),
        ("1: a", {"1": "a"}),
        ("yes: a", {"yes": "a"}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}", {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
        ("b: {<<: [{p: 1}, {p: 2, q: 2}]}", {"b": {"p": 1, "q": 2}}),
        ("&k a: 1\nb: *k", {"a": 1, "b": "a"}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_yaml_as_kubectl_reads_it(text: str, value: Any) -> None:
    assert documents.read_yaml(text.encode()) == [value]


def test_documents_are_separate_and_empty_ones_left_out() -> None:
    assert documents.read_yaml(b"---\na: 1\n---\n---\nb: 2\n...\n") == [{"a": 1}, {"b": 2}]
    assert documents.read_yaml(b"# nothing\n") == []


def test_what_an_alias_repeats_is_not_shared() -> None:
    (value,) = documents.read_yaml(b"a: &x {p: 1}\nb: *x\n")
    value["a"]["p"] = 2
    assert value["b"] == {"p": 1}


@pytest.mark.parametrize(
    ("text", "say"),
    [
        ("a: 1\na: 2", 'line 2: the key "a" appears twice'),
        ("a: {b: 1, 'b': 2}", "appears twice"),
        ("a: [1", "line"),
        ("a: *x", "finished anchor"),
        ("a: &x [*x]", "finished anchor"),
        ("a: !!python/object:os.system {}", "tag"),
        ("a: !!binary aGk=", "tag"),
        ("a: !!int x", "tag"),
        ("a: !mine 1", "tag"),
        ("? [a]\n: 1", "key must be text"),
        ("a: &x [1]\n*x : 1", "key must be text"),
        ("a: {<<: [1]}", "mappings only"),
        ("a: 99999999999999999999", "64 bits"),
        ("a: 1e999", "too large"),
        ("a: " + "[" * 65 + "]" * 65, "deeper"),
        ("\n---\n".join(["a: 1"] * 1001), "documents"),
        ("a: \x00", "not YAML"),
    ],
)
def test_yaml_that_is_refused(text: str, say: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        documents.read_yaml(text.encode(), source="file.yaml")
    assert say in caught.value.sentence
    assert caught.value.element.startswith("file.yaml")


def test_aliases_cannot_expand_without_bound() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(BadRequestError, match="aliases expanded"):
        documents.read_yaml("\n".join(lines).encode())
    deep = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 100)]
    with pytest.raises(BadRequestError, match="deeper"):
        documents.read_yaml("\n".join(deep).encode())
    merged = ["a0: &a0 {k: x}"] + [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40)]
    with pytest.raises(BadRequestError):
        documents.read_yaml("\n".join(merged).encode())


def test_size_is_bounded() -> None:
    for read in (documents.read_json, documents.read_yaml):
        with pytest.raises(BadRequestError, match="more than"):
            read(b" " * (documents.MAX_BYTES + 1))
    many = b"[" + b"1," * documents.MAX_NODES + b"1]"
    for read in (documents.read_json, documents.read_yaml):
        with pytest.raises(BadRequestError, match="values"):
            read(many)


@pytest.mark.parametrize(
    ("text", "say"),
    [
        ('{"a": 1, "a": 2}', "twice"),
        ("[NaN]", "NaN"),
        ("[Infinity]", "Infinity"),
        ("[1e999]", "too large"),
        (f"[{2**63}]", "64 bits"),
        ("[" + "9" * 5000 + "]", "JSON"),
        ('["\\ud800"]', "surrogate"),
        ('{"\\ud800": 1}', "surrogate"),
        ("[" * 65 + "]" * 65, "deeper"),
        ("[" * 200_000, "deeper"),
        ("", "JSON"),
        ("{} {}", "JSON"),
    ],
)
def test_json_that_is_refused(text: str, say: str) -> None:
    with pytest.raises(BadRequestError, match=say):
        documents.read_json(text.encode())


def test_numbers_at_the_edge() -> None:
    assert documents.read_json(f"[{2**63 - 1}, -1.5e308]".encode()) == [2**63 - 1, -1.5e308]
    assert math.isclose(documents.read_yaml(b"- 0.1")[0][0], 0.1)


@pytest.mark.parametrize("text", ["0E0", "1e3", "-.5", "0", "true", "null", "~", ""])
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    assert codec.load_documents(codec.to_yaml({"kind": text}).encode()) == [{"kind": text}]
