"""DELETE of one object: preconditions, finalizers, and what goes with a device."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from skerry.api import codec
from skerry.api.errors import BadRequestError, ConflictError, NotFoundError
from skerry.api.kinds import Resource
from skerry.api.kinds.device import Device
from skerry.hub.objects import DESIRED_PREFIX
from skerry.hub.server import answer, status
from skerry.hub.server.call import Call, precondition

_ATTEMPTS = 20


async def delete(call: Call) -> Response:
    """Remove the object, or mark it while it has finalizers. Raises NotFoundError, ConflictError."""
    options = await _options(call)
    conditions = {"metadata": options.get("preconditions") or {}}
    uid, revision = precondition(conditions, "uid"), precondition(conditions, "resourceVersion")
    objects = call.context.objects
    for _ in range(_ATTEMPTS):
        current = await objects.get(call.info.type, call.namespace, call.name)
        call.check_preconditions(current, uid=uid, revision=revision)
        if call.dry_run or "All" in (options.get("dryRun") or []):
            return _gone(call, current)
        if current.metadata.finalizers:
            marked = await objects.update_status(call.info.type, call.namespace, call.name, _marker(call))
            return answer.respond(call, marked)
        try:
            await _remove(call, uid=current.metadata.uid, revision=current.metadata.resource_version)
        except ConflictError:
            continue  # somebody wrote meanwhile, a finalizer perhaps: look again
        return _gone(call, current)
    raise ConflictError(element=f'{call.info.plural} "{call.name}"')


async def finish(call: Call, item: Resource) -> Resource:
    """Remove an object that was marked for deletion, once its last finalizer is gone."""
    if item.metadata.deletion_timestamp is not None and not item.metadata.finalizers:
        await _remove(call, uid=item.metadata.uid, revision=item.metadata.resource_version)
    return item


async def _remove(call: Call, *, uid: str, revision: str) -> None:
    objects = call.context.objects
    removed = await objects.delete(call.info.type, call.namespace, call.name, uid=uid, resource_version=revision)
    if isinstance(removed, Device):
        try:
            await objects.store.delete(f"{DESIRED_PREFIX}{removed.metadata.uid}")
        except NotFoundError:
            return  # nothing was ever assigned to it


def _marker(call: Call) -> Any:
    def mark(current: Resource) -> Resource:
        if current.metadata.deletion_timestamp is not None:
            return current
        changes: dict[str, Any] = {
            "metadata": msgspec.structs.replace(
                current.metadata,
                deletion_timestamp=call.context.clock.now().replace(microsecond=0),
                deletion_grace_period_seconds=0,
            )
        }
        return msgspec.structs.replace(current, **changes)

    return mark


async def _options(call: Call) -> dict[str, Any]:
    data = await call.body()
    options = codec.decode_json(data) if data.strip() else {}
    conditions = options.get("preconditions")
    if conditions is not None and not isinstance(conditions, dict):
        raise BadRequestError("is not an object", element="preconditions")
    if not isinstance(options.get("dryRun") or [], list):
        raise BadRequestError("is not a list", element="dryRun")
    return options


def _gone(call: Call, item: Resource) -> Response:
    return status.respond(status.success(plural=call.info.plural, name=call.name, uid=item.metadata.uid))
