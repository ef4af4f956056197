"""Device classes: which devices count as equal, and what their measurements say of each variant. Pure.

Devices with the same signature (`signature_of`) are one class. For every variant, told apart by its file's digest and
how it is served, the class keeps the newest observations, one a device, and their medians: one device that lies, or
measured while it was busy, does not move the median of three. With two the worse counts. Devices are not trusted:
what is not a number, negative or absurd counts as a failure to measure.

Lives here: the signature, learning, and costs as placement asks for them. Must not live here: the choice
(`core.placement`), or when to have something measured (`core.benchmarks`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Protocol

import msgspec

from skerry.api.kinds.device import EngineFacts, Hardware, Measurement
from skerry.api.kinds.device_class import (
    ClassObservation,
    DeviceClass,
    DeviceClassSpec,
    DeviceClassStatus,
    Source,
    VariantCost,
)
from skerry.api.kinds.variants import Blob, Variant
from skerry.api.meta import Struct
from skerry.core.messages import ServingDesired, WorkloadDesired
from skerry.core.placement import Cost

MAX_OBSERVATIONS = 9
"""Newest ones that a median is taken of: enough to bear four liars, few enough to follow a change of the fleet."""
MAX_VARIANTS = 128
"""Variants remembered of one class."""
REFRESH = timedelta(minutes=10)
"""Once there are enough observations, another device's is taken no more often than this: a class is no log."""
MAX_TRIES = 2
"""A variant that so many devices could not measure, and none could, is not asked for again."""
_MAX_WORD = 200
_MAX_ITEMS = 16
_MAX_TEXT = 300
_LONGEST_MS = 3_600_000.0
_MOST_BYTES = 1 << 50
_MOST_SAMPLES = 100_000_000


class HasHardware(Protocol):
    """What a signature is taken of: a device's facts, its status, or a part of it."""

    @property
    def hardware(self) -> Hardware: ...  # noqa: D102 - as in DeviceStatus
    @property
    def engines(self) -> list[EngineFacts]: ...  # noqa: D102 - as in DeviceStatus


# --- signatures -----------------------------------------------------------------------------------------------------


def signature_of(facts: HasHardware) -> DeviceClassSpec | None:
    """Return the hardware signature; None while the device has not reported its hardware.

    Order and repetition in a device's lists do not matter, nor does white space; what it says of itself is bounded.
    """
    hardware = facts.hardware
    if not hardware.arch and not hardware.memory_bytes:
        return None
    engines = {_engine(one) for one in facts.engines[:_MAX_ITEMS]}
    return DeviceClassSpec(
        arch=_word(hardware.arch),
        cpu_model=_word(hardware.cpu_model),
        cores=max(hardware.cores, 0),
        memory_bytes=round_memory(hardware.memory_bytes),
        accelerators=sorted({_word(one) for one in hardware.accelerators[:_MAX_ITEMS]}),
        engines=[EngineFacts(name=n, version=v, precisions=list(p)) for n, v, p in sorted(engines)],
    )


def name_of(signature: DeviceClassSpec) -> str:
    """Return the class's name: readable first, then a digest of the whole signature, as in `arm64-4c-8gi-0f3a...`."""
    digest = sha256(msgspec.json.encode(signature, order="deterministic")).hexdigest()[:16]
    arch = "".join(c for c in signature.arch.lower() if c.isascii() and c.isalnum())[:16] or "unknown"
    return f"{arch}-{min(signature.cores, 9999)}c-{_short(signature.memory_bytes)}-{digest}"


def class_name_of(facts: HasHardware) -> str:
    """Return the name of the class a device belongs to; empty while it has not reported its hardware."""
    signature = signature_of(facts)
    return "" if signature is None else name_of(signature)


def round_memory(size: int) -> int:
    """Return the size rounded to the nearest of 1 and 1.5 times a power of two; below 1 MiB it is 0.

    Machines sold as equal differ by what firmware and kernel keep: 3.7 and 3.9 GiB are both of 4.
    """
    if size < 1 << 20:
        return 0
    half = 1 << (min(size, _MOST_BYTES).bit_length() - 2)
    return (min(size, _MOST_BYTES) + half // 2) // half * half


# --- learning -------------------------------------------------------------------------------------------------------


class Served(Struct, frozen=True, kw_only=True):
    """What a device was told to run, as far as it tells one cost from another; a part of `WorkloadDesired`."""

    name: str
    rollout: str
    model_version: str
    variant: str
    blob: Blob
    serving: ServingDesired = ServingDesired()
    cpu_limit_millis: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One device's word on one variant: a measurement, or why there is none."""

    device: str
    uid: str
    source: Source
    workload: Served
    """What it was told to run; the hub's own record, not the device's word."""
    measurement: Measurement | None = None
    failure: str = ""


def learn(status: DeviceClassStatus, findings: Iterable[Finding], now: datetime) -> DeviceClassStatus:
    """Return the status with what the findings add to it; the very same when that is nothing.

    A device's newer finding replaces its older one; but an install's no benchmark's, for those of one device were
    measured alike and can be compared, and a failure no measurement. Learning twice is learning once.
    """
    known = {_key(cost): cost for cost in status.variants}
    changed = False
    for finding in findings:
        key = _key_of(finding.workload)
        before = known.get(key)
        after = _with(before, finding, now)
        if after is not before and after is not None:
            known[key], changed = after, True
    if not changed:
        return status
    newest = sorted(known.values(), key=_newest, reverse=True)[:MAX_VARIANTS]
    kept = sorted(newest, key=lambda cost: (cost.model_version, cost.variant, *_key(cost)))
    return msgspec.structs.replace(status, variants=kept, measured=sum(cost.devices > 0 for cost in kept))


def _with(cost: VariantCost | None, finding: Finding, now: datetime) -> VariantCost | None:
    workload, measurement, failure = finding.workload, finding.measurement, finding.failure
    fault = fault_of(measurement) if measurement is not None else ""
    if fault:
        measurement, failure = None, fault
    if measurement is None and not failure:
        return cost
    seen = ClassObservation(
        device=finding.device,
        uid=finding.uid,
        at=now,
        source=finding.source,
        measurement=None if measurement is None else msgspec.structs.replace(measurement, comparison=None),
        failure=failure[:_MAX_TEXT],
    )
    cost = cost or VariantCost(
        digest=workload.blob.digest,
        threads=workload.serving.threads,
        cpu_limit_millis=workload.cpu_limit_millis,
        variant=workload.variant,
        model_version=workload.model_version,
    )
    if not _is_news(cost.observations, seen):
        return cost
    others = [one for one in cost.observations if one.uid != seen.uid]
    kept = sorted([seen, *others], key=lambda one: one.at, reverse=True)[:MAX_OBSERVATIONS]
    return _summarise(
        msgspec.structs.replace(cost, observations=kept, variant=workload.variant, model_version=workload.model_version)
    )


def _is_news(known: Sequence[ClassObservation], seen: ClassObservation) -> bool:
    own = next((one for one in known if one.uid == seen.uid), None)
    if own is not None:
        same = (own.measurement, own.failure) == (seen.measurement, seen.failure)
        lesser = own.measurement is not None and (
            seen.measurement is None or (own.source, seen.source) == ("benchmark", "install")
        )
        return not same and not lesser
    if seen.measurement is None and any(one.measurement is not None for one in known):
        return False
    return len(known) < MAX_OBSERVATIONS or seen.at - known[0].at >= REFRESH


def _summarise(cost: VariantCost) -> VariantCost:
    found = [one for one in cost.observations if one.measurement is not None]
    numbers = [one.measurement for one in found if one.measurement is not None]
    if not found:
        failure = cost.observations[0].failure
        return msgspec.structs.replace(cost, devices=0, samples=0, failure=failure, source=cost.observations[0].source)
    return msgspec.structs.replace(
        cost,
        latency_p50_ms=median([one.latency_p50_ms for one in numbers]),
        latency_p95_ms=median([one.latency_p95_ms for one in numbers]),
        peak_memory_bytes=int(median([float(one.peak_memory_bytes) for one in numbers])),
        max_abs_error=median([one.max_abs_error for one in numbers]),
        samples=sum(one.samples for one in numbers),
        devices=len(found),
        measured_at=found[0].at,
        source="benchmark" if any(one.source == "benchmark" for one in found) else "install",
        failure="",
    )


def median(values: Sequence[float]) -> float:
    """Return the middle value; of an even number the greater of the two in the middle: the cautious one."""
    return sorted(values)[len(values) // 2]


def fault_of(found: Measurement) -> str:
    """Return what is absurd about a measurement; empty when nothing is."""
    times = (found.latency_p50_ms, found.latency_p95_ms)
    if not all(math.isfinite(one) and 0 <= one <= _LONGEST_MS for one in times) or times[0] > times[1]:
        return "it reported a latency that is none"
    if not 0 < found.peak_memory_bytes <= _MOST_BYTES:
        return "it could not say how much memory the server took"
    if not math.isfinite(found.max_abs_error) or found.max_abs_error < 0:
        return "it reported an error that is no number"
    return "" if 0 < found.samples <= _MOST_SAMPLES else "it measured no samples"


# --- what placement asks --------------------------------------------------------------------------------------------


def costs_of(
    item: DeviceClass | None, variants: Iterable[Variant], *, threads: int, cpu_limit_millis: int = 0
) -> Mapping[str, Cost]:
    """Return the known costs by variant name; one that devices tried and could not measure has a `failure` instead."""
    if item is None:
        return {}
    known = {_key(cost): cost for cost in item.status.variants}
    found: dict[str, Cost] = {}
    for variant in variants:
        cost = known.get((variant.blob.digest, threads, cpu_limit_millis))
        if cost is not None:
            found[variant.name] = _cost(cost, item.metadata.name)
    return found


def exhausted(item: DeviceClass | None, workload: WorkloadDesired) -> bool:
    """Return whether so many devices could not measure it, and none could, that it is not asked for again."""
    key = _key_of(workload)
    cost = None if item is None else next((one for one in item.status.variants if _key(one) == key), None)
    return cost is not None and not cost.devices and len(cost.observations) >= MAX_TRIES


def _cost(cost: VariantCost, name: str) -> Cost:
    if not cost.devices or cost.latency_p95_ms is None or cost.peak_memory_bytes is None:
        return Cost(latency_p95_ms=math.inf, peak_memory_bytes=0, measured_on=name, failure=cost.failure or "unknown")
    return Cost(
        latency_p95_ms=cost.latency_p95_ms,
        peak_memory_bytes=cost.peak_memory_bytes,
        measured_on=name,
        devices=cost.devices,
    )


# --- parts ----------------------------------------------------------------------------------------------------------

_Key = tuple[str, int, int]


def _key(cost: VariantCost) -> _Key:
    return cost.digest, cost.threads, cost.cpu_limit_millis


def _key_of(workload: Served | WorkloadDesired) -> _Key:
    return workload.blob.digest, workload.serving.threads, workload.cpu_limit_millis


def _newest(cost: VariantCost) -> tuple[datetime, _Key]:
    return cost.observations[0].at, _key(cost)


def _engine(one: EngineFacts) -> tuple[str, str, tuple[str, ...]]:
    return _word(one.name), _word(one.version), tuple(sorted({_word(p) for p in one.precisions[:_MAX_ITEMS]}))


def _word(text: str) -> str:
    return " ".join(text[: 4 * _MAX_WORD].split())[:_MAX_WORD]


def _short(size: int) -> str:
    """Return a size for a name: `512mi`, `7gi`."""
    for unit, name in ((1 << 40, "ti"), (1 << 30, "gi"), (1 << 20, "mi")):
        if size >= unit and (size % unit == 0 or unit == 1 << 20):
            return f"{size // unit}{name}"
    return "0"
