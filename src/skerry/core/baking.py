"""Gates on the bake time: did the servers stay up and answer, and how many requests did they fail. Pure.

Every device watches its own server in windows of the bake time's length and reports the newest that matters
(`api.kinds.device.Observation`). While a window is under way its device has not answered yet; when the time for it is
over too, the gate's word on devices that do not answer decides.

Lives here: the two verdicts. Must not live here: when a bake time is over (`core.rollout`), windows (`agent.observe`).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from skerry.api.kinds.device import Observation
from skerry.api.kinds.gates import ErrorRateGate, HealthGate, Missing
from skerry.api.kinds.rollout import GateResult, Verdict
from skerry.core import readings
from skerry.core.readings import Gap, Lie, Sample

MOST_WEIGHT = 10
"""No device counts for more than so many times the requests of the median device."""
_SLACK = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """The devices on a rollout, and how far the bake time is."""

    samples: Sequence[Sample]
    expected: int
    over: bool
    """The bake time has passed since the wave settled."""
    overdue: bool
    """So has the time for the devices' last words on it."""


@dataclass(kw_only=True, slots=True)
class _Sorted:
    """Devices by what they said."""

    closed: list[tuple[Sample, Observation]] = field(default_factory=list)
    open: list[Sample] = field(default_factory=list)
    gaps: list[tuple[Sample, str]] = field(default_factory=list)
    fallen: list[Sample] = field(default_factory=list)
    excused: int = 0
    lie: str = ""
    liar: str = ""


def health(gate: HealthGate, watch: Watch) -> GateResult:
    """Judge the share of devices whose server stayed up and answered in all of its window."""
    found = _sort(watch, gate.missing)
    ill = [(one.device, _illness(seen)) for one, seen in found.closed if _illness(seen)]
    ill += [(one.device, one.why[:300] or "failed") for one in found.fallen]
    early = [(one.device, _illness(one.observation)) for one in found.open if _illness(one.observation)]
    missing = found.gaps if watch.over else []
    bad = sorted(ill + early) + ([(one.device, why) for one, why in missing] if gate.missing == "fail" else [])
    counted = watch.expected - (len(found.gaps) if gate.missing == "ignore" else 0)
    well = found.excused + sum(not _illness(seen) for one, seen in found.closed)
    ratio = well / counted if counted else 0.0
    worst = bad[0][0] if bad else found.gaps[0][0].device if found.gaps else ""
    verdict: Verdict = "Pending"
    message = f"{well} of {counted} devices stayed up"
    least = min(gate.min_devices, watch.expected)
    if found.lie:
        verdict, message, worst = "Failed", found.lie, found.liar
    elif counted - len(bad) + _SLACK < gate.min * counted:
        verdict = "Failed"
        message = f"{len(bad)} of {counted} devices did not stay up, a share of {gate.min:.4g} must: {_said(bad[0])}"
    elif not watch.over or (_waits(found, gate.missing) and well + _SLACK < gate.min * counted):
        message += _waiting(found)
    elif well + _SLACK < gate.min * counted or well + len(bad) < least:
        verdict = "Failed"
        message = f"{well + len(bad)} devices were watched to the end, at least {least} must be"
    else:
        verdict = "Passed"
    return GateResult(
        gate="health",
        verdict=verdict,
        threshold=gate.min,
        measured=ratio,
        devices=len(found.closed),
        missing=len(found.gaps),
        samples=sum(seen.checks for _, seen in found.closed),
        worst=worst,
        message=message,
    )


def error_rate(gate: ErrorRateGate, watch: Watch) -> GateResult:
    """Judge the share of requests that the servers failed, over all devices, no device weighing too much."""
    found = _sort(watch, gate.missing)
    requests = sum(seen.requests for _, seen in found.closed)
    rate, worst = _rate([(one.device, seen) for one, seen in found.closed if seen.requests])
    enough = requests >= gate.min_samples
    verdict: Verdict = "Pending"
    message = f"{rate:.4g} of {requests} requests failed, {{}} {gate.max:.4g}" + (f"; most on {worst}" if rate else "")
    least = min(gate.min_devices, max(watch.expected - len(found.fallen), 1))
    have = len(found.closed) + found.excused
    waits = _waits(found, gate.missing) or (not enough and gate.missing == "wait")
    if found.lie:
        verdict, message, worst = "Failed", found.lie, found.liar
    elif requests and enough and rate > gate.max:
        verdict, message = "Failed", message.format("more than")
    elif not watch.over or waits:
        message = message.format("at most") + _waiting(found)
        message += f"; {requests} of {gate.min_samples} requests so far" if not enough else ""
    elif found.gaps and gate.missing == "fail":
        verdict, message, worst = "Failed", _said((found.gaps[0][0].device, found.gaps[0][1])), found.gaps[0][0].device
    elif have < least:
        verdict, message = "Failed", f"{have} devices reported their counts, at least {least} must"
    elif not enough and not found.excused and gate.missing == "fail":
        verdict = "Failed"
        message = f"{requests} requests came in the bake time, at least {gate.min_samples} are needed to judge"
    else:
        verdict, message = "Passed", message.format("at most")
    return GateResult(
        gate="errorRate",
        verdict=verdict,
        threshold=gate.max,
        measured=rate if requests else None,
        devices=len(found.closed),
        missing=len(found.gaps),
        samples=min(requests, readings.MOST),
        worst=worst,
        message=message,
    )


def _sort(watch: Watch, missing: Missing) -> _Sorted:
    found = _Sorted()
    for sample in watch.samples:
        seen = readings.observed(sample)
        if isinstance(seen, Lie):
            if not found.lie:
                found.lie, found.liar = f"{sample.device} {seen.why}", sample.device
        elif sample.state == "Failed":
            found.fallen.append(sample)
        elif isinstance(seen, Gap):
            if sample.excused:
                found.excused += 1
            elif sample.state == "Running":
                found.gaps.append((sample, seen.why))
        elif readings.window_closed(sample, seen):
            found.closed.append((sample, seen))
        elif watch.overdue and missing != "wait":
            found.gaps.append((sample, f"watched its server for {seen.seconds:.4g} s only"))
        else:
            found.open.append(sample)
    return found


def _waits(found: _Sorted, missing: Missing) -> bool:
    """Windows are still under way; or a device does not answer, and is to be waited for."""
    return bool(found.open) or (missing == "wait" and bool(found.gaps))


def _waiting(found: _Sorted) -> str:
    if found.gaps:
        return f"; {found.gaps[0][0].device} {found.gaps[0][1]}"
    return f"; {len(found.open)} still watched" if found.open else ""


def _illness(seen: Observation | None) -> str:
    if seen is None or not (seen.restarts or seen.unready):
        return ""
    parts = [f"its server ended {seen.restarts} times"] if seen.restarts else []
    parts += [f"it did not answer {seen.unready} of {seen.checks} checks"] if seen.unready else []
    return ", ".join(parts)


def _rate(found: Sequence[tuple[str, Observation]]) -> tuple[float, str]:
    """Return the share of failed requests, and the device with the highest of its own."""
    if not found:
        return 0.0, ""
    bound = MOST_WEIGHT * statistics.median(seen.requests for _, seen in found)
    weights = [min(float(seen.requests), bound) for _, seen in found]
    shares = [seen.errors / seen.requests for _, seen in found]
    rate = sum(w * s for w, s in zip(weights, shares, strict=True)) / sum(weights)
    highest = max(shares)
    return rate, next(device for (device, _), share in zip(found, shares, strict=True) if share == highest)


def _said(one: tuple[str, str]) -> str:
    return f"{one[0]}: {one[1]}"
