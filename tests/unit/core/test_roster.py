"""The roster, which is told of single devices, holds to the plain fleet, which goes through all of them each time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.roster_world import Mirror


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), devices=st.integers(0, 25), changes=st.integers(1, 60))
def test_every_step_of_a_roster_is_that_of_the_plain_fleet(seed: int, devices: int, changes: int) -> None:
    mirror = Mirror(seed, devices)
    mirror.step()
    for _ in range(changes):
        mirror.change()
        if mirror.random.random() < 0.7:
            mirror.step()
    mirror.step()
