"""Gates: what the devices of a wave measured, judged against the conditions that the next wave waits for. Pure.

Judged over every device that is on the rollout so far, so that a canary that worsens later still counts. A gate fails
as soon as it cannot pass any more; it passes when all devices have settled and, where it is about the bake time, have
been watched for that long. Formulas: `docs/rollouts.md`.

Lives here: verdicts on golden samples, comparisons, memory, shadow mode and success. Must not live here: those on the
bake time (`core.baking`), the reading of one device (`core.readings`), which devices belong to a wave, or what follows
from a verdict (`core.rollout`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from skerry.api import duration, quantity
from skerry.api.kinds.gates import Gates, Missing, SuccessGate
from skerry.api.kinds.rollout import GateResult, Verdict
from skerry.core import baking, readings
from skerry.core.baking import Watched
from skerry.core.readings import Gap, Lie, Reading, Sample, Value

_SLACK = 1e-9  # for products such as 0.9 * 10, which are not exact in binary


class _Rule(Protocol):
    """What all gates have."""

    @property
    def min_devices(self) -> int: ...
    @property
    def missing(self) -> Missing: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """One threshold that the worst device must meet."""

    gate: str
    rule: _Rule
    threshold: float
    lowest: bool
    """The threshold is the lowest value that passes, not the highest."""
    read: Callable[[Sample], Reading]
    says: Callable[[float, float, bool], str]
    """The sentence on a value, the threshold, and whether it is missed; the device's name follows."""
    counts: Callable[[Sample], bool]


def needs_measurement(gates: Gates) -> bool:
    """Return whether a device that runs has to show a measurement before its wave can be judged."""
    asked = (gates.accuracy, gates.agreement, gates.latency_p95, gates.peak_memory)
    return any(gate is not None and gate.missing == "fail" for gate in asked)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What the devices said to one bound, summed up. "First" is by the device's name."""

    values: int = 0
    worst: tuple[float, str] | None = None
    """The lowest or the highest value, and the first device with it."""
    samples: int = 0
    """Golden samples or requests behind all values."""
    gaps: int = 0
    gap: tuple[str, str] | None = None
    """The first device that does not answer, and why."""
    lie: tuple[str, str] | None = None
    """The first that says what cannot be, and what."""
    foreign: int = 0
    """Devices that the gate is not about."""
    excused: int = 0
    """Devices that need not answer now, and have passed before."""


class Said(Protocol):
    """What the devices on a rollout said, summed up."""

    @property
    def total(self) -> int:
        """All of them."""
        ...

    @property
    def running(self) -> int:
        """Those that are Running."""
        ...

    def failed(self, *, silent: bool | None) -> tuple[int, Sample | None]:
        """Return how many have Failed, and the first; those that were silent, the others, or (None) all."""
        ...

    def answers(self, bound: Bound) -> Answers:
        """Return what they said to a bound."""
        ...

    def watched(self, missing: Missing, *, overdue: bool) -> Watched:
        """Return what they saw in the bake time."""
        ...


class Samples:
    """What these devices said: gone through each time it is asked for."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = sorted(samples, key=lambda sample: sample.device)

    @property
    def total(self) -> int:
        """As in `Said`."""
        return len(self._samples)

    @property
    def running(self) -> int:
        """As in `Said`."""
        return sum(sample.state == "Running" for sample in self._samples)

    def failed(self, *, silent: bool | None) -> tuple[int, Sample | None]:
        """As in `Said`."""
        fallen = [s for s in self._samples if s.state == "Failed" and silent in (None, s.silent)]
        return len(fallen), fallen[0] if fallen else None

    def answers(self, bound: Bound) -> Answers:
        """As in `Said`."""
        found = _gather(bound, self._samples)
        lowest = min(found.values, key=lambda v: v[0] if bound.lowest else -v[0], default=None)
        return Answers(
            values=len(found.values),
            worst=None if lowest is None else (lowest[0], lowest[2]),
            samples=sum(value[1] for value in found.values),
            gaps=len(found.gaps),
            gap=found.gaps[0] if found.gaps else None,
            lie=found.lie,
            foreign=found.foreign,
            excused=sum(is_excused(bound, sample) for sample in self._samples),
        )

    def watched(self, missing: Missing, *, overdue: bool) -> Watched:
        """As in `Said`."""
        return baking.watch(self._samples, missing, overdue=overdue)


def is_excused(bound: Bound, sample: Sample) -> bool:
    """Return whether a device need not answer to a bound, having passed before."""
    return sample.state != "Failed" and sample.excused and not bound.counts(sample)


def judge(
    gates: Gates,
    samples: Iterable[Sample] | Said,
    *,
    expected: int,
    final: bool,
    baked: bool = True,
    overdue: bool = True,
) -> list[GateResult]:
    """Return each gate's verdict.

    `expected` is how many devices the wave brings onto the rollout, counted with those of earlier waves. With `final`
    all have settled, and only what waits for devices stays Pending. `baked`: the bake time is over since; `overdue`:
    and so is the time in which the devices' last words on it must have come.
    """
    said: Said = Samples(samples) if isinstance(samples, Iterable) else samples
    expected = max(expected, said.total)
    over = final and baked
    results = [_success(gates.success_ratio, said, expected, final=final)]
    if gates.health is not None:
        seen = said.watched(gates.health.missing, overdue=over and overdue)
        results.append(baking.health(gates.health, seen, expected, over=over))
    results += [_worst(bound, said, expected, final=final) for bound in bounds_of(gates)]
    if gates.error_rate is not None:
        seen = said.watched(gates.error_rate.missing, overdue=over and overdue)
        results.append(baking.error_rate(gates.error_rate, seen, expected, over=over))
    return results


def failed(results: Sequence[GateResult]) -> list[GateResult]:
    """Return the gates that failed."""
    return [result for result in results if result.verdict == "Failed"]


def pending(results: Sequence[GateResult]) -> list[GateResult]:
    """Return the gates that wait for devices."""
    return [result for result in results if result.verdict == "Pending"]


# --- success ------------------------------------------------------------------------------------------------------


def _success(gate: SuccessGate, said: Said, expected: int, *, final: bool) -> GateResult:
    spared, away = said.failed(silent=True) if gate.missing != "fail" else (0, None)
    broken, worst = said.failed(silent=None if gate.missing == "fail" else False)
    running = said.running
    counted = expected - (spared if gate.missing == "ignore" else 0)
    waiting = spared if gate.missing == "wait" else 0
    possible = running + waiting if final else counted - broken
    ratio = running / counted if counted else 0.0
    verdict: Verdict = "Pending"
    message = f"{running} of {counted} devices run"
    if possible + _SLACK < gate.min * counted:
        verdict = "Failed"
        why = f": {_sentence(worst)}" if worst else ""
        message = f"{broken} of {counted} devices failed, a share of {gate.min:.4g} must run{why}"
    elif final and waiting and running + _SLACK < gate.min * counted:
        message += f", waiting for {_sentence(away)}" if away else ""
    elif final:
        verdict = "Passed"
        least = min(gate.min_devices, expected)
        if running + broken < least:
            verdict, message = "Failed", _too_few(running + broken, least)
    return GateResult(
        gate="successRatio",
        verdict=verdict,
        threshold=gate.min,
        measured=ratio,
        devices=running + broken,
        missing=spared,
        worst=worst.device if worst else "",
        message=message,
    )


# --- the worst device decides -------------------------------------------------------------------------------------


def bounds_of(gates: Gates) -> list[Bound]:
    """Return the bounds that these gates set, in the order of their verdicts."""
    bounds: list[Bound] = []

    def add(gate: str, rule: _Rule, threshold: float, read: Callable[[Sample], Reading], says: _Says) -> None:
        counts = _shadows if gate == "shadowAgreement" else _measures
        bounds.append(
            Bound(
                gate=gate,
                rule=rule,
                threshold=threshold,
                lowest=says.lowest,
                read=read,
                says=says.sentence,
                counts=counts,
            )
        )

    if (accuracy := gates.accuracy) is not None:
        add("accuracy", accuracy, accuracy.min, partial(readings.accuracy, least=accuracy.min_samples), _ACCURACY)
    if (agreed := gates.agreement) is not None:
        least = agreed.min_samples
        add("agreement", agreed, agreed.min, partial(readings.agreement, least=least), _AGREEMENT)
        if agreed.max_difference is not None:
            read = partial(readings.difference, least=least)
            add("agreementDifference", agreed, agreed.max_difference, read, _DIFFERENCE)
    if (latency := gates.latency_p95) is not None:
        least = latency.min_samples
        if latency.max is not None:
            limit = duration.to_seconds(latency.max) * 1000
            add("latencyP95", latency, limit, partial(readings.latency, least=least), _LATENCY)
        if latency.max_ratio is not None:
            read = partial(readings.latency_ratio, least=least)
            add("latencyP95Ratio", latency, latency.max_ratio, read, _RATIO)
    if (memory := gates.peak_memory) is not None:
        add("peakMemory", memory, quantity.to_bytes(memory.max), readings.peak_memory, _MEMORY)
    if (shadow := gates.shadow_agreement) is not None:
        add("shadowAgreement", shadow, shadow.min, readings.shadow, _SHADOW)
    return bounds


@dataclass(kw_only=True, slots=True)
class _Found:
    """What the devices said to one bound."""

    values: list[tuple[float, int, str]] = field(default_factory=list)
    """Number, samples behind it, device."""
    gaps: list[tuple[str, str]] = field(default_factory=list)
    """Device, and the sentence on it."""
    foreign: int = 0
    """Devices that the gate is not about."""
    lie: tuple[str, str] | None = None
    """The same."""


def _worst(bound: Bound, said: Said, expected: int, *, final: bool) -> GateResult:
    found = said.answers(bound)
    number, device = found.worst or (0.0, "")
    missed = found.worst is not None and (number < bound.threshold if bound.lowest else number > bound.threshold)
    verdict: Verdict = "Pending"
    message = "no device has measured it"
    if found.worst is not None:
        message = f"{bound.says(number, bound.threshold, missed)} on {device}, the worst device"
    elif found.foreign and not found.gaps:
        message = f"there was nothing to compare with on {_count(found.foreign)}"
    if found.lie:
        verdict, (device, message) = "Failed", found.lie
    elif missed:
        verdict = "Failed"
    elif found.gap and bound.rule.missing == "fail":
        verdict, message = "Failed", found.gap[1]
    elif found.gap and bound.rule.missing == "wait":
        message = f"waiting: {found.gap[1]}"
    elif final:
        lack = _lack(bound, said, expected, found)
        verdict, message = ("Failed", lack or message) if lack is not None else ("Passed", message)
    return GateResult(
        gate=bound.gate,
        verdict=verdict,
        threshold=bound.threshold,
        measured=None if found.worst is None else number,
        devices=found.values,
        missing=found.gaps,
        samples=found.samples,
        worst=device or (found.gap[0] if found.gap else ""),
        message=message,
    )


def _gather(bound: Bound, samples: Sequence[Sample]) -> _Found:
    found = _Found()
    for sample in samples:
        if not bound.counts(sample):
            continue
        match bound.read(sample):
            case Lie(why):
                found.lie = found.lie or (sample.device, f"{sample.device} {why}")
            case Gap(why):
                found.gaps.append((sample.device, f"{sample.device} {why}"))
            case Value(number, behind):
                found.values.append((number, behind, sample.device))
            case None:
                found.foreign += 1
    return found


def _lack(bound: Bound, said: Said, expected: int, found: Answers) -> str | None:
    """Say that too few devices answered (empty: none at all), or None when there are enough.

    The excused alone are enough: their measurements passed before.
    """
    fallen, _ = said.failed(silent=None)
    least = min(bound.rule.min_devices, max(expected - fallen - found.foreign, 0 if found.foreign else 1))
    have = found.values + found.excused
    if have >= least:
        return None
    return _too_few(have, least) if have or found.gaps else ""


def _waived(sample: Sample) -> bool:
    return sample.excused and sample.measurement is None


def _measures(sample: Sample) -> bool:
    has = sample.measurement is not None or sample.state == "Running"
    return sample.state != "Failed" and has and not _waived(sample)


def _shadows(sample: Sample) -> bool:
    """A device that gave the version up for what its shadow showed counts with that."""
    if sample.shadow is not None:
        return True
    return sample.state == "Running" and not sample.excused


# --- sentences ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Says:
    subject: str
    lowest: bool = False
    show: Callable[[float], str] = "{:.4g}".format

    def sentence(self, value: float, threshold: float, missed: bool) -> str:
        if self.lowest:
            relation = "is below" if missed else "is at or above"
        else:
            relation = "is above" if missed else "is within"
        return f"{self.subject} {self.show(value)} {relation} {self.show(threshold)}"


def _bytes(value: float) -> str:
    return quantity.human_bytes(int(value))


_ACCURACY = _Says(subject="accuracy", lowest=True)
_AGREEMENT = _Says(subject="agreement with the version it replaces", lowest=True)
_DIFFERENCE = _Says(subject="difference from the version it replaces")
_LATENCY = _Says(subject="p95 latency", show="{:.4g} ms".format)
_RATIO = _Says(subject="p95 latency", show="{:.4g} times that of the version it replaces".format)
_MEMORY = _Says(subject="peak memory", show=_bytes)
_SHADOW = _Says(subject="agreement on real requests with the version that serves", lowest=True)


def _sentence(sample: Sample) -> str:
    return f"{sample.device}: {sample.why[:300]}" if sample.why else sample.device


def _too_few(have: int, least: int) -> str:
    return f"{_count(have)} answered, at least {least} must"


def _count(number: int) -> str:
    return f"{number} device{'' if number == 1 else 's'}"
