"""Answers that are lists: whole when they are short, otherwise sent while they are read.

Nobody else waits for a long list: it is read, encoded and sent in pieces, and other requests have their turn between
two of them. No more of it is held than what its reader has not taken yet. Must not live here: what is in a list.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from skerry.api.errors import TimedOutError
from skerry.hub.server import status
from skerry.hub.server.answer import respond_list, takes_gzip, warn
from skerry.hub.server.call import Call
from skerry.hub.server.stream import until_left

WHOLE = 500
"""Objects up to which a list is one answer of known length; more are sent in pieces."""
PIECE = 100
"""Objects that are encoded at once."""
SECONDS = 600.0
"""How long a list may take that is sent in pieces; its revision is kept for not much longer anyway."""

log = logging.getLogger(__name__)
_ENCODER = msgspec.json.Encoder()


class Shape(Protocol):
    """How a client wants its objects."""

    def many(self, items: Sequence[Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return a list of them."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of a list, in order."""

    items: Sequence[Any]
    metadata: Mapping[str, Any]
    """The list's, if it ended here."""
    left_out: Sequence[tuple[str, str]] = ()
    """Namespaces and names of those that would be here if they could be read."""


async def respond(call: Call, shape: Shape, parts: AsyncGenerator[Part], *, limit: int) -> Response:
    """Return the list that these parts make up. Raises whatever they raise before it is found to be a long one.

    What they raise later breaks the answer off, so that nobody takes what there is of it for the whole. What cannot be
    read is warned of, as far as it is known when the answer begins; the log has all.
    """
    items: list[Any] = []
    left_out: list[tuple[str, str]] = []
    last = Part(items=(), metadata={})
    try:
        async for last in parts:
            items += last.items
            left_out += last.left_out
            if len(items) > WHOLE:
                head = shape.many([], last.metadata)  # says now, not in the stream, what is wrong with the parameters
                break
        else:
            response = await respond_list(call, shape.many(items, last.metadata))
            warn(response, warnings(call, left_out))
            return response
    except BaseException:
        await parts.aclose()
        raise
    begun = Part(items=items, metadata=last.metadata, left_out=left_out)
    return _LongList(call=call, shape=shape, head=head, begun=begun, parts=parts, is_limited=limit > 0)


def warnings(call: Call, left_out: Sequence[tuple[str, str]]) -> list[str]:
    """Return what is said of objects that cannot be read."""
    return [
        f'{call.info.resource} "{name}"{f" in the namespace {namespace}" if namespace else ""} is left out: '
        "what is stored of it cannot be read"
        for namespace, name in left_out
    ]


@dataclass(kw_only=True, eq=False)
class _LongList(Response):
    """An ASGI response: the list in pieces, until it or its client is gone."""

    call: Call
    shape: Shape
    head: Mapping[str, Any]
    """The list without what is in it."""
    begun: Part
    parts: AsyncGenerator[Part]
    is_limited: bool
    """Only its end tells where it goes on, so its metadata comes last."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the list; a client that goes away ends it at once. Raises what reading it raises."""
        headers = [(b"content-type", status.JSON.encode())]
        compressor = None
        if takes_gzip(self.call):
            compressor = zlib.compressobj(level=1, wbits=16 + zlib.MAX_WBITS)
            headers += [(b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding")]
        said = Response()
        warn(said, warnings(self.call, self.begun.left_out))
        headers += [header for header in said.raw_headers if header[0] == b"warning"]
        async with aclosing(self.parts):
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            if scope["method"] != "HEAD" and not await until_left(receive, self._send(send, compressor)):
                return
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, compressor: Any) -> None:
        try:
            async with asyncio.timeout(SECONDS), aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    body = piece if compressor is None else await asyncio.to_thread(compressor.compress, piece)
                    if body:
                        await send({"type": "http.response.body", "body": body, "more_body": True})
        except TimeoutError:
            raise TimedOutError("took too long to send", element=f"the list of {self.call.info.plural}") from None
        if compressor is not None:
            await send({"type": "http.response.body", "body": compressor.flush(), "more_body": True})

    async def _pieces(self) -> AsyncGenerator[bytes]:
        """Yield the list as JSON, piece by piece."""
        entries = "rows" if "rows" in self.head else "items"
        left_out = {entries, "metadata"} if self.is_limited else {entries}
        head = {key: value for key, value in self.head.items() if key not in left_out}
        yield _ENCODER.encode(head)[:-1] + f',"{entries}":['.encode()
        separator, metadata = b"", self.begun.metadata
        async with aclosing(self._all_parts()) as parts:
            async for part in parts:
                metadata = part.metadata
                for start in range(0, len(part.items), PIECE):
                    shown = self.shape.many(part.items[start : start + PIECE], {})[entries]
                    yield separator + _ENCODER.encode(shown)[1:-1]
                    separator = b","
                    await asyncio.sleep(0)  # sending waits for nobody who takes what comes
        yield b'],"metadata":' + _ENCODER.encode(metadata) + b"}" if self.is_limited else b"]}"

    async def _all_parts(self) -> AsyncGenerator[Part]:
        yield self.begun
        async for part in self.parts:
            yield part
