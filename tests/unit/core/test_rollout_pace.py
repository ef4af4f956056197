"""Pacing in virtual time: rate, budgets, windows, thresholds, waves by label, approvals and abort.

The world checks at every single assignment that no bound is exceeded (`World.check_pace`).
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.core.rollout_world import (
    ACCURACY,
    START,
    WAVES,
    Sim,
    World,
    fleet,
    make_spec,
    upgraded,
)

from skerry.api.kinds.gates import Gates, SuccessGate
from skerry.api.kinds.model_deployment import Wave
from skerry.api.kinds.pacing import Disruption, Rate, UpdateWindows, Window
from skerry.api.meta import LabelSelector
from skerry.core import pace, promotion

ALL = [Wave(name="all", percent=100)]
LUNCH = Window(schedule="30 12 * * *", duration="10m")
"""Half an hour after the world begins."""
TEATIME = Window(schedule="0 16 * * *", duration="10m")


def at(hour: int, minute: int) -> datetime:
    return START.replace(hour=hour, minute=minute)


def sites(count: int, each: int, **fields: object) -> list[Sim]:
    return [
        Sim(name=f"{chr(97 + site)}-{number}", site=f"site-{chr(97 + site)}", **fields)  # type: ignore[arg-type]
        for site in range(count)
        for number in range(each)
    ]


# --- rate ----------------------------------------------------------------------------------------------------------


def test_the_rate_grows_with_every_base_successes() -> None:
    world = World(fleet(60, delay=45), make_spec(waves=ALL, rate=Rate(base=2, factor=2, max_per_minute=16)))
    taken = []
    for seconds in (44, 4, 30, 20, 1000):
        world.run(seconds)
        taken.append(world.count("digits-1"))
    assert taken[:4] == [2, 4, 6, 10], "2 a minute; 4 when both ran; of which 2 are a minute old; 8 when 4 ran"
    assert world.newest.status.phase == "Succeeded"


def test_a_constant_rate_waits_for_the_minute_and_says_so() -> None:
    world = World(fleet(10, delay=0), make_spec(waves=ALL, rate=Rate(base=3, factor=1)))
    world.run(2)
    assert world.count("digits-1") == 3
    assert world.condition() == ("True", "RateLimited")
    assert world.newest.status.message == "wave all: 3 of 10 devices running; at most 3 devices a minute now"
    assert world.wake_at == START + timedelta(minutes=1)
    assert world.run(60 * 3 + 5).status.phase == "Succeeded"


@given(
    base=st.integers(1, 1000),
    factor=st.floats(1, 100),
    top=st.integers(1000, 10**6),
    successes=st.integers(0, 10**9),
)
def test_the_rate_is_the_formula_and_never_more_than_its_bound(
    base: int, factor: float, top: int, successes: int
) -> None:
    rate = Rate(base=base, factor=factor, max_per_minute=top)
    found = pace.rate_of(rate, successes)
    plain = float(base)
    for _ in range(min(successes // base, 2000)):
        plain = min(plain * factor, top)
    if successes // base <= 2000 or plain >= top:
        assert abs(found - int(plain)) <= 1
    assert base <= found <= top
    assert pace.rate_of(rate, successes + base) >= found


def test_a_clock_that_was_set_back_does_not_stop_the_rollout() -> None:
    world = World(fleet(6, delay=0), make_spec(waves=ALL, rate=Rate(base=3, factor=1)))
    world.run(2)
    world.now -= timedelta(days=30)
    world.run(5)
    assert world.count("digits-1") == 6


# --- disruption ----------------------------------------------------------------------------------------------------


def test_the_budget_holds_for_each_value_of_the_label() -> None:
    world = World(sites(3, 4), make_spec(waves=ALL))
    world.run(30)
    budget = Disruption(group_by="site", max_unavailable="1")
    world.change(model_version="v2", strategy=make_spec(waves=ALL, disruption=budget).strategy)
    world.reconcile()
    assert sorted(name[0] for name in world.on("digits-2")) == ["a", "b", "c"]
    assert world.newest.status.message.startswith("wave all: 0 of 12 devices running; the disruption budget of site=")
    assert world.run(60).status.phase == "Succeeded"
    assert world.count("digits-2") == 12


@pytest.mark.parametrize(
    ("bound", "first"),
    [
        ({"max_unavailable": "50%"}, 2),
        ({"max_unavailable": "10%"}, 1),
        ({"max_unavailable": "3"}, 3),
        ({"min_available": "3"}, 1),
        ({"min_available": "60%"}, 1),
        ({"min_available": "25%"}, 3),
    ],
)
def test_counts_and_shares_of_a_group(bound: dict[str, str], first: int) -> None:
    world = World(fleet(4, site="lab"), make_spec(waves=ALL))
    world.run(30)
    world.change(
        model_version="v2",
        strategy=make_spec(waves=ALL, disruption=Disruption(group_by="site", **bound)).strategy,  # type: ignore[arg-type]
    )
    world.reconcile()
    assert world.count("digits-2") == first
    assert world.run(60).status.phase == "Succeeded"


def test_devices_that_are_down_use_up_the_budget_and_cost_nothing_themselves() -> None:
    world = World(sites(1, 4), make_spec(waves=ALL))
    world.run(30)
    world.sims["a-0"].online = False
    budget = Disruption(group_by="site", max_unavailable="1")
    gates = Gates(success_ratio=SuccessGate(min=0.5))
    world.change(model_version="v2", strategy=make_spec(waves=ALL, disruption=budget, gates=gates).strategy)
    world.run(5)
    assert world.on("digits-2") == ["a-0"], "it is down in any case"
    assert world.newest.status.waves[0].phase == "Progressing"
    world.sims["a-0"].online = True
    assert world.run(60).status.phase == "Succeeded"


def test_a_budget_that_can_never_be_met_is_waited_for_and_said() -> None:
    world = World(sites(1, 2), make_spec(waves=ALL))
    world.run(30)
    budget = Disruption(group_by="site", min_available="2")
    world.change(model_version="v2", strategy=make_spec(waves=ALL, disruption=budget).strategy)
    world.run(100)
    assert world.condition() == ("True", "DisruptionBudget")
    assert "the disruption budget of site=site-a is used up, 2 waiting" in world.newest.status.message
    assert world.count("digits-2") == 0


# --- windows -------------------------------------------------------------------------------------------------------


def test_assignments_wait_for_the_download_window_and_are_made_inside_it() -> None:
    plan = make_spec(waves=WAVES, windows=UpdateWindows(download=[LUNCH]))
    world = World(fleet(6), plan)
    world.run(60)
    assert world.count("digits-1") == 0
    assert world.condition() == ("True", "WindowClosed")
    assert world.newest.status.message.endswith(
        "1 waiting for the download window, which opens at 2026-11-23T12:30:00Z"
    ) or ("which opens at 2026-11-23T12:30:00Z" in world.newest.status.message)
    assert world.wake_at == at(12, 30)
    done = world.run(45 * 60, tick=10)
    assert done.status.phase == "Succeeded"
    assigned = [a.assigned_at for record in world.records.values() for a in record.assignments]
    assert all(at(12, 30) <= when < at(12, 40) for when in assigned)


def test_devices_fetch_early_and_switch_over_in_their_own_time() -> None:
    world = World(fleet(6), make_spec(waves=ALL))
    world.run(30)
    spread = msgspec.structs.replace(LUNCH, duration="20m", spread="10m")
    plan = make_spec(waves=ALL, windows=UpdateWindows(switch_over=[spread]), deviceTimeout="60s")
    world.change(model_version="v2", strategy=plan.strategy)
    world.run(25 * 60, tick=5)
    assert world.count("digits-2") == 6
    assert world.serving("digits-1") == sorted(world.sims), "nothing switched, and waiting is no failure"
    status = world.newest.status
    assert {device.phase for device in status.waves[0].devices} == {"Installed"}
    assert "waits with the update for its window, which opens at 2026-11-23T12:3" in status.waves[0].devices[0].message
    done = world.run(20 * 60, tick=5)
    assert done.status.phase == "Succeeded"
    times = [sim.switched[-1][0] for sim in world.sims.values()]
    assert all(at(12, 30) <= when < at(12, 41) for when in times)
    assert len(set(times)) > 3, "spread over the window"


def test_a_device_that_is_away_over_its_window_is_late_only_after_its_own_open_time() -> None:
    world = World(fleet(2), make_spec(waves=ALL))
    world.run(30)
    world.sims["till-0"].online = False
    plan = make_spec(waves=ALL, windows=UpdateWindows(switch_over=[LUNCH, TEATIME]), deviceTimeout="15m")
    world.change(model_version="v2", strategy=plan.strategy)
    world.run(3 * 3600, tick=60)
    assert world.newest.status.phase == "Progressing", "10 of its 15 minutes have passed"
    failed = world.run(3 * 3600, tick=60)
    assert failed.status.phase == "RolledBack"
    assert failed.status.failed_at is not None
    assert at(16, 5) <= failed.status.failed_at < at(16, 6)


def test_windows_that_change_reach_those_who_wait() -> None:
    world = World(fleet(3), make_spec(waves=ALL))
    world.run(30)
    world.change(
        model_version="v2", strategy=make_spec(waves=ALL, windows=UpdateWindows(switch_over=[TEATIME])).strategy
    )
    world.run(60)
    assert world.count("digits-2") == 3
    world.change(strategy=make_spec(waves=ALL, windows=UpdateWindows(switch_over=[LUNCH])).strategy)
    world.run(45 * 60, tick=10)
    assert world.newest.status.phase == "Succeeded"
    assert world.newest.metadata.name == "digits-2"
    assert all(at(12, 30) <= sim.switched[-1][0] < at(12, 40) for sim in world.sims.values())


def test_a_device_that_failed_is_not_made_to_try_again_by_other_windows() -> None:
    sims = fleet(3)
    sims[0].broken = frozenset({"v2"})
    world = World(sims, make_spec(waves=ALL))
    world.run(30)
    lenient = Gates(success_ratio=SuccessGate(min=0.5))
    world.change(model_version="v2", strategy=make_spec(waves=ALL, gates=lenient, bakeTime="1h").strategy)
    world.run(30)
    before = list(sims[0].versions)
    later = UpdateWindows(switch_over=[TEATIME])
    world.change(strategy=make_spec(waves=ALL, gates=lenient, bakeTime="1h", windows=later).strategy)
    world.run(30)
    assert sims[0].versions == before
    assert world.serving("digits-2") == ["till-1", "till-2"]


def test_the_way_back_waits_for_no_window() -> None:
    world = World([Sim(name=f"till-{i}", accuracy={"v2": 0.1}) for i in range(3)], make_spec(waves=ALL, gates=ACCURACY))
    world.run(30)
    both = UpdateWindows(download=[LUNCH], switch_over=[LUNCH])
    world.change(model_version="v2", strategy=make_spec(waves=ALL, gates=ACCURACY, windows=both).strategy)
    world.run(29.4 * 60, tick=12)
    world.run(60)
    assert world.newest.status.phase in ("RollingBack", "RolledBack")
    world.deployment = msgspec.structs.replace(
        world.deployment,
        spec=make_spec(
            "v2", waves=ALL, gates=ACCURACY, windows=UpdateWindows(download=[TEATIME], switch_over=[TEATIME])
        ),
    )
    assert world.run(60).status.phase == "RolledBack"
    assert world.serving("digits-1") == sorted(world.sims)


def test_a_device_that_joins_waits_for_the_window_too() -> None:
    world = World(fleet(2), make_spec(waves=ALL))
    world.run(30)
    world.change(strategy=make_spec(waves=ALL, windows=UpdateWindows(download=[LUNCH])).strategy)
    world.sims["late"] = Sim(name="late")
    world.run(60)
    assert world.on("digits-1") == ["till-0", "till-1"]
    assert world.wake_at == at(12, 30)
    world.run(35 * 60, tick=10)
    assert "late" in world.serving("digits-1")


# --- thresholds ----------------------------------------------------------------------------------------------------


def test_a_wave_passes_when_enough_devices_run_without_waiting_for_the_rest() -> None:
    sims = [Sim(name=f"till-{i}", delay=1000 if i < 2 else 1) for i in range(20)]
    plan = [Wave(name="most", percent=90), Wave(name="all", percent=100)]
    world = World(sims, make_spec(waves=plan, successThreshold="85%", deviceTimeout="1h"))
    assert world.run(30).status.phase == "Succeeded"
    assert len(world.serving("digits-1")) == 18
    assert [wave.phase for wave in world.newest.status.waves] == ["Passed", "Passed"]
    assert world.newest.status.waves[1].gates[0].threshold == 0.85


def test_those_who_were_late_count_when_they_fail_later() -> None:
    slow = frozenset({"v1"})
    sims = [Sim(name=f"till-{i}", delay=20 if i < 3 else 0, broken=slow if i < 3 else frozenset()) for i in range(10)]
    plan = [Wave(name="one", percent=80), Wave(name="all", percent=100)]
    world = World(sims, make_spec(waves=plan, successThreshold="5", failureThreshold="1", bakeTime="15s"))
    failed = world.run(60)
    assert failed.status.phase == "RolledBack"
    assert "failureThreshold" in failed.status.message


@pytest.mark.parametrize(("threshold", "broken", "phase"), [("2", 2, "Succeeded"), ("2", 3, "RolledBack"),
                                                          ("20%", 2, "Succeeded"), ("20%", 3, "RolledBack"),
                                                          ("0", 1, "RolledBack")])  # fmt: skip
def test_more_failures_than_allowed_end_it_at_once(threshold: str, broken: int, phase: str) -> None:
    sims = [Sim(name=f"till-{i}", broken=frozenset({"v1"}) if i < broken else frozenset(), delay=i) for i in range(10)]
    gates = Gates(success_ratio=SuccessGate(min=0))
    world = World(sims, make_spec(waves=ALL, failureThreshold=threshold, gates=gates))
    done = world.run(30)
    assert done.status.phase == phase
    if phase == "RolledBack":
        count = broken if threshold != "0" else 1
        assert f"gate failureThreshold: {count} of 10 devices failed, more than {threshold}" in done.status.message
        assert done.status.failed_at is not None
        assert done.status.failed_at <= START + timedelta(seconds=broken), "the others were not waited for"


# --- waves by label ------------------------------------------------------------------------------------------------


def ring(name: str) -> LabelSelector:
    return LabelSelector(match_labels={"ring": name})


def rings() -> list[Sim]:
    return [Sim(name=f"till-{i}", labels={"ring": "beta" if i % 4 == 0 else "broad"}) for i in range(12)]


def test_a_wave_by_label_takes_those_that_match_and_only_those() -> None:
    plan = [Wave(name="beta", selector=ring("beta")), Wave(name="third", selector=ring("broad"), percent=30)]
    world = World(rings(), make_spec(waves=plan, bakeTime="10s"))
    world.run(5)
    assert world.on("digits-1") == ["till-0", "till-4", "till-8"]
    assert [(w.name, w.target) for w in world.newest.status.waves] == [("beta", 3), ("third", 6), ("rest", 12)]
    world.run(10)
    assert world.count("digits-1") == 6
    done = world.run(40)
    assert done.status.phase == "Succeeded"
    assert world.count("digits-1") == 12


def test_a_wave_by_label_counts_those_it_finds_there() -> None:
    plan = [Wave(name="one", count=5), Wave(name="beta", selector=ring("beta"), count=2), Wave(name="all", percent=100)]
    world = World(rings(), make_spec(waves=plan, bakeTime="10s"))
    world.run(12)
    beta = [name for name in world.on("digits-1") if world.sims[name].labels["ring"] == "beta"]
    assert len(beta) >= 2
    assert world.run(60).status.phase == "Succeeded"


def test_a_wave_whose_label_nobody_has_is_waited_for_and_said() -> None:
    plan = [Wave(name="beta", selector=ring("betta")), Wave(name="all", percent=100)]
    world = World(rings(), make_spec(waves=plan, gates=ACCURACY, bakeTime="10s"))
    world.run(20)
    assert world.condition() == ("False", "NoDevices")
    assert world.newest.status.message == "wave beta: no device matches ring=betta"
    assert world.count("digits-1") == 0
    world.sims["till-3"].labels["ring"] = "betta"
    world.run(2)
    assert world.on("digits-1") == ["till-3"]
    assert world.run(30).status.phase == "Succeeded"


# --- approvals and abort -------------------------------------------------------------------------------------------


def test_manual_promotion_waits_for_each_approval() -> None:
    world = upgraded(fleet(6), promotion="manual")
    world.run(60)
    assert world.newest.status.phase == "Paused"
    assert world.condition() == ("Unknown", "AwaitingApproval")
    assert world.newest.status.message == "wave canary passed; wave half waits for its approval"
    assert world.count("digits-2") == 1
    world.annotate(promotion.APPROVED, "canarry")
    world.run(5)
    assert world.count("digits-2") == 1, "that is no wave"
    world.annotate(promotion.APPROVED, "canary")
    world.run(60)
    assert world.count("digits-2") == 3
    world.annotate(promotion.APPROVED, "half")
    assert world.run(60).status.phase == "Succeeded"


def test_one_wave_may_ask_for_an_approval_and_may_be_approved_ahead_of_time() -> None:
    plan = [Wave(name="canary", count=1, promotion="manual"), Wave(name="half", percent=50), Wave(percent=100)]
    world = World(fleet(6), make_spec(waves=plan, bakeTime="10s"))
    world.reconcile()
    world.annotate(promotion.APPROVED, "half")
    assert world.run(60).status.phase == "Succeeded", "a later wave's approval includes the earlier ones"
    world.change(model_version="v2")
    world.run(60)
    assert world.newest.status.phase == "Paused", "an approval is good for one rollout only"
    assert world.count("digits-2") == 1


def test_what_worsens_while_people_think_fails_all_the_same() -> None:
    world = upgraded(fleet(6), promotion="manual")
    world.run(60)
    canary = world.sims[world.on("digits-2")[0]]
    assert canary.report is not None
    canary.report = msgspec.structs.replace(canary.report, phase="Failed", message="out of memory")
    failed = world.run(30)
    assert failed.status.phase == "RolledBack"
    assert "out of memory" in failed.status.message
    assert world.serving("digits-1") == sorted(world.sims)


@pytest.mark.parametrize("why", ["AwaitingApproval", "Paused"])
def test_the_hub_wakes_when_a_device_runs_out_of_time_while_people_think(why: str) -> None:
    plan = [Wave(name="canary", count=2), Wave(name="all", percent=100)]
    asked = {"promotion": "manual"} if why == "AwaitingApproval" else {}
    world = World(fleet(6), make_spec())
    assert world.run(60).status.phase == "Succeeded"
    spec = make_spec("v2", waves=plan, successThreshold="50%", failureThreshold="0", **asked)
    world.change(model_version="v2", strategy=spec.strategy)
    world.reconcile()
    late = world.sims[world.on("digits-2")[-1]]
    late.silent = frozenset({"v2"})
    if why == "Paused":
        world.change(paused=True)
    world.run(10)
    assert world.condition() == ("Unknown", why)
    held = world.records[f"u-{late.name}"].find("digits")
    assert held is not None
    assert world.wake_at == held.assigned_at + timedelta(seconds=60)
    world.now = world.wake_at
    world.reconcile()
    assert world.newest.status.phase == "RollingBack"
    assert "1 of 2 devices failed, more than 0" in world.newest.status.message


def test_what_failed_while_people_thought_is_judged_again_after_a_change() -> None:
    world = upgraded(fleet(6), promotion="manual", onFailure="pause")
    world.run(60)
    canary = world.sims[world.on("digits-2")[0]]
    good = canary.report
    assert good is not None
    canary.report = msgspec.structs.replace(good, phase="Failed", message="out of memory")
    world.run(30)
    assert world.condition() == ("False", "GateFailed")
    canary.report = good
    world.annotate(promotion.APPROVED, "canary")
    world.run(5)
    assert world.condition() == ("False", "GateFailed"), "an approval is no change of the deployment"
    world.change(strategy=msgspec.structs.replace(world.deployment.spec.strategy, bake_time="1s"))
    world.run(30)
    assert world.count("digits-2") == 3


@pytest.mark.parametrize("when", [0, 1, 20, 60])
def test_abort_returns_every_device_now(when: int) -> None:
    world = upgraded(fleet(6, delay=3), promotion="manual", onFailure="pause", bakeTime="10s")
    world.run(when)
    world.annotate(promotion.ABORT, "the tills are needed")
    world.reconcile()
    assert world.newest.status.phase in ("RollingBack", "RolledBack")
    assert world.count("digits-2") == 0
    done = world.run(30)
    assert done.status.phase == "RolledBack"
    assert done.status.message.startswith("aborted: the tills are needed; digits-1 is back")
    assert world.serving("digits-1") == sorted(world.sims)
    assert world.condition() == ("False", "RolledBack")


def test_abort_before_anything_happened_and_after_the_end() -> None:
    world = World([Sim(name="till-0", selected=False)])
    world.run(2)
    world.annotate(promotion.ABORT, "")
    assert world.run(2).status.message.startswith("aborted: no reason was given; withdrawn")
    world.change(model_version="v2")
    world.sims["till-0"].selected = True
    assert world.run(30).status.phase == "Succeeded"
    world.annotate(promotion.ABORT, "too late")
    assert world.run(30).status.phase == "Succeeded"


# --- what becomes of whom ------------------------------------------------------------------------------------------


def test_a_device_that_returns_after_a_week_goes_straight_to_the_newest() -> None:
    world = World(fleet(4), make_spec(waves=ALL))
    world.run(30)
    away = world.sims["till-2"]
    away.online = False
    lenient = make_spec(waves=ALL, gates=Gates(success_ratio=SuccessGate(min=0.7))).strategy
    world.change(model_version="v2", strategy=lenient)
    assert world.run(120).status.phase == "Succeeded"
    world.change(model_version="v3")
    assert world.run(120).status.phase == "Succeeded"
    world.run(7 * 24 * 3600, tick=12 * 3600)
    assert away.running is not None
    assert away.running.rollout == "digits-1"
    away.online = True
    world.run(20)
    assert world.serving("digits-3") == sorted(world.sims)
    assert [workload.rollout for _, workload in away.switched] == ["digits-1", "digits-3"], "v2 was never fetched"


def test_a_wave_whose_devices_are_all_offline_fails_when_their_time_is_over() -> None:
    world = World(fleet(3), make_spec(waves=ALL))
    world.run(30)
    for sim in world.sims.values():
        sim.online = False
    world.change(model_version="v2")
    world.run(55)
    assert world.newest.status.phase == "Progressing"
    failed = world.run(100)
    assert failed.status.phase == "RolledBack"
    assert "it is offline" in failed.status.message
    for sim in world.sims.values():
        sim.online = True
    world.run(20)
    assert world.serving("digits-1") == sorted(world.sims)
    assert all(sim.versions[-1] == 3 for sim in world.sims.values())


def test_a_selector_that_changes_in_mid_wave_takes_its_devices_along() -> None:
    world = upgraded(fleet(6), bakeTime="30s")
    world.run(35)
    leaving = world.on("digits-2")[0]
    world.sims[leaving].selected = False
    world.sims["new"] = Sim(name="new")
    done = world.run(300)
    assert done.status.phase == "Succeeded"
    assert world.serving("digits-2") == sorted(set(world.sims) - {leaving})
    assert world.sims[leaving].report is None


# --- chance --------------------------------------------------------------------------------------------------------
