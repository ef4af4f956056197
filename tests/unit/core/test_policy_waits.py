"""Waits by policy, limits and requests, as the hub and the device decide on them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.core.test_placement import machine, reasons, spec, variant
from tests.unit.core.workload_world import drive, running, wish

from skerry.api import rules
from skerry.api.kinds.device import LinkPolicy, UpdateHold, WorkloadStatus
from skerry.api.kinds.model_deployment import ResourceList, Resources
from skerry.core import deployment, placement, waves, workload
from skerry.core.desired import Assignment, DesiredRecord, render, tell_device
from skerry.core.journal import Exited, Fetched, Moment, Resumed, State, Unwanted, Waits, Wanted
from skerry.core.waves import Member

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WHY = Waits(serial=1, waiting_for="Hold", message="held by till")


# --- the device ---------------------------------------------------------------------------------------------------


def at(monotonic: float, *, wall: float | None = None, boot: str = "b") -> Moment:
    seconds = monotonic if wall is None else wall
    return Moment(wall=NOW + timedelta(seconds=seconds), monotonic=monotonic, boot=boot)


def test_a_wait_changes_no_phase_and_costs_no_attempt() -> None:
    state, actions = drive(State(name="digits"), Wanted(wish("v1")), WHY)
    assert actions == []
    status = workload.report(state)
    assert (status.phase, status.waiting_for, status.message) == ("Fetching", "Hold", "held by till")
    assert state.attempts == 0
    assert drive(state, WHY)[0] is state, "said again, nothing is written"


def test_its_time_is_counted_over_several_waits() -> None:
    state, _ = drive(State(name="digits"), Wanted(wish("v1")))
    for event, moment in (
        (WHY, at(10)),
        (Waits(serial=1, waiting_for="Link", message="metered"), at(15)),  # another reason, the same wait
        (Waits(serial=1, waiting_for=""), at(30)),
        (WHY, at(100)),
        (Fetched(serial=1, network_bytes=1), at(101)),  # whatever moves it on ends the wait
    ):
        after, _ = workload.step(state, event, moment)
        assert after is not None
        state = after
    assert (state.waiting_for, state.waited_seconds) == ("", 21.0)


def test_across_a_reboot_the_wall_clock_counts_and_never_backwards() -> None:
    waiting, _ = workload.step(drive(State(name="digits"), Wanted(wish("v1")))[0], WHY, at(1000))
    assert waiting is not None
    for wall, counted in ((1600, 600), (-5000, 0)):
        after, _ = workload.step(waiting, Resumed(), at(3, wall=wall, boot="next"))
        assert after is not None
        assert (after.waiting_for, after.waited_seconds) == ("", counted)


def test_what_serves_may_fall_and_rise_while_the_next_one_waits() -> None:
    state, _ = drive(running("v1"), Wanted(wish("v2")), Waits(serial=2, waiting_for="Hold", message="held"))
    fallen = Exited(serial=1, cause="it died", uptime_seconds=1)
    after, actions = drive(state, fallen)
    assert after.waiting_for == "Hold"
    assert [type(action).__name__ for action in actions] == ["Serve"]


def test_another_wish_or_none_ends_the_wait() -> None:
    state, _ = drive(running("v1"), Wanted(wish("v2")), Waits(serial=2, waiting_for="Hold", message="held"))
    assert drive(state, Wanted(wish("v3")))[0].waiting_for == ""
    assert drive(state, Unwanted())[0].waiting_for == ""
    assert drive(state, Waits(serial=99, waiting_for="Link", message="late"))[0] is state


def test_how_it_may_be_fetched_is_not_what_it_is() -> None:
    strict = msgspec.structs.replace(wish("v1"), require_unmetered=True)
    state, actions = drive(running("v1"), Wanted(strict))
    assert state.candidate is None
    assert state.current is not None
    assert state.current.desired == strict
    assert [type(action).__name__ for action in actions] == ["Tidy"]
    limited = msgspec.structs.replace(wish("v1"), cpu_limit_millis=500)
    assert drive(running("v1"), Wanted(limited))[0].candidate is not None, "a limit needs a new server"


# --- the hub ------------------------------------------------------------------------------------------------------


def standing(report: WorkloadStatus, *, now: datetime) -> waves.Standing:
    told = msgspec.structs.replace(wish("v1"), name="digits", rollout="digits-1")
    assignment = Assignment(workload=told, deployment_uid="u", wave=0, reason="", assigned_at=NOW, manifest_version=1)
    member = Member(uid="d", name="d", assignment=assignment, observed=1, report=report)
    return waves.stand(member, index=0, timeout=timedelta(minutes=10), now=now, measured=False)


def reported(**fields: Any) -> WorkloadStatus:
    return WorkloadStatus(
        **{
            "name": "digits",
            "rollout": "digits-1",
            "revision": 1,
            "variant": "onnx-fp32",
            "phase": "Installed",
            **fields,
        }
    )


def test_a_held_device_is_waited_for_with_its_reason() -> None:
    found = standing(reported(waiting_for="Hold", message="held by till"), now=NOW + timedelta(days=2))
    assert (found.state, found.message) == ("Waiting", "held by till")


@given(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(0, 1e7, allow_nan=False),
)
def test_a_wait_stops_the_clock_but_a_device_cannot_buy_time_with_lies(waited: float, passed: float) -> None:
    found = standing(reported(waited_seconds=waited), now=NOW + timedelta(seconds=passed))
    counted = min(waited, passed) if 0 < waited < float("inf") else 0
    if abs(passed - counted - 600) > 1e-3:
        assert (found.state == "Failed") == (passed - counted > 600)


def test_a_devices_own_spec_raises_its_version_once() -> None:
    record = DesiredRecord(uid="u", namespace="default", device="till")
    link, hold = LinkPolicy(metered=True), UpdateHold(until=NOW, reason="open day")
    assert tell_device(record, link=LinkPolicy(), hold=None) is record
    told = tell_device(record, link=link, hold=hold)
    assert told.manifest_version == 1
    assert tell_device(told, link=link, hold=hold) is told
    state = render(told, issued_at=NOW)
    assert (state.link, state.hold, state.workloads) == (link, hold, [])
    assert tell_device(told, link=link, hold=None).manifest_version == 2


def requesting(cpu: str | None = None, memory: str | None = None) -> Any:
    return msgspec.structs.replace(spec(), resources=Resources(requests=ResourceList(cpu=cpu, memory=memory)))


def test_requests_are_kept_free() -> None:
    fits = placement.place(machine(cores=2, taken_millis=1500), [variant()], requesting(cpu="500m"))
    assert fits.variant is not None
    full = placement.place(machine(cores=2, taken_millis=1501), [variant()], requesting(cpu="500m"))
    assert full.variant is None
    assert "requests 500 m of CPU, 499 m of the device's 2 cores are left" in full.reason
    unknown = placement.place(machine(), [variant()], requesting(cpu="64"))
    assert unknown.variant is not None, "a device that does not say how many cores it has"
    memory = placement.place(machine(memory=100), [variant(memory=40)], requesting(memory="101Mi"))
    assert reasons(memory)["onnx-fp32"].startswith("the deployment requests 101.0 MiB of memory")


def test_a_change_of_link_or_requests_starts_a_rollout() -> None:
    assert not deployment.same_template(spec(), requesting(cpu="1"))


@pytest.mark.parametrize(
    ("limits", "requests", "elements"),
    [
        ({"cpu": "0"}, {}, ["r.limits.cpu"]),
        ({"memory": "0"}, {}, ["r.limits.memory"]),
        (
            {"cpu": "500m", "memory": "1Gi"},
            {"cpu": "501m", "memory": "1025Mi"},
            ["r.requests.cpu", "r.requests.memory"],
        ),
        ({"cpu": "500m"}, {"cpu": "500m", "memory": "1Gi"}, []),
    ],
)
def test_resources_that_make_no_sense_are_named(
    limits: dict[str, str], requests: dict[str, str], elements: list[str]
) -> None:
    given_ = Resources(limits=ResourceList(**limits), requests=ResourceList(**requests))
    assert [problem.element for problem in rules.check_resources(given_, "r")] == elements


def test_a_bandwidth_of_nothing_is_named() -> None:
    assert [p.element for p in rules.check_link(LinkPolicy(max_bandwidth="0"), "link")] == ["link.maxBandwidth"]
    assert list(rules.check_link(LinkPolicy(max_bandwidth="1", allow_metered_downloads="0"), "link")) == []
