"""Gates on comparison, memory, shadow mode and the bake time: formulas, silence, lies."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.kinds.device import Comparison, Measurement, Observation, ShadowReport
from skerry.api.kinds.gates import (
    AccuracyGate,
    AgreementGate,
    ErrorRateGate,
    Gates,
    HealthGate,
    LatencyGate,
    MemoryGate,
    ShadowGate,
    SuccessGate,
)
from skerry.api.kinds.rollout import GateResult
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.api.kinds.variants import Blob, Requirements
from skerry.core import baking, gates
from skerry.core.messages import ObserveDesired, ShadowDesired, WorkloadDesired
from skerry.core.readings import MOST, Sample

Missing = Literal["fail", "ignore", "wait"]
TENSOR = TensorSpec(name="x", datatype="FP32", shape=[-1, 4])
ASKED = WorkloadDesired(
    name="digits",
    rollout="digits-2",
    revision=2,
    model="digits",
    model_version="digits-v2",
    version="v2",
    variant="onnx-fp32",
    format="onnx",
    needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
    signature=ModelSignature(inputs=[TENSOR], outputs=[TENSOR]),
    repository="default/digits",
    blob=Blob(digest="sha256:" + "0" * 64, size=1),
    compare=True,
    observe=ObserveDesired(seconds=60),
    shadow=ShadowDesired(min_requests=10),
)
COMPARED = Comparison(
    replaced="digits-v1",
    samples=50,
    agreement=0.98,
    max_abs_difference=0.2,
    latency_p95_ms=11.0,
    replaced_latency_p95_ms=10.0,
)
WELL = Observation(seconds=60, requests=100, errors=1, checks=20)
SHADOWED = ShadowReport(beside="digits-v1", seconds=600, requests=40, answered=38, agreed=38, errors=2)


def measured(comparison: Comparison | None = COMPARED, **changes: Any) -> Measurement:
    made = Measurement(
        samples=50,
        accuracy=0.97,
        agreement=1,
        max_abs_error=0,
        latency_p50_ms=1,
        latency_p95_ms=11,
        peak_memory_bytes=50 * 1024**2,
        comparison=comparison,
    )
    return msgspec.structs.replace(made, **changes)


def device(name: str = "a", **changes: Any) -> Sample:
    made = Sample(device=name, state="Running", measurement=measured(), observation=WELL, shadow=SHADOWED, asked=ASKED)
    return replace(made, **changes)


def judge(wanted: Gates, *samples: Sample, **how: Any) -> dict[str, GateResult]:
    told = {"expected": len(samples), "final": True, **how}
    return {result.gate: result for result in gates.judge(wanted, samples, **told)}


def everything(missing: Missing = "fail", devices: int = 1) -> Gates:
    rest: dict[str, Any] = {"missing": missing, "min_devices": devices}
    return Gates(
        health=HealthGate(**rest),
        accuracy=AccuracyGate(min=0.9, **rest),
        agreement=AgreementGate(min=0.95, max_difference=0.5, min_samples=20, **rest),
        latency_p95=LatencyGate(max="20ms", max_ratio=1.2, **rest),
        peak_memory=MemoryGate(max="64Mi", **rest),
        error_rate=ErrorRateGate(max=0.05, min_samples=10, **rest),
        shadow_agreement=ShadowGate(min=0.9, **rest),
    )


def test_all_pass_with_value_threshold_counts_and_the_worst_device() -> None:
    slow = measured(msgspec.structs.replace(COMPARED, latency_p95_ms=11.5), peak_memory_bytes=60 * 1024**2)
    found = judge(everything(), device("a"), device("b", measurement=slow))
    assert {name: result.verdict for name, result in found.items()} == dict.fromkeys(
        (
            "successRatio",
            "health",
            "accuracy",
            "agreement",
            "agreementDifference",
            "latencyP95",
            "latencyP95Ratio",
            "peakMemory",
            "shadowAgreement",
            "errorRate",
        ),
        "Passed",
    )
    rows = {name: (r.measured, r.threshold, r.devices, r.missing, r.samples, r.worst) for name, r in found.items()}
    assert rows["health"] == (1.0, 1.0, 2, 0, 40, "")
    assert rows["agreement"] == (0.98, 0.95, 2, 0, 100, "a")
    assert rows["agreementDifference"] == (0.2, 0.5, 2, 0, 100, "a")
    assert rows["latencyP95Ratio"] == (1.15, 1.2, 2, 0, 100, "b")
    assert rows["peakMemory"] == (60 * 1024**2, 64 * 1024**2, 2, 0, 100, "b")
    assert rows["errorRate"] == (0.01, 0.05, 2, 0, 200, "a")
    assert rows["shadowAgreement"] == (0.95, 0.9, 2, 0, 80, "a")
    assert found["peakMemory"].message == "peak memory 60.0 MiB is within 64.0 MiB on b, the worst device"
    assert found["latencyP95Ratio"].message.startswith("p95 latency 1.15 times that of the version it replaces")


@pytest.mark.parametrize(
    ("change", "gate", "words"),
    [
        ({"measurement": measured(msgspec.structs.replace(COMPARED, agreement=0.9))}, "agreement", "0.9 is below 0.95"),
        (
            {"measurement": measured(msgspec.structs.replace(COMPARED, max_abs_difference=0.6))},
            "agreementDifference",
            "0.6 is above 0.5",
        ),
        (
            {"measurement": measured(msgspec.structs.replace(COMPARED, replaced_latency_p95_ms=9.0))},
            "latencyP95Ratio",
            "1.222 times",
        ),
        ({"measurement": measured(peak_memory_bytes=65 * 1024**2)}, "peakMemory", "65.0 MiB is above 64.0 MiB"),
        (
            {"observation": msgspec.structs.replace(WELL, peak_memory_bytes=80 * 1024**2)},
            "peakMemory",
            "80.0 MiB is above",
        ),
        ({"shadow": msgspec.structs.replace(SHADOWED, agreed=30)}, "shadowAgreement", "0.75 is below 0.9"),
        ({"observation": msgspec.structs.replace(WELL, errors=20)}, "errorRate", "0.105 of 200 requests failed"),
        ({"observation": msgspec.structs.replace(WELL, restarts=2)}, "health", "b: its server ended 2 times"),
        ({"observation": msgspec.structs.replace(WELL, unready=1)}, "health", "did not answer 1 of 20 checks"),
        ({"state": "Failed", "why": "no room", "shadow": None}, "health", "b: no room"),
    ],
)
def test_the_worst_device_fails_the_gate_and_is_named(change: dict[str, Any], gate: str, words: str) -> None:
    wanted = msgspec.structs.replace(everything(), success_ratio=SuccessGate(min=0))
    found = judge(wanted, device("a"), device("b", **change))
    assert [name for name, result in found.items() if result.verdict == "Failed"] == [gate]
    assert words in found[gate].message
    assert found[gate].worst == "b"


NEVER = 2**70
LIES: list[tuple[dict[str, Any], str]] = [
    ({"measurement": measured(msgspec.structs.replace(COMPARED, agreement=value))}, "agreement")
    for value in (None, math.nan, -0.1, 1.1, math.inf)
]
LIES += [
    ({"measurement": measured(msgspec.structs.replace(COMPARED, max_abs_difference=value))}, "agreementDifference")
    for value in (None, math.nan, -1.0, math.inf)
]
LIES += [
    ({"measurement": measured(msgspec.structs.replace(COMPARED, replaced_latency_p95_ms=value))}, "latencyP95Ratio")
    for value in (None, math.nan, -1.0, 0.0, math.inf, 5e-324)
]
LIES += [({"measurement": measured(peak_memory_bytes=value)}, "peakMemory") for value in (-1, NEVER)]
LIES += [({"measurement": measured(samples=NEVER)}, "accuracy")]
for bad in ({"requests": -1}, {"requests": NEVER}, {"errors": 101}, {"seconds": math.nan}, {"unready": 21}):
    LIES += [({"observation": msgspec.structs.replace(WELL, **bad)}, gate) for gate in ("health", "errorRate")]
LIES += [
    ({"shadow": msgspec.structs.replace(SHADOWED, **bad)}, "shadowAgreement")
    for bad in ({"answered": -1}, {"agreed": 39}, {"errors": NEVER}, {"requests": -5})
]


@pytest.mark.parametrize("missing", ["fail", "ignore", "wait"])
@pytest.mark.parametrize(("change", "gate"), LIES)
def test_what_cannot_be_fails_at_once_whatever_is_said_of_missing_devices(
    change: dict[str, Any], gate: str, missing: Missing
) -> None:
    for final in (False, True):
        found = judge(everything(missing), device("a"), device("liar", **change), device("c"), final=final)
        assert found[gate].verdict == "Failed"
        assert "liar" in found[gate].message
        assert found[gate].worst == "liar"


SILENT = device("old", measurement=None, observation=None, shadow=None)
"""A device whose agent does not know of any of this."""


def test_an_older_agent_fails_is_ignored_or_is_waited_for() -> None:
    names = set(judge(everything(), device("a"))) - {"successRatio"}
    verdicts = {missing: judge(everything(missing), device("a"), SILENT) for missing in ("fail", "ignore", "wait")}
    for missing, verdict in (("fail", "Failed"), ("ignore", "Passed"), ("wait", "Pending")):
        assert {name: verdicts[missing][name].verdict for name in names} == dict.fromkeys(names, verdict)
        assert {verdicts[missing][name].missing for name in names} == {1}
    for name in names:
        assert "old" in verdicts["fail"][name].message
        assert "old" in verdicts["wait"][name].message
    assert gates.pending(list(verdicts["wait"].values()))


def test_ignoring_everybody_is_no_pass() -> None:
    found = judge(everything("ignore"), SILENT)
    assert {name for name, result in found.items() if result.verdict == "Failed"} == set(found) - {"successRatio"}
    assert gates.failed(list(judge(everything("ignore", devices=0), SILENT).values())) == []


def test_a_least_number_of_devices_is_asked_of_waves_that_have_so_many() -> None:
    wanted = everything("ignore", devices=3)
    assert gates.failed(list(judge(wanted, device("a"), device("b")).values())) == []
    few = judge(wanted, device("a"), device("b"), SILENT, expected=3)
    assert few["accuracy"].message == "2 devices answered, at least 3 must"
    assert few["health"].verdict == few["errorRate"].verdict == few["shadowAgreement"].verdict == "Failed"


def test_what_replaces_nothing_is_not_compared() -> None:
    fresh = device("fresh", measurement=measured(Comparison()), shadow=ShadowReport())
    for missing in ("fail", "ignore", "wait"):
        found = judge(everything(missing), fresh)
        assert gates.failed(list(found.values())) == []
        assert found["agreement"].message == "there was nothing to compare with on 1 device"
        assert found["agreement"].verdict == found["shadowAgreement"].verdict == "Passed"


def test_what_could_not_be_compared_says_why() -> None:
    away = measured(Comparison(replaced="digits-v1", reason="it does not run"))
    found = judge(everything(), device("a", measurement=away))
    assert found["agreement"].message == "a could not be compared with digits-v1: it does not run"
    assert found["latencyP95Ratio"].verdict == "Failed"
    assert found["latencyP95"].verdict == "Passed"


def test_a_device_that_gave_up_in_the_shadow_shows_why_at_the_gate() -> None:
    gone = device("b", state="Failed", measurement=None, observation=None)
    gone = replace(gone, shadow=msgspec.structs.replace(SHADOWED, agreed=3))
    found = judge(msgspec.structs.replace(everything(), success_ratio=SuccessGate(min=0)), device("a"), gone)
    assert found["shadowAgreement"].verdict == "Failed"
    assert "on b, the worst device" in found["shadowAgreement"].message


def test_devices_of_passed_waves_need_no_shadow_any_more() -> None:
    proven = device("a", shadow=None, excused=True)
    assert judge(Gates(shadow_agreement=ShadowGate(min=0.9)), proven)["shadowAgreement"].verdict == "Passed"


def test_too_few_requests_in_the_shadow_are_no_answer() -> None:
    few = device("a", shadow=ShadowReport(beside="digits-v1", answered=9, agreed=9))
    assert judge(everything(), few)["shadowAgreement"].message == (
        "a answered 9 requests in the shadow of digits-v1, 10 are needed"
    )
    assert judge(everything("wait"), few)["shadowAgreement"].verdict == "Pending"


# --- the bake time ------------------------------------------------------------------------------------------------

UNDER_WAY = Observation(seconds=30, requests=50, checks=10)


@pytest.mark.parametrize("missing", ["fail", "ignore", "wait"])
def test_nothing_is_decided_before_the_bake_time_is_over(missing: Missing) -> None:
    wanted = Gates(health=HealthGate(missing=missing), error_rate=ErrorRateGate(max=0.05, missing=missing))
    for how in ({"final": False}, {"baked": False}):
        found = judge(wanted, device("a"), device("b", observation=UNDER_WAY), SILENT, **how)
        assert {found["health"].verdict, found["errorRate"].verdict} == {"Pending"}


def test_a_window_under_way_is_waited_for_until_it_is_overdue() -> None:
    late = device("b", observation=UNDER_WAY)
    for missing, after in (("fail", "Failed"), ("ignore", "Passed"), ("wait", "Pending")):
        wanted = Gates(health=HealthGate(missing=missing), error_rate=ErrorRateGate(max=0.05, missing=missing))  # type: ignore[arg-type]
        soon = judge(wanted, device("a"), late, overdue=False)
        assert {soon["health"].verdict, soon["errorRate"].verdict} == {"Pending"}
        assert "1 still watched" in soon["health"].message
        end = judge(wanted, device("a"), late)
        assert {end["health"].verdict, end["errorRate"].verdict} == {after}


def test_a_server_that_ends_fails_the_wave_as_soon_as_the_rest_cannot_make_up_for_it() -> None:
    ended = device("b", observation=Observation(seconds=10, restarts=1))
    strict = judge(Gates(health=HealthGate()), device("a"), ended, final=False)
    assert strict["health"].verdict == "Failed"
    assert strict["health"].message == (
        "1 of 2 devices did not stay up, a share of 1 must: b: its server ended 1 times"
    )
    loose = judge(Gates(health=HealthGate(min=0.5)), device("a"), ended, final=False)
    assert loose["health"].verdict == "Pending"


def test_errors_fail_before_the_bake_time_is_over_once_there_are_enough_requests() -> None:
    failing = device("b", observation=msgspec.structs.replace(WELL, errors=50))
    wanted = Gates(error_rate=ErrorRateGate(max=0.05, min_samples=100))
    assert judge(wanted, failing, baked=False)["errorRate"].verdict == "Failed"
    wanted = Gates(error_rate=ErrorRateGate(max=0.05, min_samples=101))
    assert judge(wanted, failing, baked=False)["errorRate"].verdict == "Pending"


def test_too_few_requests_are_what_the_gate_says_of_them() -> None:
    idle = device("a", observation=Observation(seconds=60, checks=20))
    verdicts = {
        missing: judge(Gates(error_rate=ErrorRateGate(max=0, missing=missing)), idle)["errorRate"]  # type: ignore[arg-type]
        for missing in ("fail", "ignore", "wait")
    }
    assert {missing: found.verdict for missing, found in verdicts.items()} == {
        "fail": "Failed",
        "ignore": "Passed",
        "wait": "Pending",
    }
    assert verdicts["fail"].message == "0 requests came in the bake time, at least 1 are needed to judge"
    assert judge(Gates(error_rate=ErrorRateGate(max=0, min_samples=0)), idle)["errorRate"].verdict == "Passed"


def test_no_device_can_drown_the_errors_of_the_others_in_requests_it_claims() -> None:
    failing = [device(f"d{n}", observation=msgspec.structs.replace(WELL, errors=100)) for n in range(3)]
    liar = device("liar", observation=Observation(seconds=60, requests=MOST, checks=20))
    found = judge(Gates(error_rate=ErrorRateGate(max=0.05)), *failing, liar)["errorRate"]
    assert found.verdict == "Failed"
    assert found.measured == pytest.approx(3 / (3 + baking.MOST_WEIGHT))


def test_proven_devices_that_restart_are_excused_and_worsening_ones_are_not() -> None:
    wanted = Gates(health=HealthGate(), error_rate=ErrorRateGate(max=0.05))
    excused = device("old", observation=None, excused=True)
    assert gates.failed(list(judge(wanted, excused).values())) == []
    worse = device("old", observation=msgspec.structs.replace(WELL, restarts=1), excused=True)
    assert judge(wanted, worse)["health"].verdict == "Failed"


def test_a_gate_that_came_after_the_assignment_says_so() -> None:
    before = device("a", observation=None, asked=msgspec.structs.replace(ASKED, observe=None))
    assert "assigned before" in judge(Gates(health=HealthGate(missing="wait")), before)["health"].message


# --- silent devices -----------------------------------------------------------------------------------------------


def test_devices_that_say_nothing_fail_do_not_count_or_are_waited_for() -> None:
    silent = Sample(device="z", state="Failed", silent=True, why="it is offline")
    rows = {}
    for missing in ("fail", "ignore", "wait"):
        found = judge(Gates(success_ratio=SuccessGate(missing=missing)), device("a"), silent)["successRatio"]  # type: ignore[arg-type]
        rows[missing] = (found.verdict, found.measured, found.message)
    assert rows["fail"] == ("Failed", 0.5, "1 of 2 devices failed, a share of 1 must run: z: it is offline")
    assert rows["ignore"] == ("Passed", 1.0, "1 of 1 devices run")
    assert rows["wait"] == ("Pending", 0.5, "1 of 2 devices run, waiting for z: it is offline")
    enough = Gates(success_ratio=SuccessGate(min=0.5, missing="wait"))
    assert judge(enough, device("a"), silent)["successRatio"].verdict == "Passed", "nobody waits for what is not needed"
    nobody = judge(Gates(success_ratio=SuccessGate(missing="ignore")), silent)["successRatio"]
    assert (nobody.verdict, nobody.message) == ("Failed", "0 devices answered, at least 1 must")
    broken = Sample(device="y", state="Failed", why="no room")
    waits = judge(Gates(success_ratio=SuccessGate(missing="wait")), broken, silent)["successRatio"]
    assert waits.verdict == "Failed"


# --- whatever devices say -----------------------------------------------------------------------------------------

NUMBERS = st.none() | st.floats(allow_nan=True, allow_infinity=True)
COUNTS = st.integers(-3, 200) | st.just(NEVER)
DEVICES = st.lists(
    st.builds(
        Sample,
        device=st.sampled_from("abcdef"),
        state=st.sampled_from(["Waiting", "Running", "Failed"]),
        measurement=st.none()
        | st.builds(
            measured,
            st.none()
            | st.builds(
                Comparison,
                replaced=st.sampled_from(["", "v1"]),
                samples=COUNTS,
                agreement=NUMBERS,
                max_abs_difference=NUMBERS,
                latency_p95_ms=NUMBERS,
                replaced_latency_p95_ms=NUMBERS,
            ),
            peak_memory_bytes=COUNTS,
        ),
        observation=st.none()
        | st.builds(
            Observation,
            seconds=st.sampled_from([0.0, 30.0, 60.0, math.nan]),
            requests=COUNTS,
            errors=COUNTS,
            restarts=st.integers(-1, 2),
            checks=COUNTS,
            unready=st.integers(-1, 1),
        ),
        shadow=st.none()
        | st.builds(
            ShadowReport, beside=st.sampled_from(["", "v1"]), answered=COUNTS, agreed=COUNTS, errors=st.integers(-1, 3)
        ),
        asked=st.just(ASKED),
        silent=st.booleans(),
        excused=st.booleans(),
    ),
    unique_by=lambda sample: sample.device,
    max_size=6,
)


@given(
    samples=DEVICES,
    more=st.integers(0, 3),
    missing=st.sampled_from(["fail", "ignore", "wait"]),
    stage=st.sampled_from([(False, False, False), (True, False, False), (True, True, False), (True, True, True)]),
)
def test_whatever_devices_say_verdicts_are_sound(
    samples: list[Sample], more: int, missing: Missing, stage: tuple[bool, bool, bool]
) -> None:
    final, baked, overdue = stage
    how = {"expected": len(samples) + more, "final": final, "baked": baked, "overdue": overdue}
    found = judge(everything(missing), *samples, **how)
    assert found == judge(everything(missing), *reversed(samples), **how)
    for result in found.values():
        assert msgspec.json.decode(msgspec.json.encode(result), type=GateResult) == result
        assert result.measured is None or math.isfinite(result.measured)
        if not final:
            assert result.verdict != "Passed"
        if overdue and missing != "wait":
            assert result.verdict != "Pending" or result.gate == "successRatio"
    if found["errorRate"].verdict == "Passed" and missing == "fail":
        running = [s for s in samples if s.state == "Running" and not s.excused]
        assert all(s.observation is not None and s.observation.seconds >= 60 for s in running)
    if found["health"].verdict == "Passed":
        seen = [s.observation for s in samples if s.observation is not None and s.state != "Failed"]
        assert not any(o.restarts or o.unready for o in seen if o.seconds >= 60)
