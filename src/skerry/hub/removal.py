"""What taking an object away means: a mark while it has finalizers, and what goes with a device.

Must not live here: who may delete what, preconditions (`hub.server.delete`), whole namespaces (`hub.namespaces`).
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from skerry.api.errors import NotFoundError
from skerry.api.kinds import Resource
from skerry.api.kinds.device import Device
from skerry.hub.objects import DESIRED_PREFIX, Objects

T = TypeVar("T", bound=Resource)


async def remove(objects: Objects, item: Resource) -> None:
    """Remove exactly this object, with what is kept for it. Raises NotFoundError, ConflictError."""
    meta = item.metadata
    await objects.delete(type(item), meta.namespace, meta.name, uid=meta.uid, resource_version=meta.resource_version)
    if isinstance(item, Device):
        with suppress(NotFoundError):  # nothing was ever assigned to it
            await objects.store.delete(f"{DESIRED_PREFIX}{meta.uid}")


def marked(item: T, now: datetime) -> T:
    """Return the object as it waits for its finalizers; unchanged when it does already."""
    if item.metadata.deletion_timestamp is not None:
        return item
    when = now.replace(microsecond=0)
    metadata = msgspec.structs.replace(item.metadata, deletion_timestamp=when, deletion_grace_period_seconds=0)
    changes: dict[str, Any] = {"metadata": metadata}
    return msgspec.structs.replace(item, **changes)
