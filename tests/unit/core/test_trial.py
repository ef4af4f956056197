"""Trials of a new version: what is asked for, what shadow mode lets through, what restarts do."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.kinds.device import Comparison, Measurement, Observation, ShadowReport
from skerry.api.kinds.gates import AgreementGate, ErrorRateGate, Gates, HealthGate, LatencyGate, Shadow, ShadowGate
from skerry.api.kinds.model_deployment import Strategy
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.api.kinds.variants import Blob, Requirements
from skerry.core import current, journal, trial, workload
from skerry.core.journal import (
    Exited,
    Fetched,
    Laid,
    Launched,
    Moment,
    Observe,
    Observed,
    Probe,
    Probed,
    Ready,
    Resumed,
    ShadowBeside,
    Shadowed,
    State,
    Switch,
    Switched,
    Tidied,
    Wanted,
)
from skerry.core.messages import ObserveDesired, ShadowDesired, WorkloadDesired

MEASURED = Measurement(
    samples=4, agreement=1.0, max_abs_error=0.0, latency_p50_ms=1.0, latency_p95_ms=2.0, peak_memory_bytes=1
)
AGREES = ShadowReport(beside="digits-v1", seconds=60, requests=50, answered=50, agreed=50)
ASKED = ShadowDesired(seconds=60, min_requests=10, min_agreement=0.9, missing="fail")


def wish(version: str, **changes: object) -> WorkloadDesired:
    tensor = TensorSpec(name="x", datatype="FP32", shape=[-1, 4])
    made = WorkloadDesired(
        name="digits",
        rollout=f"digits-{version[1:]}",
        revision=1,
        model="digits",
        model_version=f"digits-{version}",
        version=version,
        variant="onnx-fp32",
        format="onnx",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
        signature=ModelSignature(inputs=[tensor], outputs=[tensor]),
        repository="default/digits",
        blob=Blob(digest=f"sha256:{int(version[1:]):064x}", size=10),
    )
    return msgspec.structs.replace(made, **changes)


def drive(state: State, *events: journal.Event) -> tuple[State, list[journal.Action]]:
    actions: list[journal.Action] = []
    for event in events:
        after, actions = workload.step(
            state, event, Moment(wall=datetime(2026, 1, 1, tzinfo=UTC), monotonic=1.0, boot="b")
        )
        assert after is not None
        state = after
    return state, actions


def installed(serial: int) -> list[journal.Event]:
    return [
        Fetched(serial=serial, network_bytes=1),
        Laid(serial=serial),
        Launched(serial=serial, port=4000 + serial),
        Ready(serial=serial),
        Probed(serial=serial, measurement=MEASURED),
    ]


def running(**changes: object) -> tuple[State, list[journal.Action]]:
    return drive(State(name="digits"), Wanted(wish("v1", **changes)), *installed(1), Switched(serial=1, endpoint=8000))


def of(kind: type, actions: list[journal.Action]) -> list[journal.Action]:
    return [action for action in actions if isinstance(action, kind)]


# --- shadow mode --------------------------------------------------------------------------------------------------


def shadowing() -> tuple[State, list[journal.Action]]:
    return drive(running()[0], Wanted(wish("v2", shadow=ASKED)), *installed(2))


def test_a_version_runs_in_the_shadow_until_it_has_agreed_and_serves_then() -> None:
    state, actions = shadowing()
    assert state.phase == "Shadowing"
    [begun] = of(ShadowBeside, actions)
    assert isinstance(begun, ShadowBeside)
    assert (begun.slot.serial, begun.beside.serial) == (2, 1)
    status = workload.report(state)
    assert status.message == "digits-v2 answers 0.1 of the requests of digits-v1 in its shadow for 60 s"
    assert status.running is not None
    assert status.running.model_version == "digits-v1"
    assert not of(Switch, actions)
    state, actions = drive(state, Shadowed(serial=2, report=AGREES))
    assert of(Switch, actions)
    state, _ = drive(state, Switched(serial=2, endpoint=8000), Tidied())
    status = workload.report(state)
    assert (status.phase, status.shadow, status.message) == ("Running", AGREES, "")


def test_a_version_that_disagrees_goes_away_and_says_by_how_much() -> None:
    state, _ = shadowing()
    report = msgspec.structs.replace(AGREES, agreed=40, errors=10)
    state, actions = drive(state, Shadowed(serial=2, report=report))
    assert state.phase == "RollingBack"
    assert not of(Switch, actions)
    state, _ = drive(state, Tidied())
    status = workload.report(state)
    assert status.phase == "Running"
    assert status.running is not None
    assert status.running.model_version == "digits-v1"
    assert status.shadow == report, "the numbers are kept for the gate"
    assert status.message == (
        'While Shadowing, shadow mode failed for "digits-v2 onnx-fp32": it agreed with digits-v1 on 0.6667 of 60 '
        "requests, below 0.9, it failed 10"
    )


def test_where_nothing_is_replaced_there_is_nothing_to_shadow() -> None:
    state, actions = drive(State(name="digits"), Wanted(wish("v1", shadow=ASKED)), *installed(1))
    assert of(Switch, actions)
    assert state.shadow == ShadowReport()


def test_the_shadow_begins_anew_when_the_server_it_follows_was_started_again() -> None:
    state, _ = shadowing()
    state, actions = drive(state, Exited(serial=1, cause="it ended", uptime_seconds=100))
    assert state.phase == "Shadowing"
    assert not of(ShadowBeside, actions)
    state, actions = drive(state, Launched(serial=1, port=4001), Ready(serial=1, endpoint=8000))
    assert len(of(ShadowBeside, actions)) == 1


def test_the_end_of_a_version_that_has_just_left_the_shadow_is_an_end_like_any_other() -> None:
    state, _ = shadowing()
    state, _ = drive(state, Shadowed(serial=2, report=AGREES), Switched(serial=2, endpoint=8000))
    for _ in range(current.MAX_CRASHES):
        state, _ = drive(state, Exited(serial=2, cause="it ended", uptime_seconds=1))
    assert state.current is not None
    assert state.current.serial == 1


def test_a_server_that_cannot_be_followed_any_more_is_replaced() -> None:
    state, _ = shadowing()
    for crash in range(current.MAX_CRASHES):
        assert not of(Switch, drive(state)[1])
        state, actions = drive(state, Exited(serial=1, cause="it ended", uptime_seconds=1))
        if crash < current.MAX_CRASHES - 1:
            state, _ = drive(state, Launched(serial=1, port=4001), Ready(serial=1, endpoint=8000))
    assert of(Switch, actions)
    assert state.shadow == ShadowReport(beside="digits-v1")


def test_an_agent_that_comes_back_begins_shadow_mode_anew_and_a_finished_one_not_again() -> None:
    state, _ = shadowing()
    state, _ = drive(state, Resumed())
    assert state.phase == "Starting"
    again: list[journal.Event] = [Launched(serial=2, port=4002), Ready(serial=2)]
    back: list[journal.Event] = [Launched(serial=1, port=4001), Ready(serial=1, endpoint=8000)]
    state, actions = drive(state, *back, *again, Probed(serial=2, measurement=MEASURED))
    assert of(ShadowBeside, actions)
    state, _ = drive(state, Shadowed(serial=2, report=AGREES), Resumed(), *again)
    state, actions = drive(state, Probed(serial=2, measurement=MEASURED))
    assert of(Switch, actions)
    assert state.shadow == AGREES


@pytest.mark.parametrize(
    ("asked", "report", "words"),
    [
        (ASKED, AGREES, ""),
        (
            ASKED,
            ShadowReport(beside="v1", seconds=60, answered=9, agreed=9),
            "9 requests were answered by both in 60 s",
        ),
        (ASKED, ShadowReport(beside="v1", answered=8, agreed=8, errors=2), "agreed with v1 on 0.8 of 10 requests"),
        (msgspec.structs.replace(ASKED, missing="ignore"), ShadowReport(beside="v1"), ""),
        (msgspec.structs.replace(ASKED, missing="wait"), ShadowReport(beside="v1"), ""),
        (msgspec.structs.replace(ASKED, missing="ignore"), ShadowReport(beside="v1", answered=1), "on 0 of 1 requests"),
        (msgspec.structs.replace(ASKED, min_requests=0), ShadowReport(beside="v1"), "at least 1 are needed"),
        (ShadowDesired(min_requests=5), ShadowReport(beside="v1", errors=3), ""),
    ],
)
def test_what_shadow_mode_lets_through(asked: ShadowDesired, report: ShadowReport, words: str) -> None:
    refusal = trial.refusal(asked, report)
    assert words in refusal
    assert bool(words) == bool(refusal)


COUNTS = st.integers(0, 1000)
ASKS = st.builds(
    ShadowDesired,
    min_agreement=st.floats(0, 1),
    min_requests=st.integers(0, 50),
    missing=st.sampled_from(["fail", "ignore", "wait"]),
)


@given(asked=ASKS, answered=COUNTS, agreed=COUNTS, errors=COUNTS)
def test_what_is_let_through_has_agreed(asked: ShadowDesired, answered: int, agreed: int, errors: int) -> None:
    report = ShadowReport(beside="v1", answered=answered, agreed=min(agreed, answered), errors=errors)
    if trial.refusal(asked, report):
        return
    compared = answered + errors
    assert asked.min_agreement is not None
    assert not compared or report.agreed / compared >= asked.min_agreement
    assert asked.missing != "fail" or compared >= max(asked.min_requests, 1)


# --- observation --------------------------------------------------------------------------------------------------


def test_what_serves_is_watched_and_every_end_of_its_server_counts_at_once() -> None:
    state, actions = running(observe=ObserveDesired(seconds=60))
    [begun] = of(Observe, actions)
    assert isinstance(begun, Observe)
    assert begun.slot.serial == 1
    assert workload.report(state).observation == Observation(), "the hub knows that it will hear of it"
    seen = Observation(seconds=60, requests=10, checks=20)
    state, _ = drive(state, Observed(serial=1, observation=seen))
    assert workload.report(state).observation == seen
    state, actions = drive(state, Exited(serial=1, cause="it ended", uptime_seconds=100))
    assert workload.report(state).observation == msgspec.structs.replace(seen, restarts=1)
    assert not of(Observe, actions)
    late = drive(state, Observed(serial=1, observation=seen))[0]
    assert late.observation == state.observation, "a window that an end has cut is none"
    state, actions = drive(state, Launched(serial=1, port=4001), Ready(serial=1, endpoint=8000))
    assert len(of(Observe, actions)) == 1
    state, _ = drive(state, Observed(serial=1, observation=seen))
    assert workload.report(state).observation == seen, "a whole window without an end: it is well again"


def test_a_restart_of_the_agent_is_no_end_of_the_server_and_keeps_what_was_seen() -> None:
    state, _ = running(observe=ObserveDesired(seconds=60))
    seen = Observation(seconds=60, requests=10, checks=20)
    state, _ = drive(state, Observed(serial=1, observation=seen), Resumed())
    assert workload.report(state).observation == seen
    state, actions = drive(state, Launched(serial=1, port=4001), Ready(serial=1, endpoint=8000))
    assert len(of(Observe, actions)) == 1
    assert workload.report(state).observation == seen


def test_nobody_is_watched_who_is_not_asked_for() -> None:
    state, actions = running()
    assert not of(Observe, actions)
    assert workload.report(state).observation is None
    watched, _ = running(observe=ObserveDesired(seconds=60))
    newer, _ = drive(watched, Wanted(wish("v2")))
    assert newer.observation is None
    newer, actions = drive(newer, Exited(serial=1, cause="it ended", uptime_seconds=1), Ready(serial=1, endpoint=8000))
    assert not of(Observe, actions)
    assert newer.observation is None


def test_a_new_rollout_of_the_same_content_is_watched_anew_and_compared_with_nothing() -> None:
    state, _ = running(observe=ObserveDesired(seconds=60))
    state, _ = drive(state, Observed(serial=1, observation=Observation(seconds=60, requests=10)))
    again = wish("v1", rollout="digits-9", observe=ObserveDesired(seconds=60), compare=True, shadow=ASKED)
    state, actions = drive(state, Wanted(again))
    assert of(Observe, actions)
    status = workload.report(state)
    assert (status.phase, status.observation, status.shadow) == ("Running", Observation(), ShadowReport())
    assert status.measurement == msgspec.structs.replace(MEASURED, comparison=Comparison())


def test_the_same_rollout_told_otherwise_keeps_what_was_measured() -> None:
    asked = {"observe": ObserveDesired(seconds=60), "compare": True}
    state, _ = drive(running()[0], Wanted(wish("v2", **asked)))
    compared = msgspec.structs.replace(MEASURED, comparison=Comparison(replaced="digits-v1", samples=4, agreement=1.0))
    state, _ = drive(state, *installed(2)[:-1], Probed(serial=2, measurement=compared), Switched(serial=2, endpoint=1))
    state, _ = drive(state, Observed(serial=2, observation=Observation(seconds=60)))
    told, _ = drive(state, Wanted(wish("v2", require_unmetered=True, **asked)))
    assert workload.report(told).measurement == compared
    assert workload.report(told).observation == Observation(seconds=60)


def test_the_probe_is_told_what_to_compare_with() -> None:
    events = installed(2)[:-1]
    _, plain = drive(running()[0], Wanted(wish("v2")), *events)
    _, compares = drive(running()[0], Wanted(wish("v2", compare=True)), *events)
    assert [action.beside for action in plain if isinstance(action, Probe)] == [None]
    [probe] = [action for action in compares if isinstance(action, Probe)]
    assert probe.beside is not None
    assert probe.beside.serial == 1


# --- what is asked for --------------------------------------------------------------------------------------------


def test_nothing_is_asked_for_that_no_gate_needs() -> None:
    assert trial.ask(wish("v1"), Strategy()) == wish("v1")
    assert trial.ask(wish("v1"), Strategy(bake_time="10m", gates=Gates(latency_p95=LatencyGate(max="1s")))) == wish(
        "v1"
    )


def test_gates_become_what_devices_measure() -> None:
    gates = Gates(
        health=HealthGate(),
        agreement=AgreementGate(min=0.9),
        error_rate=ErrorRateGate(max=0.1, min_samples=7),
        shadow_agreement=ShadowGate(min=0.95, missing="wait"),
    )
    asked = trial.ask(wish("v1"), Strategy(gates=gates, bake_time="10m", shadow=Shadow(duration="5m", min_requests=3)))
    assert asked.compare
    assert asked.observe == ObserveDesired(seconds=600, min_requests=7)
    assert asked.shadow == ShadowDesired(share=0.1, seconds=300, min_requests=3, min_agreement=0.95, missing="wait")
    assert trial.plain(asked) == wish("v1")
    assert workload.same_content(asked, wish("v1")), "what is measured does not change what is installed"
    ratio = Strategy(gates=Gates(latency_p95=LatencyGate(max_ratio=1.2)))
    assert trial.ask(wish("v1"), ratio) == wish("v1", compare=True)
