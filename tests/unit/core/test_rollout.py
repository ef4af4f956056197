"""Rollouts in virtual time: a simulated fleet that obeys, lags and fails."""

from __future__ import annotations

import contextlib
import dataclasses
from datetime import timedelta

import msgspec
import pytest
from tests.unit.core.rollout_world import (
    ACCURACY,
    MIB,
    NAME,
    WAVES,
    HubDiedError,
    Sim,
    World,
    fleet,
    make_model,
    make_spec,
    upgraded,
)

from skerry.api.kinds.gates import AccuracyGate, Gates, SuccessGate
from skerry.api.kinds.model_deployment import (
    Wave,
)
from skerry.api.kinds.rollout import WaveStatus
from skerry.core import waves
from skerry.drivers.store.log import MAX_VALUE_BYTES

# --- going forward -------------------------------------------------------------------------------------------------


def test_a_rollout_goes_through_its_waves_and_succeeds() -> None:
    world = World(fleet(6), make_spec(waves=WAVES, gates=ACCURACY))
    world.reconcile()
    assert [w.target for w in world.newest.status.waves] == [1, 3, 6]
    assert world.newest.status.phase == "Progressing"
    assert world.count("digits-1") == 1
    done = world.run(30)
    assert done.status.phase == "Succeeded"
    assert [(w.phase, w.assigned, w.running, w.failed) for w in done.status.waves] == [
        ("Passed", 1, 1, 0),
        ("Passed", 2, 2, 0),
        ("Passed", 3, 3, 0),
    ]
    assert world.serving("digits-1") == sorted(world.sims)
    assert world.condition() == ("True", "Complete")
    for wave in done.status.waves:
        assert {gate.gate: (gate.verdict, gate.measured) for gate in wave.gates} == {
            "successRatio": ("Passed", 1.0),
            "accuracy": ("Passed", 0.97),
        }
        assert wave.started_at is not None
        assert wave.finished_at is not None
        assert all(device.seconds is not None and device.seconds >= 1 for device in wave.devices)


def test_the_next_wave_never_starts_before_the_bake_time_is_over() -> None:
    world = World(fleet(4, delay=0), make_spec(waves=WAVES, bakeTime="30s"))
    world.run(1)
    canary = world.newest.status.waves[0]
    assert canary.phase == "Baking"
    assert {gate.verdict for gate in canary.gates} == {"Pending"}
    settled = canary.settled_at
    assert settled is not None
    assert world.wake_at == settled + timedelta(seconds=30)
    world.run(29)
    assert world.count("digits-1") == 1
    world.run(1)
    assert world.count("digits-1") == 2


def test_a_device_that_stops_serving_while_baking_makes_the_bake_start_again() -> None:
    world = World(fleet(2, delay=0), make_spec(waves=WAVES, bakeTime="30s"))
    world.run(10)
    canary = world.sims[world.on("digits-1")[0]]
    assert canary.report is not None
    running, canary.running = canary.running, None
    canary.report = msgspec.structs.replace(canary.report, phase="Starting", running=None, measurement=None)
    canary.delay = 1000
    world.reconcile()
    assert world.newest.status.waves[0].phase == "Progressing"
    assert world.newest.status.waves[0].settled_at is None
    canary.running, canary.delay = running, 0
    canary.report = msgspec.structs.replace(canary.report, phase="Running", running=running)
    world.run(25)
    assert world.count("digits-1") == 1


def test_a_restart_of_a_measured_device_is_no_failure() -> None:
    world = upgraded(fleet(4))
    world.run(3)
    canary = world.sims[world.newest.status.waves[0].devices[0].name]
    assert canary.report is not None
    canary.report = msgspec.structs.replace(canary.report, phase="Starting", running=None)
    assert world.run(100).status.phase == "Succeeded"


def test_measured_but_never_served_is_waited_for_and_then_failed() -> None:
    """Probed on one port, it cannot be had on the port asked for: a whole fleet may be in this state at once."""
    world = World(fleet(4, portless=frozenset({"v1"})), make_spec(waves=WAVES, gates=ACCURACY))
    waiting = world.run(50)
    assert (waiting.status.phase, waiting.status.current_wave) == ("Progressing", 0)
    assert [(d.phase, d.measurement is not None) for d in waiting.status.waves[0].devices] == [("Starting", True)]
    failed = world.run(100)
    assert failed.status.phase == "RolledBack"
    assert "it was not Running within 60 s" in failed.status.message


def test_a_device_of_a_passed_wave_that_installs_again_is_no_failure() -> None:
    world = upgraded(fleet(4), deviceTimeout="30s", bakeTime="100s")
    world.run(103)
    assert world.newest.status.current_wave == 1
    canary = world.sims[world.newest.status.waves[0].devices[0].name]
    assert canary.report is not None
    canary.report = msgspec.structs.replace(canary.report, phase="Fetching", running=None, measurement=None)
    assert world.run(300).status.phase == "Succeeded"


def test_the_order_is_decided_by_rollout_and_device_and_online_ones_come_first() -> None:
    world = World(fleet(9), make_spec(waves=[Wave(count=3), Wave(percent=100)]))
    world.reconcile()
    first = world.on("digits-1")
    again = World(list(reversed(fleet(9))), make_spec(waves=[Wave(count=3), Wave(percent=100)]))
    again.reconcile()
    assert again.on("digits-1") == first
    offline = [Sim(name=f"till-{i}", online=f"till-{i}" not in first) for i in range(9)]
    away = World(offline, make_spec(waves=[Wave(count=3), Wave(percent=100)]))
    away.reconcile()
    assert not set(away.on("digits-1")) & set(first)


def test_percentages_round_up_over_devices_that_can_be_placed() -> None:
    sims = [*fleet(5), Sim(name="small", memory=MIB), Sim(name="held", cordoned=True)]
    world = World(sims, make_spec(waves=[Wave(percent=50), Wave(percent=100)]))
    world.reconcile()
    assert [w.target for w in world.newest.status.waves] == [3, 5]
    done = world.run(30)
    assert done.status.phase == "Succeeded"
    assert (done.status.selected, done.status.placed) == (7, 6)
    assert done.status.unplaced == {
        "small": "no variant fits: onnx-fp32 needs 10.0 MiB, the device gives workloads 1.0 MiB"
    }
    assert "held" not in world.serving("digits-1")


def test_waves_that_end_below_all_devices_are_followed_by_one_for_the_rest() -> None:
    world = World(fleet(3), make_spec(waves=[Wave(name="canary", count=1)]))
    done = world.run(30)
    assert [(w.name, w.target) for w in done.status.waves] == [("canary", 1), ("rest", 3)]
    assert world.count("digits-1") == 3


def test_no_device_matching_is_said_and_waited_for() -> None:
    world = World([Sim(name="till-0", selected=False)])
    assert world.run(2).status.phase == "Pending"
    assert world.newest.status.message == "no device matches site=lab"
    assert world.condition() == ("False", "NoDevices")
    world.sims["till-0"].selected = True
    assert world.run(10).status.phase == "Succeeded"


def test_nothing_fitting_is_said_with_the_numbers() -> None:
    world = World(fleet(2, memory=MIB))
    world.run(2)
    assert world.condition() == ("False", "NoVariantFits")
    assert world.newest.status.message == (
        "none of the 2 devices selected can take it: 2 do not fit "
        "(till-0: no variant fits: onnx-fp32 needs 10.0 MiB, the device gives workloads 1.0 MiB)"
    )
    assert world.newest.status.placed == 0
    for sim in world.sims.values():
        sim.memory = 100 * MIB
    assert world.run(10).status.phase == "Succeeded"


def test_paused_stops_before_the_next_wave_and_lets_the_started_one_end() -> None:
    world = upgraded(fleet(6))
    world.reconcile()
    world.change(paused=True)
    paused = world.run(60)
    assert (paused.status.phase, paused.metadata.name) == ("Paused", "digits-2")
    assert paused.status.waves[0].phase == "Passed"
    assert paused.status.message == "paused before wave half"
    assert world.count("digits-2") == 1
    world.change(paused=False)
    assert world.run(60).status.phase == "Succeeded"
    assert list(world.rollouts) == ["digits-1", "digits-2"]


def test_a_change_of_the_strategy_takes_effect_on_the_rollout_at_hand() -> None:
    world = upgraded(fleet(6), bakeTime="1h")
    world.run(100)
    assert world.count("digits-2") == 1
    strategy = world.deployment.spec.strategy
    world.change(strategy=msgspec.structs.replace(strategy, bake_time="0s"))
    assert world.run(60).status.phase == "Succeeded"
    assert list(world.rollouts) == ["digits-1", "digits-2"]


def test_a_missing_model_version_holds_what_is_not_yet_rolled_out() -> None:
    world = upgraded(fleet(4))
    world.run(1)
    gone = world.models.pop("v2")
    held = world.run(30)
    assert held.status.phase == "Progressing"
    assert world.condition() == ("False", "ModelVersionMissing")
    assert world.count("digits-2") == 1
    world.models["v2"] = gone
    assert world.run(30).status.phase == "Succeeded"


# --- failing ------------------------------------------------------------------------------------------------------


def test_a_failed_gate_brings_the_previous_version_back() -> None:
    world = upgraded([Sim(name=f"till-{i}", accuracy={"v2": 0.11}) for i in range(6)])
    failed = world.run(60)
    assert failed.status.phase == "RolledBack"
    canary = failed.status.waves[0].devices[0].name
    assert failed.status.message == (
        f"wave canary failed at gate accuracy: accuracy 0.11 is below 0.9 on {canary}, the worst device; "
        "digits-1 is back on 1 device"
    )
    gate = next(g for g in failed.status.waves[0].gates if g.gate == "accuracy")
    assert (gate.verdict, gate.measured, gate.threshold, gate.devices) == ("Failed", 0.11, 0.9, 1)
    assert [w.phase for w in failed.status.waves] == ["Failed", "Pending", "Pending"]
    assert world.serving("digits-1") == sorted(world.sims)
    assert world.condition() == ("False", "RolledBack")
    touched = [sim.name for sim in world.sims.values() if len(sim.versions) > 1]
    assert touched == [canary]
    held = world.records[f"u-{canary}"].find(NAME)
    assert held is not None
    assert held.returned_from == "digits-2"


@pytest.mark.parametrize("kind", ["broken", "silent"])
def test_a_device_that_falls_back_or_stays_silent_fails_the_wave(kind: str) -> None:
    world = upgraded([Sim(name=f"till-{i}", **{kind: frozenset({"v2"})}) for i in range(4)])  # type: ignore[arg-type]
    world.run(30)
    assert world.newest.status.phase == ("Progressing" if kind == "silent" else "RolledBack")
    failed = world.run(200)
    assert failed.status.phase == "RolledBack"
    wave = failed.status.waves[0]
    assert wave.failed == 1
    expected = "it was not Running within 60 s" if kind == "silent" else "it fell back to digits-1: the server died"
    assert expected in wave.devices[0].message
    assert expected in failed.status.message
    assert world.serving("digits-1") == sorted(world.sims)


def test_an_offline_device_times_out_and_does_not_block_the_way_back() -> None:
    sims = fleet(2)
    world = World(sims, make_spec(waves=[Wave(percent=100)]))
    world.run(20)
    sims[0].online = False
    world.change(model_version="v2")
    failed = world.run(200)
    assert failed.status.phase == "RolledBack"
    assert "it is offline" in failed.status.message
    assert failed.status.message.endswith("digits-1 is back on 1 device; not yet confirmed by till-0")
    sims[0].online = True
    world.run(20)
    assert world.serving("digits-1") == ["till-0", "till-1"]


def test_the_first_rollout_of_all_is_withdrawn_when_it_fails() -> None:
    world = World([Sim(name="till-0", accuracy={"v1": 0.2})], make_spec(gates=ACCURACY))
    failed = world.run(60)
    assert failed.status.phase == "RolledBack"
    assert "withdrawn, there is no previous rollout to return to" in failed.status.message
    assert world.sims["till-0"].report is None
    assert world.count("digits-1") == 0


def test_a_tolerant_gate_lets_a_share_fail() -> None:
    sims = fleet(10)
    sims[3].broken = frozenset({"v1"})
    world = World(sims, make_spec(waves=[Wave(percent=100)], gates=Gates(success_ratio=SuccessGate(min=0.9))))
    done = world.run(100)
    assert done.status.phase == "Succeeded"
    assert (done.status.waves[0].running, done.status.waves[0].failed) == (9, 1)
    assert done.status.waves[0].devices[0].name == "till-3"


def test_a_wave_fails_early_when_its_gate_can_no_longer_pass() -> None:
    sims = [Sim(name=f"till-{i}", delay=1 if i < 3 else 50, broken=frozenset({"v1"})) for i in range(10)]
    world = World(sims, make_spec(waves=[Wave(percent=100)], gates=Gates(success_ratio=SuccessGate(min=0.8))))
    world.run(5)
    assert world.newest.status.waves[0].phase == "Failed"


def test_a_canary_that_worsens_later_still_stops_the_rollout() -> None:
    world = upgraded(fleet(6), bakeTime="20s")
    world.run(25)
    assert world.newest.status.current_wave == 1
    canary = world.sims[world.newest.status.waves[0].devices[0].name]
    assert canary.report is not None
    canary.report = msgspec.structs.replace(canary.report, phase="Failed", message="out of memory")
    world.reconcile()
    assert world.newest.status.phase == "RollingBack"
    assert f"{canary.name}: out of memory" in world.newest.status.message


def test_pause_on_failure_waits_for_the_user_and_judges_again_after_a_change() -> None:
    world = upgraded([Sim(name=f"till-{i}", accuracy={"v2": 0.5}) for i in range(4)], onFailure="pause")
    stuck = world.run(60)
    assert stuck.status.phase == "Paused"
    assert world.condition() == ("False", "GateFailed")
    assert "accuracy 0.5 is below 0.9" in stuck.status.message
    assert world.count("digits-2") == 1
    loose = msgspec.structs.replace(world.deployment.spec.strategy, gates=Gates(accuracy=AccuracyGate(min=0.4)))
    world.change(strategy=loose)
    assert world.run(60).status.phase == "Succeeded"


def test_a_cordoned_device_is_brought_back_too() -> None:
    world = upgraded([Sim(name=f"till-{i}", accuracy={"v2": 0.5}, delay=5) for i in range(3)])
    world.run(1)
    canary = world.on("digits-2")[0]
    world.sims[canary].cordoned = True
    assert world.run(60).status.phase == "RolledBack"
    assert canary in world.on("digits-1")


def test_a_previous_version_whose_model_is_gone_is_no_reason_to_keep_a_failed_one() -> None:
    world = upgraded([Sim(name=f"till-{i}", accuracy={"v2": 0.5}) for i in range(2)])
    del world.models["v1"]
    assert world.run(60).status.phase == "RolledBack"
    assert world.count("digits-2") == 0
    assert world.count("digits-1") == 1


# --- one after the other --------------------------------------------------------------------------------------------


def test_a_newer_generation_supersedes_and_returns_to_the_last_that_succeeded() -> None:
    world = upgraded(fleet(6), bakeTime="20s")
    world.run(25)
    assert world.count("digits-2") == 3
    world.change(model_version="v3")
    for sim in world.sims.values():
        sim.accuracy["v3"] = 0.1
    failed = world.run(200)
    assert world.rollouts["digits-2"].status.phase == "Superseded"
    assert failed.spec.previous == "digits-1"
    assert failed.status.phase == "RolledBack"
    assert world.serving("digits-1") == sorted(world.sims), "also those that the superseded rollout had moved"


def test_superseding_a_rollback_still_brings_its_devices_back() -> None:
    world = upgraded([Sim(name=f"till-{i}", accuracy={"v2": 0.1}) for i in range(4)])
    for _ in range(50):
        if world.newest.status.phase == "RollingBack":
            break
        world.now += timedelta(seconds=1)
        for sim in world.sims.values():
            sim.tick(world.records.get(f"u-{sim.name}"), world.now)
        world.writes_left = 1
        with contextlib.suppress(HubDiedError):
            world.reconcile()
    world.writes_left = None
    assert world.count("digits-2") == 1
    world.change(model_version="v3", paused=True)
    world.reconcile()
    assert world.count("digits-2") == 0
    assert world.rollouts["digits-2"].status.phase == "Superseded"


def test_late_devices_get_the_stable_version_and_leaving_ones_are_withdrawn() -> None:
    world = World(fleet(3))
    world.run(30)
    world.sims["late"] = Sim(name="late")
    world.sims["till-1"].selected = False
    done = world.run(10)
    assert done.status.phase == "Succeeded"
    assert world.serving("digits-1") == ["late", "till-0", "till-2"]
    held = world.records["u-late"].find(NAME)
    assert held is not None
    assert held.wave == len(done.status.waves) - 1
    assert world.records["u-till-1"].assignments == []


def test_a_late_device_gets_the_stable_version_while_a_newer_one_is_tried_and_after_it_failed() -> None:
    world = upgraded([Sim(name=f"till-{i}", accuracy={"v2": 0.1}, delay=10) for i in range(3)])
    world.reconcile()
    world.sims["early"] = Sim(name="early")
    world.reconcile()
    assert "early" in world.on("digits-1")
    world.run(100)
    world.sims["late"] = Sim(name="late")
    assert world.run(20).status.phase == "RolledBack"
    assert world.serving("digits-1") == sorted(world.sims)


def test_undo_is_a_rollout_of_the_old_template() -> None:
    world = upgraded([Sim(name=f"till-{i}", accuracy={"v2": 0.1}) for i in range(3)])
    world.run(60)
    world.change(model_version="v1")
    done = world.run(60)
    assert (done.metadata.name, done.status.phase, done.spec.previous) == ("digits-3", "Succeeded", "digits-1")
    assert world.serving("digits-3") == sorted(world.sims)


def test_a_device_that_is_too_small_for_the_new_version_keeps_the_old_one() -> None:
    world = upgraded([Sim(name="till-0"), Sim(name="small", memory=20 * MIB)])
    world.models["v2"] = make_model("v2", memory=50 * MIB)
    assert world.run(60).status.phase == "Succeeded"
    assert world.serving("digits-1") == ["small"]
    assert world.serving("digits-2") == ["till-0"]


def test_a_report_about_an_older_workload_of_the_same_name_does_not_count() -> None:
    world = World(fleet(1))
    world.run(10)
    sim = world.sims["till-0"]
    world.rollouts.clear()
    world.given.clear()
    world.deployment = msgspec.structs.replace(
        world.deployment, spec=msgspec.structs.replace(world.deployment.spec, model_version="v2")
    )
    sim.online = False  # its report still says: digits-1, Running, accuracy 0.97; but that was v1
    world.records["u-till-0"] = msgspec.structs.replace(
        world.records["u-till-0"],
        assignments=[
            msgspec.structs.replace(a, deployment_uid="an-earlier-one") for a in world.records["u-till-0"].assignments
        ],
    )
    assert world.run(5).status.waves[0].running == 0


def test_what_an_earlier_deployment_of_the_same_name_left_behind_goes_first() -> None:
    world = World([*fleet(1), Sim(name="held", memory=100 * MIB)])
    world.run(20)
    world.sims["held"].cordoned = True
    meta = msgspec.structs.replace(world.deployment.metadata, uid="dep-again")
    world.deployment = msgspec.structs.replace(world.deployment, metadata=meta)
    world.rollouts.clear()
    world.given.clear()
    world.reconcile()
    assert world.records["u-held"].find(NAME) is None
    assert world.run(20).status.phase == "Succeeded"
    held = world.records["u-till-0"].find(NAME)
    assert held is not None
    assert held.deployment_uid == "dep-again"


def test_a_deleted_previous_rollout_takes_nothing_off_the_devices_that_run_it() -> None:
    world = upgraded([Sim(name=f"till-{i}", accuracy={"v2": 0.1}) for i in range(3)])
    world.reconcile()
    del world.rollouts["digits-1"]
    assert world.run(60).status.phase == "RolledBack"
    assert world.count("digits-2") == 0
    assert world.count("digits-1") == 2, "only the canary lost its workload"


def test_a_status_fits_into_the_store_whatever_the_plan_and_the_devices_say() -> None:
    world = World(fleet(60, delay=0), make_spec(waves=WAVES))
    world.run(10)
    sims = list(world.sims.values())
    for sim in sims:
        assert sim.report is not None
        sim.report = msgspec.structs.replace(sim.report, phase="Failed", message="\x01" * 100_000)
    members = world.view(world.newest).members
    now, minute = world.now, timedelta(minutes=1)
    standings = [waves.stand(m, index=9, timeout=minute, now=now, measured=True) for m in members]
    for count in (1, 3, 10, 101):
        listed = waves.listed_of(count)
        own = [dataclasses.replace(standing, wave=0) for standing in standings]
        wave = waves.describe(WaveStatus(name="canary"), waves.own_of(own, 0, listed), now)
        assert wave.failed == 60
        assert 1 <= len(wave.devices) <= 50
        assert len(msgspec.json.encode([wave] * count)) < MAX_VALUE_BYTES


# --- crashes and chance ---------------------------------------------------------------------------------------------
