"""Devices: what the operator wants of a device itself (link policy, update hold) goes into its desired state.

Only the few fields that matter are read and kept of each device and record, for a fleet may be large.
Must not live here: what a device makes of it (the agent), placement (`rollout`).
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from skerry.api.kinds.device import LinkPolicy, UpdateHold
from skerry.api.meta import Struct
from skerry.core.desired import DesiredRecord, tell_device
from skerry.core.ports import Record
from skerry.hub.context import HubContext
from skerry.hub.controllers.informer import Informer
from skerry.hub.controllers.reconciler import Reconciler
from skerry.hub.objects import DESIRED_PREFIX

log = logging.getLogger(__name__)

_DEVICES = "devices/"


class _Meta(Struct, frozen=True, kw_only=True):
    name: str
    namespace: str
    uid: str


class _Spec(Struct, frozen=True, kw_only=True):
    link: LinkPolicy = LinkPolicy()
    hold: UpdateHold | None = None


class _Wanted(Struct, frozen=True, kw_only=True):
    """A Device, as far as it concerns its desired state."""

    metadata: _Meta
    spec: _Spec = _Spec()


async def run(context: HubContext) -> None:
    """Carry devices' specs into their records, for ever."""
    await Devices(context).run()


class Devices:
    """The controller; see `run`. Keys are those of devices, `<namespace>/<name>`."""

    def __init__(self, context: HubContext) -> None:
        self._objects = context.objects
        self._work: Reconciler[str] = Reconciler("device", self.reconcile, self._failed)
        self._wanted = Informer(context.objects.store, _DEVICES, _read_device, self._changed)
        self._told = Informer(context.objects.store, DESIRED_PREFIX, _read_record, lambda _, __: None)

    async def run(self) -> None:
        """Watch and reconcile."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._told.run(), name="device-told")
            await self._told.wait_synced()  # else every device would be looked up once at the start
            group.create_task(self._wanted.run(), name="device-informer")
            group.create_task(self._work.run(), name="device-reconciler")

    async def reconcile(self, key: str) -> float | None:
        """Bring one record up to date, if it is not; None: nothing more to do for now."""
        wanted = self._wanted.get(key)
        if wanted is None:
            return None
        meta, spec = wanted.metadata, wanted.spec
        told = self._told.get(meta.uid)
        if (told or _Spec()) == spec:
            return None
        stored = await self._objects.update_desired(
            DesiredRecord(uid=meta.uid, namespace=meta.namespace, device=meta.name),
            lambda record: tell_device(record, link=spec.link, hold=spec.hold),
        )
        self._told.observe(meta.uid, spec, stored.revision)
        log.info("device.told namespace=%s name=%s version=%d", *_place(meta), stored.record.manifest_version)
        return None

    async def _failed(self, key: str, error: Exception) -> None:
        """Nothing to show it on: the device's status is the device's own; the log has said it."""

    def _changed(self, old: _Wanted | None, new: _Wanted | None) -> None:
        if new is not None and old != new:
            self._work.add(f"{new.metadata.namespace}/{new.metadata.name}")


def _place(meta: _Meta) -> tuple[str, str]:
    return meta.namespace, meta.name


def _read_device(record: Record) -> _Wanted:
    return msgspec.json.decode(record.value, type=_Wanted)


def _read_record(record: Record) -> _Spec:
    return msgspec.json.decode(record.value, type=_Spec)
