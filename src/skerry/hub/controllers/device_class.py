"""Device classes: made from what devices report, with what was measured on them.

Watches devices and their records, of which only the few fields that matter are read and kept, for a fleet may be large;
one key a class. What a device measured is told apart by what the hub's own record
told it to run, never by the device's word. Counts of members are written at most once a second and class; measurements
at once, for a rollout may wait for them. A class nobody belongs to stays while something was measured on it, the
newest `MAX_DESERTED` of them in a namespace.
Must not live here: the signature, and what is learnt (`core.classes`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

import msgspec

from skerry.api.errors import AlreadyExistsError, ConflictError, NotFoundError
from skerry.api.kinds.device import BenchmarkStatus, EngineFacts, Hardware, Measurement
from skerry.api.kinds.device_class import DeviceClass, DeviceClassSpec
from skerry.api.meta import ObjectMeta, Struct
from skerry.core import classes, waves
from skerry.core.classes import Finding, Served
from skerry.core.ports import Record
from skerry.hub.context import HubContext
from skerry.hub.controllers import informer
from skerry.hub.controllers.informer import Informer
from skerry.hub.controllers.reconciler import Reconciler
from skerry.hub.objects import DESIRED_PREFIX

log = logging.getLogger(__name__)

COUNT_SECONDS = 1.0
MAX_DESERTED = 256

Key = tuple[str, str]
"""Namespace and name of a class."""


_DEVICES = "devices/"


class _Meta(Struct, frozen=True, kw_only=True):
    name: str
    namespace: str
    uid: str


class _Report(Struct, frozen=True, kw_only=True):
    name: str
    rollout: str
    variant: str
    phase: str
    deployment_uid: str = ""
    measurement: Measurement | None = None


class _Status(Struct, frozen=True, kw_only=True):
    hardware: Hardware = Hardware()
    engines: list[EngineFacts] = []
    observed_manifest_version: int = 0
    workloads: list[_Report] = []
    benchmarks: list[BenchmarkStatus] = []


class _Device(Struct, frozen=True, kw_only=True):
    """A Device, as far as it concerns classes."""

    metadata: _Meta
    status: _Status = _Status()


class _Assigned(Struct, frozen=True, kw_only=True):
    workload: Served
    deployment_uid: str = ""
    manifest_version: int = 0


class _Asked(Struct, frozen=True, kw_only=True):
    workload: Served


class _Record(Struct, frozen=True, kw_only=True):
    """A DesiredRecord, as far as it concerns classes."""

    uid: str
    assignments: list[_Assigned] = []
    benchmarks: list[_Asked] = []


async def run(context: HubContext) -> None:
    """Keep the classes, for ever."""
    await DeviceClasses(context).run()


class DeviceClasses:
    """The controller; see `run`."""

    def __init__(self, context: HubContext) -> None:
        store = context.objects.store
        self._objects, self._clock = context.objects, context.clock
        self._work: Reconciler[Key] = Reconciler("device-class", self.reconcile, self._failed)
        context.health.workers.add(self._work)
        self._devices = Informer(store, _DEVICES, _read_device, self._device_changed)
        self._records = Informer(store, DESIRED_PREFIX, _read_record, self._record_changed)
        self._classes = informer.of_kind(store, DeviceClass, self._class_changed)
        self._of: dict[str, Key] = {}
        self._signatures: dict[Key, DeviceClassSpec] = {}
        self._members: dict[Key, dict[str, str]] = {}
        self._fresh: dict[Key, set[str]] = {}
        self._counted: dict[Key, float] = {}

    async def run(self) -> None:
        """Watch and reconcile, once all is known: a class must not seem deserted because its devices come late."""
        copies = (self._devices, self._records, self._classes)
        async with asyncio.TaskGroup() as group:
            for copy in copies:
                group.create_task(copy.run())
            for copy in copies:
                await copy.wait_synced()
            await self._work.run()

    async def reconcile(self, key: Key) -> float | None:
        """Bring one class up to date; returns the seconds until it wants to be looked at again."""
        members, fresh = self._members.get(key, {}), self._fresh.pop(key, set())
        found = self._classes.get("/".join(key))
        try:
            if found is None:
                found = await self._create(key) if members else None
                fresh = set(members)
            if found is None:
                return None
            findings = [finding for uid in sorted(fresh) for finding in self._findings(key, uid)]
            status = classes.learn(found.status, findings, self._clock.now())
            learnt = status is not found.status
            wait = self._counted.get(key, -COUNT_SECONDS) + COUNT_SECONDS - self._clock.monotonic()
            if wait > 0 and not learnt:
                return wait if len(members) != status.members else None
            await self._write(key, found, msgspec.structs.replace(status, members=len(members)))
        except BaseException:
            self._fresh.setdefault(key, set()).update(fresh)
            raise
        if not members:
            await self._drop_deserted(key[0])
        return None

    def _findings(self, key: Key, uid: str) -> Iterator[Finding]:
        """What a device says of what its record told it to run and to measure."""
        device = self._devices.get(f"{key[0]}/{self._members.get(key, {}).get(uid, '')}")
        record = self._records.get(uid)
        if device is None or record is None or device.metadata.uid != uid:
            return
        name, status = device.metadata.name, device.status
        asked = {request.workload.name: request.workload for request in record.benchmarks}
        for said in status.benchmarks:
            workload = asked.get(said.name)
            if workload is not None and said.phase in ("Measured", "Failed") and not said.refusal:
                yield Finding(
                    device=name,
                    uid=uid,
                    source="benchmark",
                    workload=workload,
                    measurement=said.measurement if said.phase == "Measured" else None,
                    failure=said.message or "it was not measured",
                )
        reports = {report.name: report for report in status.workloads}
        for held in record.assignments:
            report = reports.get(held.workload.name)
            current = report is not None and status.observed_manifest_version >= held.manifest_version
            if report is None or not current or report.measurement is None or report.phase != "Running":
                continue
            told = (held.workload.rollout, held.workload.variant)
            same = waves.may_be(report.deployment_uid, held.deployment_uid)
            if same and (report.rollout, report.variant) == told:
                yield Finding(
                    device=name, uid=uid, source="install", workload=held.workload, measurement=report.measurement
                )

    # --- writing ------------------------------------------------------------------------------------------------------

    async def _create(self, key: Key) -> DeviceClass:
        signature = self._signatures[key]
        item = DeviceClass(
            metadata=ObjectMeta(name=key[1], namespace=key[0], labels={"skerry.dev/arch": _label(signature.arch)}),
            spec=signature,
        )
        try:
            created = await self._objects.create(item)
        except AlreadyExistsError as error:  # the local copy is behind
            raise ConflictError(error.cause, element=error.element) from None
        self._observe(created)
        log.info("device_class.made namespace=%s name=%s", *key)
        return created

    async def _write(self, key: Key, found: DeviceClass, status: object) -> None:
        def change(current: DeviceClass) -> DeviceClass:
            if current.metadata.uid != found.metadata.uid or current.status != found.status:
                raise ConflictError(element=f'deviceclasses "{key[1]}"')
            return msgspec.structs.replace(current, status=status)

        try:
            written = await self._objects.update_status(DeviceClass, *key, change)
        except NotFoundError as error:  # deleted meanwhile, to have it measured anew
            raise ConflictError(error.cause, element=error.element) from None
        self._counted[key] = self._clock.monotonic()
        self._observe(written)

    async def _drop_deserted(self, namespace: str) -> None:
        """Delete classes without members on which nothing was measured, and the oldest of those where something was."""
        deserted = [
            item
            for item in self._classes.values(f"{namespace}/")
            if not self._members.get((namespace, item.metadata.name))
        ]
        empty = [item for item in deserted if not item.status.variants]
        kept = sorted((item for item in deserted if item.status.variants), key=_last_learnt, reverse=True)
        for item in [*empty, *kept[MAX_DESERTED:]]:
            key = (namespace, item.metadata.name)
            with contextlib.suppress(NotFoundError):
                await self._objects.delete(DeviceClass, *key, uid=item.metadata.uid)
            self._classes.forget("/".join(key))
            self._counted.pop(key, None)

    def _observe(self, item: DeviceClass) -> None:
        meta = item.metadata
        self._classes.observe(f"{meta.namespace}/{meta.name}", item, int(meta.resource_version))

    async def _failed(self, key: Key, error: Exception) -> None:
        """Nothing to show it on; the log has said it."""

    # --- what a change concerns ---------------------------------------------------------------------------------------

    def _device_changed(self, old: _Device | None, new: _Device | None) -> None:
        if old is not None and (new is None or new.metadata.uid != old.metadata.uid):
            self._move(old, None)
        if new is None:
            return
        same = old is not None and old.metadata.uid == new.metadata.uid
        before = self._of.get(new.metadata.uid)
        if old is None or not same or before is None or _facts(old) != _facts(new):
            self._move(new, classes.signature_of(new.status))
        if old is None or not same or _words(old) != _words(new):
            self._note(new.metadata.uid)

    def _move(self, device: _Device, signature: DeviceClassSpec | None) -> None:
        """Note which class a device belongs to now; None: to no class any more."""
        uid, namespace = device.metadata.uid, device.metadata.namespace
        key = (namespace, classes.name_of(signature)) if signature is not None else None
        before = self._of.pop(uid, None)
        if before is not None and before != key:
            members = self._members.get(before, {})
            members.pop(uid, None)
            self._work.add(before)
            if not members:
                self._members.pop(before, None)
                self._signatures.pop(before, None)
        if key is not None and signature is not None:
            self._of[uid], self._signatures[key] = key, signature
            self._members.setdefault(key, {})[uid] = device.metadata.name
            if before != key:
                self._note(uid)

    def _record_changed(self, old: _Record | None, new: _Record | None) -> None:
        item = new or old
        if item is not None:
            self._note(item.uid)

    def _class_changed(self, old: DeviceClass | None, new: DeviceClass | None) -> None:
        item = new or old
        if item is None or (old is not None and new is not None):
            return
        key = (item.metadata.namespace, item.metadata.name)
        if new is None:
            self._fresh.setdefault(key, set()).update(self._members.get(key, {}))
        self._work.add(key)

    def _note(self, uid: str) -> None:
        key = self._of.get(uid)
        if key is not None:
            self._fresh.setdefault(key, set()).add(uid)
            self._work.add(key)


def _facts(device: _Device) -> tuple[object, ...]:
    hardware = msgspec.structs.replace(device.status.hardware, storage_free_bytes=0, storage_bytes=0)
    return hardware, device.status.engines


def _words(device: _Device) -> tuple[object, ...]:
    """What a device says of its measurements."""
    status = device.status
    measured = [(one.name, one.rollout, one.variant, one.phase, one.measurement) for one in status.workloads]
    return status.observed_manifest_version, measured, status.benchmarks


def _last_learnt(item: DeviceClass) -> float:
    return max(cost.observations[0].at.timestamp() for cost in item.status.variants if cost.observations)


def _label(arch: str) -> str:
    return "".join(c for c in arch.lower() if c.isascii() and c.isalnum())[:63]


def _read_device(record: Record) -> _Device:
    return msgspec.json.decode(record.value, type=_Device)


def _read_record(record: Record) -> _Record:
    return msgspec.json.decode(record.value, type=_Record)
