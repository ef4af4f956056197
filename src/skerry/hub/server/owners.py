"""Which manager a call writes as, and the managed fields that its writing leaves behind (`api.ownership`)."""

from __future__ import annotations

from typing import Any

import msgspec

from skerry.api import codec, ownership
from skerry.api.errors import InvalidError
from skerry.api.kinds import Resource
from skerry.api.ownership import Entries, Operation, Writer
from skerry.hub.server.call import Call

UNKNOWN = "unknown"


def writer(call: Call, operation: Operation) -> Writer:
    """Return who writes: `fieldManager`, or the program's name in its User-Agent. Raises InvalidError."""
    name = call.text("fieldManager")
    if not name and operation == "Apply":
        raise InvalidError("is required for an apply patch", element="fieldManager", hint="add ?fieldManager=NAME")
    if len(name) > ownership.MAX_MANAGER or not name.isprintable():
        raise InvalidError(
            f"must be at most {ownership.MAX_MANAGER} printable characters", element="fieldManager", hint="shorten it"
        )
    agent = call.request.headers.get("user-agent", "").partition("/")[0][: ownership.MAX_MANAGER]
    return Writer(
        manager=name or (agent if agent.isprintable() and agent else UNKNOWN),
        operation=operation,
        now=call.context.clock.now(),
        subresource=call.subresource,
        api_version=call.info.api_version,
    )


def of_new(call: Call, item: Resource, sent: dict[str, Any]) -> Resource:
    """Return a new object with its creator as the owner of what was sent."""
    return with_entries(item, ownership.created(sent, writer(call, "Update")))


def after_update(call: Call, current: Resource, wanted: Resource, changed: Resource) -> Entries:
    """Return the entries of an object that a PUT or a patch changes.

    `wanted` is as the client sent it: clients may give fields to others, or reset all, by `metadata.managedFields`.
    """
    return ownership.updated(
        _base(current, wanted), codec.present(current), codec.present(changed), writer(call, "Update")
    )


def entries_of(item: Resource) -> Entries:
    """Return the entries of a stored object; damaged ones count for nothing."""
    return ownership.read_entries(item.metadata.managed_fields) or ()


def with_entries(item: Resource, entries: Entries) -> Resource:
    """Return the object with these managed fields."""
    metadata = msgspec.structs.replace(item.metadata, managed_fields=ownership.write_entries(entries))
    changes: dict[str, Any] = {"metadata": metadata}
    return msgspec.structs.replace(item, **changes)


def _base(current: Resource, wanted: Resource) -> Entries:
    given = wanted.metadata.managed_fields
    if not given or given == current.metadata.managed_fields:
        return entries_of(current)
    read = ownership.read_entries(given)
    return entries_of(current) if read is None else read
