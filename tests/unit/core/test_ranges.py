"""`Range`, one part of it, from whoever sends whatever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.core.ranges import wanted_part

SIZES = st.integers(0, 2**50)


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-", (0, 10)),
        ("bytes=3-", (3, 10)),
        ("bytes=3-5", (3, 6)),
        ("bytes=3-99", (3, 10)),
        ("bytes=-4", (6, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=10-", (10, 10)),
        (" bytes=9- ", (9, 10)),
        ("bytes=5-3", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("bytes=\u0663-", None),
        ("bytes=1e3-", None),
        ("items=0-1", None),
        ("", None),
    ],
)
def test_parts(header: str, part: tuple[int, int] | None) -> None:
    assert wanted_part(header, 10) == part


@given(st.one_of(st.text(), st.from_regex(r"bytes=[0-9]{0,20}-[0-9]{0,20}", fullmatch=True)), SIZES)
def test_whatever_comes_is_a_part_within_the_size_or_nothing(header: str, size: int) -> None:
    part = wanted_part(header, size)
    if part is not None:
        start, end = part
        assert 0 <= end <= size
        assert start >= end or 0 <= start < end


@given(st.integers(0, 2**40), st.integers(0, 2**40), SIZES)
def test_what_is_there_is_given(first: int, last: int, size: int) -> None:
    part = wanted_part(f"bytes={first}-{last}", size)
    if first <= last and first < size:
        assert part == (first, min(last + 1, size))
