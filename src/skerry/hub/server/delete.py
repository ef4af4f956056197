"""DELETE of one object or of a selection: preconditions, finalizers, and what goes with a device."""

from __future__ import annotations

from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import msgspec
from starlette.responses import Response

from skerry.api import codec
from skerry.api.errors import BadRequestError, ConflictError, NotFoundError, UnreadableError
from skerry.api.kinds import Resource
from skerry.api.kinds.namespace import Namespace
from skerry.hub import namespaces, removal
from skerry.hub.server import answer, long_list, status
from skerry.hub.server import list as lists
from skerry.hub.server.call import Call, precondition

_ATTEMPTS = 20


async def delete(call: Call) -> Response:
    """Remove the object, or mark it while it has finalizers. Raises NotFoundError, ConflictError.

    One that cannot be read goes at once: whether somebody's finalizer is on it, nobody can tell. A namespace goes with
    all that is in it also then.
    """
    options = await _options(call)
    try:
        found = await _delete(call, options)
    except UnreadableError:
        if options.get("preconditions"):
            raise
        if call.info.type is not Namespace or _is_dry(call, options):
            await _discard(call, options)
            success = status.success(group=call.info.group, plural=call.info.plural, name=call.name, uid="")
            return status.respond(success)
        with suppress(ConflictError):  # somebody mended it meanwhile
            await namespaces.renew(call.context.objects, call.context.clock, call.name)
        found = await _delete(call, options)
    assert found is not None  # without a selection all are meant
    removed, marked = found
    return answer.respond(call, removed) if marked else _gone(call, removed)


async def delete_collection(call: Call) -> Response:
    """Remove what the selectors mean, one after the other; what is gone meanwhile is no error. Raises BadRequestError.

    Each object is removed for itself: when one cannot be, those before it are gone. What cannot be read goes with all,
    and with nothing less.
    """
    options, selection = await _options(call), lists.selection_of(call)
    metadata: dict[str, Any] = {}
    gone: list[msgspec.Raw] = []  # as they are sent: there may be many
    left_out: list[tuple[str, str]] = []
    async with aclosing(lists.pages(call)) as steps:
        async for page in steps:
            metadata = {"resourceVersion": str(page.revision)}
            for item in filter(selection.takes, page.items):
                one = replace(call, name=item.metadata.name, namespace=item.metadata.namespace)
                with suppress(NotFoundError):
                    found = await _delete(one, options, uid=item.metadata.uid, selection=selection)
                    gone += [] if found is None else [msgspec.Raw(codec.encode(found[0]))]
            if not selection.everything or options.get("preconditions"):
                left_out += selection.left_out(page)
                continue
            for namespace, name in page.unreadable:
                with suppress(NotFoundError, ConflictError):
                    await _discard(replace(call, name=name, namespace=namespace), options)
    response = status.respond(
        {"kind": f"{call.info.kind}List", "apiVersion": call.info.api_version, "metadata": metadata, "items": gone}
    )
    answer.warn(response, long_list.warnings(call, left_out))
    return response


async def _discard(call: Call, options: dict[str, Any]) -> None:
    if not _is_dry(call, options):
        await call.context.objects.discard(call.info.type, call.namespace, call.name)


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
        if _is_dry(call, options):
            return current, False
        try:
            if isinstance(current, Namespace):
                return await namespaces.delete(objects, call.context.clock, current), True
            waiting = await removal.remove_or_mark(objects, current, call.context.clock.now())
        except ConflictError:
            continue  # somebody wrote meanwhile, a finalizer perhaps: look again
        return waiting or current, waiting is not None
    raise ConflictError(element=f'{call.info.plural} "{call.name}"')


async def finish(call: Call, item: Resource) -> Resource:
    """Remove an object that was marked for deletion, once its last finalizer is gone."""
    if item.metadata.deletion_timestamp is not None and not item.metadata.finalizers:
        if isinstance(item, Namespace):
            await namespaces.finish(call.context.objects, call.context.clock, item)
        else:
            await removal.finish(call.context.objects, item)
    return item


def _is_dry(call: Call, options: dict[str, Any]) -> bool:
    return bool(call.dry_run or options.get("dryRun"))


async def _options(call: Call) -> dict[str, Any]:
    options = await call.read_options()
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
