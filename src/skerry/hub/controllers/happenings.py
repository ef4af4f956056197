"""What happens to devices, models and rollouts becomes events: every change in the store is looked at once.

Nothing that happens waits for it, and nothing has to think of it: it is read from the changes themselves. What happened
while no hub ran was nothing. Must not live here: what a change means (`core.events`), writing (`hub.events`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from skerry.api.errors import ExpiredError, SkerryError
from skerry.api.kinds.device import Device
from skerry.api.kinds.enrollment import Enrollment
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.references import ObjectReference
from skerry.api.kinds.rollout import Rollout
from skerry.api.kinds.trust_policy import TrustPolicy
from skerry.api.meta import API_VERSION
from skerry.core import events
from skerry.core.events import Happening, SeenDevice
from skerry.core.ports import Change, Store
from skerry.hub.events import Recorder
from skerry.hub.objects import UNREADABLE, prefix_of

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
Tell = Callable[[Any, Any], Iterator[Happening]]


class Happenings:
    """The controller; see `run`."""

    def __init__(self, store: Store, recorder: Recorder) -> None:
        self._store, self._recorder = store, recorder

    async def run(self, *, after: int | None = None) -> None:
        """Look at every change after a revision, or from now on, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow("Device", prefix_of(Device), SeenDevice, events.of_device, after))
            group.create_task(self._follow("Rollout", prefix_of(Rollout), Rollout, events.of_rollout, after))
            group.create_task(
                self._follow(
                    "ModelDeployment", prefix_of(ModelDeployment), ModelDeployment, events.of_deployment, after
                )
            )
            group.create_task(
                self._follow("ModelVersion", prefix_of(ModelVersion), ModelVersion, events.of_model_version, after)
            )
            group.create_task(
                self._follow("Enrollment", prefix_of(Enrollment), Enrollment, events.of_enrollment, after)
            )
            group.create_task(
                self._follow("TrustPolicy", prefix_of(TrustPolicy), TrustPolicy, events.of_trust_policy, after)
            )

    async def _follow(self, kind: str, prefix: str, view: type[Any], tell: Tell, after: int | None) -> None:
        seen = after
        while True:
            try:
                seen = await self._store.revision() if seen is None else seen
                async with self._store.watch(prefix, after=seen) as changes:
                    async for change in changes:
                        seen = change.revision
                        self._look(kind, change, view, tell)
            except ExpiredError:
                log.info("happenings.missed kind=%s after=%s", kind, seen)
                seen = None
            except SkerryError as error:
                log.warning("happenings.watch_failed kind=%s cause=%s", kind, error)
                await asyncio.sleep(_RETRY_SECONDS)

    def _look(self, kind: str, change: Change, view: type[Any], tell: Tell) -> None:
        if change.record is None or change.type == "DELETED":
            return
        try:
            new = msgspec.json.decode(change.record.value, type=view)
            old = None if change.previous is None else msgspec.json.decode(change.previous.value, type=view)
            found = list(tell(old, new)) if old is not None or change.type == "ADDED" else []
        except UNREADABLE as error:
            log.error("happenings.unreadable key=%s error=%s", change.record.key, error)
            return
        about = _about(kind, new, change.record.revision)
        for one in found:
            self._tell(about, one)
            if isinstance(new, Rollout):  # whoever looks at the deployment wants to see how it goes
                self._tell(_deployment_of(new), one)

    def _tell(self, about: ObjectReference, one: Happening) -> None:
        note = self._recorder.normal if one.type == "Normal" else self._recorder.warning
        note(about, one.reason, one.message, part=one.part)


def _about(kind: str, item: Any, revision: int) -> ObjectReference:
    meta = item.metadata
    return ObjectReference(
        kind=kind,
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        api_version=API_VERSION,
        resource_version=str(revision),
    )


def _deployment_of(item: Rollout) -> ObjectReference:
    return ObjectReference(
        kind="ModelDeployment",
        namespace=item.metadata.namespace,
        name=item.spec.deployment,
        uid=item.spec.deployment_uid,
        api_version=API_VERSION,
    )
