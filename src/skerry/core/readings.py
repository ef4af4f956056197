"""Readings: what one device contributes to a gate: a value, a gap where it does not answer, or an impossibility. Pure.

Devices are not trusted: what is not a number, negative, absurdly high or contradicts itself is no reading, and it fails
the gate whatever the gate says on devices that do not answer.

Lives here: reading one device's report. Must not live here: thresholds and verdicts (`core.gates`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from skerry.api.kinds.device import Comparison, Measurement, Observation, ShadowReport
from skerry.core import trial
from skerry.core.messages import WorkloadDesired

State = Literal["Waiting", "Running", "Failed"]
MOST = 10**15
"""Bytes or counts; more than that is a lie."""
_MAX_WORDS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What one device contributes: where it stands with this rollout, and what it measured for this rollout."""

    device: str
    state: State
    measurement: Measurement | None = None
    observation: Observation | None = None
    shadow: ShadowReport | None = None
    asked: WorkloadDesired | None = None
    """What it was told to run and to measure."""
    why: str = ""
    """Why it failed."""
    silent: bool = False
    """It failed by saying nothing of this rollout in time."""
    excused: bool = False
    """A missing measurement is no fault: the device passed an earlier wave and has restarted since."""


@dataclass(frozen=True, slots=True)
class Value:
    """A number, and on how many samples it rests."""

    number: float
    samples: int


@dataclass(frozen=True, slots=True)
class Gap:
    """It does not answer, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Lie:
    """It says what cannot be."""

    why: str


Reading: TypeAlias = Value | Gap | Lie | None
"""None: the gate is not about this device."""


def accuracy(sample: Sample, least: int) -> Reading:
    """Return the share of golden samples with the true label."""
    found = sample.measurement
    if found is None:
        return _UNMEASURED
    if found.accuracy is None:
        return Gap("measured no accuracy, the golden samples have no labels")
    if not 0 <= found.accuracy <= 1:
        return Lie("reported an accuracy that is no share between 0 and 1")
    return _golden(found.samples, least) or Value(found.accuracy, found.samples)


def latency(sample: Sample, least: int) -> Reading:
    """Return the p95 in milliseconds."""
    found = sample.measurement
    if found is None:
        return _UNMEASURED
    if not _is_time(found.latency_p95_ms):
        return Lie("reported a latency that is no time")
    return _golden(found.samples, least) or Value(found.latency_p95_ms, found.samples)


def agreement(sample: Sample, least: int) -> Reading:
    """Return the share of golden inputs for which it chooses what the version it replaces chose."""
    found = _compared(sample, least)
    if not isinstance(found, Comparison):
        return found
    if found.agreement is None or not 0 <= found.agreement <= 1:
        return Lie("reported an agreement that is no share between 0 and 1")
    return Value(found.agreement, found.samples)


def difference(sample: Sample, least: int) -> Reading:
    """Return the largest difference of an output from that of the version it replaces."""
    found = _compared(sample, least)
    if not isinstance(found, Comparison):
        return found
    value = found.max_abs_difference
    if value is None or not math.isfinite(value) or value < 0:
        return Lie("reported a difference that is no number from 0 up")
    return Value(value, found.samples)


def latency_ratio(sample: Sample, least: int) -> Reading:
    """Return its p95 as a multiple of that of the version it replaces."""
    found = _compared(sample, least)
    if not isinstance(found, Comparison):
        return found
    new, old = found.latency_p95_ms, found.replaced_latency_p95_ms
    if new is None or old is None or not _is_time(new) or not _is_time(old) or old == 0 or not math.isfinite(new / old):
        return Lie("reported latencies that are no times")
    return Value(new / old, found.samples)


def peak_memory(sample: Sample) -> Reading:
    """Return the highest resident memory of its server in bytes, as far as it was looked at."""
    found = sample.measurement
    known = [0 if found is None else found.peak_memory_bytes]
    known += [] if sample.observation is None else [sample.observation.peak_memory_bytes]
    if any(not 0 <= value <= MOST for value in known):
        return Lie("reported a peak memory that no server has")
    if not max(known):
        return _UNMEASURED if found is None else Gap("could not read its server's peak memory")
    return Value(max(known), 0 if found is None else min(max(found.samples, 0), MOST))


def shadow(sample: Sample) -> Reading:
    """Return the share of requests on which it agreed with the version it ran beside."""
    found = sample.shadow
    if found is None:
        return Gap("runs, but reported nothing of shadow mode")
    counts = (found.requests, found.answered, found.agreed, found.errors, found.dropped)
    if any(not 0 <= count <= MOST for count in counts) or found.agreed > found.answered:
        return Lie("reported counts of shadow mode that cannot be")
    if not found.beside:
        return None
    compared, least = trial.compared(found), 1
    if sample.asked is not None and sample.asked.shadow is not None:
        least = max(sample.asked.shadow.min_requests, 1)
    if compared < least:
        return Gap(f"answered {compared} requests in the shadow of {found.beside[:_MAX_WORDS]}, {least} are needed")
    return Value(found.agreed / compared, compared)


def observed(sample: Sample) -> Observation | Gap | Lie:
    """Return its newest window, if what it says can be."""
    found = sample.observation
    if found is None:
        asked = sample.asked is None or sample.asked.observe is not None
        return Gap(
            "runs, but reported no observation" if asked else "was assigned before the gate, and does not observe"
        )
    counts = (found.requests, found.errors, found.restarts, found.checks, found.unready)
    if any(not 0 <= count <= MOST for count in counts) or not _is_time(found.seconds):
        return Lie("reported an observation with counts that cannot be")
    if found.errors > found.requests or found.unready > found.checks:
        return Lie("reported an observation with more failures than tries")
    return found


def window_closed(sample: Sample, found: Observation) -> bool:
    """Return whether the window is as long as was asked for."""
    asked = sample.asked.observe if sample.asked is not None else None
    return found.seconds > 0 if asked is None else found.seconds >= asked.seconds * (1 - 1e-6)


_UNMEASURED = Gap("runs, but reported no measurement")


def _golden(samples: int, least: int) -> Gap | Lie | None:
    if samples >= least:
        return None if samples <= MOST else Lie("reported more golden samples than there can be")
    words = f"measured {samples} golden samples, at least {least} are needed"
    return Gap(words) if samples >= 0 else Lie(words)


def _compared(sample: Sample, least: int) -> Comparison | Gap | Lie | None:
    if sample.measurement is None:
        return _UNMEASURED
    found = sample.measurement.comparison
    if found is None:
        return Gap("runs, but was not compared with the version it replaced")
    if not found.replaced:
        return None
    if found.samples == 0:
        return Gap(f"could not be compared with {found.replaced[:_MAX_WORDS]}: {found.reason[:_MAX_WORDS]}")
    return _golden(found.samples, least) or found


def _is_time(value: float) -> bool:
    return math.isfinite(value) and value >= 0
