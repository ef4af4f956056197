"""GET of one object."""

from __future__ import annotations

from starlette.responses import Response

from skerry.hub.server import answer
from skerry.hub.server.call import Call


async def get(call: Call) -> Response:
    """Return the object. Raises NotFoundError."""
    return answer.respond(call, await call.context.objects.get(call.info.type, call.namespace, call.name))
