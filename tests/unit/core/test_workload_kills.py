"""The workload's state machine: a kill before and after every single instruction."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.core.workload_world import (
    MEASURED,
    OBSERVED,
    SHADOWED,
    Agent,
    World,
    install,
    live,
    prepared,
    tried,
    wish,
)

from skerry.api.kinds.device import ShadowReport
from skerry.core import workload
from skerry.core.messages import WorkloadDesired

SCENARIOS: dict[str, tuple[tuple[str, ...], WorkloadDesired | None, Mapping[str, object], str, str]] = {
    # name: (installed before, wish, what is wrong, expected phase, expected running version)
    "install": ((), wish("v1"), {}, "Running", "v1"),
    "update": (("v1",), wish("v2"), {}, "Running", "v2"),
    "third": (("v1", "v2"), wish("v3"), {}, "Running", "v3"),
    "fixed port": (("v1",), wish("v2", port=8080), {}, "Running", "v2"),
    "rollback: server": (("v1",), wish("v2"), {"broken": frozenset({"v2"})}, "Running", "v1"),
    "rollback: probe": (("v1",), wish("v2"), {"unprobeable": frozenset({"v2"})}, "Running", "v1"),
    "rollback: fetch": (("v1",), wish("v2"), {"missing": frozenset({"v2"})}, "Running", "v1"),
    "first fails": ((), wish("v1"), {"broken": frozenset({"v1"})}, "Failed", ""),
    "removal": (("v1", "v2"), None, {}, "", ""),
    "shadow": (("v1",), tried("v2"), {}, "Running", "v2"),
    "shadow: disagrees": (("v1",), tried("v2"), {"disagreeing": frozenset({"v2"})}, "Running", "v1"),
    "shadow: nothing to replace": ((), tried("v1"), {}, "Running", "v1"),
    "shadow: the same again": (("v1",), tried("v1", rollout="digits-9"), {}, "Running", "v1"),
    "damaged": (("v1", "v2"), wish("v2"), {"rotten": frozenset({"v2"})}, "Running", "v2"),
    "damaged, and the previous": (("v1", "v2"), wish("v2"), {"rotten": frozenset({"v1", "v2"})}, "Running", "v2"),
    "damaged, and another wanted": (("v1", "v2"), wish("v3"), {"rotten": frozenset({"v2"})}, "Running", "v3"),
    "damaged, and gone from the registry": (
        ("v1", "v2"),
        wish("v2"),
        {"rotten": frozenset({"v2"}), "lost": frozenset({"v2"})},
        "Running",
        "v1",
    ),
}


@pytest.mark.parametrize("power", [False, True], ids=["agent killed", "power cut"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_every_instruction_converges(name: str, power: bool) -> None:
    before, desired, wrong, phase, version = SCENARIOS[name]
    whole = prepared(*before, **wrong)
    install(whole, desired)
    assert whole.instruction > 5
    for kill_at in range(1, whole.instruction + 1):
        world = prepared(*before, **wrong)
        world.kill_at, world.power = kill_at, power
        world.must_serve = bool(before) and desired is not None and not power
        world.must_serve = world.must_serve and not world.rotten
        agent = install(world, desired)
        check_rest(world, agent, desired, phase, version)


@pytest.mark.parametrize("power", [False, True], ids=["agent killed", "power cut"])
@pytest.mark.parametrize("wanted", ["v2", "v3"])
def test_damaged_without_a_network_the_previous_version_serves_through_every_kill(wanted: str, power: bool) -> None:
    def damaged() -> World:
        world = prepared("v1", "v2", rotten=frozenset({"v2"}))
        world.away = frozenset({"v2", "v3"})
        return world

    whole = damaged()
    install(whole, wish(wanted))
    for kill_at in range(1, whole.instruction + 1):
        world = damaged()
        world.kill_at, world.power = kill_at, power
        agent = install(world, wish(wanted))
        status = workload.report(agent.state)
        assert (status.phase, status.rollout) == ("Fetching", wish(wanted).rollout)
        assert status.running is not None
        assert status.running.model_version == "digits-v1"
        assert world.accepting == set(world.servers)
        assert status.running.port == world.endpoint
        world.away, world.kill_at, world.must_serve = frozenset(), -1, True
        check_rest(world, install(world, wish(wanted)), wish(wanted), "Running", wanted)


def check_rest(world: World, agent: Agent, desired: WorkloadDesired | None, phase: str, version: str) -> None:
    if desired is None:
        assert agent.gone
        assert (world.journal, world.servers, world.files) == (None, {}, set())
        return
    state = agent.state
    assert state.phase == phase
    assert state.candidate is None
    assert state == world.journal
    status = workload.report(state)
    assert status.rollout == desired.rollout
    assert world.files == {slot.serial for slot in state.slots}
    if not version:
        assert status.running is None
        assert world.servers == {}
        return
    assert state.current is not None
    assert status.running is not None
    assert status.running.model_version == f"digits-{version}"
    assert world.servers == {state.current.serial: state.current.port}
    assert world.accepting == {state.current.serial}
    assert status.running.port == state.endpoint == world.endpoint
    if desired.serving.port and version == desired.version:
        assert status.running.port == desired.serving.port
    if version == desired.version:
        assert status.message == ""
        assert status.install_seconds is not None
        assert status.measurement is not None
        assert status.measurement.accuracy == MEASURED.accuracy
        assert status.observation == (None if desired.observe is None else OBSERVED)
        if desired.shadow is not None:
            assert status.shadow in (SHADOWED, ShadowReport())
    else:
        assert status.message.startswith("While ")
        assert status.measurement is None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    wishes=st.lists(st.sampled_from(["v1", "v2", "v3", "v4", "-"]), min_size=1, max_size=6),
    kills=st.lists(st.integers(min_value=1, max_value=60), max_size=4),
    power=st.booleans(),
)
def test_any_wishes_and_kills_end_where_the_last_wish_leads(wishes: list[str], kills: list[int], power: bool) -> None:
    world = World(broken=frozenset({"v3"}), unprobeable=frozenset({"v4"}), power=power)
    left = deque(kills)
    for version in wishes:
        world.wanted = None if version == "-" else wish(version)
        world.instruction, world.kill_at = 0, left.popleft() if left else -1
        agent = live(world)
    last = wishes[-1]
    if last == "-":
        assert (world.journal, world.servers, world.files) == (None, {}, set())
    elif last in ("v1", "v2"):
        check_rest(world, agent, wish(last), "Running", last)
    else:
        good = [v for v in wishes if v not in ("v3", "v4")]
        expected = good[-1] if good and good[-1] != "-" else ""
        check_rest(world, agent, wish(last), "Running" if expected else "Failed", expected)
