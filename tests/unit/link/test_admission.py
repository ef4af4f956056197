from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skerry.drivers.link.admission import Admission


@given(
    st.floats(0.1, 50),
    st.integers(1, 20),
    st.lists(st.tuples(st.floats(0, 3), st.integers(0, 30)), max_size=30),
)
def test_never_more_than_the_burst_and_what_the_time_has_brought(
    rate: float, burst: int, arrivals: list[tuple[float, int]]
) -> None:
    now = 100.0
    admission = Admission(rate=rate, burst=burst, monotonic=lambda: now)
    admitted: list[float] = []
    for pause, count in arrivals:
        now += pause
        admitted += [now for _ in range(count) if admission.admit()]
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            assert last - first + 1 <= burst + rate * (admitted[last] - admitted[first]) + 1e-6


@given(st.floats(0.1, 50), st.integers(1, 20))
def test_after_a_quiet_time_the_burst_is_free_again(rate: float, burst: int) -> None:
    now = 0.0
    admission = Admission(rate=rate, burst=burst, monotonic=lambda: now)
    assert [admission.admit() for _ in range(burst + 1)] == [True] * burst + [False]
    now += burst / rate * 1.001
    assert [admission.admit() for _ in range(burst + 1)] == [True] * burst + [False]
