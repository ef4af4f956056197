"""What a client may send before there is a connection to send it to: bounded, and only in pairs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.unit.core.test_spdy import Client, data

from skerry.agent.remote import forwarding
from skerry.agent.remote.door import Conversation, Place
from skerry.core import channels
from skerry.core.messages import RemoteSession

WAIT_SECONDS = 20.0
RESET, REPLY = 3, 2


class Socket:
    """The hub's end: what the client says goes in, what is said to it comes out."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self.said: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive(self) -> bytes | None:
        return await self.incoming.get()

    async def send(self, raw: bytes) -> None:
        self.said.put_nowait(raw)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        raise AssertionError((code, reason))

    async def next(self, kind: int) -> int:
        """The stream of the next control frame of a kind."""
        while True:
            raw = await self.said.get()
            if raw[0] & 0x80 and raw[3] == kind:
                return int.from_bytes(raw[8:12])


@asynccontextmanager
async def forwarded(tmp_path: Path, *ports: int) -> AsyncIterator[tuple[Socket, Client, forwarding._Streams]]:
    socket: Any = Socket()
    asked = Conversation(
        session=RemoteSession(tunnel="", purpose="forward", protocol=channels.SPDY_FORWARD),
        tail_lines=0,
        place=Place(name="digits", log=tmp_path),
        socket=socket,
        execute=None,  # type: ignore[arg-type]
        ports={port: port for port in ports},
    )
    streams = forwarding._Streams(asked)
    running = asyncio.ensure_future(streams.run())
    async with asyncio.timeout(WAIT_SECONDS):
        yield socket, Client(), streams
        await socket.incoming.put(None)
        await running


def opening(client: Client, stream: int, kind: str, request: str, port: int) -> bytes:
    return client.open(stream, {"streamtype": kind, "requestid": request, "port": str(port)})


@pytest.mark.parametrize("together", [True, False])
async def test_data_before_both_streams_are_open_is_refused_and_not_kept(tmp_path: Path, together: bool) -> None:
    async with forwarded(tmp_path, 9) as (socket, client, streams):
        for number in range(1, 2 * forwarding.MAX_STREAMS, 2):  # more than there may be at a time
            pieces = [opening(client, number, "data", str(number), 9), data(number, b"x" * 10_000)]
            for piece in [b"".join(pieces)] if together else pieces:
                await socket.incoming.put(piece)
            assert await socket.next(RESET) == number
        assert streams._early == 0
    assert not streams._pairs
    assert not streams._requests


@pytest.mark.parametrize("kind", ["data", "error"])
async def test_half_a_pair_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(forwarding, "HALF_SECONDS", 0.01)
    async with forwarded(tmp_path, 9) as (socket, client, streams):
        await socket.incoming.put(opening(client, 1, kind, "a", 9))
        assert await socket.next(RESET) == 1
    assert not streams._pairs


async def test_what_waits_for_connections_is_bounded_and_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may, most = asyncio.Event(), 0
    connect = forwarding.connect

    async def slowly(asked: Conversation, port: int) -> Any:
        await may.wait()
        return await connect(asked, port)

    monkeypatch.setattr(forwarding, "connect", slowly)
    got = [asyncio.get_running_loop().create_future() for _ in range(4)]

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        content = await reader.read()
        got[content[0]].set_result(content)
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with forwarded(tmp_path, port) as (socket, client, streams):
            for index in range(4):
                await socket.incoming.put(opening(client, 4 * index + 1, "error", str(index), port))
                await socket.incoming.put(opening(client, 4 * index + 3, "data", str(index), port))

            async def say() -> None:
                for _ in range(20):
                    for index in range(4):
                        await socket.incoming.put(data(4 * index + 3, bytes((index,)) * 20_000))
                for index in range(4):
                    await socket.incoming.put(data(4 * index + 3, b"", last=True))

            saying = asyncio.ensure_future(say())
            while not socket.incoming.full() or streams._early < forwarding.MAX_EARLY_BYTES - 20_500:  # noqa: ASYNC110
                await asyncio.sleep(0)
            for _ in range(100):
                await asyncio.sleep(0)
                most = max(most, streams._early)
            assert most <= forwarding.MAX_EARLY_BYTES
            assert not saying.done()
            may.set()
            await saying
            assert [len(await one) for one in got] == [400_000] * 4
        assert streams._early == 0


async def test_one_that_is_reset_before_it_began_leaves_nothing(tmp_path: Path) -> None:
    async with forwarded(tmp_path, 9) as (socket, client, streams):
        both = opening(client, 1, "error", "a", 9) + opening(client, 3, "data", "a", 9)
        reset = b"\x80\x03\x00\x03\x00\x00\x00\x08" + (3).to_bytes(4) + (5).to_bytes(4)
        await socket.incoming.put(both + reset)
        assert {await socket.next(RESET), await socket.next(RESET)} == {1, 3}
    assert not streams._pairs
