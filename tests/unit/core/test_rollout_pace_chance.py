"""Pacing by chance: whatever the plan and the fleet do, no bound is exceeded."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.rollout_world import (
    HubDiedError,
    Sim,
    World,
    make_spec,
)

from skerry.api.kinds.gates import Gates, SuccessGate
from skerry.api.kinds.model_deployment import Strategy, Wave
from skerry.api.kinds.pacing import Disruption, Rate, UpdateWindows, Window
from skerry.api.meta import LabelSelector
from skerry.core import promotion, windows
from skerry.core.messages import WindowDesired

RATES = st.one_of(
    st.none(),
    st.builds(
        Rate,
        base=st.integers(1, 3),
        factor=st.sampled_from([1.0, 1.5, 2.0]),
        max_per_minute=st.sampled_from([3, 10, 1000]),
    ),
)
BUDGETS = st.one_of(
    st.none(),
    st.builds(Disruption, group_by=st.sampled_from(["", "site"]), max_unavailable=st.sampled_from(["1", "2", "40%"])),
    st.builds(Disruption, group_by=st.sampled_from(["", "site"]), min_available=st.sampled_from(["1", "50%"])),
)
OFTEN = st.builds(
    Window,
    schedule=st.sampled_from(["*/10 * * * *", "5,35 * * * *"]),
    duration=st.sampled_from(["1m", "4m"]),
    spread=st.sampled_from(["0s", "1m"]),
)
TIMES = st.builds(UpdateWindows, download=st.lists(OFTEN, max_size=1), switch_over=st.lists(OFTEN, max_size=1))
PLANS = st.lists(
    st.builds(
        Wave,
        count=st.integers(1, 6),
        selector=st.sampled_from([None, None, LabelSelector(match_labels={"site": "site-a"})]),
        promotion=st.sampled_from([None, None, "manual"]),
    ),
    max_size=3,
).map(lambda listed: [*listed, Wave(percent=100)])
STRATEGIES = st.builds(
    Strategy,
    waves=PLANS,
    gates=st.sampled_from([Gates(), Gates(success_ratio=SuccessGate(min=0.5))]),
    rate=RATES,
    disruption=BUDGETS,
    windows=TIMES,
    success_threshold=st.sampled_from([None, None, "60%", "2"]),
    failure_threshold=st.sampled_from([None, None, "1", "50%"]),
    bake_time=st.sampled_from(["0s", "10s"]),
    device_timeout=st.just("60s"),
    on_failure=st.sampled_from(["rollback", "pause"]),
)
SIMS = st.builds(
    Sim,
    name=st.sampled_from([f"d{i}" for i in range(10)]),
    site=st.sampled_from(["site-a", "site-a", "site-b", ""]),
    online=st.sampled_from([True, True, True, False]),
    delay=st.sampled_from([0.0, 5.0, 20.0]),
    broken=st.sampled_from([frozenset(), frozenset(), frozenset(), frozenset({"v2"})]),
)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "leave", "site", "v2", "v3", "strategy", "approve", "abort", "pause", "crash"]),
        st.integers(0, 9),
    ),
    max_size=7,
)


@settings(max_examples=60, deadline=None)
@given(
    sims=st.lists(SIMS, min_size=1, max_size=7, unique_by=lambda sim: sim.name),
    strategies=st.lists(STRATEGIES, min_size=1, max_size=2),
    events=EVENTS,
)
def test_no_bound_is_exceeded_whatever_happens(
    sims: list[Sim], strategies: list[Strategy], events: list[tuple[str, int]]
) -> None:
    world = World(sims, make_spec(waves=[Wave(name="all", percent=100)]))
    world.run(20, tick=10)
    world.change(model_version="v2", strategy=strategies[0])
    world.run(300, tick=15)
    for kind, number in events:
        happen(world, sims[number % len(sims)], kind, number, strategies)
        world.run(120, tick=15)
    for sim in sims:
        sim.online = True
    for _ in range(5):
        for row in world.newest.status.waves:
            world.annotate(promotion.APPROVED, row.name)
        world.change(paused=False)
        world.run(1200, tick=45)
    check_switches(world)
    check_end(world)


def happen(world: World, sim: Sim, kind: str, number: int, strategies: list[Strategy]) -> None:
    if kind in ("v2", "v3"):
        world.change(model_version=kind)
    elif kind == "strategy":
        world.change(strategy=strategies[number % len(strategies)])
    elif kind == "approve":
        rows = world.newest.status.waves
        world.annotate(promotion.APPROVED, rows[number % len(rows)].name if rows else "")
    elif kind == "abort":
        world.annotate(promotion.ABORT, "")
    elif kind == "pause":
        world.change(paused=not world.deployment.spec.paused)
    elif kind == "site":
        sim.site = "site-b" if sim.site == "site-a" else "site-a"
    elif kind == "crash":
        world.writes_left = number
        with contextlib.suppress(HubDiedError):
            world.reconcile()
        world.writes_left = None
    else:
        field = {"flip": "online", "leave": "selected"}[kind]
        setattr(sim, field, not getattr(sim, field))


def check_switches(world: World) -> None:
    """No device ever switched over outside of the windows it was told of."""
    for sim in world.sims.values():
        for when, workload in sim.switched:
            told: list[WindowDesired] = workload.windows.switch_over if workload.windows is not None else []
            assert windows.opening(told, when) == when


def check_end(world: World) -> None:
    """With everybody back and every approval given, only a lack of devices or a budget keeps it from an end."""
    newest, reason = world.newest, world.condition()[1]
    if newest.status.phase not in ("Succeeded", "RolledBack"):
        blocked = {"DisruptionBudget", "WindowClosed"} if world.deployment.spec.strategy.disruption else set()
        assert reason in {"NoDevices", "GateFailed", "RollingOut", *blocked}, (newest.status, reason)
    if newest.status.phase == "RolledBack":
        assert world.count(newest.metadata.name) == 0
    if newest.status.phase == "Succeeded" and not world.deployment.spec.strategy.disruption:
        selected = sorted(sim.name for sim in world.sims.values() if sim.selected)
        assert world.on(newest.metadata.name) == selected
