"""The fleet as the rollout controller sees it: copies of all kinds it reads, and which deployments a change concerns.

Must not live here: decisions, writing, what is kept of each deployment's devices (`rosters`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from skerry.api import selector
from skerry.api.errors import InvalidError
from skerry.api.kinds.device import Device, DeviceStatus
from skerry.api.kinds.device_class import DeviceClass
from skerry.api.kinds.model_deployment import ModelDeployment, ModelDeploymentSpec
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.api.kinds.trust_policy import NAME as TRUST_POLICY
from skerry.api.kinds.trust_policy import TrustPolicy
from skerry.api.meta import LabelSelector, LabelSelectorRequirement, find_condition
from skerry.core import benchmarks, classes, steps, trusted
from skerry.core import deployment as deployments
from skerry.core.desired import DesiredRecord
from skerry.core.kinds import Fits, Kind, Kinds
from skerry.core.messages import TrustDesired
from skerry.core.placement import Cost
from skerry.core.ports import Store
from skerry.core.steps import Hold
from skerry.hub.controllers import informer, sharing
from skerry.hub.controllers.trust import handed
from skerry.hub.device_status import AWAITING_RECONCILIATION

Key = tuple[str, str]
"""Namespace and name of a deployment."""


class Listener(Protocol):
    """Who is told of what changed, from the most special to the most general: `concern` comes last."""

    def touch(self, key: Key, uid: str) -> None:
        """Something of a device or of its record has changed, and that deployment selects it or held it."""
        ...

    def learn(self, namespace: str, name: str) -> None:
        """Something was learnt of a class."""
        ...

    def forget(self, key: Key) -> None:
        """The deployment came or went or selects others: what was told of its devices does not add up any more."""
        ...

    def concern(self, key: Key) -> None:
        """Something changed that may matter to the deployment."""
        ...


class Fleet:
    """Local copies of deployments, rollouts, model versions, devices and their records.

    The listener is told of every deployment that a change may matter to.
    """

    def __init__(self, store: Store, listener: Listener) -> None:
        self._listener = listener
        self.deployments = informer.of_kind(store, ModelDeployment, self._deployment_changed)
        self.rollouts = informer.of_kind(store, Rollout, self._rollout_changed)
        self.models = informer.of_kind(store, ModelVersion, self._model_changed)
        self.devices = informer.of_kind(
            store, Device, self._device_changed, self._device_doubted, read=sharing.Sharing().read
        )
        self.records = informer.of_desired(store, self._record_changed, self._record_doubted)
        self.classes = informer.of_kind(store, DeviceClass, self._class_changed)
        self.policies = informer.of_kind(store, TrustPolicy, self._policy_changed, self._policy_doubted)
        self._handed: dict[str, TrustDesired | None] = {}
        """By namespace: what its devices are handed of a signed policy."""
        self.kinds = Kinds()
        self._fits: dict[str, tuple[ModelVersion, Fits]] = {}
        """By a rollout's uid, with the model version that they are about."""
        self.measuring: set[str] = set()
        """Uids of devices that are asked to measure something."""
        self._costs: dict[str, dict[str, Mapping[str, Cost]]] = {}
        self._class_names: dict[str, tuple[Device, str]] = {}
        self._places: dict[str, str] = {}
        """Devices' keys by uid."""
        self._lost: dict[str, Device] = {}
        """By key: devices that cannot be read any more, as they were last."""
        self._selectors: dict[str, tuple[LabelSelector, Sequence[LabelSelectorRequirement] | None]] = {}

    @asynccontextmanager
    async def follow(self) -> AsyncIterator[None]:
        """Keep the copies up to date inside the block, which is entered when all are complete."""
        copies = (
            self.policies,
            *(self.deployments, self.rollouts, self.models, self.devices, self.records, self.classes),
        )
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(copy.run()) for copy in copies]
            for copy in copies:
                await copy.wait_synced()
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    def unreadable_of(self, key: Key) -> str:
        """Return what of a deployment is there but cannot be read: nothing may be concluded from its absence."""
        namespace, name = key
        if f"{namespace}/{name}" in self.deployments.unreadable(f"{namespace}/{name}"):
            return f'modeldeployments "{name}"'
        start = f"{namespace}/{name}-"
        broken = [item for item in self.rollouts.unreadable(start) if item.removeprefix(start).isdigit()]
        return f'rollouts "{broken[0].removeprefix(namespace + "/")}"' if broken else ""

    def rollouts_of(self, key: Key) -> list[Rollout]:
        """Return all rollouts of the deployment of that name, also of an earlier one."""
        namespace, name = key
        found = self.rollouts.values(f"{namespace}/{name}-")
        return [rollout for rollout in found if rollout.spec.deployment == name]

    def records_of(self, key: Key) -> list[DesiredRecord]:
        """Return the records that hold the deployment's workload, or have something measured for it."""
        namespace, name = key
        return [r for r in self.records.values() if r.namespace == namespace and holds(r, name)]

    def device(self, uid: str) -> Device | None:
        """Return the device of that uid; as it was last while it cannot be read."""
        place = self._places.get(uid, "")
        return self.devices.get(place) or self._lost.get(place)

    def devices_in(self, namespace: str) -> list[Device]:
        """Return the devices of a namespace, with those that cannot be read any more as they were last."""
        lost = [device for place, device in self._lost.items() if place.startswith(f"{namespace}/")]
        return [*self.devices.values(f"{namespace}/"), *lost]

    def doubt_of(self, uid: str) -> str:
        """Return what of a device is there but cannot be read, so that nothing new may be placed on it; or empty."""
        if self._places.get(uid, "") in self._lost:
            return "its Device cannot be read"
        return "its desired state cannot be read" if self.records.is_unreadable(uid) else ""

    def class_of(self, device: Device) -> str:
        """Return the name of the class that a device belongs to, or "" while its hardware is not known."""
        known = self._class_names.get(device.metadata.uid)
        if known is None or known[0] is not device:
            known = self._class_names[device.metadata.uid] = (device, classes.class_name_of(device.status))
        return known[1]

    def costs_of(self, device: Device, rollout: Rollout) -> Mapping[str, Cost]:
        """Return what a device's class knows of the rollout's variants, by variant name."""
        return self.costs_in(self.class_of(device), rollout)

    def costs_in(self, about: str, rollout: Rollout) -> Mapping[str, Cost]:
        """Return what a class knows of the rollout's variants, by variant name.

        The numbers that a rollout has once used stay until another variant becomes known, so that what is measured on
        the way does not give one class two variants.
        """
        model = self.model_of(rollout)
        item = self.classes.get(f"{rollout.metadata.namespace}/{about}") if model is not None else None
        used = self._costs.setdefault(rollout.metadata.uid, {})
        if item is None or model is None:
            return used.get(about, {})
        known = benchmarks.costs_for(item, rollout, model.status.variants)
        if about not in used or _tried(known) != _tried(used[about]):
            used[about] = known
        return used[about]

    def model_of(self, rollout: Rollout) -> ModelVersion | None:
        """Return the model version that a rollout began with, if it is there and can be rolled out."""
        model = self.models.get(f"{rollout.metadata.namespace}/{rollout.spec.template.model_version}")
        if model is None or model.status.phase != "Ready" or trusted.is_refused(model):
            return None
        return model if rollout.spec.model_digest in ("", model.spec.artifact.digest) else None

    def digest_of(self, namespace: str, model_version: str) -> str:
        """Return the digest of the artifact that a model version of this name stands for; empty when there is none."""
        model = self.models.get(f"{namespace}/{model_version}")
        return model.spec.artifact.digest if model else ""

    def hold_of(self, namespace: str, name: str, *, digest: str = "") -> Hold | None:
        """Say why a model version, with `digest` that very artifact, cannot be rolled out; None when it can."""
        model = self.models.get(f"{namespace}/{name}")
        if model is not None and digest not in ("", model.spec.artifact.digest):
            text = (
                f'model version "{name}" is another model than when this rollout began, and what was measured of the '
                "old one says nothing of the new one; push it under a version of its own"
            )
            return Hold(reason="ModelVersionReplaced", message=text)
        if model is None:
            text = f'model version "{name}" does not exist in {namespace}; push it, or correct spec.modelVersion'
            return Hold(reason="ModelVersionMissing", message=text)
        if model.status.phase == "Ready":
            return self._trust_hold(namespace, model)
        why = next((c.message for c in model.status.conditions if c.type == "Ready"), "its artifacts are being checked")
        broken = model.status.phase == "Broken"
        return Hold(
            reason="ModelVersionBroken" if broken else deployments.PENDING,
            message=f'model version "{name}" is {"broken" if broken else "not ready yet"}: {why}',
        )

    def _trust_hold(self, namespace: str, model: ModelVersion) -> Hold | None:
        place = f"{namespace}/{TRUST_POLICY}"
        if self.policies.is_unreadable(place):
            return Hold(
                reason=trusted.REFUSED, message=f"the trust policy of {namespace} cannot be read; repair or delete it"
            )
        return trusted.hold_of(self.policies.get(place), model)

    def trust_of(self, namespace: str) -> TrustDesired | None:
        """Return what a namespace's devices are handed of its trust anchor and policy."""
        return self._handed.get(namespace)

    def hold_of_wish(self, namespace: str, wish: ModelDeploymentSpec) -> Hold | None:
        """Say why no rollout of a deployment's wish can begin; None when one can."""
        hold, model = self.hold_of(namespace, wish.model_version), self.models.get(f"{namespace}/{wish.model_version}")
        return hold if hold is not None or model is None else deployments.meaningless(wish, model)

    def unfit(self, kind: Kind, rollout: Rollout | None, device: Device | None) -> str:
        """Return why nothing of a rollout fits a kind of machine; found once for all devices that are alike.

        With a device by what was measured on its class, where it was; without one by the factory's numbers.
        """
        if rollout is None:
            return "there is no rollout"
        model = self.model_of(rollout)
        if model is None:
            name = rollout.spec.template.model_version
            hold = self.hold_of(rollout.metadata.namespace, name, digest=rollout.spec.model_digest)
            return f'model version "{name}" is not ready' if hold is None else hold.message
        uid = rollout.metadata.uid
        known = self._fits.get(uid)
        if known is None or known[0].metadata.resource_version != model.metadata.resource_version:
            known = self._fits[uid] = (model, Fits(model.status.variants, rollout.spec.template))
        found = known[1].place(kind, {} if device is None else self.costs_of(device, rollout))
        return "" if found.variant else found.reason

    # --- what a change concerns ------------------------------------------------------------------------------------

    def _deployment_changed(self, old: ModelDeployment | None, new: ModelDeployment | None) -> None:
        item = new or old
        if item is not None and (old is None or new is None or not _same_wish(old, new)):
            self._selectors.pop(item.metadata.uid, None)
            self._listener.forget((item.metadata.namespace, item.metadata.name))
        if item is None or (old and new and _identity(old) == _identity(new) and old.spec == new.spec):
            return
        self._listener.concern((item.metadata.namespace, item.metadata.name))

    def _rollout_changed(self, old: Rollout | None, new: Rollout | None) -> None:
        item = new or old
        if old is not None and new is None:
            self._costs.pop(old.metadata.uid, None)
            self._fits.pop(old.metadata.uid, None)
        if item is not None:
            self._listener.concern((item.metadata.namespace, item.spec.deployment))

    def _model_changed(self, old: ModelVersion | None, new: ModelVersion | None) -> None:
        item = new or old
        if item is None:
            return
        namespace, name = item.metadata.namespace, item.metadata.name
        for deployment in self.deployments.values(f"{namespace}/"):
            key = (namespace, deployment.metadata.name)
            named = [deployment.spec, *(rollout.spec.template for rollout in self.rollouts_of(key))]
            if any(spec.model_version == name for spec in named):
                self._listener.concern(key)

    def _policy_changed(self, old: TrustPolicy | None, new: TrustPolicy | None) -> None:
        item = new or old
        if item is None:
            return
        if old and new and (old.metadata.uid, old.spec) == (new.metadata.uid, new.spec):
            if trusted.has_expired(old) != trusted.has_expired(new):
                self._policy_doubted(f"{item.metadata.namespace}/{item.metadata.name}")
            return
        self._handed[item.metadata.namespace] = handed(new)
        self._policy_doubted(f"{item.metadata.namespace}/{item.metadata.name}")

    def _policy_doubted(self, place: str) -> None:
        namespace = place.partition("/")[0]
        for deployment in self.deployments.values(f"{namespace}/"):
            self._listener.concern((namespace, deployment.metadata.name))

    def _class_changed(self, old: DeviceClass | None, new: DeviceClass | None) -> None:
        """What was measured concerns the rollouts that are under way."""
        item = new or old
        if item is None or (old and new and old.status.variants == new.status.variants):
            return
        namespace = item.metadata.namespace
        self._listener.learn(namespace, item.metadata.name)
        for rollout in self.rollouts.values(f"{namespace}/"):
            if rollout.status.phase not in steps.ENDED:
                self._listener.concern((namespace, rollout.spec.deployment))

    def _device_changed(self, old: Device | None, new: Device | None) -> None:
        item = new or old
        if item is None:
            return
        place = f"{item.metadata.namespace}/{item.metadata.name}"
        if new is None and self.devices.is_unreadable(place):  # it did not go
            self._lost[place] = item
            self._concern_devices(item)
            return
        lost = self._lost.pop(place, None)
        old = old or lost
        if old is not None and (new is None or new.metadata.uid != old.metadata.uid):
            self._class_names.pop(old.metadata.uid, None)
            self._places.pop(old.metadata.uid, None)
        if new is not None:
            self._places[new.metadata.uid] = place
        if lost is None and old is not None and new is not None and same_substance(old, new):
            return
        self._concern_devices(old, new)

    def _device_doubted(self, place: str) -> None:
        """A Device was deleted that could not be read; one that never could be is nobody's."""
        lost = self._lost.get(place)
        if lost is not None:
            self._device_changed(lost, None)

    def _concern_devices(self, *devices: Device | None) -> None:
        for device in devices:
            if device is not None:
                uid = device.metadata.uid
                self._concern_device(device.metadata.namespace, uid, [device.metadata.labels], [self.records.get(uid)])

    def _record_doubted(self, uid: str) -> None:
        """Nothing is known of what the record holds: it concerns those who select the device."""
        device = self.device(uid)
        if device is not None:
            self._concern_device(device.metadata.namespace, uid, [device.metadata.labels], [])

    def _record_changed(self, old: DesiredRecord | None, new: DesiredRecord | None) -> None:
        item = new or old
        if item is None:
            return
        if new is not None and new.benchmarks:
            self.measuring.add(new.uid)
        else:
            self.measuring.discard(item.uid)
        device = self.device(item.uid)
        self._concern_device(item.namespace, item.uid, [device.metadata.labels] if device else [], [old, new])

    def _concern_device(
        self, namespace: str, uid: str, labels: Iterable[Mapping[str, str]], records: Iterable[DesiredRecord | None]
    ) -> None:
        """Tell of every deployment that selects the device, or whose workload it holds."""
        held = [record for record in records if record is not None]
        names = {a.workload.name for record in held for a in record.assignments}
        names |= {b.deployment for record in held for b in record.benchmarks}
        known = list(labels)
        names.update(
            deployment.metadata.name
            for deployment in self.deployments.values(f"{namespace}/")
            if any(self._selects(deployment, found) for found in known)
        )
        for name in names:
            self._listener.touch((namespace, name), uid)
            self._listener.concern((namespace, name))

    def _selects(self, deployment: ModelDeployment, labels: Mapping[str, str]) -> bool:
        key, wanted = deployment.metadata.uid, deployment.spec.device_selector
        known = self._selectors.get(key)
        if known is None or known[0] is not wanted:
            known = self._selectors[key] = (wanted, _requirements(wanted))
        # One that cannot be read concerns its own reconciliation, which says what is wrong with it.
        return known[1] is None or selector.matches(known[1], labels)


def _tried(costs: Mapping[str, Cost]) -> set[tuple[str, bool]]:
    return {(name, bool(cost.failure)) for name, cost in costs.items()}


def _requirements(wanted: LabelSelector) -> Sequence[LabelSelectorRequirement] | None:
    try:
        return selector.requirements(wanted)
    except InvalidError:
        return None


def holds(record: DesiredRecord, deployment: str) -> bool:
    """Return whether a record holds the deployment's workload, or has something measured for it."""
    return record.find(deployment) is not None or any(b.deployment == deployment for b in record.benchmarks)


def _same_wish(old: ModelDeployment, new: ModelDeployment) -> bool:
    return old.metadata.uid == new.metadata.uid and old.spec.device_selector == new.spec.device_selector


def _identity(item: ModelDeployment) -> tuple[str, int]:
    return item.metadata.uid, item.metadata.generation


_SUBSTANCE = tuple(name for name in DeviceStatus.__struct_fields__ if name not in ("last_seen", "conditions"))


def same_substance(old: Device, new: Device) -> bool:
    """Return whether nothing of a device changed that matters to a rollout: but when it was last heard of, say."""
    if (old.metadata.uid, old.metadata.labels, old.spec) != (new.metadata.uid, new.metadata.labels, new.spec):
        return False
    if any(getattr(old.status, name) != getattr(new.status, name) for name in _SUBSTANCE):
        return False
    return _awaits(old) == _awaits(new)


def _awaits(device: Device) -> bool:
    found = find_condition(device.status.conditions, AWAITING_RECONCILIATION)
    return found is not None and found.status == "True"
