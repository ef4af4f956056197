"""Selectors: what Kubernetes takes, what it refuses, and that rendering and parsing are each other's inverse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api import selector
from skerry.api.errors import InvalidError
from skerry.api.meta import LabelSelector, LabelSelectorRequirement

EDGE = "abcXYZ019"
INNER = EDGE + "-_."
names = st.builds(
    lambda first, inner, last: first + inner + last,
    st.sampled_from(EDGE),
    st.text(INNER, max_size=10),
    st.sampled_from(EDGE),
)
prefixes = st.sampled_from(["", "example.com/", "a.b-c/"])
keys = st.builds(lambda prefix, name: prefix + name, prefixes, names)
values = st.one_of(st.just(""), names)


@st.composite
def requirement_lists(draw: st.DrawFn) -> list[LabelSelectorRequirement]:
    def one() -> LabelSelectorRequirement:
        operator = draw(st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]))
        takes = operator in ("In", "NotIn")
        listed = draw(st.lists(values, min_size=1, max_size=4)) if takes else []
        return LabelSelectorRequirement(key=draw(keys), operator=operator, values=listed)

    return [one() for _ in range(draw(st.integers(0, 4)))]


labels = st.dictionaries(keys, values, max_size=5)


@given(requirement_lists())
def test_what_is_rendered_parses_to_the_same(wanted: list[LabelSelectorRequirement]) -> None:
    assert selector.parse_labels(selector.render(wanted)) == wanted


@given(requirement_lists(), labels)
def test_all_requirements_must_hold(wanted: list[LabelSelectorRequirement], given_labels: dict[str, str]) -> None:
    each = [selector.matches([requirement], given_labels) for requirement in wanted]
    assert selector.matches(wanted, given_labels) == all(each)


@given(keys, st.lists(values, min_size=1, max_size=3), labels)
def test_opposites(key: str, listed: list[str], given_labels: dict[str, str]) -> None:
    def holds(operator: str, of: list[str]) -> bool:
        wanted = LabelSelectorRequirement(key=key, operator=operator, values=of)  # type: ignore[arg-type]
        return selector.matches([wanted], given_labels)

    assert holds("In", listed) != holds("NotIn", listed)
    assert holds("Exists", []) != holds("DoesNotExist", [])


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_as_invalid(text: str) -> None:
    try:
        wanted = selector.parse_labels(text)
    except InvalidError:
        return
    assert selector.parse_labels(selector.render(wanted)) == wanted


@pytest.mark.parametrize(
    ("text", "matching", "other"),
    [
        ("", {}, None),
        ("site=lab", {"site": "lab"}, {"site": "shop"}),
        ("site==lab", {"site": "lab"}, {}),
        ("tier!=test", {}, {"tier": "test"}),
        ("arch in (amd64, arm64)", {"arch": "arm64"}, {"arch": "arm"}),
        ("arch in(amd64)", {"arch": "amd64"}, {}),
        ("arch notin (amd64)", {}, {"arch": "amd64"}),
        ("retired", {"retired": ""}, {}),
        ("!retired", {}, {"retired": "yes"}),
        (" a = b , c ", {"a": "b", "c": "d"}, {"a": "b"}),
        ("example.com/a=b", {"example.com/a": "b"}, {"a": "b"}),
    ],
)
def test_the_forms(text: str, matching: dict[str, str], other: dict[str, str] | None) -> None:
    wanted = selector.parse_labels(text)
    assert selector.matches(wanted, matching)
    assert other is None or not selector.matches(wanted, other)


@pytest.mark.parametrize(
    "text",
    [
        "a=b=c",
        "a in",
        "a in (b",
        "a in b)",
        "a),b",
        ",",
        "a,",
        "-a=b",
        "a=-b",
        "a=" + "b" * 64,
        "b" * 64,
        "ä=b",
        "a=b\nc",
        "/a=b",
        "a/b/c",
        "a>1",
        "x" * 5000,
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        selector.parse_labels(text)


def test_structured_selectors() -> None:
    wanted = LabelSelector(
        match_labels={"site": "lab"},
        match_expressions=[LabelSelectorRequirement(key="arch", operator="In", values=["arm64"])],
    )
    found = selector.requirements(wanted)
    assert selector.render(found) == "site=lab,arch=arm64"
    assert selector.matches(found, {"site": "lab", "arch": "arm64"})
    for broken in (
        LabelSelectorRequirement(key="a", operator="In"),
        LabelSelectorRequirement(key="a", operator="Exists", values=["b"]),
        LabelSelectorRequirement(key="a b", operator="Exists"),
        LabelSelectorRequirement(key="a", operator="In", values=["b c"]),
    ):
        with pytest.raises(InvalidError):
            selector.requirements(LabelSelector(match_expressions=[broken]))


def test_field_selectors() -> None:
    allowed = ("metadata.name", "status.phase")
    parsed = selector.parse_fields("metadata.name=x, status.phase!=Online,metadata.name==y", allowed)
    assert parsed == [
        ("metadata.name", True, "x"),
        ("status.phase", False, "Online"),
        ("metadata.name", True, "y"),
    ]
    assert selector.parse_fields("", allowed) == []
    assert selector.parse_fields("status.phase=a\nb", allowed) == [("status.phase", True, "a\nb")]
    for text in ("spec.x=1", "metadata.name", "=x", "x" * 5000, "metadata.name=" + "," * 4096):
        with pytest.raises(InvalidError, match="field selector"):
            selector.parse_fields(text, allowed)


@given(st.text(max_size=100))
def test_any_field_selector_is_read_or_refused(text: str) -> None:
    try:
        found = selector.parse_fields(text, ("metadata.name",))
    except InvalidError:
        return
    assert all(path == "metadata.name" for path, _, _ in found)


@given(st.text(max_size=80))
def test_label_words(text: str) -> None:
    if selector.is_label_value(text):
        assert len(text) <= 63
        assert text.isascii()
        assert not text.endswith("\n")
    if selector.is_label_key(text):
        assert text
        assert text.isascii()
