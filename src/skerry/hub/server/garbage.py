"""What the registry is asked beside its specification: collect garbage, remove a model version.

Lives here: `POST .../registry/gc` and `.../registry/remove`, for admins. Must not live here: what is garbage
(`hub.gc`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from skerry.api import duration
from skerry.api.errors import BadRequestError
from skerry.api.meta import Struct
from skerry.hub import gc
from skerry.hub.context import HubContext

MAX_BODY_BYTES = 64 * 1024
T = TypeVar("T")


class CollectRequest(Struct, frozen=True, kw_only=True):
    """How to collect."""

    dry_run: bool = False
    grace: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """What was looked at within this time stays, as in 24h."""


class RemoveRequest(Struct, frozen=True, kw_only=True):
    """What to remove."""

    repository: Annotated[str, msgspec.Meta(max_length=255)]
    reference: Annotated[str, msgspec.Meta(max_length=255)]
    """A tag or a digest."""


def routes(context: HubContext, group: str) -> list[BaseRoute]:
    """Return the routes under the API group's path; `access` lets only admins come here."""

    async def collect(request: Request) -> Response:
        asked = await _read(request, CollectRequest)
        grace: timedelta = duration.parse(asked.grace) if asked.grace else gc.GRACE
        return _json(await gc.collect(context, dry_run=asked.dry_run, grace=grace))

    async def remove(request: Request) -> Response:
        asked = await _read(request, RemoveRequest)
        return _json(await gc.remove_model(context, asked.repository, asked.reference))

    return [
        Route(f"{group}/registry/gc", collect, methods=["POST"]),
        Route(f"{group}/registry/remove", remove, methods=["POST"]),
    ]


async def _read(request: Request, kind: type[T]) -> T:
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise BadRequestError(f"is larger than {MAX_BODY_BYTES} bytes", element="request body")
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(str(error)[:500], element="request body") from None


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
