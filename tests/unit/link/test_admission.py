from __future__ import annotations

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from skerry.drivers.link.admission import Admission, Waiter, Waiting


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


@given(
    st.integers(1, 6),
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(["enter", "identify", "leave"]), st.integers(0, 9), st.sampled_from("abc"))),
)
def test_whoever_waits_longest_makes_room(in_all: int, each: int, deeds: list[tuple[str, int, str]]) -> None:
    waiting = Waiting(in_all=in_all, each=each)
    waiters: dict[int, Waiter] = {}
    arrived: list[int] = []
    shown: list[tuple[int, str]] = []
    ended: list[int] = []

    def remember(number: int, _: str) -> None:
        ended.append(number)

    for deed, number, subject in deeds:
        expected = list[int]()
        if deed == "enter" and number not in arrived:
            waiters[number] = Waiter(end=partial(remember, number))
            arrived.append(number)
            expected = arrived[:1] if len(arrived) > in_all else []
            waiting.enter(waiters[number])
        elif deed == "identify" and number in waiters and number not in [one for one, _ in shown]:
            if number in arrived:
                shown.append((number, subject))
                own = [one for one, what in shown if what == subject]
                expected = own[:1] if len(own) > each else []
            waiting.identify(waiters[number], subject)
        elif deed == "leave" and number in waiters:
            waiting.leave(waiters[number])
            arrived = [one for one in arrived if one != number]
            shown = [entry for entry in shown if entry[0] != number]
        assert ended == expected
        arrived = [one for one in arrived if one not in ended]
        shown = [entry for entry in shown if entry[0] not in ended]
        ended.clear()
        assert len(waiting) == len(arrived)
