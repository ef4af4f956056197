"""Ends the connection of a device that was deleted: its certificate is refused from then on, an open line is not.

Lives here: from a Device's end to its connection's. Must not live here: who may connect (the broker asks the gateway).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from skerry.api.kinds.device import Device
from skerry.core.ports import Record
from skerry.hub import objects
from skerry.hub.context import HubContext
from skerry.hub.controllers.informer import Informer


class _Metadata(msgspec.Struct):
    uid: str = ""


class _Device(msgspec.Struct):
    """As much of a Device as is needed here: there may be many."""

    metadata: _Metadata


async def run(context: HubContext, disconnect: Callable[[str, str], None]) -> None:
    """Call `disconnect(uid, reason)` for each device that is deleted, forever."""

    def changed(old: _Device | None, new: _Device | None) -> None:
        if old is not None and (new is None or new.metadata.uid != old.metadata.uid):
            disconnect(old.metadata.uid, "deleted")

    await Informer(context.objects.store, objects.prefix_of(Device), _decode, changed).run()


def _decode(record: Record) -> _Device:
    return msgspec.json.decode(record.value, type=_Device)
