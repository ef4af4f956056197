"""Assignments: what an action does to one device's record. Pure, and idempotent: doing it twice is doing it once.

The variant is chosen here, from the record as it is at the moment of writing, so that two deployments that come to one
device at the same time cannot both take the same memory.

Lives here: actions on records. Must not live here: the decision which action (`core.rollout`), or the writing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from skerry.api.kinds.device import DeviceStatus
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.core import desired, placement
from skerry.core.desired import Assignment, DesiredRecord
from skerry.core.placement import Cost
from skerry.core.steps import Assign, Return, Withdraw


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A rollout and the model version it brings; None when that is not ready to be brought anywhere."""

    rollout: Rollout
    model: ModelVersion | None


def carry_out(
    action: Assign | Return | Withdraw,
    record: DesiredRecord,
    facts: DeviceStatus,
    target: Target,
    now: datetime,
    *,
    measured: Mapping[str, Cost] | None = None,
) -> DesiredRecord:
    """Return the record after the action. `target` is the rollout that the action leads to.

    Nothing changes for a device that is there already. One that nothing fits keeps what it has, unless what it has is
    the failed rollout it returns from: that is taken off.
    """
    deployment = target.rollout.spec.deployment
    if isinstance(action, Withdraw):
        return desired.withdraw(record, deployment)
    held = record.find(deployment)
    if held is not None and _is_on(held, target.rollout):
        return record
    found = placement.Placement(variant=None, reason="the model version is not ready")
    if target.model is not None:
        machine = placement.machine_of(facts, record, deployment)
        found = placement.place(machine, target.model.status.variants, target.rollout.spec.template, measured)
    returned_from = action.returned_from if isinstance(action, Return) else ""
    if found.variant is None or target.model is None:
        failed = held is not None and bool(returned_from) and held.workload.rollout == returned_from
        return desired.withdraw(record, deployment) if failed else record
    wave = action.wave if isinstance(action, Assign) else max(len(target.rollout.status.waves) - 1, 0)
    return desired.assign(
        record,
        placement.build_assignment(
            target.rollout, target.model, found, wave=wave, now=now, returned_from=returned_from
        ),
    )


def _is_on(held: Assignment, rollout: Rollout) -> bool:
    return held.workload.rollout == rollout.metadata.name and held.deployment_uid == rollout.spec.deployment_uid
