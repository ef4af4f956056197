"""What taking an object away means: a mark while it has finalizers, and what goes with a device.

Everything here is of exactly the object that was looked at, as it was then: not of another one that has its name by
now, nor of one whose last finalizer went meanwhile, which nobody would come back for. Must not live here: who may
delete what, preconditions (`hub.server.delete`), whole namespaces (`hub.namespaces`).
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from skerry.api.errors import ConflictError, NotFoundError
from skerry.api.kinds import Resource
from skerry.api.kinds.device import Device
from skerry.api.kinds.namespace import Namespace
from skerry.core.ports import Guard
from skerry.hub.objects import DESIRED_PREFIX, Objects

_ATTEMPTS = 20

T = TypeVar("T", bound=Resource)


async def remove(objects: Objects, item: Resource, *, guard: Guard | None = None) -> None:
    """Remove exactly this object, with what is kept for it. Raises NotFoundError, ConflictError."""
    meta = item.metadata
    await objects.delete(
        type(item), meta.namespace, meta.name, uid=meta.uid, resource_version=meta.resource_version, guard=guard
    )
    if isinstance(item, Device):
        with suppress(NotFoundError):  # nothing was ever assigned to it
            await objects.store.delete(f"{DESIRED_PREFIX}{meta.uid}")


async def remove_or_mark(objects: Objects, item: T, now: datetime, *, guard: Guard | None = None) -> T | None:
    """Remove exactly this object, or mark it while it has finalizers; return it as it waits, None once it is gone.

    Raises NotFoundError, and ConflictError when somebody wrote meanwhile: a finalizer perhaps, so look again.
    """
    if item.metadata.finalizers:
        return await mark(objects, item, now, guard=guard)
    await remove(objects, item, guard=guard)
    return None


async def mark(objects: Objects, item: T, now: datetime, *, guard: Guard | None = None) -> T:
    """Mark exactly this object. Raises NotFoundError, ConflictError."""
    meta = item.metadata

    def change(current: T) -> T:
        if current.metadata.resource_version != meta.resource_version:
            raise ConflictError(element=f'{type(item).__name__} "{meta.name}"')
        return marked(current, now)

    return await objects.update_status(type(item), meta.namespace, meta.name, change, guard=guard)


async def finish(objects: Objects, item: Resource) -> bool:
    """Remove an object that was marked, if its last finalizer is gone; return whether it went. Raises ConflictError."""
    current: Resource | None = item
    for _ in range(_ATTEMPTS):
        if current is None or current.metadata.uid != item.metadata.uid:
            return False  # somebody else was faster
        if current.metadata.deletion_timestamp is None or current.metadata.finalizers:
            return False
        try:
            await remove(objects, current)
        except NotFoundError:
            return False
        except ConflictError:  # a status was written, perhaps
            current = await objects.find(type(item), item.metadata.namespace, item.metadata.name)
        else:
            return True
    raise ConflictError(element=f'{type(item).__name__} "{item.metadata.name}"')


def marked(item: T, now: datetime) -> T:
    """Return the object as it waits for its finalizers; unchanged when it does already."""
    if item.metadata.deletion_timestamp is not None:
        return item
    when = now.replace(microsecond=0)
    metadata = msgspec.structs.replace(item.metadata, deletion_timestamp=when, deletion_grace_period_seconds=0)
    changes: dict[str, Any] = {"metadata": metadata}
    if isinstance(item, Namespace):
        changes["status"] = msgspec.structs.replace(item.status, phase="Terminating")
    return msgspec.structs.replace(item, **changes)
