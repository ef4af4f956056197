"""GET with `watch=true`: every change from a revision on, one JSON line each, until the client or the time is up.

A change is seen through the selection: an object that begins to match is ADDED, one that no longer does is DELETED.
Source: Kubernetes API concepts, "Efficient detection of changes".
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from skerry.api.errors import SkerryError
from skerry.api.kinds import Resource
from skerry.hub.objects import ObjectChange
from skerry.hub.server import answer, status
from skerry.hub.server import list as lists
from skerry.hub.server.call import Call

MAX_SECONDS = 3600
"""Longest watch; clients reconnect from where they were."""
_DEFAULT_SECONDS = (1800, 3600)  # spread, so that clients do not all come back at once
INITIAL_END = "k8s.io/initial-events-end"

log = logging.getLogger(__name__)
EventType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
_ENCODER = msgspec.json.Encoder()


async def watch(call: Call) -> Response:
    """Return the stream. Raises BadRequestError for its parameters; what happens later is an ERROR event in it."""
    revision = call.number("resourceVersion", default=0, most=2**62)
    seconds = call.number("timeoutSeconds", default=0, most=2**31) or random.randint(*_DEFAULT_SECONDS)  # noqa: S311
    shape = answer.shape_of(call)
    shape.many([], {})  # says now, not in the stream, what is wrong with the parameters
    return WatchResponse(
        call=call,
        selection=lists.selection_of(call),
        shape=shape,
        revision=revision,
        seconds=min(seconds, MAX_SECONDS),
        bookmarks=call.flag("allowWatchBookmarks"),
        initial=call.flag("sendInitialEvents") or revision == 0,
        mark_initial=call.flag("sendInitialEvents"),
    )


@dataclass(kw_only=True, eq=False)
class WatchResponse(Response):
    """An ASGI response that lasts: it ends with the client, the time, or an error event."""

    call: Call
    selection: lists.Selection
    shape: answer.Shape
    revision: int
    """Changes after this one are sent; 0 begins with all there is."""
    seconds: int
    bookmarks: bool
    initial: bool
    mark_initial: bool
    _first: bool = field(default=True, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Send the stream; a client that goes away ends it at once."""
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with asyncio.TaskGroup() as group:
            stream = group.create_task(self._stream(send))
            listener = group.create_task(_end_with_client(receive, stream))
            await asyncio.wait([stream])
            listener.cancel()

    async def _stream(self, send: Send) -> None:
        try:
            async with asyncio.timeout(self.seconds), aclosing(self._events()) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        except TimeoutError:
            pass
        except SkerryError as error:
            failure = status.status_of(error, kind=self.call.info.kind, plural=self.call.info.plural)
            await send({"type": "http.response.body", "body": _line("ERROR", failure), "more_body": True})
        except Exception:
            log.exception("api.watch_failed plural=%s", self.call.info.plural)
            failure = status.plain(500, "InternalError", "the watch failed inside the hub; see its log")
            await send({"type": "http.response.body", "body": _line("ERROR", failure), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncGenerator[bytes]:
        objects, kind, namespace = self.call.context.objects, self.call.info.type, self.call.namespace
        after = self.revision
        if self.initial:
            async with aclosing(lists.pages(self.call)) as steps:
                async for page in steps:
                    after = page.revision
                    for item in filter(self.selection.takes, page.items):
                        yield self._event("ADDED", item)
            if self.mark_initial and self.bookmarks:
                yield self._bookmark(after, annotations={INITIAL_END: "true"})
        async with objects.watch(kind, namespace, after=after) as changes:
            async for change in changes:
                for line in self._seen(change):
                    yield line

    def _seen(self, change: ObjectChange[Resource]) -> Sequence[bytes]:
        if change.object is None:
            return [self._bookmark(change.revision)] if self.bookmarks else []
        matched = change.previous is not None and self.selection.takes(change.previous)
        matching = self.selection.takes(change.object)
        match change.type:
            case "DELETED":
                return [self._event("DELETED", change.object)] if matching else []
            case "MODIFIED" if matched and not matching:
                return [self._event("DELETED", change.object)]
            case "MODIFIED" if matched:
                return [self._event("MODIFIED", change.object)]
            case _:
                return [self._event("ADDED", change.object)] if matching else []

    def _event(self, kind: EventType, item: Resource) -> bytes:
        header, self._first = self._first, False
        return _line(kind, self.shape.one(item, header=header))

    def _bookmark(self, revision: int, annotations: dict[str, str] | None = None) -> bytes:
        shown = self.shape.bookmark(revision)
        if annotations:
            shown = {**shown, "metadata": {**shown["metadata"], "annotations": annotations}}
        return _line("BOOKMARK", shown)


async def _end_with_client(receive: Receive, stream: asyncio.Task[None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.cancel()


def _line(kind: EventType, shown: Any) -> bytes:
    return _ENCODER.encode({"type": kind, "object": shown}) + b"\n"
