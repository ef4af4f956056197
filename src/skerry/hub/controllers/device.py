"""Devices: what is wanted of a device itself goes into its desired state: link policy, update hold, and trust.

Only the few fields that matter are read and kept of each device and record, for a fleet may be large.
Must not live here: what a device makes of it (the agent), placement (`rollout`).
"""

from __future__ import annotations

import asyncio
import logging
from hashlib import sha256

import msgspec

from skerry.api.kinds import trust_policy
from skerry.api.kinds.device import LinkPolicy, UpdateHold
from skerry.api.kinds.trust_policy import TrustPolicy
from skerry.api.meta import Struct
from skerry.core.desired import DesiredRecord, tell_device, tell_trust
from skerry.core.messages import TrustDesired
from skerry.core.ports import Record
from skerry.hub.context import HubContext
from skerry.hub.controllers.informer import Informer, of_kind
from skerry.hub.controllers.reconciler import Reconciler
from skerry.hub.controllers.trust import handed
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


class _Told(Struct, frozen=True, kw_only=True):
    """A record, as far as it concerns the same; of what proves itself only that it is there."""

    link: LinkPolicy = LinkPolicy()
    hold: UpdateHold | None = None
    trust: str = ""
    """Digest of it, for it is large."""
    place: str = ""
    """The device's key."""


class _Wanted(Struct, frozen=True, kw_only=True):
    """A Device, as far as it concerns its desired state."""

    metadata: _Meta
    spec: _Spec = _Spec()


class _Record(Struct, frozen=True, kw_only=True):
    namespace: str = ""
    device: str = ""
    link: LinkPolicy = LinkPolicy()
    hold: UpdateHold | None = None
    trust: TrustDesired | None = None


async def run(context: HubContext) -> None:
    """Carry devices' specs into their records, for ever."""
    await Devices(context).run()


class Devices:
    """The controller; see `run`. Keys are those of devices, `<namespace>/<name>`."""

    def __init__(self, context: HubContext) -> None:
        self._objects = context.objects
        self._work: Reconciler[str] = Reconciler("device", self.reconcile, self._failed)
        context.health.workers.add(self._work)
        self._wanted = Informer(context.objects.store, _DEVICES, _read_device, self._changed)
        self._told = Informer(context.objects.store, DESIRED_PREFIX, _read_record, self._told_changed)
        self._policies = of_kind(context.objects.store, TrustPolicy, self._policy_changed)
        self._handed: dict[str, TrustDesired | None] = {}

    async def run(self) -> None:
        """Watch and reconcile."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._told.run(), name="device-told")
            group.create_task(self._policies.run(), name="device-policies")
            await self._told.wait_synced()  # else every device would be looked up once at the start
            await self._policies.wait_synced()
            group.create_task(self._wanted.run(), name="device-informer")
            group.create_task(self._work.run(), name="device-reconciler")

    async def reconcile(self, key: str) -> float | None:
        """Bring one record up to date, if it is not; None: nothing more to do for now."""
        wanted = self._wanted.get(key)
        if wanted is None:
            return None
        meta, spec = wanted.metadata, wanted.spec
        told = self._told.get(meta.uid)
        place = f"{meta.namespace}/{trust_policy.NAME}"
        if self._policies.is_unreadable(place):
            return None
        trust = self._handed.get(meta.namespace)
        now = _Told(link=spec.link, hold=spec.hold, trust=_digest(trust), place=key)
        if (told or _Told(place=key)) == now:
            return None
        stored = await self._objects.update_desired(
            DesiredRecord(uid=meta.uid, namespace=meta.namespace, device=meta.name),
            lambda record: tell_trust(tell_device(record, link=spec.link, hold=spec.hold), trust),
        )
        self._told.observe(meta.uid, now, stored.revision)
        log.info("device.told namespace=%s name=%s version=%d", *_place(meta), stored.record.manifest_version)
        return None

    async def _failed(self, key: str, error: Exception) -> None:
        """Nothing to show it on: the device's status is the device's own; the log has said it."""

    def _changed(self, old: _Wanted | None, new: _Wanted | None) -> None:
        if new is not None and old != new:
            self._work.add(f"{new.metadata.namespace}/{new.metadata.name}")

    def _told_changed(self, old: _Told | None, new: _Told | None) -> None:
        """A rollout writes it too, by a copy of the policy that may be behind this one."""
        if new is not None and new.trust != ("" if old is None else old.trust):
            self._work.add(new.place)

    def _policy_changed(self, old: TrustPolicy | None, new: TrustPolicy | None) -> None:
        item, after = new or old, handed(new)
        if item is not None and self._handed.get(item.metadata.namespace) != after:
            self._handed[item.metadata.namespace] = after
            for device in self._wanted.values(f"{item.metadata.namespace}/"):
                self._work.add(f"{device.metadata.namespace}/{device.metadata.name}")


def _place(meta: _Meta) -> tuple[str, str]:
    return meta.namespace, meta.name


def _read_device(record: Record) -> _Wanted:
    return msgspec.json.decode(record.value, type=_Wanted)


def _read_record(record: Record) -> _Told:
    found = msgspec.json.decode(record.value, type=_Record)
    place = f"{found.namespace}/{found.device}"
    return _Told(link=found.link, hold=found.hold, trust=_digest(found.trust), place=place)


def _digest(trust: TrustDesired | None) -> str:
    return "" if trust is None else sha256(msgspec.json.encode(trust)).hexdigest()
