"""PATCH with an apply patch: a configuration merged on the server, field by field, with its manager's name.

Source: Kubernetes "Server-Side Apply". The rules of fields and conflicts are in `api.ownership`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from skerry.api import codec, documents, ownership, patch, validation
from skerry.api.errors import AlreadyExistsError, BadRequestError, ConflictError, ForbiddenError, NotFoundError
from skerry.api.kinds import Resource
from skerry.api.kinds.enrollment import Enrollment
from skerry.api.ownership import Entries, Fields, Writer
from skerry.hub.server import answer, create, escalation, owners, update
from skerry.hub.server.call import Call, precondition

MEDIA_TYPE = "application/apply-patch+yaml"
_ATTEMPTS = 5
_LAST_APPLIED = ("metadata", "annotations", patch.LAST_APPLIED)
_KUBECTL = "kubectl"
"""The manager that may have merged on its own side before, with what it applied in an annotation."""


async def apply(call: Call) -> Response:
    """Merge a configuration. Raises FieldConflictError, InvalidError, BadRequestError, ConflictError."""
    raw = await _configuration(call)
    writer = owners.writer(call, "Apply")
    status = call.subresource == "status"
    kept = {
        key: value for key, value in raw.items() if (key != "status") is not status or key in ("apiVersion", "kind")
    }
    if status:
        kept["metadata"] = {}
    for _ in range(_ATTEMPTS):
        try:
            written = await _onto(call, raw, kept, writer)
            return answer.respond(call, written, sent=raw)
        except NotFoundError:
            if status:
                raise
        try:
            written = await _new(call, raw, kept, writer)
            return answer.respond(call, written, code=201, sent=raw)
        except AlreadyExistsError:
            continue  # somebody was quicker
    raise ConflictError(
        "is created and deleted by others at the same time", element=f'{call.info.plural} "{call.name}"'
    )


async def _configuration(call: Call) -> dict[str, Any]:
    body = await call.body()
    found = await asyncio.to_thread(documents.read_yaml, body, source="the patch")
    if len(found) != 1 or not isinstance(found[0], dict):
        raise BadRequestError("is not exactly one object", element="the patch")
    raw = found[0]
    metadata = raw.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise BadRequestError("is not an object", element="metadata")
    if (metadata or {}).get("managedFields"):
        raise BadRequestError("must not be given in an apply patch", element="metadata.managedFields")
    codec.kind_of(raw)
    raw["metadata"] = {**(metadata or {}), "name": (metadata or {}).get("name") or call.name}
    return raw


async def _new(call: Call, raw: dict[str, Any], kept: dict[str, Any], writer: Writer) -> Resource:
    if precondition(raw, "uid") or precondition(raw, "resourceVersion"):
        raise ConflictError(
            "does not exist, but the patch names its uid or revision", element=f'{call.info.plural} "{call.name}"'
        )
    await escalation.check_creation(call)
    item = call.typed(kept)
    if isinstance(item, Enrollment) or call.info.made_by_hub:
        hint = call.info.made_by_hub or "create it"
        raise ForbiddenError("cannot be made by an apply patch", element=call.info.plural, hint=hint)
    entries = ownership.applied((), {}, codec.present(item), _wanted(call, kept), writer)
    return await create.store(call, owners.with_entries(item, entries))


async def _onto(call: Call, raw: dict[str, Any], kept: dict[str, Any], writer: Writer) -> Resource:
    wanted, force = _wanted(call, kept), call.flag("force")

    def entries_before(current: Resource) -> Entries:
        return owners.entries_of(current) or ownership.first_apply(codec.present(current), writer)

    def make(current: Resource) -> Resource:
        stored = _stored(current)
        result = ownership.merged(stored, kept, entries_before(current), writer)
        _note(result, raw, stored, writer)
        return call.typed(result)

    def track(current: Resource, _: Resource, changed: Resource) -> Entries:
        before, after = codec.present(current), codec.present(changed)
        yielding = None if force else _unchanged_since(before, writer)
        if _LAST_APPLIED not in wanted:
            before, after = _without_note(before), _without_note(after)
        return ownership.applied(entries_before(current), before, after, wanted, writer, yielding=yielding)

    return await update.rewrite(
        call,
        make,
        uid=precondition(raw, "uid"),
        revision=precondition(raw, "resourceVersion"),
        status=call.subresource == "status",
        track=track,
    )


def _wanted(call: Call, kept: dict[str, Any]) -> Fields:
    """Return the fields of a configuration that the kind has."""
    cleaned, _ = validation.walk(call.info.type, kept)
    return ownership.fields_of(cleaned if isinstance(cleaned, dict) else kept)


def _stored(item: Resource) -> dict[str, Any]:
    """Return the object without its defaults, so that giving a field up brings its default back."""
    return codec.as_stored(item)


def _unchanged_since(before: dict[str, Any], writer: Writer) -> Fields:
    """Return the fields that kubectl itself set last, by merging on its own side: it may take them over."""
    if writer.manager != _KUBECTL:
        return frozenset()
    last = patch.last_applied_of(before)
    fields = ownership.fields_of(last or {})
    return ownership.same(fields, last or {}, before) | {_LAST_APPLIED}


def _note(result: dict[str, Any], raw: dict[str, Any], stored: dict[str, Any], writer: Writer) -> None:
    """Keep the annotation true where there is one, so that kubectl may merge on its own side again."""
    annotations = stored["metadata"].get("annotations") or {}
    if writer.manager == _KUBECTL and patch.LAST_APPLIED in annotations:
        noted = patch.with_last_applied(raw)["metadata"]["annotations"][patch.LAST_APPLIED]
        result["metadata"]["annotations"] = {**(result["metadata"].get("annotations") or {}), patch.LAST_APPLIED: noted}


def _without_note(shown: dict[str, Any]) -> dict[str, Any]:
    """Return the object without the annotation that is nobody's wish, but kept true by us."""
    metadata = shown["metadata"]
    annotations = {
        key: value for key, value in (metadata.get("annotations") or {}).items() if key != patch.LAST_APPLIED
    }
    rest = {key: value for key, value in metadata.items() if key != "annotations"}
    return {**shown, "metadata": rest | ({"annotations": annotations} if annotations else {})}
