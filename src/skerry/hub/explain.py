"""Explain: why a device runs the variant it runs, or why nothing fits: candidates, what was measured where, refusals.

Reads, asks `core.placement`, writes nothing.

Must not live here: the choice itself, HTTP.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from skerry.api import selector
from skerry.api.kinds.device import BenchmarkStatus, Device, RunningRevision, TrustFacts, WorkloadStatus
from skerry.api.kinds.device_class import DeviceClass, VariantCost
from skerry.api.kinds.model_deployment import ModelDeployment, ModelDeploymentSpec
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.api.meta import Struct
from skerry.core import classes, placement, trusted
from skerry.core.desired import Assignment, Candidate, DesiredRecord, Refused
from skerry.hub.context import HubContext


class ClassCost(Struct, frozen=True, kw_only=True):
    """What one variant costs on the device's class; medians over its devices."""

    variant: str
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    peak_memory_bytes: int | None = None
    max_abs_error: float | None = None
    samples: int = 0
    devices: int = 0
    measured_by: list[str] = []
    """Names of the devices, newest first."""
    measured_at: datetime | None = None
    source: str = ""
    """`benchmark` or `install`."""
    failure: str = ""
    """Why it could not be measured."""


class Explanation(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What was decided for one device and one deployment, and on what grounds."""

    namespace: str
    deployment: str
    device: str
    selected: bool
    """The device matches the deployment's selector."""
    cordoned: bool
    model_version: str
    """Of the assignment; of the deployment when there is no assignment."""
    rollout: str = ""
    """The rollout that assigned what is in use; empty when nothing is assigned."""
    revision: int = 0
    wave: int | None = None
    assigned_at: datetime | None = None
    returned_from: str = ""
    """The failed rollout that the device was brought back from."""
    variant: str = ""
    """The variant in use; empty when nothing is assigned."""
    reason: str
    """Why this one, or why none: one sentence."""
    candidates: list[Candidate] = []
    """As they were judged when it was assigned; as they are judged now when nothing is assigned."""
    device_class: str = ""
    """The class the device belongs to now; empty while it has not reported its hardware."""
    class_members: int = 0
    class_costs: list[ClassCost] = []
    """What is known on that class of the model version's variants, served as here, as of now."""
    refusals: list[Refused] = []
    """Variants that the device refused on this rollout, the one it refuses now included."""
    benchmarks: list[BenchmarkStatus] = []
    """What the device was asked to measure for this deployment, and what it says of it."""
    running: RunningRevision | None = None
    """What the device says is serving."""
    trust: str = ""
    """What the namespace's trust policy says of the model version that the deployment wants; empty where none is."""
    device_trust: TrustFacts | None = None
    """The trust anchor and policy that the device obeys by itself; None: it has no anchor."""


async def explain(context: HubContext, namespace: str, deployment: str, device: str) -> dict[str, Any]:
    """Return an `Explanation` as plain JSON. Raises NotFoundError for an unknown deployment or device."""
    wish = await context.objects.get(ModelDeployment, namespace, deployment)
    machine = await context.objects.get(Device, namespace, device)
    record = await context.objects.get_desired(machine.metadata.uid)
    held = record.find(deployment) if record else None
    report = next((w for w in machine.status.workloads if w.name == deployment), None)
    told = Explanation(
        namespace=namespace,
        deployment=deployment,
        device=device,
        selected=selector.matches(selector.requirements(wish.spec.device_selector), machine.metadata.labels),
        cordoned=machine.spec.cordoned,
        model_version=wish.spec.model_version,
        reason="",
        running=report.running if report else None,
    )
    model = await context.objects.find(
        ModelVersion, namespace, held.workload.model_version if held else wish.spec.model_version
    )
    template = await _template(context, wish, held)
    about = classes.class_name_of(machine.status)
    item = await context.objects.find(DeviceClass, namespace, about) if about else None
    told = msgspec.structs.replace(
        told,
        device_class=about,
        class_members=item.status.members if item else 0,
        class_costs=_class_costs(item, model, template),
        refusals=_refusals(held, report),
        trust=await _trust(context, namespace, wish.spec.model_version),
        device_trust=machine.status.trust,
        benchmarks=_benchmarks(machine, record, deployment),
    )
    if held is None:
        told = await _unassigned(context, told, wish, machine, record, model=model, item=item)
    else:
        told = _assigned(told, held)
    plain: dict[str, Any] = msgspec.to_builtins(told)
    return plain


def _assigned(told: Explanation, held: Assignment) -> Explanation:
    return msgspec.structs.replace(
        told,
        model_version=held.workload.model_version,
        rollout=held.workload.rollout,
        revision=held.workload.revision,
        wave=held.wave,
        assigned_at=held.assigned_at,
        returned_from=held.returned_from,
        variant=held.workload.variant,
        reason=held.reason,
        candidates=held.candidates,
    )


async def _unassigned(
    context: HubContext,
    told: Explanation,
    wish: ModelDeployment,
    device: Device,
    record: DesiredRecord | None,
    *,
    model: ModelVersion | None,
    item: DeviceClass | None,
) -> Explanation:
    """Say what would be chosen now, and why it is not in use."""
    if model is None:
        return msgspec.structs.replace(told, reason=f'model version "{wish.spec.model_version}" does not exist')
    machine = placement.machine_of(device.status, record, told.deployment)
    threads, millis = placement.serving_of(wish.spec)
    costs = classes.costs_of(item, model.status.variants, threads=threads, cpu_limit_millis=millis)
    found = placement.place(machine, model.status.variants, wish.spec, costs)
    reason = found.reason
    if not told.selected:
        wanted = selector.render(selector.requirements(wish.spec.device_selector))
        reason = f"the device does not match {wanted}"
    elif told.cordoned:
        reason = "the device is cordoned: it gets no new placements"
    elif model.status.phase != "Ready":
        reason = f'model version "{model.metadata.name}" is {model.status.phase}'
    elif trusted.is_refused(model) and model.status.trust is not None:
        reason = trusted.sentence(model.metadata.name, model.status.trust)
    elif found.variant is not None:
        reason = f"not yet assigned{await _waiting(context, told.namespace, wish)}; {found.reason}"
    return msgspec.structs.replace(told, reason=reason, candidates=list(found.candidates))


async def _template(context: HubContext, wish: ModelDeployment, held: Assignment | None) -> ModelDeploymentSpec:
    """Return by which spec it is served: that of the rollout that assigned it, else the deployment's."""
    if held is None:
        return wish.spec
    item = await context.objects.find(Rollout, wish.metadata.namespace, held.workload.rollout)
    return item.spec.template if item is not None else wish.spec


def _class_costs(
    item: DeviceClass | None, model: ModelVersion | None, template: ModelDeploymentSpec
) -> list[ClassCost]:
    if item is None or model is None:
        return []
    serving = placement.serving_of(template)
    known = {c.digest: c for c in item.status.variants if (c.threads, c.cpu_limit_millis) == serving}
    found = ((variant, known.get(variant.blob.digest)) for variant in model.status.variants)
    return [_class_cost(variant.name, cost) for variant, cost in found if cost is not None]


def _class_cost(variant: str, cost: VariantCost) -> ClassCost:
    return ClassCost(
        variant=variant,
        latency_p50_ms=cost.latency_p50_ms,
        latency_p95_ms=cost.latency_p95_ms,
        peak_memory_bytes=cost.peak_memory_bytes,
        max_abs_error=cost.max_abs_error,
        samples=cost.samples,
        devices=cost.devices,
        measured_by=[one.device for one in cost.observations if one.measurement is not None],
        measured_at=cost.measured_at,
        source=cost.source,
        failure=cost.failure,
    )


def _refusals(held: Assignment | None, report: WorkloadStatus | None) -> list[Refused]:
    if held is None:
        return []
    told = (held.workload.rollout, held.workload.variant)
    if report is None or not report.refusal or (report.rollout, report.variant) != told:
        return held.refusals
    if any(one.variant == report.variant for one in held.refusals):
        return held.refusals
    now = Refused(variant=report.variant, refusal=report.refusal, message=report.message, at=held.assigned_at)
    return [*held.refusals, now]


def _benchmarks(device: Device, record: DesiredRecord | None, deployment: str) -> list[BenchmarkStatus]:
    asked = [one.workload for one in record.benchmarks if one.deployment == deployment] if record else []
    said = {one.name: one for one in device.status.benchmarks}
    return [
        said.get(one.name) or BenchmarkStatus(name=one.name, model_version=one.model_version, variant=one.variant)
        for one in asked
    ]


async def _trust(context: HubContext, namespace: str, name: str) -> str:
    wanted = await context.objects.find(ModelVersion, namespace, name)
    verdict = None if wanted is None else wanted.status.trust
    if verdict is None or verdict.mode == "off":
        return ""
    return f'model version "{name}" is {verdict.message}' if verdict.covered else trusted.sentence(name, verdict)


async def _waiting(context: HubContext, namespace: str, wish: ModelDeployment) -> str:
    item = await context.objects.find(Rollout, namespace, wish.status.rollout) if wish.status.rollout else None
    return f" ({item.metadata.name}: {item.status.message})" if item and item.status.message else ""
