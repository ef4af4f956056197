from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skerry.core.allowance import Bucket, Buckets, Rate


@given(
    burst=st.integers(1, 5),
    seconds=st.floats(0.1, 10),
    steps=st.lists(st.floats(0, 20), max_size=40),
)
def test_never_more_than_the_burst_and_what_has_come_since(burst: int, seconds: float, steps: list[float]) -> None:
    bucket, now, taken = Bucket(Rate(burst=burst, seconds=seconds), 0.0), 0.0, []
    for step in steps:
        now += step
        if bucket.take(now):
            taken.append(now)
    for begin, first in enumerate(taken):
        for count, last in enumerate(taken[begin:], 1):
            assert count <= burst + (last - first) / seconds + 1e-6


def test_it_says_how_long_to_wait_and_is_full_again_in_time() -> None:
    bucket = Bucket(Rate(burst=2, seconds=10.0), 0.0)
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]
    assert bucket.wait(0.0) == 10.0
    assert bucket.wait(4.0) == 6.0
    assert bucket.take(10.0)
    assert not bucket.take(10.0)
    assert [bucket.take(1000.0) for _ in range(3)] == [True, True, False]


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    bucket = Bucket(Rate(burst=1, seconds=1.0), 5.0)
    assert bucket.take(5.0)
    assert not bucket.take(4.0)
    assert not bucket.take(5.5)


def test_keys_have_allowances_of_their_own_and_are_bounded_in_number() -> None:
    buckets: Buckets[int] = Buckets(Rate(burst=1, seconds=100.0), most=3)
    assert all(buckets.take(key, 0.0) for key in range(3))
    assert not buckets.take(0, 0.0)
    assert buckets.take(3, 0.0)
    assert len(buckets) == 3
    assert not buckets.take(0, 0.0)  # it was used after the others, so one of them was forgotten
    assert buckets.take(1, 0.0)
