"""What a WebSocket client may make the hub keep for it, and what the hub keeps for one that is slow."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import pytest
from tests.unit.hub.test_clients_that_leave import WEBSOCKET, talking
from tests.unit.hub.test_tunnels import End

from skerry.core import channels
from skerry.hub import listener, pki, upgrade
from skerry.hub.tunnels import Splice
from skerry.hub.upgrade import UPGRADE
from skerry.kit.websocket import Closed, Frames

WAIT_SECONDS = 30.0
PING = b"\x89\xfd\0\0\0\0" + b"p" * 125
"""Of a client: masked with zeros."""
PIECE = b"\x00\x80\0\0\0\0"


async def reading(client: Any, device: Any) -> None:
    del device
    while await client.receive() is not None:
        pass


def told(line: ssl.SSLSocket) -> bytes:
    """Everything until the hub ends the connection."""
    line.settimeout(WAIT_SECONDS)
    said = b""
    try:
        while data := line.recv(65536):
            said += data
    except (ConnectionResetError, ssl.SSLEOFError):
        pass
    return said


async def test_a_message_in_pieces_without_end(live_authority: pki.Authority) -> None:
    async with talking(live_authority, reading, WEBSOCKET) as (line, _):
        await asyncio.to_thread(line.sendall, b"\x02\x80\0\0\0\0" + PIECE * upgrade.MAX_FRAGMENTS)
        said = await asyncio.to_thread(told, line)
    [closed] = Frames(max_message=1000).feed(said)
    assert isinstance(closed, Closed)
    assert closed.code == 1009


async def test_pieces_as_many_as_clients_send_are_a_message(live_authority: pki.Authority) -> None:
    got: list[bytes | None] = []

    async def once(client: Any, device: Any) -> None:
        del device
        got.append(await client.receive())

    async with talking(live_authority, once, WEBSOCKET) as (line, _):
        await asyncio.to_thread(line.sendall, b"\x02\x80\0\0\0\0" + PIECE * 2000 + b"\x80\x81\0\0\0\0x")
    assert got == [b"x"]


async def test_pings_of_who_takes_no_answer_are_kept_as_one(
    live_authority: pki.Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "MAX_PINGS", 10**9)
    kept, most = asyncio.Event(), 0

    async def watched(client: Any, device: Any) -> None:
        nonlocal most
        del device
        receiving = asyncio.ensure_future(client.receive())
        protocol = client._protocol
        while not receiving.done():
            most = max(most, protocol.transport.get_write_buffer_size())
            if protocol._pings > 20_000:
                kept.set()
            await asyncio.wait({receiving}, timeout=0.01)

    def flood(line: ssl.SSLSocket) -> None:
        while not kept.is_set():
            line.sendall(PING * 50)

    async with talking(live_authority, watched, WEBSOCKET) as (line, _):
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131072)
        await asyncio.to_thread(flood, line)
        last = PING[:-3] + b"end"
        await asyncio.to_thread(line.sendall, last)

        def answers() -> bytes:
            said = b""
            while not said.endswith(b"end"):
                said += line.recv(65536)
            return said

        said = await asyncio.to_thread(answers)
        assert said.endswith(b"\x8a\x7d" + last[6:])
    assert most < 2**20, most


async def test_pings_without_end_are_no_conversation(
    live_authority: pki.Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "MAX_PINGS", 1000)
    closed: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del receive, send
        asked.set()
        closed.append(await scope[UPGRADE].receive())
        over.set()

    asked, over = asyncio.Event(), asyncio.Event()
    sock = listener.bind("127.0.0.1", 0, purpose="test", option="--port")
    async with (
        listener.serve(app, sock, live_authority.server_context(), listener.Limits()),
        asyncio.timeout(WAIT_SECONDS),
    ):
        tls = ssl.create_default_context(cadata=live_authority.ca_pem.decode())
        raw = socket.create_connection(("127.0.0.1", sock.getsockname()[1]))
        with await asyncio.to_thread(tls.wrap_socket, raw, server_hostname="localhost") as line:
            await asyncio.to_thread(line.sendall, WEBSOCKET)
            await asked.wait()
            await asyncio.to_thread(line.sendall, PING * 1001)
            assert await asyncio.to_thread(told, line) == b"", "nothing comes before the answer"
        await over.wait()
    assert closed == [None]


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x02\x01x"], ids=["opcode", "unmasked"])
async def test_garbage_before_the_answer_ends_it_quietly(
    live_authority: pki.Authority, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del receive, send
        asked.set()
        await scope[UPGRADE].receive()

    sock = listener.bind("127.0.0.1", 0, purpose="test", option="--port")
    async with (
        listener.serve(app, sock, live_authority.server_context(), listener.Limits()),
        asyncio.timeout(WAIT_SECONDS),
    ):
        tls = ssl.create_default_context(cadata=live_authority.ca_pem.decode())
        raw = socket.create_connection(("127.0.0.1", sock.getsockname()[1]))
        with await asyncio.to_thread(tls.wrap_socket, raw, server_hostname="localhost") as line:
            await asyncio.to_thread(line.sendall, WEBSOCKET)
            await asked.wait()
            await asyncio.to_thread(line.sendall, garbage)
            assert await asyncio.to_thread(told, line) == b""
    assert "Fatal error" not in caplog.text
    assert "exception" not in caplog.text.lower()


async def test_a_slow_client_has_the_rest_of_the_output_and_the_status(
    live_authority: pki.Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is taken for longer than a peer without patience has; then everything is there."""
    monkeypatch.setattr(upgrade, "LINGER_SECONDS", 0.3)
    monkeypatch.setattr("skerry.hub.tunnels.LINGER_SECONDS", 0.3)
    output = [channels.frame(channels.STDOUT, bytes((number,)) * 200_000) for number in range(40)]

    async def commanded(client: Any, device: Any) -> None:
        del device
        ended = End(*output, channels.ended(7))
        await Splice(client=client, device=ended, known=lambda: True, status_channel=True).run()  # type: ignore[arg-type]

    async with talking(live_authority, commanded, WEBSOCKET) as (line, _):

        def take() -> list[Any]:
            frames, found = Frames(max_message=2**20), list[Any]()
            while not any(isinstance(one, Closed) for one in found):
                found += frames.feed(line.recv(65536))
            line.sendall(b"\x88\x82\0\0\0\0\x03\xe8")
            return found

        await asyncio.sleep(1.5)  # a client that does something else, for longer than is waited for the impatient
        found = await asyncio.to_thread(take)
    assert [one.data for one in found[:-1]] == [*output, channels.ended(7)]
    assert found[-1] == Closed(1000, "ended")
