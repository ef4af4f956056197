"""Gates: verdicts on what devices measured, the honest and the hostile."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.kinds.device import Measurement
from skerry.api.kinds.gates import AccuracyGate, Gates, LatencyGate, SuccessGate
from skerry.api.kinds.rollout import GateResult
from skerry.core import gates
from skerry.core.readings import Sample


def measured(accuracy: float | None = 0.97, *, samples: int = 64, latency: float = 5.0) -> Measurement:
    return Measurement(
        samples=samples,
        accuracy=accuracy,
        agreement=1,
        max_abs_error=0,
        latency_p50_ms=1,
        latency_p95_ms=latency,
        peak_memory_bytes=1,
    )


def running(name: str, measurement: Measurement | None = None) -> Sample:
    return Sample(device=name, state="Running", measurement=measurement or measured())


ALL = Gates(
    success_ratio=SuccessGate(min=1),
    accuracy=AccuracyGate(min=0.95, min_samples=32),
    latency_p95=LatencyGate(max="250ms"),
)


def one(results: list[GateResult], gate: str) -> GateResult:
    return next(result for result in results if result.gate == gate)


def test_all_pass_with_their_measured_values() -> None:
    results = gates.judge(ALL, [running("a"), running("b", measured(0.96, latency=20))], expected=2, final=True)
    assert [(r.gate, r.verdict, r.threshold, r.measured, r.devices) for r in results] == [
        ("successRatio", "Passed", 1.0, 1.0, 2),
        ("accuracy", "Passed", 0.95, 0.96, 2),
        ("latencyP95", "Passed", 250.0, 20, 2),
    ]
    assert one(results, "accuracy").message == "accuracy 0.96 is at or above 0.95 on b, the worst device"
    assert one(results, "latencyP95").message == "p95 latency 20 ms is within 250 ms on b, the worst device"


def test_the_worst_device_decides_and_is_named() -> None:
    results = gates.judge(ALL, [running("a"), running("b", measured(0.11))], expected=2, final=True)
    accuracy = one(results, "accuracy")
    assert (accuracy.verdict, accuracy.measured) == ("Failed", 0.11)
    assert accuracy.message == "accuracy 0.11 is below 0.95 on b, the worst device"
    assert gates.failed(results) == [accuracy]


def test_a_threshold_that_is_met_exactly_passes() -> None:
    samples = [running("a", measured(0.95, samples=32, latency=250))]
    assert gates.failed(gates.judge(ALL, samples, expected=1, final=True)) == []


@pytest.mark.parametrize(
    ("measurement", "gate", "words"),
    [
        (measured(math.nan), "accuracy", "no share between 0 and 1"),
        (measured(1.5), "accuracy", "no share between 0 and 1"),
        (measured(-0.5), "accuracy", "no share between 0 and 1"),
        (measured(math.inf), "accuracy", "no share between 0 and 1"),
        (measured(None), "accuracy", "no labels"),
        (measured(samples=31), "accuracy", "measured 31 golden samples, at least 32 are needed"),
        (measured(samples=-1), "accuracy", "at least 32"),
        (measured(latency=math.nan), "latencyP95", "no time"),
        (measured(latency=-1), "latencyP95", "no time"),
        (measured(latency=math.inf), "latencyP95", "no time"),
        (measured(latency=251), "latencyP95", "251 ms is above 250 ms"),
    ],
)
def test_what_is_missing_or_impossible_fails_at_once(measurement: Measurement, gate: str, words: str) -> None:
    for final in (False, True):
        result = one(gates.judge(ALL, [running("a"), running("liar", measurement)], expected=3, final=final), gate)
        assert result.verdict == "Failed"
        assert "liar" in result.message
        assert words in result.message


def test_a_running_device_without_a_measurement_fails_the_gates_that_need_one() -> None:
    silent = Sample(device="a", state="Running")
    verdicts = {r.gate: r.verdict for r in gates.judge(ALL, [silent], expected=1, final=True)}
    assert verdicts == {"successRatio": "Passed", "accuracy": "Failed", "latencyP95": "Failed"}
    assert gates.failed(gates.judge(Gates(), [silent], expected=1, final=True)) == []


def test_a_proven_device_that_restarts_is_excused() -> None:
    excused = Sample(device="a", state="Running", excused=True)
    assert gates.failed(gates.judge(ALL, [excused], expected=1, final=True)) == []
    worse = Sample(device="a", state="Running", measurement=measured(0.1), excused=True)
    assert [r.gate for r in gates.failed(gates.judge(ALL, [worse], expected=1, final=True))] == ["accuracy"]


def test_success_fails_early_only_when_it_cannot_pass_any_more() -> None:
    tolerant = Gates(success_ratio=SuccessGate(min=0.9))
    failed = [Sample(device=f"bad-{i}", state="Failed", why="out of memory") for i in range(2)]
    assert gates.judge(tolerant, failed[:1], expected=10, final=False)[0].verdict == "Pending"
    result = gates.judge(tolerant, failed, expected=10, final=False)[0]
    assert result.verdict == "Failed"
    assert result.message == "2 of 10 devices failed, a share of 0.9 must run: bad-0: out of memory"


@pytest.mark.parametrize(("share", "count"), [(0.9, 10), (0.55, 100), (0.07, 100), (1.0, 7)])
def test_a_share_that_is_met_exactly_passes_whatever_binary_fractions_say(share: float, count: int) -> None:
    wanted = round(share * count)
    samples = [running(f"d{i}") for i in range(wanted)]
    samples += [Sample(device=f"x{i}", state="Failed") for i in range(count - wanted)]
    assert gates.judge(Gates(success_ratio=SuccessGate(min=share)), samples, expected=count, final=True)[0].verdict == (
        "Passed"
    )


def test_nothing_measured_at_all_is_no_success() -> None:
    lenient = Gates(success_ratio=SuccessGate(min=0), accuracy=AccuracyGate(min=0.5))
    samples = [Sample(device="a", state="Failed")]
    assert one(gates.judge(lenient, samples, expected=1, final=False), "accuracy").verdict == "Pending"
    result = one(gates.judge(lenient, samples, expected=1, final=True), "accuracy")
    assert (result.verdict, result.message) == ("Failed", "no device has measured it")


SAMPLES = st.lists(
    st.builds(
        Sample,
        device=st.sampled_from("abcdefgh"),
        state=st.sampled_from(["Waiting", "Running", "Failed"]),
        measurement=st.none()
        | st.builds(
            measured,
            st.none() | st.floats(allow_nan=True, allow_infinity=True),
            samples=st.integers(-5, 100),
            latency=st.floats(allow_nan=True, allow_infinity=True),
        ),
        why=st.text(max_size=5),
        excused=st.booleans(),
    ),
    unique_by=lambda sample: sample.device,
    max_size=8,
)


@given(samples=SAMPLES, expected=st.integers(0, 12), final=st.booleans())
def test_whatever_devices_say_verdicts_are_sound(samples: list[Sample], expected: int, final: bool) -> None:
    results = gates.judge(ALL, samples, expected=expected, final=final)
    assert results == gates.judge(ALL, list(reversed(samples)), expected=expected, final=final)
    for result in results:
        assert result.verdict in (("Passed", "Failed") if final else ("Pending", "Failed"))
        assert msgspec.json.decode(msgspec.json.encode(result), type=GateResult) == result
        assert result.measured is None or math.isfinite(result.measured)
    if not final or gates.failed(results):
        return
    for sample in samples:
        assert sample.state == "Running"
        found = sample.measurement
        if found is not None:
            assert found.accuracy is not None
            assert found.accuracy >= 0.95
            assert found.latency_p95_ms <= 250
        else:
            assert sample.excused
