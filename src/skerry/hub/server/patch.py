"""PATCH: merge patches and JSON patches on the object as clients see it; apply patches go on to `apply`."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from skerry.api import codec, documents
from skerry.api import patch as patches
from skerry.api.errors import BadRequestError, UnsupportedError
from skerry.api.kinds import Resource
from skerry.hub.server import answer, apply, update
from skerry.hub.server.call import Call, precondition

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"


async def patch(call: Call) -> Response:
    """Change parts of an object. Raises NotFoundError, BadRequestError, InvalidError, ConflictError."""
    kind = call.content_type
    if kind == apply.MEDIA_TYPE:
        return await apply.apply(call)
    if kind not in (MERGE, JSON_PATCH):
        raise UnsupportedError(
            f'content type "{kind[:80]}" is not supported',
            element="the patch",
            hint=f"send {MERGE}, {JSON_PATCH} or {apply.MEDIA_TYPE}",
        )
    change = documents.read_json(await call.body(), source="the patch")
    merging = kind == MERGE
    if merging and not isinstance(change, dict):
        raise BadRequestError("is not a JSON object", element="the patch")
    status = call.subresource == "status"

    def make(current: Resource) -> Resource:
        base = codec.present(current)
        patched = patches.merge_patch(base, change) if merging else patches.json_patch(base, change)
        return _typed(call, base, patched, status=status)

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
