"""Assignments: what an action does to one device's record. Pure, and idempotent: doing it twice is doing it once.

The variant is chosen here, from the record as it is at the moment of writing, so that two deployments that come to one
device at the same time cannot both take the same memory.

Lives here: actions on records. Must not live here: the decision which action (`core.rollout`), or the writing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec

from skerry.api.kinds.device import DeviceStatus
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.core import desired, placement, trial
from skerry.core.desired import Assignment, DesiredRecord
from skerry.core.messages import WindowsDesired
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
    note: str = "",
) -> DesiredRecord:
    """Return the record after the action. `target` is the rollout that the action leads to.

    `measured` are the variants' costs on the device's class; `note` says why there are none. Nothing changes for a
    device that is there already. One that nothing fits keeps what it has, unless what it has is the failed rollout it
    returns from: that is taken off.
    """
    deployment = target.rollout.spec.deployment
    if isinstance(action, Withdraw):
        return desired.withdraw(record, deployment)
    held = record.find(deployment)
    if held is not None and _is_on(held, target.rollout):
        return _reschedule(record, held, action, now)
    found = placement.Placement(variant=None, reason="the model version is not ready")
    if target.model is not None:
        machine = placement.machine_of(facts, record, deployment)
        variants, template = target.model.status.variants, target.rollout.spec.template
        found = placement.place(machine, variants, template, measured, note=note)
        if found.variant is None and measured and isinstance(action, Return):
            # What served before must not be kept from returning by what has been measured since.
            found = placement.place(machine, variants, template)
    returned_from = action.returned_from if isinstance(action, Return) else ""
    if found.variant is None or target.model is None:
        failed = held is not None and bool(returned_from) and held.workload.rollout == returned_from
        return desired.withdraw(record, deployment) if failed else record
    wave = action.wave if isinstance(action, Assign) else max(len(target.rollout.status.waves) - 1, 0)
    made = placement.build_assignment(
        target.rollout, target.model, found, wave=wave, now=now, returned_from=returned_from
    )
    if isinstance(action, Assign):
        asked = trial.ask(made.workload, target.rollout.spec.template.strategy)
        made = msgspec.structs.replace(made, workload=asked)
    return desired.assign(record, _with_windows(made, action.windows, now))


def _reschedule(record: DesiredRecord, held: Assignment, action: Assign | Return, now: datetime) -> DesiredRecord:
    """Bring the windows of a device that is on its rollout up to date; all else stays."""
    told = held.workload.windows
    known = None if told is None else msgspec.structs.replace(told, issued_at=None)
    if isinstance(action, Return) or known == action.windows:
        return record
    return desired.assign(record, _with_windows(held, action.windows, now))


def _with_windows(assignment: Assignment, told: WindowsDesired | None, now: datetime) -> Assignment:
    stamped = None if told is None else msgspec.structs.replace(told, issued_at=now)
    return msgspec.structs.replace(assignment, workload=msgspec.structs.replace(assignment.workload, windows=stamped))


def _is_on(held: Assignment, rollout: Rollout) -> bool:
    return held.workload.rollout == rollout.metadata.name and held.deployment_uid == rollout.spec.deployment_uid
