"""`Range` and `Content-Range`, against a plain model; nothing but the declared error comes out."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import InvalidError
from skerry.hub.server.registry.blobs import wanted_part
from skerry.hub.server.registry.uploads import sent_part

SIZES = st.integers(0, 50)


@given(size=SIZES, first=st.integers(0, 60), last=st.integers(0, 60))
def test_a_part_is_what_a_list_of_numbers_says(size: int, first: int, last: int) -> None:
    part = wanted_part(f"bytes={first}-{last}", size)
    if last < first:
        assert part is None
    else:
        assert part is not None
        assert list(range(size))[first : last + 1] == list(range(*part))


@given(size=SIZES, count=st.integers(0, 60))
def test_the_end_is_what_a_list_of_numbers_says(size: int, count: int) -> None:
    part = wanted_part(f"bytes=-{count}", size)
    assert part is not None
    assert (list(range(size))[-count:] if count else []) == list(range(*part))
    rest = wanted_part(f"bytes={count}-", size)
    assert rest is not None
    assert list(range(size))[count:] == list(range(*rest))


@given(text=st.text(max_size=60), size=SIZES)
def test_a_part_lies_in_the_blob_whatever_is_asked(text: str, size: int) -> None:
    part = wanted_part(text, size)
    assert part is None or part[0] >= part[1] or 0 <= part[0] < part[1] <= size


@given(start=st.integers(0, 10**18 - 1), length=st.integers(1, 10**6), form=st.sampled_from(["", "bytes "]))
def test_a_content_range_is_read_back(start: int, length: int, form: str) -> None:
    last = start + length - 1
    if last < 10**18:
        assert sent_part(f"{form}{start}-{last}") == (start, length)
        assert sent_part(f"{form}{start}-{last}/*") == (start, length)


@given(text=st.text(max_size=60))
def test_a_content_range_is_one_or_is_refused(text: str) -> None:
    with suppress(InvalidError):
        start, length = sent_part(text)
        assert (start is None) == (length is None) == (text == "")


@pytest.mark.parametrize("text", ["5-2", "-5", "5-", "a-b", "1-2-3", "bytes=1-2", "\uff11-\uff12", "9" * 19 + "-1"])
def test_what_is_no_content_range(text: str) -> None:
    with pytest.raises(InvalidError):
        sent_part(text)
