"""Placement: which variant of a model version a device gets, and why; decided by measurement, not by label. Pure.

A variant fits when the device can run it (engine, version, precision, architecture, runtime, memory that other
workloads leave), has not refused it, and the deployment's constraints allow it: by the costs measured on the device's
class where they are known, else by the factory's. The fitting ones are ranked: by p95 latency, where everything within
10 % of the fastest counts as equally fast so that noise does not decide; then by peak memory, then by metric drop,
then by name. A ranking never mixes: the class's costs are used when all that fit were tried there, else the factory's
for all.

Lives here: the choice, its reasons, and the workload that follows from it. Must not live here: when a device gets it
(`core.rollout`).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple, TypeAlias

from skerry.api import duration, quantity
from skerry.api.kinds.device import DeviceFacts, DeviceStatus, EngineFacts
from skerry.api.kinds.model_deployment import ModelDeploymentSpec
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.api.kinds.variants import Variant
from skerry.core.desired import Assignment, Candidate, DesiredRecord, Refused
from skerry.core.messages import MAX_DELTAS, MAX_SIGNATURES, MAX_WORKLOADS, ServingDesired, WorkloadDesired

LATENCY_TOLERANCE = 0.10
"""Latencies up to this share above the fastest count as equally fast."""
MEMORY_TOLERANCE = 0.10
"""A peak within this share of the factory's counts as the factory's: noise must not evict what fits."""
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
    devices: int = 0
    """How many devices measured it; 0: not said."""
    failure: str = ""
    """Why those that tried could not measure it; the numbers mean nothing then."""


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
    cores: int = 0
    """0: not known."""
    taken_bytes: int = 0
    """Memory that other deployments' workloads need on it, or asked for where that is more."""
    taken_millis: int = 0
    """CPU that other deployments' workloads asked for, in thousandths of a core."""
    workloads: int = 0
    """Other deployments' workloads on it."""
    replaced_version: str = ""
    """The model version of this deployment that is on it already."""
    protection: str = ""
    """What opens encrypted models on it; empty: it cannot keep any."""
    replaced_bytes: int = 0
    """What that needs: in shadow mode both run for a while."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The choice for one device; `variant` is None when nothing fits."""

    variant: Variant | None
    reason: str
    """Why this one, or why none: one sentence."""
    memory_bytes: int = 0
    """What the chosen one is counted with on the device."""
    candidates: tuple[Candidate, ...] = ()
    """All variants, best first, then those that do not fit by name."""


def machine_of(facts: DeviceFacts | DeviceStatus, record: DesiredRecord | None = None, deployment: str = "") -> Machine:
    """Return a device as placement sees it, less what its record holds for other deployments.

    What a device says of itself is bounded here, for it comes back in sentences.
    """
    load = load_of(record, deployment)
    return Machine(
        arch=facts.hardware.arch[:_MAX_WORD],
        memory_bytes=facts.hardware.memory_bytes,
        engines=tuple(_engine_of(engine) for engine in facts.engines[:_MAX_ITEMS]),
        runtimes=_words(facts.runtimes),
        protection=facts.protection[:_MAX_WORD],
        cores=facts.hardware.cores,
        taken_bytes=load.bytes,
        taken_millis=load.millis,
        workloads=load.workloads,
        replaced_version=load.replaced_version,
        replaced_bytes=load.replaced_bytes,
    )


class Load(NamedTuple):
    """What a device's record holds, as the fields of `Machine`."""

    bytes: int = 0
    millis: int = 0
    workloads: int = 0
    replaced_version: str = ""
    replaced_bytes: int = 0


def load_of(record: DesiredRecord | None, deployment: str) -> Load:
    """Return what a record holds for other deployments, and what of this one is there already."""
    if record is None or not record.assignments:
        return Load()
    own = record.assignments[0]
    if len(record.assignments) == 1 and own.workload.name == deployment:  # nearly always
        return Load(0, 0, 0, own.workload.model_version, _memory_of(own))
    found = record.find(deployment)
    held = [assignment for assignment in record.assignments if assignment.workload.name != deployment]
    return Load(
        bytes=sum(_memory_of(assignment) for assignment in held),
        millis=sum(assignment.workload.cpu_request_millis for assignment in held),
        workloads=len(held),
        replaced_version="" if found is None else found.workload.model_version,
        replaced_bytes=0 if found is None else _memory_of(found),
    )


def _memory_of(held: Assignment) -> int:
    workload = held.workload
    return max(held.memory_bytes or workload.needs.memory_bytes, workload.memory_request_bytes, 0)


def place(
    machine: Machine,
    variants: Iterable[Variant],
    template: ModelDeploymentSpec,
    measured: Mapping[str, Cost] | None = None,
    *,
    refused: Mapping[str, str] | None = None,
    note: str = "",
) -> Placement:
    """Choose a variant for a machine within a deployment's limits.

    `measured` maps variant names to their costs on the machine's class, `refused` to why the device would not take
    them. `note` is added to the reason when the factory's numbers decided. The order of `variants` does not matter.
    Raises InvalidError when a quantity or duration of the template cannot be read.
    """
    if not machine.arch and not machine.memory_bytes:
        return Placement(variant=None, reason="the device has not reported its hardware yet")
    if machine.workloads >= MAX_WORKLOADS:
        return Placement(variant=None, reason=f"the device already has {machine.workloads} workloads")
    offers = _offers(machine, variants, template, measured or {}, refused or {})
    if not offers:
        return Placement(variant=None, reason="the model version has no variants")
    unfit = sorted((o.variant.name, o, reason) for o in offers if (reason := _refusal(o)))
    names = {name for name, _, _ in unfit}
    ranked = _rank_alike([o for o in offers if o.variant.name not in names])
    misfits = [_candidate(offer, taken=False, reason=reason) for _, offer, reason in unfit]
    if not ranked:
        return Placement(variant=None, reason=_why_none(misfits), candidates=tuple(misfits))
    best = ranked[0]
    reason = _why_taken(best, len(ranked), len(offers)) + (f"; {note}" if note and best.cost is None else "")
    taken = _candidate(best, taken=True, reason=reason)
    rest = [_candidate(offer, taken=False, reason=_why_behind(offer, best)) for offer in ranked[1:]]
    everything = (taken, *rest, *misfits)
    return Placement(variant=best.variant, reason=reason, memory_bytes=best.needed, candidates=everything)


def runnable(machine: Machine, variants: Iterable[Variant], template: ModelDeploymentSpec) -> list[Variant]:
    """Return the variants that a machine can run as far as facts go, by name: what is worth measuring on it.

    Constraints on latency and memory are left out: measuring may show that they hold, or not.
    """
    offers = _offers(machine, variants, template, {}, {})
    fit = [offer.variant for offer in offers if not any(check(offer) for check in _FACTS)]
    return sorted(fit, key=lambda variant: variant.name)


def build_workload(rollout: Rollout, model: ModelVersion, variant: Variant) -> WorkloadDesired:
    """Return what a device is told: everything it needs to install that variant for that rollout."""
    template = rollout.spec.template
    limits, requests = template.resources.limits, template.resources.requests
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
        deltas=[one for one in model.status.deltas if one.target == variant.blob.digest][:MAX_DELTAS],
        signatures=model.status.signatures[:MAX_SIGNATURES],
        card=model.status.card,
        serving=ServingDesired(port=template.serving.port, threads=template.serving.threads),
        memory_limit_bytes=quantity.to_bytes(limits.memory) if limits.memory else 0,
        cpu_limit_millis=quantity.to_millis(limits.cpu) if limits.cpu else 0,
        memory_request_bytes=quantity.to_bytes(requests.memory) if requests.memory else 0,
        cpu_request_millis=quantity.to_millis(requests.cpu) if requests.cpu else 0,
        require_unmetered=template.link.require_unmetered,
        protection=template.protection,
        deployment_uid=rollout.spec.deployment_uid,
    )


def serving_of(template: ModelDeploymentSpec) -> tuple[int, int]:
    """Return what of a template bears on speed: the engine's threads, and the CPU limit in millicores (0: none)."""
    cpu = template.resources.limits.cpu
    return template.serving.threads, quantity.to_millis(cpu) if cpu else 0


def build_assignment(
    rollout: Rollout,
    model: ModelVersion,
    placement: Placement,
    *,
    wave: int,
    now: datetime,
    returned_from: str = "",
    refusals: Sequence[Refused] = (),
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
        memory_bytes=placement.memory_bytes,
        refusals=list(refusals),
        assigned_at=now,
        returned_from=returned_from,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Limits:
    template: ModelDeploymentSpec
    latency_ms: float
    max_memory_bytes: int | None
    limit_bytes: int | None
    request_bytes: int
    request_millis: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Offer:
    """One variant held against one machine and one deployment's limits."""

    machine: Machine
    variant: Variant
    limits: _Limits
    cost: Cost | None
    """Measured on the machine's class; None when it was not."""
    failure: str = ""
    """Why it could not be measured there, though it was tried."""
    refused: str = ""
    """Why the device would not take it."""

    @property
    def latency(self) -> float:
        """p95 in milliseconds; what is not a number counts as endless."""
        value = self.cost.latency_p95_ms if self.cost else self.variant.profile.latency_p95_ms
        return value if math.isfinite(value) and value >= 0 else math.inf

    @property
    def memory(self) -> int:
        return self.cost.peak_memory_bytes if self.cost else self.variant.needs.memory_bytes

    @property
    def needed(self) -> int:
        """Bytes it must find: its peak, but the factory's when the class's is that within the tolerance."""
        factory = self.variant.needs.memory_bytes
        return factory if abs(self.memory - factory) <= MEMORY_TOLERANCE * factory else self.memory

    @property
    def measured_on(self) -> str:
        return self.cost.measured_on if self.cost else "factory"


def _offers(
    machine: Machine,
    variants: Iterable[Variant],
    template: ModelDeploymentSpec,
    measured: Mapping[str, Cost],
    refused: Mapping[str, str],
) -> list[_Offer]:
    limits, offers = _limits_of(template), []
    for variant in variants:
        cost = measured.get(variant.name)
        failure = cost.failure if cost is not None else ""
        offers.append(
            _Offer(
                machine=machine,
                variant=variant,
                limits=limits,
                cost=None if failure else cost,
                failure=failure,
                refused=refused.get(variant.name, ""),
            )
        )
    return offers


def _limits_of(template: ModelDeploymentSpec) -> _Limits:
    wanted, limit, asked = template.constraints, template.resources.limits.memory, template.resources.requests
    return _Limits(
        template=template,
        latency_ms=duration.to_seconds(wanted.max_latency) * 1000 if wanted.max_latency else math.inf,
        max_memory_bytes=quantity.to_bytes(wanted.max_memory) if wanted.max_memory else None,
        limit_bytes=quantity.to_bytes(limit) if limit else None,
        request_bytes=quantity.to_bytes(asked.memory) if asked.memory else 0,
        request_millis=quantity.to_millis(asked.cpu) if asked.cpu else 0,
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


def _protection(offer: _Offer) -> str:
    if offer.limits.template.protection == "none" or offer.machine.protection:
        return ""
    return "the device cannot keep models encrypted: it has no key for them, or an older agent"


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


def _refused(offer: _Offer) -> str:
    return offer.refused


def _allowed_memory(offer: _Offer) -> str:
    limits = offer.limits
    needs = f"{offer.variant.name} needs {quantity.human_bytes(offer.needed)}"
    if limits.max_memory_bytes is not None and offer.needed > limits.max_memory_bytes:
        return f"{needs}, the deployment allows {quantity.human_bytes(limits.max_memory_bytes)}"
    if limits.limit_bytes is not None and offer.needed > limits.limit_bytes:
        return f"{needs}, its memory limit is {quantity.human_bytes(limits.limit_bytes)}"
    return ""


def _memory(offer: _Offer) -> str:
    machine, limits = offer.machine, offer.limits
    beside = _beside(offer)
    free = machine.memory_bytes - machine.taken_bytes - beside
    if max(offer.needed, limits.request_bytes) <= free:
        return ""
    needs = f"{offer.variant.name} needs {quantity.human_bytes(offer.needed)}"
    if limits.request_bytes > offer.needed:
        needs = f"the deployment requests {quantity.human_bytes(limits.request_bytes)} of memory"
    gives = f"the device gives workloads {quantity.human_bytes(machine.memory_bytes)}"
    if machine.taken_bytes:
        return f"{needs}, {gives} and {quantity.human_bytes(max(free, 0))} of that are left"
    if beside:
        return f"{needs} beside {machine.replaced_version}'s {quantity.human_bytes(beside)} in shadow mode, {gives}"
    return f"{needs}, {gives}"


def _beside(offer: _Offer) -> int:
    """Memory of the version that goes on serving while the new one runs in its shadow."""
    template, machine = offer.limits.template, offer.machine
    replaces = machine.replaced_version not in ("", template.model_version)
    return machine.replaced_bytes if template.strategy.shadow is not None and replaces else 0


def _cpu(offer: _Offer) -> str:
    machine, asked = offer.machine, offer.limits.request_millis
    if not asked or not machine.cores or machine.taken_millis + asked <= machine.cores * 1000:
        return ""
    left = max(machine.cores * 1000 - machine.taken_millis, 0)
    return f"the deployment requests {asked} m of CPU, {left} m of the device's {machine.cores} cores are left"


def _latency(offer: _Offer) -> str:
    if offer.latency <= offer.limits.latency_ms:
        return ""
    return f"p95 {_ms(offer.latency)} is above the limit {_ms(offer.limits.latency_ms)}"


def _metric(offer: _Offer) -> str:
    wanted = offer.limits.template.constraints.min_accuracy
    metric = offer.variant.metric
    if wanted is None or (metric is not None and metric >= wanted):
        return ""
    said = "its accuracy was never evaluated, the" if metric is None else f"accuracy {metric:.4g} is below the"
    return f"{said} limit{' is' if metric is None else ''} {wanted:.4g}"


_FACTS: tuple[Callable[[_Offer], str], ...] = (
    _wanted,
    _architecture,
    _runtime,
    _protection,
    _engine,
    _memory,
    _cpu,
    _metric,
)
_CHECKS: tuple[Callable[[_Offer], str], ...] = (
    _wanted,
    _architecture,
    _runtime,
    _protection,
    _engine,
    _refused,
    _allowed_memory,
    _memory,
    _cpu,
    _latency,
    _metric,
)


def _refusal(offer: _Offer) -> str:
    return next((reason for check in _CHECKS if (reason := check(offer))), "")


# --- ranking and its sentences -------------------------------------------------------------------------------------

_Key: TypeAlias = tuple[int, float, str]


def _rank_alike(offers: Sequence[_Offer]) -> list[_Offer]:
    """Rank by the class's costs if each was tried there, those that could not be measured behind; else the factory's.

    Numbers of two machines cannot be compared: whatever was measured on the slower one would never be taken.
    """
    measured = [offer for offer in offers if offer.cost is not None]
    failed = [offer for offer in offers if offer.cost is None and offer.failure]
    if measured and len(measured) + len(failed) == len(offers):
        return _rank(measured) + _rank(failed)
    return _rank([replace(offer, cost=None, failure="") for offer in offers])


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
    # The drop against the source, not the metric: of an error, less is better, and the drop already knows.
    # Where nothing was evaluated nothing is known to be lost: latency and memory decide, then the name.
    drop = offer.variant.metric_drop
    return offer.memory, drop if drop is not None and math.isfinite(drop) else math.inf, offer.variant.name


def _candidate(offer: _Offer, *, taken: bool, reason: str) -> Candidate:
    metric = offer.variant.metric
    return Candidate(
        variant=offer.variant.name,
        taken=taken,
        reason=reason,
        latency_p95_ms=offer.latency if math.isfinite(offer.latency) else None,
        peak_memory_bytes=offer.memory,
        metric=metric if metric is not None and math.isfinite(metric) else None,
        measured_on=offer.measured_on,
    )


def _why_taken(best: _Offer, fitting: int, offered: int) -> str:
    where = "in the factory" if best.cost is None else f"on class {best.measured_on}"
    if best.cost is not None and best.cost.devices:
        where += f" by {best.cost.devices} device{'' if best.cost.devices == 1 else 's'}"
    measured = f"p95 {_ms(best.latency)} and {quantity.human_bytes(best.memory)}, measured {where}"
    if fitting > 1:
        return f"{best.variant.name} is the best of {fitting} that fit: {measured}"
    return f"{best.variant.name} is the only one of {offered} that fits: {measured}"


def _why_behind(offer: _Offer, best: _Offer) -> str:
    other = best.variant.name
    if offer.failure and not best.failure:
        return f"fits, but could not be measured on the class: {offer.failure}"
    if offer.latency > best.latency * (1 + LATENCY_TOLERANCE):
        return f"fits, but its p95 {_ms(offer.latency)} is slower than {other}'s {_ms(best.latency)}"
    if offer.memory != best.memory:
        needs = f"{quantity.human_bytes(offer.memory)}, {other} {quantity.human_bytes(best.memory)}"
        return f"fits and is as fast as {other}, but needs {needs}"
    if offer.variant.metric_drop != best.variant.metric_drop:
        reached = _reached(offer), _reached(best)
        return f"fits and costs what {other} costs, but reaches {reached[0]}, not {reached[1]}"
    return f"fits and is equal to {other}; the name decides"


def _reached(offer: _Offer) -> str:
    return "what nobody evaluated" if offer.variant.metric is None else f"{offer.variant.metric:.4g}"


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


@functools.lru_cache(maxsize=1024)
def _version(text: str) -> tuple[int, ...]:
    """`1.26.0+cpu` -> (1, 26); trailing zeros do not count, a bounded part of the text is read."""
    release = re.split(r"[-+]", text[:64], maxsplit=1)[0]
    numbers = [int(part) for part in re.findall(r"\d{1,9}", release)[:6]]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
