"""PATCH: merge, strategic merge and JSON patches on the object as clients see it; apply patches go on to `apply`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response

from skerry.api import codec, documents, strategic
from skerry.api import patch as patches
from skerry.api.errors import BadRequestError, UnsupportedError
from skerry.api.kinds import Resource
from skerry.hub.server import answer, apply, update
from skerry.hub.server.call import Call, precondition

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
_APPLIED: Mapping[str, Callable[[Any, Any], Any]] = {
    MERGE: patches.merge_patch,
    STRATEGIC: strategic.strategic_merge,
    JSON_PATCH: patches.json_patch,
}


async def patch(call: Call) -> Response:
    """Change parts of an object. Raises NotFoundError, BadRequestError, InvalidError, ConflictError."""
    if call.content_type == apply.MEDIA_TYPE:
        return await apply.apply(call)
    return await change_parts(call, lambda _, wanted: wanted, status=call.subresource == "status")


async def change_parts(call: Call, then: Callable[[Resource, Resource], Resource], *, status: bool) -> Response:
    """Change parts of an object, or of its status, by any patch but apply; `then` makes of it what is written.

    It is given what there is and what the patch makes of it. Raises as `patch`.
    """
    kind = call.content_type
    applied = _APPLIED.get(kind)
    if applied is None:
        raise UnsupportedError(
            f'content type "{kind[:80]}" is not supported',
            element="the patch",
            hint=f"send {MERGE}, {STRATEGIC}, {JSON_PATCH} or {apply.MEDIA_TYPE}",
        )
    change = documents.read_json(await call.body(), source="the patch")
    merging = kind != JSON_PATCH
    if merging and not isinstance(change, dict):
        raise BadRequestError("is not a JSON object", element="the patch")

    def make(current: Resource) -> Resource:
        base = codec.present(current)
        return then(current, _typed(call, base, applied(base, change), status=status))

    sent = change if merging else {}
    written = await update.rewrite(
        call, make, uid=precondition(sent, "uid"), revision=precondition(sent, "resourceVersion"), status=status
    )
    return answer.respond(call, written, sent=sent)


def _typed(call: Call, base: dict[str, Any], patched: Any, *, status: bool) -> Resource:
    if not isinstance(patched, dict):
        raise BadRequestError("leaves no object", element="the patch")
    if status:
        return call.typed({**base, "status": patched.get("status")})
    return call.typed({key: value for key, value in patched.items() if key != "status"})
