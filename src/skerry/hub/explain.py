"""Explain: why a device runs the variant it runs, or why nothing fits it. Reads, asks `core.placement`, writes nothing.

Must not live here: the choice itself, HTTP.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from skerry.api import selector
from skerry.api.errors import NotFoundError
from skerry.api.kinds.device import Device, RunningRevision
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.api.meta import Struct
from skerry.core import placement
from skerry.core.desired import Candidate, DesiredRecord
from skerry.hub.context import HubContext


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
    running: RunningRevision | None = None
    """What the device says is serving."""


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
    if held is None:
        told = await _unassigned(context, told, wish, machine, record)
    else:
        told = msgspec.structs.replace(
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
    plain: dict[str, Any] = msgspec.to_builtins(told)
    return plain


async def _unassigned(
    context: HubContext, told: Explanation, wish: ModelDeployment, device: Device, record: DesiredRecord | None
) -> Explanation:
    """Say what would be chosen now, and why it is not in use."""
    try:
        model = await context.objects.get(ModelVersion, told.namespace, wish.spec.model_version)
    except NotFoundError:
        return msgspec.structs.replace(told, reason=f'model version "{wish.spec.model_version}" does not exist')
    machine = placement.machine_of(device.status, record, told.deployment)
    found = placement.place(machine, model.status.variants, wish.spec)
    reason = found.reason
    if not told.selected:
        wanted = selector.render(selector.requirements(wish.spec.device_selector))
        reason = f"the device does not match {wanted}"
    elif told.cordoned:
        reason = "the device is cordoned: it gets no new placements"
    elif model.status.phase != "Ready":
        reason = f'model version "{model.metadata.name}" is {model.status.phase}'
    elif found.variant is not None:
        reason = f"not yet assigned{await _waiting(context, told.namespace, wish)}; {found.reason}"
    return msgspec.structs.replace(told, reason=reason, candidates=list(found.candidates))


async def _waiting(context: HubContext, namespace: str, wish: ModelDeployment) -> str:
    item = await context.objects.find(Rollout, namespace, wish.status.rollout) if wish.status.rollout else None
    return f" ({item.metadata.name}: {item.status.message})" if item and item.status.message else ""
