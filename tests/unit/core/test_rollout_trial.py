"""Rollouts whose gates look at the bake time and at shadow mode: what they wait for, how long, and where it leads."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.rollout_world import MIB, NAME, Sim, World, make_spec

from skerry.api.kinds.device import Observation, ShadowReport
from skerry.api.kinds.gates import ErrorRateGate, Gates, HealthGate, Shadow, ShadowGate, SuccessGate
from skerry.api.kinds.model_deployment import Wave
from skerry.core.desired import DesiredRecord
from skerry.core.messages import WorkloadDesired

PLAN = [Wave(name="canary", count=1), Wave(name="all", percent=100)]
ENDS = [("fail", "RolledBack"), ("ignore", "Succeeded"), ("wait", "Progressing")]
BAKED = Gates(health=HealthGate(), error_rate=ErrorRateGate(max=0.1, min_samples=10))


@dataclass
class Tried(Sim):
    """A device that watches itself and runs versions in the shadow, as it is told."""

    requests: int = 50
    """In a window."""
    errors: int = 0
    restarts: int = 0
    observes: bool = True
    """False: its agent is too old."""
    lag: float = 0.0
    """How much later than its end a window is told."""
    agreed: int = 50
    """Of 50 requests in the shadow."""
    shadow_began: datetime | None = None

    def tick(self, record: DesiredRecord | None, now: datetime) -> None:
        super().tick(record, now)
        wanted = self.accepted.find(NAME) if self.accepted is not None else None
        if wanted is None or self.report is None or self.running is None or not self.observes or not self.online:
            return
        asked = wanted.workload.observe
        if asked is None or self.running.rollout != wanted.workload.rollout:
            return
        served = (now - self.running.since).total_seconds()
        seen = Observation(seconds=min(served, asked.seconds * 0.9), restarts=self.restarts)
        if served >= asked.seconds + self.lag:
            seen = Observation(
                seconds=asked.seconds, requests=self.requests, errors=self.errors, restarts=self.restarts, checks=20
            )
        self.report = msgspec.structs.replace(self.report, observation=seen)

    def switch(self, workload: WorkloadDesired, now: datetime) -> None:
        asked = workload.shadow
        if asked is None or self.running is None or not self.observes:
            super().switch(workload, now)
            return
        self.shadow_began = self.shadow_began or now
        served = (now - self.shadow_began).total_seconds()
        if served < asked.seconds:
            self.report = self.about(workload, "Shadowing")
            return
        report = ShadowReport(beside=self.running.model_version, requests=50, answered=50, agreed=self.agreed)
        if asked.min_agreement is not None and self.agreed / 50 < asked.min_agreement:
            gone = msgspec.structs.replace(self.about(workload, "Running"), shadow=report)
            self.report = msgspec.structs.replace(gone, message="While Shadowing, shadow mode failed")
            return
        super().switch(workload, now)
        assert self.report is not None
        self.report = msgspec.structs.replace(self.report, shadow=report)
        self.proven = self.report


def fleet(count: int, **changes: object) -> list[Sim]:
    return [Tried(name=f"d{n}", delay=0, **changes) for n in range(count)]  # type: ignore[arg-type]


def trying(sims: list[Sim], gates: Gates, **strategy: object) -> World:
    """A fleet on v1, and v2 on its way with these gates."""
    world = World(sims, make_spec(waves=PLAN))
    assert world.run(20).status.phase == "Succeeded"
    kept = {"waves": PLAN, "gates": gates, **strategy}
    world.change(model_version="v2", strategy=make_spec(**kept).strategy)
    return world


def verdicts(world: World, wave: int = 0) -> dict[str, str]:
    return {gate.gate: gate.verdict for gate in world.newest.status.waves[wave].gates}


def test_a_wave_passes_when_its_devices_were_watched_to_the_end() -> None:
    world = trying(fleet(3), BAKED, bakeTime="30s")
    world.run(10)
    assert world.newest.status.waves[0].phase == "Baking"
    assert verdicts(world) == {"successRatio": "Pending", "health": "Pending", "errorRate": "Pending"}
    done = world.run(100)
    assert done.status.phase == "Succeeded"
    [row] = [gate for gate in done.status.waves[1].gates if gate.gate == "errorRate"]
    assert (row.verdict, row.measured, row.samples, row.devices) == ("Passed", 0.0, 150, 3)


def test_a_late_word_on_the_bake_time_is_waited_for() -> None:
    world = trying(fleet(2, lag=20.0), BAKED, bakeTime="30s")
    world.run(40)
    assert world.newest.status.waves[0].phase == "Baking"
    assert "waiting at gate health: 0 of 1 devices stayed up; 1 still watched" in world.newest.status.message
    assert world.wake_at is not None
    assert world.run(200).status.phase == "Succeeded"


@pytest.mark.parametrize(
    ("missing", "phase"), [("fail", "RolledBack"), ("ignore", "Succeeded"), ("wait", "Progressing")]
)
def test_windows_that_never_close(missing: str, phase: str) -> None:
    gates = Gates(health=HealthGate(missing=missing, min_devices=0))  # type: ignore[arg-type]
    world = trying(fleet(2, lag=1e6), gates, bakeTime="30s", deviceTimeout="60s")
    assert world.run(300).status.phase == phase


@pytest.mark.parametrize(
    ("missing", "phase"), [("fail", "RolledBack"), ("ignore", "Succeeded"), ("wait", "Progressing")]
)
def test_agents_that_are_too_old_to_watch(missing: str, phase: str) -> None:
    gates = Gates(health=HealthGate(missing=missing, min_devices=0))  # type: ignore[arg-type]
    world = trying(fleet(2, observes=False), gates, bakeTime="30s")
    assert world.run(300).status.phase == phase


@pytest.mark.parametrize(
    ("faults", "gate"), [({"errors": 20}, "errorRate"), ({"restarts": 1}, "health"), ({"requests": 3}, "errorRate")]
)
def test_what_goes_wrong_in_the_bake_time_brings_the_version_before_back(faults: dict[str, int], gate: str) -> None:
    world = trying(fleet(3, **faults), BAKED, bakeTime="30s")
    done = world.run(200)
    assert done.status.phase == "RolledBack"
    assert f"gate {gate}" in done.status.message
    assert {sim.running.model_version for sim in world.sims.values() if sim.running is not None} == {"v1"}
    assert all(record.find(NAME).workload.observe is None for record in world.records.values() if record.find(NAME))  # type: ignore[union-attr]


def test_a_canary_that_worsens_stops_the_waves_after_it() -> None:
    world = trying(fleet(3), BAKED, bakeTime="30s")
    world.run(40)
    assert world.newest.status.current_wave == 1
    [canary] = [sim for sim in world.sims.values() if sim.name == world.newest.status.waves[0].devices[0].name]
    assert isinstance(canary, Tried)
    canary.restarts = 1
    assert world.run(100).status.phase == "RolledBack"


# --- shadow mode --------------------------------------------------------------------------------------------------

SHADOW = Shadow(share=0.5, duration="120s", min_requests=10)
AGREES = Gates(shadow_agreement=ShadowGate(min=0.9))


def test_time_in_the_shadow_is_no_time_that_a_device_is_late() -> None:
    world = trying(fleet(2), AGREES, shadow=SHADOW, deviceTimeout="60s")
    world.run(100)
    assert world.newest.status.waves[0].devices[0].phase == "Shadowing"
    assert world.newest.status.phase == "Progressing"
    done = world.run(300)
    assert done.status.phase == "Succeeded"
    [row] = [gate for gate in done.status.waves[1].gates if gate.gate == "shadowAgreement"]
    assert (row.verdict, row.measured, row.samples) == ("Passed", 1.0, 100)


def test_a_version_that_disagrees_in_the_shadow_never_serves() -> None:
    world = trying(fleet(2, agreed=20), AGREES, shadow=SHADOW)
    done = world.run(300)
    assert done.status.phase == "RolledBack"
    assert "shadowAgreement: agreement on real requests" in done.status.message
    assert all("v2" not in [w.model_version for _, w in sim.switched] for sim in world.sims.values())


def test_a_device_that_stays_in_the_shadow_too_long_fails_unless_it_is_waited_for() -> None:
    for missing, phase in (("fail", "RolledBack"), ("wait", "Progressing")):
        gates = Gates(shadow_agreement=ShadowGate(min=0.9, missing=missing))  # type: ignore[arg-type]
        world = trying(fleet(2), gates, shadow=SHADOW, deviceTimeout="60s")
        world.run(5)
        for sim in world.sims.values():
            assert isinstance(sim, Tried)
            sim.shadow_began = world.now + timedelta(days=1)
        assert world.run(400).status.phase == phase


# --- silent devices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "phase"), [("fail", "RolledBack"), ("ignore", "Succeeded"), ("wait", "Progressing")]
)
def test_devices_that_are_away_fail_do_not_count_or_are_waited_for(missing: str, phase: str) -> None:
    gates = Gates(success_ratio=SuccessGate(missing=missing))  # type: ignore[arg-type]
    world = trying(fleet(4), gates, deviceTimeout="30s")
    world.sims["d3"].online = False
    assert world.run(200).status.phase == phase
    if missing == "wait":
        assert "waiting for d3" in world.newest.status.message
        world.sims["d3"].online = True
        assert world.run(100).status.phase == "Succeeded"


# --- whatever a fleet does ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    devices=st.lists(
        st.fixed_dictionaries(
            {
                "requests": st.sampled_from([0, 50]),
                "errors": st.sampled_from([0, 0, 20]),
                "restarts": st.sampled_from([0, 0, 1]),
                "observes": st.sampled_from([True, True, False]),
                "lag": st.sampled_from([0.0, 15.0, 1e6]),
                "agreed": st.sampled_from([50, 50, 10]),
            }
        ),
        min_size=1,
        max_size=5,
    ),
    missing=st.sampled_from(["fail", "ignore", "wait"]),
    shadow=st.booleans(),
    seconds=st.integers(5, 400),
)
def test_nobody_gets_a_version_that_was_not_tried_as_the_gates_say(
    devices: list[dict[str, object]], missing: str, shadow: bool, seconds: int
) -> None:
    sims: list[Sim] = [Tried(name=f"d{n}", delay=0, **one) for n, one in enumerate(devices)]  # type: ignore[arg-type]
    gates = Gates(
        health=HealthGate(missing=missing),  # type: ignore[arg-type]
        error_rate=ErrorRateGate(max=0.1, missing=missing),  # type: ignore[arg-type]
        shadow_agreement=ShadowGate(min=0.9, missing=missing) if shadow else None,  # type: ignore[arg-type]
    )
    for sim in sims:
        assert isinstance(sim, Tried)
        if shadow and missing == "fail":
            sim.observes = True
    world = trying(sims, gates, bakeTime="30s", shadow=SHADOW if shadow else None)
    status = world.run(seconds).status
    passed = [wave for wave in status.waves if wave.phase == "Passed"]
    for wave in passed:
        assert {gate.verdict for gate in wave.gates} == {"Passed"}
    if status.phase == "Succeeded":
        watched = [sim for sim in sims if isinstance(sim, Tried) and sim.observes and sim.lag < 1e6]
        assert not any(sim.restarts for sim in watched)
        if missing != "ignore":
            assert len(watched) == len(sims)
        if shadow:
            assert all(sim.agreed == 50 for sim in sims if isinstance(sim, Tried) and sim.observes)


def test_a_device_without_memory_for_both_is_not_taken_and_the_reason_says_so() -> None:
    world = trying(fleet(2, memory=15 * MIB), AGREES, shadow=SHADOW)
    world.run(100)
    assert world.newest.status.phase == "Pending"
    assert world.newest.status.unplaced["d0"] == (
        "no variant fits: onnx-fp32 needs 10.0 MiB beside v1's 10.0 MiB in shadow mode, "
        "the device gives workloads 15.0 MiB"
    )
    world.change(strategy=make_spec(waves=PLAN).strategy, model_version="v3")
    assert world.run(100).status.phase == "Succeeded", "without a shadow there is room"
