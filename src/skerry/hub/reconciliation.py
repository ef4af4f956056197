"""Reconciliation: the hub's word counts again on a device that has accepted what this hub does not know.

A device never goes back to an older desired state, so a hub that was restored from a backup is refused by every device
that changed since. Which of the two is right only an operator knows; this is what happens when it is the hub. Must not
live here: how the situation is noticed (`device_status`).
"""

from __future__ import annotations

import logging

from skerry.api.kinds.device import Device
from skerry.api.meta import Struct, find_condition
from skerry.core import desired
from skerry.core.desired import DesiredRecord
from skerry.hub.device_status import AWAITING_RECONCILIATION
from skerry.hub.objects import Objects

log = logging.getLogger(__name__)


class Reconciled(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What was done for one device."""

    device: str
    changed: bool
    """False: the device had accepted nothing that this hub does not know."""
    manifest_version: int
    """The version that is desired now."""
    workloads: list[str]
    """All that is desired of it; what else runs there is removed."""


async def reconcile(objects: Objects, device: Device, *, dry_run: bool = False) -> Reconciled:
    """Raise the version of what is desired above what the device has accepted; the gateway publishes it then.

    Done twice, it is done once: a device that does not await reconciliation is left alone. Raises InvalidError.
    """
    meta, accepted = device.metadata, device.status.observed_manifest_version
    condition = find_condition(device.status.conditions, AWAITING_RECONCILIATION)
    contested = condition is not None and condition.status == "True"
    empty = DesiredRecord(uid=meta.uid, namespace=meta.namespace, device=meta.name)

    def change(record: DesiredRecord) -> DesiredRecord:
        # Above what it accepted, the record has been raised already, and its report is on the way.
        behind = accepted > record.manifest_version or (contested and accepted == record.manifest_version)
        return desired.reissue(record, above=accepted) if behind else record

    before = await objects.get_desired(meta.uid) or empty
    after = change(before) if dry_run else await objects.change_desired(empty, change)
    changed = after.manifest_version != before.manifest_version
    if changed and not dry_run:
        log.info("device.reconciled uid=%s accepted=%d version=%d", meta.uid, accepted, after.manifest_version)
    return Reconciled(
        device=meta.name,
        changed=changed,
        manifest_version=after.manifest_version,
        workloads=[assignment.workload.name for assignment in after.assignments],
    )
