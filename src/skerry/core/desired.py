"""What the hub keeps per device: the assignments from which its desired state is rendered.

One record a device, written with optimistic concurrency, so that `manifest_version` rises by one with every change,
whichever hub writes it. Rollouts write it, the gateway signs and publishes it. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from skerry.api.meta import Struct
from skerry.core.messages import DesiredState, WorkloadDesired


class Candidate(Struct, frozen=True, kw_only=True):
    """One variant considered for a device, with the verdict and the numbers behind it."""

    variant: str
    taken: bool
    reason: str
    latency_p95_ms: float | None = None
    peak_memory_bytes: int | None = None
    metric: float | None = None
    measured_on: str = ""
    """`factory`, or the device class whose measurements were used."""


class Assignment(Struct, frozen=True, kw_only=True):
    """One deployment's workload on one device, and how it came to be there."""

    workload: WorkloadDesired
    deployment_uid: str
    wave: int
    """Index of the wave that assigned it."""
    reason: str
    """Why this variant, in one sentence."""
    candidates: list[Candidate] = []
    assigned_at: datetime
    returned_from: str = ""
    """The rollout whose failure put this assignment back; empty otherwise."""
    manifest_version: int = 0
    """The record's version that first carried this workload, set by `assign`: a device that has accepted only an older
    one does not speak of this workload yet."""


class DesiredRecord(Struct, frozen=True, kw_only=True):
    """Everything assigned to one device (store key `desired/<uid>`)."""

    uid: str
    namespace: str
    device: str
    manifest_version: int = 0
    """0 until something was assigned for the first time."""
    assignments: list[Assignment] = []

    def find(self, deployment: str) -> Assignment | None:
        """Return the deployment's assignment on this device."""
        return next((a for a in self.assignments if a.workload.name == deployment), None)


def assign(record: DesiredRecord, assignment: Assignment) -> DesiredRecord:
    """Put an assignment in place of the same deployment's old one; the version rises if the workload differs."""
    old = record.find(assignment.workload.name)
    unchanged = old is not None and old.workload == assignment.workload
    since = old.manifest_version if old is not None and unchanged else record.manifest_version + 1
    others = [a for a in record.assignments if a.workload.name != assignment.workload.name]
    return _raise_version(record, [*others, msgspec.structs.replace(assignment, manifest_version=since)])


def withdraw(record: DesiredRecord, deployment: str) -> DesiredRecord:
    """Take a deployment off the device."""
    return _raise_version(record, [a for a in record.assignments if a.workload.name != deployment])


def render(record: DesiredRecord, *, issued_at: datetime) -> DesiredState:
    """Return the message for the device. The record must have a version (at least one assignment was made)."""
    return DesiredState(
        uid=record.uid,
        manifest_version=record.manifest_version,
        issued_at=issued_at,
        workloads=[a.workload for a in record.assignments],
    )


def _raise_version(record: DesiredRecord, assignments: Sequence[Assignment]) -> DesiredRecord:
    ordered = sorted(assignments, key=lambda a: a.workload.name)
    changed = [a.workload for a in ordered] != [a.workload for a in record.assignments]
    return msgspec.structs.replace(
        record, assignments=ordered, manifest_version=record.manifest_version + (1 if changed else 0)
    )
