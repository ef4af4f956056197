"""DELETE of one object or of a selection: preconditions, finalizers, and what goes with a device."""

from __future__ import annotations

from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import msgspec
from starlette.responses import Response

from skerry.api import codec, protobuf
from skerry.api.errors import BadRequestError, ConflictError, NotFoundError
from skerry.api.kinds import Resource
from skerry.api.kinds.device import Device
from skerry.hub.objects import DESIRED_PREFIX
from skerry.hub.server import answer, status
from skerry.hub.server import list as lists
from skerry.hub.server.call import Call, precondition

_ATTEMPTS = 20


async def delete(call: Call) -> Response:
    """Remove the object, or mark it while it has finalizers. Raises NotFoundError, ConflictError."""
    found = await _delete(call, await _options(call))
    assert found is not None  # without a selection all are meant
    removed, marked = found
    return answer.respond(call, removed) if marked else _gone(call, removed)


async def delete_collection(call: Call) -> Response:
    """Remove what the selectors mean, one after the other; what is gone meanwhile is no error. Raises BadRequestError.

    Each object is removed for itself: when one cannot be, those before it are gone.
    """
    options, selection = await _options(call), lists.selection_of(call)
    metadata: dict[str, Any] = {}
    gone: list[dict[str, Any]] = []
    async with aclosing(lists.pages(call)) as steps:
        async for page in steps:
            metadata = {"resourceVersion": str(page.revision)}
            for item in filter(selection.takes, page.items):
                one = replace(call, name=item.metadata.name, namespace=item.metadata.namespace)
                with suppress(NotFoundError):
                    found = await _delete(one, options, uid=item.metadata.uid, selection=selection)
                    gone += [] if found is None else [codec.present(found[0])]
    return status.respond(
        {"kind": f"{call.info.kind}List", "apiVersion": call.info.api_version, "metadata": metadata, "items": gone}
    )


async def _delete(
    call: Call, options: dict[str, Any], *, uid: str = "", selection: lists.Selection | None = None
) -> tuple[Resource, bool] | None:
    """Return the object, and whether it is only marked; None for one that is another by now, or no longer selected."""
    conditions = {"metadata": options.get("preconditions") or {}}
    meant, revision = precondition(conditions, "uid"), precondition(conditions, "resourceVersion")
    objects = call.context.objects
    for _ in range(_ATTEMPTS):
        current = await objects.get(call.info.type, call.namespace, call.name)
        if selection is not None and (current.metadata.uid != uid or not selection.takes(current)):
            return None
        call.check_preconditions(current, uid=meant, revision=revision)
        if call.dry_run or options.get("dryRun"):
            return current, False
        if current.metadata.finalizers:
            marked = await objects.update_status(call.info.type, call.namespace, call.name, _marker(call))
            return marked, True
        try:
            await _remove(call, uid=current.metadata.uid, revision=current.metadata.resource_version)
        except ConflictError:
            continue  # somebody wrote meanwhile, a finalizer perhaps: look again
        return current, False
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
    read = protobuf.decode if call.content_type == protobuf.MEDIA_TYPE else codec.decode_json
    options = read(data) if data.strip() else {}
    conditions = options.get("preconditions")
    if conditions is not None and not isinstance(conditions, dict):
        raise BadRequestError("is not an object", element="preconditions")
    dry = options.get("dryRun") or []
    if not isinstance(dry, list) or any(value != "All" for value in dry):
        raise BadRequestError("is not a list of nothing but All", element="dryRun", hint='write "dryRun": ["All"]')
    _ = call.dry_run  # raises for a word that is not known, also where there is nothing to delete
    return options


def _gone(call: Call, item: Resource) -> Response:
    info, uid = call.info, item.metadata.uid
    return status.respond(status.success(group=info.group, plural=info.plural, name=call.name, uid=uid))
