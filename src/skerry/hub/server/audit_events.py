"""GET of the audit log: pages of it, oldest first, and what is added to it from now on.

They are the resource `auditevents` to roles, which may be listed and watched and nothing else. Clients see them as the
kind that discovery tells; `form=log` is for the lines as they are in the log, by which alone the chain can be checked.
Must not live here: the log, what is asked for (`core.audit_query`).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from skerry.api.audit import API_VERSION, AuditEvent, AuditEventList
from skerry.api.errors import BadRequestError, NotFoundError
from skerry.api.meta import GROUP, VERSION
from skerry.core.audit_query import COLUMNS, PARAMETERS, Question, cells_of, read_question
from skerry.hub.audit import reading
from skerry.hub.audit.ranked import RankedLog
from skerry.hub.audit.reading import Page, Place
from skerry.hub.context import HubContext
from skerry.hub.server.stream import EventStream, duration

PLURAL = "auditevents"
KIND = "AuditEvent"
QUIET_SECONDS = 30.0
"""A reader hears that it is still connected this often, at the latest."""
_VERSION = f"{GROUP}/{VERSION}"
_DEFAULT_LIMIT = 500
_TABLE = re.compile(r";\s*as=Table\b")
_ENCODER = msgspec.json.Encoder()


def routes(context: HubContext, group: str) -> list[BaseRoute]:
    """Return the routes under the API group's path."""

    async def listed(request: Request) -> Response:
        log = context.audit
        if log is None:
            raise NotFoundError("nothing is recorded by this hub", element=PLURAL)
        asked = _read_request(request)
        if asked.watch:
            seconds = duration(_number(request, "timeoutSeconds", default=0))
            return EventStream(events=lambda: _follow(log, asked), seconds=seconds, kind=KIND, plural=PLURAL)
        page = await _read(log, asked.question, asked.place, _number(request, "limit", default=_DEFAULT_LIMIT))
        metadata = {} if page.at_end else {"continue": page.next.text}
        # Following from here on begins there, also when there is nothing more for now.
        metadata["resourceVersion"] = page.next.text
        if asked.table:
            body = _ENCODER.encode(_table(page.items, metadata))
        else:
            kind, version = ("EventList", API_VERSION) if asked.as_logged else (f"{KIND}List", _VERSION)
            items = [msgspec.Raw(item if asked.as_logged else _object(item)) for item in page.items]
            body = _ENCODER.encode(AuditEventList(kind=kind, api_version=version, metadata=metadata, items=items))
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})

    return [Route(f"{group}/{PLURAL}", listed, methods=["GET"])]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a request asks for."""

    question: Question
    place: Place
    watch: bool
    bookmarks: bool
    table: bool
    as_logged: bool


def _read_request(request: Request) -> _Asked:
    """Raises BadRequestError."""
    given = request.query_params
    for name in ("labelSelector", "fieldSelector"):
        if given.get(name):
            hint = f"ask by {', '.join(PARAMETERS)}"
            raise BadRequestError("is not for the audit log", element=name, hint=hint)
    form = given.get("form", "")
    if form not in ("", "log"):
        raise BadRequestError(f'"{form[:40]}" is not known', element="form", hint="log, or leave it out")
    watch, version = _flag(given.get("watch", "")), given.get("resourceVersion", "")
    begins = version if watch and version != "0" else ""
    return _Asked(
        question=read_question(given),
        place=reading.parse_place(given.get("continue", "") or begins),
        watch=watch,
        bookmarks=_flag(given.get("allowWatchBookmarks", "")),
        table=_TABLE.search(request.headers.get("accept", "")) is not None,
        as_logged=form == "log",
    )


def _flag(text: str) -> bool:
    return text.lower() in ("1", "true")


async def _read(log: RankedLog, question: Question, place: Place, limit: int) -> Page:
    wanted = min(limit or _DEFAULT_LIMIT, reading.MAX_ITEMS)
    return await asyncio.to_thread(reading.read_page, log.directory, question, place, limit=wanted)


async def _follow(log: RankedLog, asked: _Asked) -> AsyncGenerator[bytes]:
    """Yield entries as ADDED, for ever; with bookmarks also the place after them."""
    place, header = asked.place, True
    while True:
        grown = log.grown
        page = await _read(log, asked.question, place, reading.MAX_ITEMS)
        for item in page.items:
            shown = item if asked.as_logged else _object(item)
            if asked.table:
                shown = _ENCODER.encode(_table([item], {}, header=header))
            yield b'{"type":"ADDED","object":' + shown + b"}\n"
            header = False
        if page.next != place:
            place = page.next
            if asked.bookmarks:
                yield _bookmark(asked, place)
        if page.at_end:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET_SECONDS):
                    await grown.wait()
                    continue
            if asked.bookmarks:
                yield _bookmark(asked, place)


def _object(line: bytes) -> bytes:
    """Return an entry as an object of the kind that discovery tells, with a name as kubectl wants one."""
    fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    named = {"name": fields["auditID"], "creationTimestamp": fields["requestReceivedTimestamp"]}
    return _ENCODER.encode({**fields, "kind": KIND, "apiVersion": _VERSION, "metadata": named})


def _bookmark(asked: _Asked, place: Place) -> bytes:
    kind, version = ("Event", API_VERSION) if asked.as_logged else (KIND, _VERSION)
    shown = {"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": place.text}}
    return _ENCODER.encode({"type": "BOOKMARK", "object": shown}) + b"\n"


def _table(items: Sequence[bytes], metadata: dict[str, str], *, header: bool = True) -> dict[str, Any]:
    """Return a `meta.k8s.io/v1` Table of entries, for kubectl."""
    columns = [
        {"name": name, "type": "string", "format": "", "description": name, "priority": int(name == "From")}
        for name in COLUMNS
    ]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns if header else [],
        "rows": [_row(msgspec.json.decode(item, type=AuditEvent)) for item in items],
    }


def _row(event: AuditEvent) -> dict[str, Any]:
    named = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": event.audit_id}}
    return {"cells": list(cells_of(event)), "object": named}


def _number(request: Request, name: str, *, default: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise BadRequestError(f'"{text[:40]}" is not a whole number', element=name)
    return int(text)
