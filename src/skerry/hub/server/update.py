"""PUT, and the writing that PATCH shares with it: optimistic concurrency, immutable specs, status apart."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from starlette.responses import Response

from skerry.api import codec
from skerry.api.errors import ConflictError, ForbiddenError, ForbiddenFieldError, InvalidError
from skerry.api.kinds import Resource
from skerry.api.ownership import Entries
from skerry.hub.server import answer, delete, escalation, owners
from skerry.hub.server.call import Call, precondition

_ATTEMPTS = 5

Make = Callable[[Resource], Resource]
"""What the object is to become, made from what it is now."""
Track = Callable[[Resource, Resource, Resource], Entries]
"""Whose each field is after the change: from what it is now, what was wanted, and what is written."""


async def update(call: Call) -> Response:
    """Replace metadata and spec, or at `/status` the status. Raises NotFoundError, InvalidError, ConflictError."""
    raw = await call.read_object()
    status = call.subresource == "status"
    item = call.typed(raw if status else {key: value for key, value in raw.items() if key != "status"})

    def make(_: Resource) -> Resource:
        return item

    changed = await rewrite(
        call, make, uid=precondition(raw, "uid"), revision=precondition(raw, "resourceVersion"), status=status
    )
    return answer.respond(call, changed, sent=raw)


async def rewrite(
    call: Call, make: Make, *, uid: str, revision: str, status: bool, track: Track | None = None
) -> Resource:
    """Write what `make` makes of the object; without a revision of the client's own, again after a conflict.

    With `status` only the status is written, else everything but the status. Raises ConflictError, InvalidError for
    a change of an immutable spec, ForbiddenError for kinds that only the hub changes.
    """
    if call.info.read_only:
        element = f'{call.info.plural} "{call.name}"'
        raise ForbiddenError("only the hub changes it", element=element, hint=call.info.made_by_hub)
    objects = call.context.objects
    tracked = track or functools.partial(owners.after_update, call)
    for attempt in range(_ATTEMPTS):
        current = await objects.get(call.info.type, call.namespace, call.name)
        call.check_preconditions(current, uid=uid, revision=revision)
        wanted = make(current)
        changed = _only_status(current, wanted) if status else _all_but_status(call, current, wanted)
        await escalation.check(call, changed, current=current)
        changed = owners.with_entries(changed, tracked(current, wanted, changed))
        if call.dry_run:
            return changed
        try:
            if status:
                return await objects.update_status(
                    call.info.type, call.namespace, call.name, _unless_moved(call, current, changed)
                )
            written = await objects.replace(changed, expected=current.metadata.resource_version)
            return await delete.finish(call, written)
        except ConflictError:
            if revision or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError  # the loop returns or raises


def _all_but_status(call: Call, current: Resource, wanted: Resource) -> Resource:
    _check_immutable(call, current, wanted)
    _check_finalizers(current, wanted)
    old = current.metadata
    metadata = msgspec.structs.replace(
        wanted.metadata,
        name=old.name,
        uid=old.uid,
        resource_version=old.resource_version,
        generation=old.generation + (codec.spec_of(wanted) != codec.spec_of(current)),
        creation_timestamp=old.creation_timestamp,
        deletion_timestamp=old.deletion_timestamp,
        deletion_grace_period_seconds=old.deletion_grace_period_seconds,
        managed_fields=old.managed_fields,
    )
    changes: dict[str, Any] = {"metadata": metadata}
    return codec.with_status_of(msgspec.structs.replace(wanted, **changes), current)


def _check_immutable(call: Call, current: Resource, wanted: Resource) -> None:
    paths: list[str] = []
    for field in msgspec.structs.fields(call.info.type):
        if field.encode_name in call.info.immutable or (field.name == "spec" and call.info.immutable_spec):
            before, after = getattr(current, field.name), getattr(wanted, field.name)
            if before != after:  # equal ones may be written in two ways
                paths += _differing(field.encode_name, msgspec.to_builtins(before), msgspec.to_builtins(after))
    if paths:
        hint = f"create a new {call.info.kind} with another name"
        raise InvalidError.of([InvalidError("is immutable", element=path, hint=hint) for path in paths[:20]])


def _check_finalizers(current: Resource, wanted: Resource) -> None:
    """Raises ForbiddenFieldError for finalizers that are new on what is being deleted: nobody could wait for them."""
    new = sorted({*wanted.metadata.finalizers} - {*current.metadata.finalizers})
    if new and current.metadata.deletion_timestamp is not None:
        named = ", ".join(f'"{name[:80]}"' for name in new[:20])
        raise ForbiddenFieldError(
            "Forbidden: no new finalizers can be added if the object is being deleted, "
            f"found new finalizers []string{{{named}}}",
            element="metadata.finalizers",
        )


def _only_status(current: Resource, wanted: Resource) -> Resource:
    return codec.with_status_of(current, wanted)


def _unless_moved(call: Call, current: Resource, changed: Resource) -> Make:
    def change(now: Resource) -> Resource:
        if now.metadata.resource_version != current.metadata.resource_version:
            raise ConflictError(element=f'{call.info.plural} "{call.name}"')
        return changed

    return change


def _differing(path: str, one: Any, other: Any) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            if one.get(key) != other.get(key):
                yield from _differing(f"{path}.{key}", one.get(key), other.get(key))
    else:
        yield path
