"""What is kept for a while, against a plain model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skerry.kit.expiring import Expiring


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 4), st.integers(1, 5)),
        st.tuples(st.just("get"), st.integers(0, 4), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 3), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS)
def test_it_keeps_what_holds_and_no_more(steps: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    kept: Expiring[int, int | None] = Expiring(3, clock)
    model: list[tuple[int, int | None, float]] = []
    for number, (step, key, seconds) in enumerate(steps):
        if step == "put":
            value = None if number % 3 == 0 else number
            kept.put(key, value, seconds)
            model = [*[entry for entry in model if entry[0] != key][-2:], (key, value, clock.now + seconds)]
        elif step == "wait":
            clock.now += key
        else:
            good = [(value,) for known, value, until in model if known == key and clock.now < until]
            assert kept.get(key) == (good[0] if good else None)
            if not good:
                model = [entry for entry in model if entry[0] != key]
        assert len(kept) <= 3
