"""GET of the audit log: pages of it, oldest first, and what is added to it from now on.

They are the resource `auditevents` to roles, which may be listed and watched and nothing else. Must not live here: the
log, what is asked for (`core.audit_query`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from skerry.api.audit import API_VERSION, AuditEventList
from skerry.api.errors import BadRequestError, NotFoundError
from skerry.core.audit_query import Question, read_question
from skerry.hub.audit import reading
from skerry.hub.audit.log import AuditLog
from skerry.hub.audit.reading import Page, Place
from skerry.hub.context import HubContext
from skerry.hub.server.stream import EventStream, duration

PLURAL = "auditevents"
KIND = "AuditEvent"
QUIET_SECONDS = 30.0
"""A reader hears that it is still connected this often, at the latest."""
_DEFAULT_LIMIT = 500
_ENCODER = msgspec.json.Encoder()


def routes(context: HubContext, group: str) -> list[BaseRoute]:
    """Return the routes under the API group's path."""

    async def listed(request: Request) -> Response:
        log = context.audit
        if log is None:
            raise NotFoundError("nothing is recorded by this hub", element=PLURAL)
        given = request.query_params
        question, place = read_question(given), reading.parse_place(given.get("continue", ""))
        if given.get("watch", "").lower() in ("1", "true"):
            seconds = duration(_number(given.get("timeoutSeconds", ""), default=0))
            return EventStream(events=lambda: _follow(log, question, place), seconds=seconds, kind=KIND, plural=PLURAL)
        limit = _number(given.get("limit", ""), default=_DEFAULT_LIMIT)
        page = await _read(log, question, place, limit)
        metadata = {} if page.at_end else {"continue": page.next.text}
        # Following from here on begins there, also when there is nothing more for now.
        metadata["resourceVersion"] = page.next.text
        body = _ENCODER.encode(AuditEventList(metadata=metadata, items=[msgspec.Raw(item) for item in page.items]))
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})

    return [Route(f"{group}/{PLURAL}", listed, methods=["GET"])]


async def _read(log: AuditLog, question: Question, place: Place, limit: int) -> Page:
    wanted = min(limit or _DEFAULT_LIMIT, reading.MAX_ITEMS)
    return await asyncio.to_thread(reading.read_page, log.directory, question, place, limit=wanted)


async def _follow(log: AuditLog, question: Question, place: Place) -> AsyncGenerator[bytes]:
    """Yield entries as ADDED, for ever, each with the place after it now and then as a bookmark."""
    while True:
        grown = log.grown
        page = await _read(log, question, place, reading.MAX_ITEMS)
        for item in page.items:
            yield b'{"type":"ADDED","object":' + item + b"}\n"
        if page.next != place:
            place = page.next
            yield _bookmark(place)
        if page.at_end:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET_SECONDS):
                    await grown.wait()
                    continue
            yield _bookmark(place)


def _bookmark(place: Place) -> bytes:
    shown = {"kind": "Event", "apiVersion": API_VERSION, "metadata": {"continue": place.text}}
    return _ENCODER.encode({"type": "BOOKMARK", "object": shown}) + b"\n"


def _number(text: str, *, default: int) -> int:
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise BadRequestError(f'"{text[:40]}" is not a whole number', element="limit")
    return int(text)
