"""Lists in pieces: everybody else has a turn between two of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, cast

import pytest
from starlette.requests import Request
from starlette.types import Message

from skerry.api.kinds import find_kind
from skerry.hub.context import HubContext
from skerry.hub.server import long_list
from skerry.hub.server.call import Call
from skerry.hub.server.long_list import PIECE, WHOLE, Part


class Numbers:
    """Shows numbers, and notes how many at once and who had a turn meanwhile."""

    def __init__(self) -> None:
        self.turns = 0
        self.seen: list[tuple[int, int]] = []

    def many(self, items: Sequence[Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
        self.seen.append((len(items), self.turns))
        return {"kind": "List", "metadata": dict(metadata), "items": list(items)}

    async def others(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0)


async def parts(sizes: Sequence[int]) -> AsyncGenerator[Part]:
    start = 0
    for size in sizes:
        yield Part(items=range(start, start + size), metadata={"resourceVersion": "7"})
        start += size


def call() -> Call:
    info = find_kind("Device")
    assert info is not None
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    return Call(context=cast(HubContext, None), request=Request(scope), info=info)


async def answered(shape: Numbers, sizes: Sequence[int]) -> dict[str, Any]:
    body = b""

    async def send(message: Message) -> None:
        nonlocal body
        body += message.get("body", b"")

    async def receive() -> Message:
        return await asyncio.Future[Message]()

    asking = call()
    response = await long_list.respond(asking, shape, parts(sizes), limit=0)
    await response(asking.request.scope, receive, send)
    return cast(dict[str, Any], json.loads(body))


@pytest.mark.parametrize("sizes", [[500, 500, 500, 3], [0, 499, 0, 2], [2500], [501]])
async def test_others_have_a_turn_between_two_pieces(sizes: list[int]) -> None:
    shape = Numbers()
    others = asyncio.create_task(shape.others())
    listed = await answered(shape, sizes)
    others.cancel()
    assert listed == {"kind": "List", "metadata": {"resourceVersion": "7"}, "items": list(range(sum(sizes)))}
    pieces = [(count, turn) for count, turn in shape.seen if count]
    assert max(count for count, _ in pieces) == PIECE
    turns = [turn for _, turn in pieces]
    assert len(set(turns)) == len(turns)


@pytest.mark.parametrize("sizes", [[], [0], [3], [WHOLE], [200, 300, 0]])
async def test_short_ones_are_whole(sizes: list[int]) -> None:
    shape = Numbers()
    assert (await answered(shape, sizes))["items"] == list(range(sum(sizes)))
    assert [count for count, _ in shape.seen] == [sum(sizes)]
