"""A response of events that lasts: one JSON line each, until the client, the time or an error ends it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from skerry.api.errors import SkerryError
from skerry.api.meta import GROUP
from skerry.hub.server import status

MAX_SECONDS = 3600
"""Longest watch; clients reconnect from where they were."""
_DEFAULT_SECONDS = (1800, 3600)  # spread, so that clients do not all come back at once

log = logging.getLogger(__name__)
EventType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
_ENCODER = msgspec.json.Encoder()


def duration(wanted: int) -> int:
    """Return for how many seconds a watch is served; 0 leaves it to us."""
    return min(wanted or random.randint(*_DEFAULT_SECONDS), MAX_SECONDS)  # noqa: S311 - no secret


def line(kind: EventType, shown: Any) -> bytes:
    """Return one event as it is sent."""
    return _ENCODER.encode({"type": kind, "object": shown}) + b"\n"


@dataclass(kw_only=True, eq=False)
class EventStream(Response):
    """An ASGI response: it ends with the client, the time, or an ERROR event."""

    events: Callable[[], AsyncGenerator[bytes]]
    seconds: int
    kind: str
    plural: str
    group: str = GROUP

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
            async with asyncio.timeout(self.seconds), aclosing(self.events()) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        except TimeoutError:
            pass
        except SkerryError as error:
            failure = status.status_of(error, group=self.group, kind=self.kind, plural=self.plural)
            await send({"type": "http.response.body", "body": line("ERROR", failure), "more_body": True})
        except Exception:
            log.exception("api.watch_failed plural=%s", self.plural)
            failure = status.plain(500, "InternalError", "the watch failed inside the hub; see its log")
            await send({"type": "http.response.body", "body": line("ERROR", failure), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_left(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work, until the client leaves. Returns whether it was done to its end; raises what it raises."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_leaves(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end_with_client(receive: Receive, stream: asyncio.Task[None]) -> None:
    await _leaves(receive)
    stream.cancel()
