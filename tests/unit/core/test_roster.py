"""The roster, which is told of single devices, holds to the plain fleet, which goes through all of them each time."""

from __future__ import annotations

import dataclasses
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.roster_world import CURRENT, Mirror

from skerry.api.errors import InvalidError
from skerry.api.kinds.device import Observation
from skerry.core import baking
from skerry.core import ranked as ranked_module
from skerry.core import spread as spread_module
from skerry.core.messages import WindowDesired, WindowsDesired
from skerry.core.ranked import Ranked
from skerry.core.spread import Spread


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


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_larger_fleet_too(seed: int) -> None:
    mirror = Mirror(seed, 200)
    for _ in range(12):
        mirror.step()
        for _ in range(10):
            mirror.change()
    mirror.step()


def test_the_fleets_made_up_come_to_all_phases_and_reasons() -> None:
    """What is never met is not compared."""
    met: set[str] = set()
    for seed in range(150):
        mirror = Mirror(seed, seed % 30)
        for _ in range(30):
            mirror.change()
            mirror.step()
        met |= mirror.met
    assert met >= {
        "Pending", "Progressing", "Paused", "RollingBack", "RolledBack", "Succeeded", "NoDevices", "NoVariantFits",
        "ModelVersionMissing", "AwaitingApproval", "RollingOut", "Baking", "GateFailed", "RateLimited", "WindowClosed",
        "DisruptionBudget",
    }  # fmt: skip


def test_a_device_takes_the_place_of_another_of_its_name_in_whatever_order_one_hears_of_it() -> None:
    mirror = Mirror(7, 3)
    old, *_ = mirror.roster
    mirror.step()
    new = dataclasses.replace(old, uid="another", assignment=None, report=None)
    mirror.roster.put(new)
    mirror.roster.drop(old.uid)
    assert mirror.roster.get(old.uid) is None
    assert mirror.roster.get("another") == new
    assert len(mirror.roster) == 3
    mirror.step()


def test_what_breaks_off_in_the_middle_is_begun_anew() -> None:
    """A device holds windows of a zone that is not known here: while it is judged, all is left as it is."""
    mirror = Mirror(3, 12)
    mirror.frame = dataclasses.replace(mirror.frame, rollout=mirror.rollouts[CURRENT], hold=None)
    mirror.step()
    victim = mirror.taken(CURRENT)
    assert victim.assignment is not None
    told = WindowsDesired(
        switch_over=[WindowDesired(schedule="* * * * *", time_zone="Mars/North", duration_seconds=60)]
    )
    workload = msgspec.structs.replace(victim.assignment.workload, windows=told)
    bad = msgspec.structs.replace(victim.assignment, workload=workload)
    for _ in range(2):
        mirror.roster.put(dataclasses.replace(victim, assignment=bad, report=None))
        for _ in range(2):
            with pytest.raises(InvalidError):
                mirror.roster.step(mirror.now)
            mirror.change()
            mirror.roster.turn(mirror.frame)
        mirror.roster.put(victim)
        mirror.step()


# --- parts ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "first"]), st.integers(0, 60)), max_size=200))
def test_a_ranked_mapping_gives_its_first_keys(changes: list[tuple[str, int]]) -> None:
    ranked: Ranked[int, int] = Ranked()
    known: dict[int, int] = {}
    for kind, number in changes:
        if kind == "add":
            ranked.add(number, number + 1)
            known[number] = number + 1
        elif kind == "discard":
            ranked.discard(number)
            known.pop(number, None)
        else:
            assert list(ranked.first(number)) == sorted(known)[:number]
        assert len(ranked) == len(known)
    assert list(ranked.walk()) == sorted(known)
    assert sorted(ranked) == sorted(known.values())


def test_a_long_ranked_mapping_stays_in_order_while_it_is_used_up_and_refilled() -> None:
    random = Random(1)
    ranked: Ranked[int, None] = Ranked()
    known: set[int] = set()
    for turn in range(60):
        for number in random.sample(range(10**6), 400):
            ranked.add(number, None)
            known.add(number)
        taken = ranked.first(random.choice([1, 50, 300, 5000]))
        assert list(taken) == sorted(known)[: len(taken)]
        for number in [*taken[: turn * 5], *random.sample(sorted(known), 30)]:
            ranked.discard(number)
            known.discard(number)


def test_a_ranked_mapping_does_not_grow_with_changes() -> None:
    """Devices leave and enter under the same keys for as long as a hub runs."""
    random = Random(1)
    ranked: Ranked[str, None] = Ranked()
    for number in range(1000):
        ranked.add(f"dev-{number:04}", None)
    kept = [f"dev-{number:04}" for number in range(5)]
    for turn in range(30_000):
        name = f"dev-{random.randrange(1000):04}"
        ranked.discard(name)
        ranked.add(name, None)
        if turn % 100 == 0:
            assert list(ranked.first(5)) == kept
        assert len(ranked._heap or ()) <= 2 * len(ranked) + ranked_module._LONG
    assert list(ranked.walk()) == [f"dev-{number:04}" for number in range(1000)]


def test_a_ranked_mapping_that_was_made_anew_gives_its_first_keys(monkeypatch) -> None:
    monkeypatch.setattr(ranked_module, "_LONG", 2)
    test_a_ranked_mapping_gives_its_first_keys()


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 100)), max_size=60), st.randoms(use_true_random=False))
def test_the_spread_gives_the_error_rate_of_what_is_left(pairs: list[tuple[int, int]], random: Random) -> None:
    pairs = [(requests, min(errors, requests)) for requests, errors in pairs]
    spread, left = Spread(), []
    for pair in pairs:
        spread.add(*pair)
        left.append(pair)
        if random.random() < 0.4:
            gone = left.pop(random.randrange(len(left)))
            spread.remove(*gone)
        seen = [(f"d{i}", Observation(requests=r, errors=e)) for i, (r, e) in enumerate(left)]
        assert spread.rate() == baking._rate(seen)[0]


def test_a_spread_of_many_blocks(monkeypatch) -> None:
    monkeypatch.setattr(spread_module, "_BLOCK", 4)
    test_the_spread_gives_the_error_rate_of_what_is_left()
