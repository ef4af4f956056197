"""Placement: which variant of a model version a device gets, and why; decided by measurement, not by label. Pure.

A variant fits when the device can run it (engine, version, precision, architecture, runtime, memory that other
workloads leave) and the deployment's constraints allow it. The fitting ones are ranked: by p95 latency, where
everything within 10 % of the fastest counts as equally fast so that noise does not decide; then by peak memory, then by
metric, then by name. The costs are those measured on the device's class where they are known, else the factory's.

Lives here: the choice, its reasons, and the workload that follows from it. Must not live here: when a device gets it
(`core.rollout`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from skerry.api import duration, quantity
from skerry.api.kinds.device import DeviceFacts, DeviceStatus, EngineFacts
from skerry.api.kinds.model_deployment import ModelDeploymentSpec
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.api.kinds.variants import Variant
from skerry.core.desired import Assignment, Candidate, DesiredRecord
from skerry.core.messages import MAX_WORKLOADS, ServingDesired, WorkloadDesired

LATENCY_TOLERANCE = 0.10
"""Latencies up to this share above the fastest count as equally fast."""
_MAX_WORD = 40  # characters of a word that a device says about itself
_MAX_ITEMS = 16  # words or engines in one of its lists
_MAX_KEPT = 32  # candidates kept with an assignment
_SHOWN = 4  # variants named in the sentence that says why none fits


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one variant costs, measured on the device's class."""

    latency_p95_ms: float
    peak_memory_bytes: int
    measured_on: str
    """Name of the device class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """One engine of a device."""

    name: str
    version: str
    precisions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What placement asks of a device. Hashable: equal machines get equal answers."""

    arch: str = ""
    memory_bytes: int = 0
    engines: tuple[Engine, ...] = ()
    runtimes: tuple[str, ...] = ()
    taken_bytes: int = 0
    """Memory that other deployments' workloads need on it."""
    workloads: int = 0
    """Other deployments' workloads on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The choice for one device; `variant` is None when nothing fits."""

    variant: Variant | None
    reason: str
    """Why this one, or why none: one sentence."""
    candidates: tuple[Candidate, ...] = ()
    """All variants, best first, then those that do not fit by name."""


def machine_of(facts: DeviceFacts | DeviceStatus, record: DesiredRecord | None = None, deployment: str = "") -> Machine:
    """Return a device as placement sees it, less what its record holds for other deployments.

    What a device says of itself is bounded here, for it comes back in sentences.
    """
    others = [] if record is None else [a.workload for a in record.assignments if a.workload.name != deployment]
    return Machine(
        arch=facts.hardware.arch[:_MAX_WORD],
        memory_bytes=facts.hardware.memory_bytes,
        engines=tuple(_engine_of(engine) for engine in facts.engines[:_MAX_ITEMS]),
        runtimes=_words(facts.runtimes),
        taken_bytes=sum(max(workload.needs.memory_bytes, 0) for workload in others),
        workloads=len(others),
    )


def place(
    machine: Machine,
    variants: Iterable[Variant],
    template: ModelDeploymentSpec,
    measured: Mapping[str, Cost] | None = None,
) -> Placement:
    """Choose a variant for a machine within a deployment's limits.

    `measured` maps variant names to their costs on the machine's class. The order of `variants` does not matter.
    Raises InvalidError when a quantity or duration of the template cannot be read.
    """
    if not machine.arch and not machine.memory_bytes:
        return Placement(variant=None, reason="the device has not reported its hardware yet")
    if machine.workloads >= MAX_WORKLOADS:
        return Placement(variant=None, reason=f"the device already has {machine.workloads} workloads")
    limits = _limits_of(template)
    offers = [_Offer(machine=machine, variant=v, limits=limits, cost=(measured or {}).get(v.name)) for v in variants]
    if not offers:
        return Placement(variant=None, reason="the model version has no variants")
    refused = sorted((o.variant.name, o, reason) for o in offers if (reason := _refusal(o)))
    names = {name for name, _, _ in refused}
    ranked = _rank([o for o in offers if o.variant.name not in names])
    misfits = [_candidate(offer, taken=False, reason=reason) for _, offer, reason in refused]
    if not ranked:
        return Placement(variant=None, reason=_why_none(misfits), candidates=tuple(misfits))
    best = ranked[0]
    taken = _candidate(best, taken=True, reason=_why_taken(best, len(ranked), len(offers)))
    rest = [_candidate(offer, taken=False, reason=_why_behind(offer, best)) for offer in ranked[1:]]
    return Placement(variant=best.variant, reason=taken.reason, candidates=(taken, *rest, *misfits))


def build_workload(rollout: Rollout, model: ModelVersion, variant: Variant) -> WorkloadDesired:
    """Return what a device is told: everything it needs to install that variant for that rollout."""
    template = rollout.spec.template
    limit = template.resources.limits.memory
    return WorkloadDesired(
        name=rollout.spec.deployment,
        rollout=rollout.metadata.name,
        revision=rollout.spec.revision,
        model=model.spec.model,
        model_version=model.metadata.name,
        version=model.spec.version,
        variant=variant.name,
        format=variant.format,
        needs=variant.needs,
        signature=model.spec.signature,
        repository=model.spec.artifact.repository,
        blob=variant.blob,
        golden=model.spec.golden.blob,
        serving=ServingDesired(port=template.serving.port, threads=template.serving.threads),
        memory_limit_bytes=quantity.to_bytes(limit) if limit else 0,
    )


def build_assignment(
    rollout: Rollout, model: ModelVersion, placement: Placement, *, wave: int, now: datetime, returned_from: str = ""
) -> Assignment:
    """Return the assignment for a placement that found a variant. Raises ValueError for one that did not."""
    if placement.variant is None:
        raise ValueError(placement.reason)
    return Assignment(
        workload=build_workload(rollout, model, placement.variant),
        deployment_uid=rollout.spec.deployment_uid,
        wave=wave,
        reason=placement.reason,
        candidates=list(placement.candidates[:_MAX_KEPT]),
        assigned_at=now,
        returned_from=returned_from,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Limits:
    template: ModelDeploymentSpec
    latency_ms: float
    max_memory_bytes: int | None
    limit_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Offer:
    """One variant held against one machine and one deployment's limits."""

    machine: Machine
    variant: Variant
    limits: _Limits
    cost: Cost | None

    @property
    def latency(self) -> float:
        """p95 in milliseconds; what is not a number counts as endless."""
        value = self.cost.latency_p95_ms if self.cost else self.variant.profile.latency_p95_ms
        return value if math.isfinite(value) and value >= 0 else math.inf

    @property
    def memory(self) -> int:
        return self.cost.peak_memory_bytes if self.cost else self.variant.needs.memory_bytes

    @property
    def measured_on(self) -> str:
        return self.cost.measured_on if self.cost else "factory"


def _limits_of(template: ModelDeploymentSpec) -> _Limits:
    wanted, limit = template.constraints, template.resources.limits.memory
    return _Limits(
        template=template,
        latency_ms=duration.to_seconds(wanted.max_latency) * 1000 if wanted.max_latency else math.inf,
        max_memory_bytes=quantity.to_bytes(wanted.max_memory) if wanted.max_memory else None,
        limit_bytes=quantity.to_bytes(limit) if limit else None,
    )


# --- what a variant must meet, in the order in which a person would look -------------------------------------------


def _wanted(offer: _Offer) -> str:
    wanted, variant = offer.limits.template.constraints, offer.variant
    asked: tuple[tuple[str, str, Sequence[str]], ...] = (
        ("engine", variant.needs.engine, wanted.engines),
        ("format", variant.format, wanted.formats),
        ("precision", variant.precision, wanted.precisions),
    )
    for word, has, allowed in asked:
        if allowed and has not in allowed:
            return f"{word} {has} is not among those the deployment allows ({', '.join(allowed)})"
    return ""


def _architecture(offer: _Offer) -> str:
    needs, arch = offer.variant.needs.architectures, offer.machine.arch
    if not needs or arch in needs:
        return ""
    return f"{offer.variant.name} is made for {', '.join(needs)}, the device is {arch or 'unknown'}"


def _runtime(offer: _Offer) -> str:
    wanted, has = offer.limits.template.runtime, offer.machine.runtimes
    if wanted == "auto" or wanted in has:
        return ""
    return f"runtime {wanted} is not on the device ({', '.join(has) or 'it has none'})"


def _engine(offer: _Offer) -> str:
    needs = offer.variant.needs
    present = [engine for engine in offer.machine.engines if engine.name == needs.engine]
    if not present:
        return f"engine {needs.engine} is not on the device"
    reason = ""
    for engine in present:
        if needs.engine_min_version and not engine.version:
            reason = f"engine {engine.name} has an unknown version, {needs.engine_min_version} is needed"
        elif _version(engine.version) < _version(needs.engine_min_version):
            reason = f"engine {engine.name} {engine.version} is older than {needs.engine_min_version}"
        elif engine.precisions and needs.precision not in engine.precisions:
            reason = f"engine {engine.name} runs only {', '.join(engine.precisions)} here"
        else:
            return ""
    return reason


def _memory(offer: _Offer) -> str:
    machine, limits, name = offer.machine, offer.limits, offer.variant.name
    needs = f"{name} needs {quantity.human_bytes(offer.memory)}"
    free = machine.memory_bytes - machine.taken_bytes
    if limits.max_memory_bytes is not None and offer.memory > limits.max_memory_bytes:
        return f"{needs}, the deployment allows {quantity.human_bytes(limits.max_memory_bytes)}"
    if limits.limit_bytes is not None and offer.memory > limits.limit_bytes:
        return f"{needs}, its memory limit is {quantity.human_bytes(limits.limit_bytes)}"
    if offer.memory <= free:
        return ""
    gives = f"the device gives workloads {quantity.human_bytes(machine.memory_bytes)}"
    if machine.taken_bytes:
        return f"{needs}, {gives} and {quantity.human_bytes(max(free, 0))} of that are left"
    return f"{needs}, {gives}"


def _latency(offer: _Offer) -> str:
    if offer.latency <= offer.limits.latency_ms:
        return ""
    return f"p95 {_ms(offer.latency)} is above the limit {_ms(offer.limits.latency_ms)}"


def _metric(offer: _Offer) -> str:
    wanted = offer.limits.template.constraints.min_accuracy
    if wanted is None or offer.variant.metric >= wanted:
        return ""
    return f"accuracy {offer.variant.metric:.4g} is below the limit {wanted:.4g}"


_CHECKS: tuple[Callable[[_Offer], str], ...] = (_wanted, _architecture, _runtime, _engine, _memory, _latency, _metric)


def _refusal(offer: _Offer) -> str:
    return next((reason for check in _CHECKS if (reason := check(offer))), "")


# --- ranking and its sentences -------------------------------------------------------------------------------------

_Key: TypeAlias = tuple[int, float, str]


def _rank(offers: Sequence[_Offer]) -> list[_Offer]:
    """Best first: groups of equally fast ones, fastest group first, each group by memory, metric, name."""
    left, ranked = sorted(offers, key=lambda o: (o.latency, o.variant.name)), []
    while left:
        bound = left[0].latency * (1 + LATENCY_TOLERANCE)
        group = [offer for offer in left if offer.latency <= bound]
        left = left[len(group) :]
        ranked += sorted(group, key=_within_group)
    return ranked


def _within_group(offer: _Offer) -> _Key:
    metric = offer.variant.metric
    return offer.memory, -metric if math.isfinite(metric) else math.inf, offer.variant.name


def _candidate(offer: _Offer, *, taken: bool, reason: str) -> Candidate:
    return Candidate(
        variant=offer.variant.name,
        taken=taken,
        reason=reason,
        latency_p95_ms=offer.latency if math.isfinite(offer.latency) else None,
        peak_memory_bytes=offer.memory,
        metric=offer.variant.metric if math.isfinite(offer.variant.metric) else None,
        measured_on=offer.measured_on,
    )


def _why_taken(best: _Offer, fitting: int, offered: int) -> str:
    where = "in the factory" if best.cost is None else f"on class {best.measured_on}"
    measured = f"p95 {_ms(best.latency)} and {quantity.human_bytes(best.memory)}, measured {where}"
    if fitting > 1:
        return f"{best.variant.name} is the best of {fitting} that fit: {measured}"
    return f"{best.variant.name} is the only one of {offered} that fits: {measured}"


def _why_behind(offer: _Offer, best: _Offer) -> str:
    other = best.variant.name
    if offer.latency > best.latency * (1 + LATENCY_TOLERANCE):
        return f"fits, but its p95 {_ms(offer.latency)} is slower than {other}'s {_ms(best.latency)}"
    if offer.memory != best.memory:
        needs = f"{quantity.human_bytes(offer.memory)}, {other} {quantity.human_bytes(best.memory)}"
        return f"fits and is as fast as {other}, but needs {needs}"
    if offer.variant.metric != best.variant.metric:
        return (
            f"fits and costs what {other} costs, but reaches {offer.variant.metric:.4g}, not {best.variant.metric:.4g}"
        )
    return f"fits and is equal to {other}; the name decides"


def _why_none(misfits: Sequence[Candidate]) -> str:
    reasons = list(dict.fromkeys(_named(candidate) for candidate in misfits))
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    return f"no variant fits: {'; '.join(reasons[:_SHOWN])}{more}"


def _named(candidate: Candidate) -> str:
    reason = candidate.reason
    return reason if reason.startswith(candidate.variant) else f"{candidate.variant}: {reason}"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"


def _engine_of(facts: EngineFacts) -> Engine:
    return Engine(name=facts.name[:_MAX_WORD], version=facts.version[:_MAX_WORD], precisions=_words(facts.precisions))


def _words(listed: Sequence[str]) -> tuple[str, ...]:
    return tuple(word[:_MAX_WORD] for word in listed[:_MAX_ITEMS])


def _version(text: str) -> tuple[int, ...]:
    """`1.26.0+cpu` -> (1, 26); trailing zeros do not count, a bounded part of the text is read."""
    release = re.split(r"[-+]", text[:64], maxsplit=1)[0]
    numbers = [int(part) for part in re.findall(r"\d{1,9}", release)[:6]]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
