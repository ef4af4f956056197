"""Quantities: exact values, rendering, and what is refused."""

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api import quantity
from skerry.api.errors import InvalidError

FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
FACTORS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}


@given(st.integers(0, 10**9), st.sampled_from(sorted(FACTORS)))
def test_whole_numbers_with_a_suffix(number: int, suffix: str) -> None:
    assert quantity.parse(f"{number}{suffix}") == number * FACTORS[suffix]
    assert quantity.to_bytes(f"{number}{suffix}") == number * FACTORS[suffix]


@given(st.integers(0, 2**50))
def test_bytes_come_back_exactly(count: int) -> None:
    assert quantity.to_bytes(quantity.from_bytes(count)) == count


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", "0.5"),
        ("1.5", "1.5"),
        (".5Gi", str(2**29)),
        ("1.", "1"),
        ("+3k", "3000"),
        ("2e3", "2000"),
        ("2E-1", "0.2"),
        ("1E", str(10**18)),
        ("1Ei", str(2**60)),
        ("0", "0"),
    ],
)
def test_the_forms(text: str, value: str) -> None:
    assert quantity.parse(text) == Decimal(value)


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "1\n", "-1", "12Q", "1KB", "1ki", "1e", "e3", ".", "1_0", "٣", "1" * 33, "1e100", "NaN"]
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(InvalidError, match="is not a quantity"):
        quantity.parse(text)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(text, quantity.Quantity)


@given(st.text(max_size=40))
def test_parse_and_the_type_agree(text: str) -> None:
    try:
        quantity.parse(text)
        parsed = True
    except InvalidError:
        parsed = False
    try:
        msgspec.convert(text, quantity.Quantity)
        typed = True
    except msgspec.ValidationError:
        typed = False
    assert parsed == typed


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (72 * 2**20, "72.0 MiB"), (2**50, "1024.0 TiB")],
)
def test_for_people(count: int, text: str) -> None:
    assert quantity.human_bytes(count) == text


def test_fractions_of_a_byte_round_up() -> None:
    assert quantity.to_bytes("1500m") == 2
