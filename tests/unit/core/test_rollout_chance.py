"""Rollouts by chance in virtual time: a hub that dies after every write, and fleets that do what they like."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.rollout_world import (
    ACCURACY,
    MIB,
    NAME,
    WAVES,
    HubDiedError,
    Sim,
    World,
    make_spec,
)

from skerry.api.kinds.gates import AccuracyGate, Gates, SuccessGate
from skerry.api.kinds.model_deployment import (
    Wave,
)
from skerry.core.desired import DesiredRecord


def _story(world: World) -> None:
    """v1 everywhere, then v2, which fails on its accuracy."""
    world.run(12)
    world.change(model_version="v2")
    world.run(25)


def _outcome(world: World) -> tuple[object, ...]:
    return (
        {name: item.status.phase for name, item in world.rollouts.items()},
        {name: [w.phase for w in item.status.waves] for name, item in world.rollouts.items()},
        {uid: [a.workload for a in record.assignments] for uid, record in world.records.items()},
        {uid: record.manifest_version for uid, record in world.records.items()},
    )


def _crashing(world: World, every: int) -> Iterator[int]:
    """Reconcile with a hub that dies after each `every` writes and starts again."""
    calm = world.reconcile

    def stubborn() -> None:
        for _ in range(100):
            world.writes_left = every
            try:
                calm()
            except HubDiedError:
                continue
            finally:
                world.writes_left = None
            return
        raise AssertionError("a hub that dies and starts again does not come to rest")

    world.reconcile = stubborn  # type: ignore[method-assign]
    _story(world)
    yield world.writes


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_a_hub_killed_after_any_write_comes_to_the_same_end(every: int) -> None:
    def sims() -> list[Sim]:
        return [Sim(name=f"till-{i}", accuracy={"v2": 0.3 if i != 2 else 0.99}) for i in range(5)]

    calm = World(sims(), make_spec(waves=WAVES, gates=ACCURACY))
    _story(calm)
    assert {name: item.status.phase for name, item in calm.rollouts.items()} == {
        "digits-1": "Succeeded",
        "digits-2": "RolledBack",
    }
    killed = World(sims(), make_spec(waves=WAVES, gates=ACCURACY))
    assert next(_crashing(killed, every)) > 10
    assert _outcome(killed) == _outcome(calm)


SIMS = st.builds(
    Sim,
    name=st.sampled_from([f"d{i}" for i in range(12)]),
    online=st.sampled_from([True, True, True, False]),
    cordoned=st.sampled_from([False, False, False, True]),
    memory=st.sampled_from([100 * MIB, 100 * MIB, MIB]),
    delay=st.sampled_from([0.0, 1.0, 3.0, 90.0]),
    broken=st.sampled_from([frozenset(), frozenset(), frozenset({"v1"}), frozenset({"v2"})]),
    silent=st.sampled_from([frozenset(), frozenset(), frozenset({"v2"})]),
    accuracy=st.dictionaries(st.sampled_from(["v1", "v2"]), st.sampled_from([0.95, 0.99, 0.3])),
)
EVENTS = st.lists(
    st.tuples(st.sampled_from(["flip", "cordon", "leave", "v1", "v2", "v3", "pause", "crash"]), st.integers(0, 11)),
    max_size=8,
)


@settings(max_examples=120, deadline=None)
@given(
    sims=st.lists(SIMS, max_size=8, unique_by=lambda sim: sim.name),
    counts=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    ratio=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    events=EVENTS,
)
def test_whatever_the_fleet_does_the_rules_hold(
    sims: list[Sim], counts: list[int], ratio: float, events: list[tuple[str, int]]
) -> None:
    plan = [*(Wave(count=count) for count in sorted(counts)), Wave(percent=100)]
    gates = Gates(success_ratio=SuccessGate(min=ratio), accuracy=AccuracyGate(min=0.9))
    world = World(sims, make_spec(waves=plan, gates=gates, bakeTime="2s"))
    world.run(10, tick=2)
    for kind, number in events:
        sim = sims[number % len(sims)] if sims else None
        if kind.startswith("v"):
            world.change(model_version=kind)
        elif kind == "pause":
            world.change(paused=not world.deployment.spec.paused)
        elif kind == "crash":
            world.writes_left = number
            with contextlib.suppress(HubDiedError):
                world.reconcile()
            world.writes_left = None
        elif sim is not None:
            field_name = {"flip": "online", "cordon": "cordoned", "leave": "selected"}[kind]
            setattr(sim, field_name, not getattr(sim, field_name))
        world.run(6, tick=2)
    world.run(400, tick=5)
    _check_end(world)


def _check_end(world: World) -> None:
    newest = world.newest
    for sim in world.sims.values():
        assert sim.versions == sorted(set(sim.versions)), "a device saw its version fall"
        held = world.records.get(f"u-{sim.name}", DesiredRecord(uid="", namespace="", device="")).find(NAME)
        assert sim.selected or held is None, "a device that left still holds the workload"
        if newest.status.phase == "RolledBack":
            assert held is None or held.workload.rollout != newest.metadata.name
            if sim.online and sim.running:
                assert sim.running.rollout != newest.metadata.name, "an online device still runs what failed"
        if newest.status.phase == "Succeeded" and sim.selected and not sim.cordoned and sim.memory > MIB:
            assert held is not None
            assert held.workload.rollout == newest.metadata.name
    for item in world.rollouts.values():
        assert item is newest or item.status.phase in ("Succeeded", "RolledBack", "Superseded")
    assert newest.status.phase in ("Pending", "Paused", "Succeeded", "RolledBack", "Progressing")
    if newest.status.phase == "Progressing":  # only for want of devices
        assert world.condition()[1] in ("NoDevices", "NoVariantFits")
