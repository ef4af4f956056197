"""Gates on the bake time: did the servers stay up and answer, and how many requests did they fail. Pure.

Every device watches its own server in windows of the bake time's length and reports the newest that matters
(`api.kinds.device.Observation`). While a window is under way its device has not answered yet; when the time for it is
over too, the gate's word on devices that do not answer decides.

Lives here: the two verdicts. Must not live here: when a bake time is over (`core.rollout`), windows (`agent.observe`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from skerry.api.kinds.device import Observation
from skerry.api.kinds.gates import ErrorRateGate, HealthGate, Missing
from skerry.api.kinds.rollout import GateResult, Verdict
from skerry.core import readings
from skerry.core.readings import Gap, Lie, Sample

MOST_WEIGHT = 10
"""No device counts for more than so many times the requests of the median device."""
_SLACK = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """What the devices saw in the bake time, summed up. "First" is by the device's name."""

    closed: int = 0
    """Devices whose window is closed."""
    well: int = 0
    """Those of them whose server stayed up and answered."""
    checks: int = 0
    requests: int = 0
    rate: float = 0.0
    """Share of requests that failed, no device weighing too much."""
    worst: str = ""
    """The first device with the highest share of its own; empty when no requests came."""
    open: int = 0
    """Devices whose window is under way."""
    bad: int = 0
    """Devices that have failed, or whose server did not stay up, be the window closed or open."""
    ill: tuple[str, str] | None = None
    """The first of these, and why."""
    gaps: int = 0
    gap: tuple[str, str] | None = None
    """The first device that does not answer, and why."""
    fallen: int = 0
    """Devices that have failed."""
    excused: int = 0
    """Devices that passed before, and show nothing for the moment."""
    lie: tuple[str, str] | None = None
    """The first that says what cannot be, and what."""


def health(gate: HealthGate, seen: Watched, expected: int, *, over: bool) -> GateResult:
    """Judge the share of devices whose server stayed up and answered in all of its window.

    `over`: the bake time has passed since the wave settled.
    """
    missing = gate.missing == "fail" and over
    ill = seen.bad + (seen.gaps if missing else 0)
    first = seen.ill or (seen.gap if missing else None)
    counted = expected - (seen.gaps if gate.missing == "ignore" else 0)
    well = seen.excused + seen.well
    worst = first or seen.gap
    shown = worst[0] if worst else ""
    verdict: Verdict = "Pending"
    message = f"{well} of {counted} devices stayed up"
    least = min(gate.min_devices, expected)
    if seen.lie:
        verdict, (shown, message) = "Failed", seen.lie
    elif first is not None and counted - ill + _SLACK < gate.min * counted:
        verdict = "Failed"
        message = f"{ill} of {counted} devices did not stay up, a share of {gate.min:.4g} must: {_said(first)}"
    elif not over or (_waits(seen, gate.missing) and well + _SLACK < gate.min * counted):
        message += _waiting(seen)
    elif well + _SLACK < gate.min * counted or well + ill < least:
        verdict = "Failed"
        message = f"{well + ill} devices were watched to the end, at least {least} must be"
    else:
        verdict = "Passed"
    return GateResult(
        gate="health",
        verdict=verdict,
        threshold=gate.min,
        measured=well / counted if counted else 0.0,
        devices=seen.closed,
        missing=seen.gaps,
        samples=seen.checks,
        worst=shown,
        message=message,
    )


def error_rate(gate: ErrorRateGate, seen: Watched, expected: int, *, over: bool) -> GateResult:
    """Judge the share of requests that the servers failed, over all devices; `over` as in `health`."""
    requests, rate, worst = seen.requests, seen.rate, seen.worst
    enough = requests >= gate.min_samples
    verdict: Verdict = "Pending"
    message = f"{rate:.4g} of {requests} requests failed, {{}} {gate.max:.4g}" + (f"; most on {worst}" if rate else "")
    least = min(gate.min_devices, max(expected - seen.fallen, 1))
    have = seen.closed + seen.excused
    waits = _waits(seen, gate.missing) or (not enough and gate.missing == "wait")
    if seen.lie:
        verdict, (worst, message) = "Failed", seen.lie
    elif requests and enough and rate > gate.max:
        verdict, message = "Failed", message.format("more than")
    elif not over or waits:
        message = message.format("at most") + _waiting(seen)
        message += f"; {requests} of {gate.min_samples} requests so far" if not enough else ""
    elif seen.gap and gate.missing == "fail":
        verdict, message, worst = "Failed", _said(seen.gap), seen.gap[0]
    elif have < least:
        verdict, message = "Failed", f"{have} devices reported their counts, at least {least} must"
    elif not enough and not seen.excused and gate.missing == "fail":
        verdict = "Failed"
        message = f"{requests} requests came in the bake time, at least {gate.min_samples} are needed to judge"
    else:
        verdict, message = "Passed", message.format("at most")
    return GateResult(
        gate="errorRate",
        verdict=verdict,
        threshold=gate.max,
        measured=rate if requests else None,
        devices=seen.closed,
        missing=seen.gaps,
        samples=min(requests, readings.MOST),
        worst=worst,
        message=message,
    )


# --- one device -----------------------------------------------------------------------------------------------------

Kind: TypeAlias = Literal["lie", "fallen", "gap", "excused", "closed", "open", ""]


def read(sample: Sample) -> tuple[Kind, Observation | None, str]:
    """Return what a device is to these gates, what it saw, and a sentence: on its lie, its gap, its fall, its illness.

    A window that is under way has a gap's sentence when the time for it is over (`late`). "": it is on its way.
    """
    seen = readings.observed(sample)
    if isinstance(seen, Lie):
        return "lie", None, f"{sample.device} {seen.why}"
    if sample.state == "Failed":
        return "fallen", None, sample.why[:300] or "failed"
    if isinstance(seen, Gap):
        if sample.excused:
            return "excused", None, ""
        return ("gap", None, seen.why) if sample.state == "Running" else ("", None, "")
    return "closed" if readings.window_closed(sample, seen) else "open", seen, _illness(seen)


def late(seen: Observation) -> str:
    """Return the sentence on a window that was not closed in time."""
    return f"watched its server for {seen.seconds:.4g} s only"


def share_of(requests: int, errors: int) -> int:
    """Return the share of its requests that a device's server failed, as a multiple of 2**-64, rounded down.

    Whole numbers, so that a sum does not depend on its order.
    """
    return (errors << 64) // requests


def rate_of(bound: int, *, requests: int, errors: int, above: int, shares: int) -> float:
    """Return the share of failed requests where no device weighs more than `bound` requests.

    `requests` and `errors` are the sums over devices that weigh less, `above` is how many weigh more, and `shares` the
    sum of their `share_of`.
    """
    weight = requests + bound * above
    return ((errors << 64) + bound * shares) / (weight << 64) if weight else 0.0


def bound_of(lower: int, upper: int) -> int:
    """Return the most that a device weighs, from the two middle numbers of requests (the same one of an odd number)."""
    return MOST_WEIGHT * (lower + upper) // 2


def watch(samples: Sequence[Sample], missing: Missing, *, overdue: bool) -> Watched:
    """Sum up what devices saw, in the order of their names; `overdue`: the time for their last words on it is over."""
    kinds = [(sample.device, *read(sample)) for sample in samples]
    closed = [(device, seen, text) for device, kind, seen, text in kinds if kind == "closed" and seen is not None]
    under_way = [(device, seen, text) for device, kind, seen, text in kinds if kind == "open" and seen is not None]
    gaps = [(device, text) for device, kind, _, text in kinds if kind == "gap"]
    if overdue and missing != "wait":
        gaps = sorted([*gaps, *((device, late(seen)) for device, seen, _ in under_way)])
        under_way = []
    fallen = [(device, text) for device, kind, _, text in kinds if kind == "fallen"]
    bad = sorted([*fallen, *((device, text) for device, _, text in [*closed, *under_way] if text)])
    rate, worst = _rate([(device, seen) for device, seen, _ in closed if seen.requests])
    return Watched(
        closed=len(closed),
        well=sum(not text for _, _, text in closed),
        checks=sum(seen.checks for _, seen, _ in closed),
        requests=sum(seen.requests for _, seen, _ in closed),
        rate=rate,
        worst=worst,
        open=len(under_way),
        bad=len(bad),
        ill=bad[0] if bad else None,
        gaps=len(gaps),
        gap=gaps[0] if gaps else None,
        fallen=len(fallen),
        excused=sum(kind == "excused" for _, kind, _, _ in kinds),
        lie=next(((device, text) for device, kind, _, text in kinds if kind == "lie"), None),
    )


def _waits(seen: Watched, missing: Missing) -> bool:
    """Windows are still under way; or a device does not answer, and is to be waited for."""
    return bool(seen.open) or (missing == "wait" and bool(seen.gaps))


def _waiting(seen: Watched) -> str:
    if seen.gap:
        return f"; {seen.gap[0]} {seen.gap[1]}"
    return f"; {seen.open} still watched" if seen.open else ""


def _illness(seen: Observation) -> str:
    if not (seen.restarts or seen.unready):
        return ""
    parts = [f"its server ended {seen.restarts} times"] if seen.restarts else []
    parts += [f"it did not answer {seen.unready} of {seen.checks} checks"] if seen.unready else []
    return ", ".join(parts)


def _rate(found: Sequence[tuple[str, Observation]]) -> tuple[float, str]:
    """Return the share of failed requests, and the device with the highest of its own."""
    if not found:
        return 0.0, ""
    counts = sorted(seen.requests for _, seen in found)
    bound = bound_of(counts[(len(counts) - 1) // 2], counts[len(counts) // 2])
    light = [seen for _, seen in found if seen.requests <= bound]
    shares = [(device, share_of(seen.requests, seen.errors)) for device, seen in found]
    rate = rate_of(
        bound,
        requests=sum(seen.requests for seen in light),
        errors=sum(seen.errors for seen in light),
        above=len(found) - len(light),
        shares=sum(share_of(seen.requests, seen.errors) for _, seen in found if seen.requests > bound),
    )
    highest = max(share for _, share in shares)
    return rate, next(device for device, share in shares if share == highest)


def _said(one: tuple[str, str]) -> str:
    return f"{one[0]}: {one[1]}"
