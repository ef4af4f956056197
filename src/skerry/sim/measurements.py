"""What a simulated device measures: the factory's figures of the variant, as far off as its hardware and faults are.

Pure, and the same for the same seed and device. Must not live here: what a device is (`draws`), when it measures
(`hands`).
"""

from __future__ import annotations

from skerry.api.kinds.device import Comparison, Measurement, Observation, ShadowReport
from skerry.api.kinds.variants import Variant
from skerry.core.messages import ShadowDesired
from skerry.sim import draws
from skerry.sim.draws import Traits

MAX_SAMPLES = 256
"""What an agent asks at most unless its owner says otherwise."""
WRONG = 0.4
"""Accuracy that is lost where the model answers wrongly."""
SLOW = 10.0
REQUESTS_PER_SECOND = (0.5, 5.0)
"""What applications on a device ask of a model."""


def measurement(found: Variant, samples: int, known: Traits, seed: int, name: str) -> Measurement:
    """Return what the golden samples show on this device: the factory's figures, as far off as its hardware is."""
    chance = draws.dice(seed, name, found.blob.digest)
    asked = min(samples, MAX_SAMPLES)
    drawn = chance.gauss(0.0, 0.002) - (WRONG if known.inaccurate else 0.0)
    noise = chance.lognormvariate(0.0, 0.08) * known.machine.slowness * (SLOW if known.slow else 1.0)
    drift = abs(chance.gauss(0.0, 0.001)) + (WRONG if known.inaccurate else 0.0)
    return Measurement(
        samples=asked,
        accuracy=None if found.metric is None else _rounded(found.metric + drawn, asked),
        agreement=_rounded(1.0 - drift, asked),
        max_abs_error=found.error.max_abs * chance.uniform(0.9, 1.1),
        latency_p50_ms=found.profile.latency_p50_ms * noise,
        latency_p95_ms=found.profile.latency_p95_ms * noise,
        peak_memory_bytes=int(found.profile.peak_memory_bytes * chance.uniform(0.97, 1.03)),
    )


def comparison(mine: Measurement, other: Measurement, replaced: str) -> Comparison:
    """Return what asking two versions the same golden inputs shows; they cannot disagree less than both err."""
    agreement = max(0.0, 1.0 - abs((mine.accuracy or 0.0) - (other.accuracy or 0.0)) - 0.001)
    return Comparison(
        replaced=replaced,
        samples=mine.samples,
        agreement=_rounded(agreement, mine.samples),
        max_abs_difference=mine.max_abs_error + other.max_abs_error,
        latency_p95_ms=mine.latency_p95_ms,
        replaced_latency_p95_ms=other.latency_p95_ms,
    )


def observation(measured: Measurement | None, seconds: float, known: Traits, seed: int, name: str) -> Observation:
    """Return how a server fared in a window of that length."""
    requests = int(_rate(seed, name) * seconds)
    return Observation(
        seconds=seconds,
        requests=requests,
        errors=requests // 5 if known.inaccurate else 0,
        checks=max(1, int(seconds)),
        peak_memory_bytes=0 if measured is None else measured.peak_memory_bytes,
    )


def shadow(asked: ShadowDesired, beside: str, known: Traits, seed: int, name: str) -> ShadowReport:
    """Return what shadow mode shows once its time is over."""
    requests = max(asked.min_requests, int(_rate(seed, name) * asked.share * asked.seconds))
    return ShadowReport(
        beside=beside,
        seconds=asked.seconds,
        requests=requests,
        answered=requests,
        agreed=int(requests * (1.0 - WRONG)) if known.inaccurate else requests,
    )


def _rate(seed: int, name: str) -> float:
    return draws.dice(seed, name, "requests").uniform(*REQUESTS_PER_SECOND)


def _rounded(share: float, samples: int) -> float:
    """A share of so many samples, as counting them gives it."""
    return round(min(1.0, max(0.0, share)) * samples) / samples if samples else 0.0
