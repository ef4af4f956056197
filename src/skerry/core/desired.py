"""What the hub keeps per device: the assignments from which its desired state is rendered.

One record a device, written with optimistic concurrency, so that `manifest_version` rises by one with every change,
whichever hub writes it. Rollouts write it, the gateway signs and publishes it. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from skerry.api.errors import InvalidError
from skerry.api.kinds.device import LinkPolicy, Refusal, UpdateHold
from skerry.api.meta import Struct
from skerry.core.messages import MAX_BENCHMARKS, MAX_MANIFEST_VERSION, DesiredState, TrustDesired, WorkloadDesired

MAX_VERSION = MAX_MANIFEST_VERSION
"""Of a manifest."""


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


class Refused(Struct, frozen=True, kw_only=True):
    """A variant that the device refused for this rollout."""

    variant: str
    refusal: Refusal
    message: str = ""
    """The device's own sentence."""
    at: datetime


class BenchmarkRequest(Struct, frozen=True, kw_only=True):
    """One variant that the device is to measure for a rollout that waits for it."""

    deployment: str
    deployment_uid: str
    rollout: str
    workload: WorkloadDesired
    """Under a name of its own, see `core.benchmarks`; its `rollout` is empty, for no rollout is served by it."""
    requested_at: datetime


class Assignment(Struct, frozen=True, kw_only=True):
    """One deployment's workload on one device, and how it came to be there."""

    workload: WorkloadDesired
    deployment_uid: str
    wave: int
    """Index of the wave that assigned it."""
    reason: str
    """Why this variant, in one sentence."""
    candidates: list[Candidate] = []
    memory_bytes: int = 0
    """Memory it was placed with: the class's figure where that counted; 0: what the workload says it needs."""
    refusals: list[Refused] = []
    """What the device refused before it got this one, oldest first."""
    assigned_at: datetime
    returned_from: str = ""
    """The rollout whose failure put this assignment back; empty otherwise."""
    manifest_version: int = 0
    """The record's version that first carried this workload, set by `assign`: a device that has accepted only an older
    one does not speak of this workload yet."""


class Content(Struct, frozen=True, kw_only=True):
    """The blobs that one workload needs from the registry."""

    repository: str
    digests: list[str] = []


class DesiredRecord(Struct, frozen=True, kw_only=True):
    """Everything assigned to one device (store key `desired/<uid>`)."""

    uid: str
    namespace: str
    device: str
    manifest_version: int = 0
    """0 until something was assigned for the first time."""
    assignments: list[Assignment] = []
    benchmarks: list[BenchmarkRequest] = []
    link: LinkPolicy = LinkPolicy()
    hold: UpdateHold | None = None
    trust: TrustDesired | None = None
    former: dict[str, Content] = {}
    """By deployment, what its workload needed before it became what it is: the device may be on its way there still, or
    be sent back."""

    def find(self, deployment: str) -> Assignment | None:
        """Return the deployment's assignment on this device."""
        return next((a for a in self.assignments if a.workload.name == deployment), None)


def assign(record: DesiredRecord, assignment: Assignment) -> DesiredRecord:
    """Put an assignment in place of the same deployment's old one; the version rises if the workload differs."""
    old = record.find(assignment.workload.name)
    unchanged = old is not None and old.workload == assignment.workload
    since = old.manifest_version if old is not None and unchanged else record.manifest_version + 1
    others = [a for a in record.assignments if a.workload.name != assignment.workload.name]
    if old is not None and _model_file(old.workload) != _model_file(assignment.workload):
        record = msgspec.structs.replace(
            record, former={**record.former, assignment.workload.name: content_of(old.workload)}
        )
    return _changed(record, [*others, msgspec.structs.replace(assignment, manifest_version=since)], record.benchmarks)


def _model_file(workload: WorkloadDesired) -> tuple[str, str]:
    """What one version's workload has and no other's: signatures and deltas may come to one that stays what it is."""
    return workload.repository, workload.blob.digest


def withdraw(record: DesiredRecord, deployment: str) -> DesiredRecord:
    """Take a deployment off the device, and what is measured for it."""
    return _changed(
        msgspec.structs.replace(record, former={n: c for n, c in record.former.items() if n != deployment}),
        [a for a in record.assignments if a.workload.name != deployment],
        [b for b in record.benchmarks if b.deployment != deployment],
    )


def content_of(workload: WorkloadDesired) -> Content:
    """Return what a device fetches from the registry for a workload."""
    blobs = [workload.blob, *workload.signatures]
    blobs += [blob for blob in (workload.golden, workload.card) if blob is not None]
    digests = {blob.digest for blob in blobs} | {delta.blob.digest for delta in workload.deltas}
    return Content(repository=workload.repository, digests=sorted(digests))


def contents_of(record: DesiredRecord) -> list[Content]:
    """Return all that is desired of a device, measured on it, or was desired just before."""
    workloads = [*(a.workload for a in record.assignments), *(b.workload for b in record.benchmarks)]
    return [*map(content_of, workloads), *record.former.values()]


def may_fetch(record: DesiredRecord, repository: str, digest: str) -> bool:
    """Return whether a blob belongs to what is desired of a device, measured on it, or was desired just before."""
    return any(one.repository == repository and digest in one.digests for one in contents_of(record))


def versions_in(record: DesiredRecord, repository: str) -> list[str]:
    """Return the names of the ModelVersions that a device has from a repository, in order."""
    workloads = [*(a.workload for a in record.assignments), *(b.workload for b in record.benchmarks)]
    return sorted({workload.model_version for workload in workloads if workload.repository == repository})


def request_benchmarks(record: DesiredRecord, requests: Sequence[BenchmarkRequest]) -> DesiredRecord:
    """Add what is to be measured, up to the bound; what is asked for already stays as it is."""
    known = {(b.deployment_uid, b.rollout, b.workload.name) for b in record.benchmarks}
    new = [b for b in requests if (b.deployment_uid, b.rollout, b.workload.name) not in known]
    return _changed(record, record.assignments, [*record.benchmarks, *new][:MAX_BENCHMARKS])


def withdraw_benchmarks(
    record: DesiredRecord, deployment: str, *, keep: tuple[str, str] | None = None
) -> DesiredRecord:
    """Ask for nothing any more for a deployment, but for the rollout `keep` (the deployment's uid, its own name)."""
    kept = [b for b in record.benchmarks if b.deployment != deployment or (b.deployment_uid, b.rollout) == keep]
    return _changed(record, record.assignments, kept)


def tell_device(record: DesiredRecord, *, link: LinkPolicy, hold: UpdateHold | None) -> DesiredRecord:
    """Put the device's own spec into its record; the version rises if the device is told something else by it."""
    if (record.link, record.hold) == (link, hold):
        return record
    return msgspec.structs.replace(record, link=link, hold=hold, manifest_version=record.manifest_version + 1)


def tell_trust(record: DesiredRecord, trust: TrustDesired | None) -> DesiredRecord:
    """Put the namespace's anchor and signed policy into a device's record; the version rises if they are others."""
    if record.trust == trust:
        return record
    return msgspec.structs.replace(record, trust=trust, manifest_version=record.manifest_version + 1)


def reissue(record: DesiredRecord, *, above: int) -> DesiredRecord:
    """Give everything that is desired a version that the device has not accepted yet, whatever it accepted before.

    `above` is what the device reported. For a hub that knows less than its devices, as after its restoration from a
    backup. Raises InvalidError when the device claims a version that cannot be.
    """
    version = max(record.manifest_version, above) + 1
    if version > MAX_VERSION:
        raise InvalidError(
            f"reports version {above}, which no hub has issued",
            element=f"device {record.device}",
            hint="enrol it again, with `skerry agent enroll --again` on the device: then it forgets that version",
        )
    assignments = [msgspec.structs.replace(a, manifest_version=version) for a in record.assignments]
    return msgspec.structs.replace(record, manifest_version=version, assignments=assignments)


def render(record: DesiredRecord, *, issued_at: datetime) -> DesiredState:
    """Return the message for the device. The record must have a version (at least one assignment was made)."""
    return DesiredState(
        uid=record.uid,
        manifest_version=record.manifest_version,
        issued_at=issued_at,
        workloads=[a.workload for a in record.assignments],
        benchmarks=_benchmarks(record.benchmarks),
        link=record.link,
        hold=record.hold,
        trust=record.trust,
    )


def _changed(
    record: DesiredRecord, assignments: Sequence[Assignment], benchmarks: Sequence[BenchmarkRequest]
) -> DesiredRecord:
    """Return the record with these, its version raised when the device is told something else by them."""
    ordered = sorted(assignments, key=lambda a: a.workload.name)
    told = ([a.workload for a in ordered], _benchmarks(benchmarks))
    rises = told != ([a.workload for a in record.assignments], _benchmarks(record.benchmarks))
    return msgspec.structs.replace(
        record,
        assignments=ordered,
        benchmarks=list(benchmarks),
        manifest_version=record.manifest_version + (1 if rises else 0),
    )


def _benchmarks(requests: Sequence[BenchmarkRequest]) -> list[WorkloadDesired]:
    """Two deployments may want the same to be measured: once is enough."""
    return [one for _, one in sorted({b.workload.name: b.workload for b in requests}.items())]
