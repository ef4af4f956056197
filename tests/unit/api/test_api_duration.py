"""Durations: exact both ways, and what is refused."""

from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api import duration
from skerry.api.errors import InvalidError

lengths = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=4000))


@given(lengths)
def test_what_is_rendered_parses_to_the_same(value: timedelta) -> None:
    text = duration.render(value)
    assert duration.parse(text) == value
    assert msgspec.convert(text, duration.Duration) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("0s", 0), ("300ms", 0.3), ("1h30m", 5400), ("1.5h", 5400), ("90s", 90), ("1us", 1e-6), ("1µs", 1e-6)],
)
def test_the_forms(text: str, seconds: float) -> None:
    assert duration.to_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (timedelta(0), "0s"),
        (timedelta(milliseconds=250), "250ms"),
        (timedelta(microseconds=1), "0.001ms"),
        (timedelta(seconds=59, microseconds=999999), "59.999999s"),
        (timedelta(hours=1, minutes=30), "1h30m"),
        (timedelta(days=2), "48h"),
        (-timedelta(seconds=5), "-5s"),
    ],
)
def test_rendering(value: timedelta, text: str) -> None:
    assert duration.render(value) == text


@pytest.mark.parametrize(
    "text", ["", "5", "-5s", "5 s", "5s\n", "s", "1d", "1h 2m", "1.s", ".5s", "٣s", "1" * 40 + "s"]
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="is not a duration"):
        duration.parse(text)


@given(st.text(max_size=40))
def test_parse_and_the_type_agree(text: str) -> None:
    try:
        duration.parse(text)
        parsed = True
    except InvalidError:
        parsed = False
    try:
        msgspec.convert(text, duration.Duration)
        typed = True
    except msgspec.ValidationError:
        typed = False
    assert parsed == typed


def test_longer_than_can_be_kept() -> None:
    with pytest.raises(InvalidError, match="longer"):
        duration.parse("9" * 30 + "h")
