"""Gates: what the devices of a wave measured, judged against the conditions that the next wave waits for. Pure.

Judged over every device that is on the rollout so far, so that a canary that worsens later still counts. A gate fails
as soon as it cannot pass any more; it passes when all devices have settled. Devices are not trusted: what is missing,
not a number, or out of range fails.

Lives here: verdicts. Must not live here: which devices belong to a wave, or what follows from a verdict
(`core.rollout`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from skerry.api import duration
from skerry.api.kinds.device import Measurement
from skerry.api.kinds.model_deployment import AccuracyGate, Gates, LatencyGate, SuccessGate
from skerry.api.kinds.rollout import GateResult, Verdict

State = Literal["Waiting", "Running", "Failed"]
_SLACK = 1e-9  # for products such as 0.9 * 10, which are not exact in binary


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What one device contributes: where it stands with this rollout, and what it measured for this rollout."""

    device: str
    state: State
    measurement: Measurement | None = None
    why: str = ""
    """Why it failed."""
    excused: bool = False
    """A missing measurement is no fault: the device passed an earlier wave and has restarted since."""


def needs_measurement(gates: Gates) -> bool:
    """Return whether a device that runs has to show a measurement before its wave can be judged."""
    return gates.accuracy is not None or gates.latency_p95 is not None


def judge(gates: Gates, samples: Iterable[Sample], *, expected: int, final: bool) -> list[GateResult]:
    """Return each gate's verdict.

    `expected` is how many devices the wave brings onto the rollout, counted with those of earlier waves. With `final`
    all have settled, and nothing stays Pending.
    """
    ordered = sorted(samples, key=lambda sample: sample.device)
    measured = [
        s for s in ordered if s.state != "Failed" and (s.measurement or s.state == "Running") and not _waived(s)
    ]
    complete = any(s.measurement or _waived(s) for s in ordered if s.state != "Failed")
    results = [_success(gates.success_ratio, ordered, max(expected, len(ordered)), final=final)]
    if gates.accuracy is not None:
        results.append(_accuracy(gates.accuracy, measured, final=final, complete=complete))
    if gates.latency_p95 is not None:
        results.append(_latency(gates.latency_p95, measured, final=final, complete=complete))
    return results


def failed(results: Sequence[GateResult]) -> list[GateResult]:
    """Return the gates that failed."""
    return [result for result in results if result.verdict == "Failed"]


def _waived(sample: Sample) -> bool:
    return sample.excused and sample.measurement is None


def _success(gate: SuccessGate, samples: Sequence[Sample], expected: int, *, final: bool) -> GateResult:
    running = sum(sample.state == "Running" for sample in samples)
    broken = [sample for sample in samples if sample.state == "Failed"]
    possible = running if final else expected - len(broken)
    ratio = running / expected if expected else 0.0
    verdict: Verdict = "Pending"
    message = f"{running} of {expected} devices run"
    if possible + _SLACK < gate.min * expected:
        verdict = "Failed"
        worst = f": {_sentence(broken[0])}" if broken else ""
        message = f"{len(broken)} of {expected} devices failed, a share of {gate.min:.4g} must run{worst}"
    elif final:
        verdict = "Passed"
    return GateResult(
        gate="successRatio",
        verdict=verdict,
        threshold=gate.min,
        measured=ratio,
        devices=running + len(broken),
        message=message,
    )


def _accuracy(gate: AccuracyGate, samples: Sequence[Sample], *, final: bool, complete: bool) -> GateResult:
    def fault(found: Measurement) -> str:
        if found.accuracy is None:
            return "measured no accuracy, the golden samples have no labels"
        if not 0 <= found.accuracy <= 1:
            return "reported an accuracy that is no share between 0 and 1"
        if found.samples < gate.min_samples:
            return f"measured {found.samples} golden samples, at least {gate.min_samples} are needed"
        return ""

    result = _worst(samples, fault, lambda found: -_number(found.accuracy))
    verdict, device, value = result.verdict, result.device, result.value
    measured = None if value is None else -value
    if verdict == "Judged" and measured is not None:
        low = measured < gate.min
        relation = "is below" if low else "is at or above"
        message = f"accuracy {measured:.4g} {relation} {gate.min:.4g} on {device}, the worst device"
        verdict = "Failed" if low else "Judged"
    else:
        message = result.message
    return GateResult(
        gate="accuracy",
        verdict=_verdict(verdict, final=final, complete=complete),
        threshold=gate.min,
        measured=measured,
        devices=sum(sample.measurement is not None for sample in samples),
        message=message,
    )


def _latency(gate: LatencyGate, samples: Sequence[Sample], *, final: bool, complete: bool) -> GateResult:
    limit = duration.to_seconds(gate.max) * 1000

    def fault(found: Measurement) -> str:
        value = found.latency_p95_ms
        return "" if math.isfinite(value) and value >= 0 else "reported a latency that is no time"

    result = _worst(samples, fault, lambda found: found.latency_p95_ms)
    verdict, measured, message = result.verdict, result.value, result.message
    if verdict == "Judged" and measured is not None:
        high = measured > limit
        relation = "is above" if high else "is within"
        message = f"p95 latency {measured:.4g} ms {relation} {limit:.4g} ms on {result.device}, the worst device"
        verdict = "Failed" if high else "Judged"
    return GateResult(
        gate="latencyP95",
        verdict=_verdict(verdict, final=final, complete=complete),
        threshold=limit,
        measured=measured,
        devices=sum(sample.measurement is not None for sample in samples),
        message=message,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Worst:
    """The device that decides: one with a faulty measurement, else the one with the highest value."""

    verdict: Literal["Failed", "Judged", "Empty"]
    device: str = ""
    value: float | None = None
    message: str = ""


def _worst(
    samples: Sequence[Sample], fault: Callable[[Measurement], str], value: Callable[[Measurement], float]
) -> _Worst:
    worst = _Worst(verdict="Empty", message="no device has measured it")
    for sample in samples:
        found = sample.measurement
        why = "runs, but reported no measurement" if found is None else fault(found)
        if why or found is None:
            return _Worst(verdict="Failed", device=sample.device, message=f"{sample.device} {why}")
        if worst.value is None or value(found) > worst.value:
            worst = _Worst(verdict="Judged", device=sample.device, value=value(found))
    return worst


def _verdict(found: Literal["Failed", "Judged", "Empty"], *, final: bool, complete: bool) -> Verdict:
    """Nothing measured at all is a failure in the end; the excused alone are not, their measurements passed before."""
    if found == "Failed" or (final and not complete):
        return "Failed"
    return "Passed" if final else "Pending"


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _sentence(sample: Sample) -> str:
    return f"{sample.device}: {sample.why[:300]}" if sample.why else sample.device
