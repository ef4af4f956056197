"""Refusals: what to do when a device would not take the variant it was given. Pure.

The device says so in its report (`refusal`). Where the deployment allows it (`placement.onRefusal: nextBest`) it gets
the best of those that it has not refused on this rollout; each variant is offered once, so this ends. Where nothing
else fits it keeps what it was given, and counts as failed.

Lives here: the change of one device's record. Must not live here: when a device counts as failed (`core.waves`), why
a device refuses (`agent.policy`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from skerry.api.kinds.device import DeviceStatus
from skerry.core import desired, placement
from skerry.core.assignment import Target
from skerry.core.desired import Assignment, DesiredRecord, Refused
from skerry.core.placement import Cost
from skerry.core.waves import Member

MAX_REFUSALS = 16
"""Variants that one device may refuse on one rollout before it is left alone."""
_MAX_TEXT = 300


def refused(member: Member) -> Refused | None:
    """Return what a device refuses now: the variant that it is assigned, and was not known to refuse; else None."""
    report, held = member.current_report, member.assignment
    if report is None or held is None or not report.refusal or report.variant != held.workload.variant:
        return None
    if any(one.variant == report.variant for one in held.refusals):
        return None
    return Refused(
        variant=report.variant, refusal=report.refusal, message=report.message[:_MAX_TEXT], at=held.assigned_at
    )


def next_best(
    record: DesiredRecord,
    refusal: Refused,
    facts: DeviceStatus,
    target: Target,
    now: datetime,
    *,
    measured: Mapping[str, Cost] | None = None,
) -> DesiredRecord:
    """Return the record with the refusal noted and the next best variant assigned, if there is one.

    Nothing changes when the record does not hold that variant for that rollout any more, or has noted it before.
    """
    name = target.rollout.spec.deployment
    held = record.find(name)
    if held is None or not _is_about(held, refusal, target):
        return record
    noted = [*held.refusals, msgspec.structs.replace(refusal, at=now)]
    found = placement.Placement(variant=None, reason="")
    if target.model is not None and len(noted) <= MAX_REFUSALS:
        found = placement.place(
            placement.machine_of(facts, record, name),
            target.model.status.variants,
            target.rollout.spec.template,
            measured,
            refused={one.variant: sentence(one) for one in noted},
        )
    if found.variant is None or target.model is None:
        return desired.assign(record, msgspec.structs.replace(held, refusals=noted[-MAX_REFUSALS:]))
    made = placement.build_assignment(
        target.rollout, target.model, found, wave=held.wave, now=now, returned_from=held.returned_from, refusals=noted
    )
    windows = held.workload.windows
    return desired.assign(
        record, msgspec.structs.replace(made, workload=msgspec.structs.replace(made.workload, windows=windows))
    )


def sentence(refusal: Refused) -> str:
    """Return the refusal as people read it: `refused by the device (Policy): ...`."""
    return f"refused by the device ({refusal.refusal})" + (f": {refusal.message}" if refusal.message else "")


def _is_about(held: Assignment, refusal: Refused, target: Target) -> bool:
    meta, spec = target.rollout.metadata, target.rollout.spec
    return (
        (held.workload.rollout, held.deployment_uid, held.workload.variant)
        == (meta.name, spec.deployment_uid, refusal.variant)
    ) and all(one.variant != refusal.variant for one in held.refusals)
