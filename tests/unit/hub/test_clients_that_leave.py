"""Clients that leave while what they said waits to be taken: nobody reads from them, and it is noticed all the same."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.unit.core.test_spdy import Client, data

from skerry.core import channels
from skerry.core.messages import RemoteSession
from skerry.hub import command_streams, listener, pki, upgrade
from skerry.hub.command_streams import CommandStreams
from skerry.hub.server import forward
from skerry.hub.tunnels import Splice
from skerry.hub.upgrade import UPGRADE, Switching
from skerry.kit import websocket_client

WAIT_SECONDS = 30.0
WEBSOCKET = (
    b"GET /x HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SPDY = b"POST /x HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
MESSAGE = b"\x82\xff" + (65536).to_bytes(8) + b"\0\0\0\0" + b"\0" * 65536
"""Of a client: masked with zeros."""


class Busy:
    """A device that takes nothing and says nothing."""

    def __init__(self) -> None:
        self.code, self.reason, self.ended = 1000, "", None
        self.asked = asyncio.Event()
        self.closed: tuple[int, str] | None = None

    async def receive(self) -> bytes | None:
        await asyncio.Event().wait()
        return None

    async def send(self, data: bytes) -> None:
        del data
        self.asked.set()
        await asyncio.Event().wait()

    async def close(self, code: int = 1000, reason: str = "", **_: Any) -> None:
        self.closed = (code, reason)

    async def gone(self) -> None:
        await asyncio.Event().wait()


async def spliced(client: Any, device: Busy) -> None:
    await Splice(client=client, device=device, known=lambda: True, status_channel=False).run()


async def commanded(client: Any, device: Busy) -> None:
    session = RemoteSession(tunnel="", purpose="exec", argv=["x"], stdin=True, stdout=True)
    streams = CommandStreams(client, session, channels.V4)
    await streams.open()
    await spliced(streams, device)


async def relayed(client: Any, device: Busy) -> None:
    await forward._join(client, device)


@asynccontextmanager
async def talking(authority: pki.Authority, conversation: Any, head: bytes) -> AsyncIterator[tuple[ssl.SSLSocket, Any]]:
    """A client that has switched, and the device it talks to; at the end the conversation has to be over."""
    device, over = Busy(), asyncio.Event()

    async def talk(client: Any) -> None:
        try:
            await conversation(client, device)
        finally:
            over.set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert UPGRADE in scope
        await Switching(talk)(scope, receive, send)

    sock = listener.bind("127.0.0.1", 0, purpose="test", option="--port")
    async with (
        listener.serve(app, sock, authority.server_context(), listener.Limits()),
        asyncio.timeout(WAIT_SECONDS),
    ):
        context = ssl.create_default_context(cadata=authority.ca_pem.decode())
        raw = socket.create_connection(("127.0.0.1", sock.getsockname()[1]))
        with await asyncio.to_thread(context.wrap_socket, raw, server_hostname="localhost") as line:
            await asyncio.to_thread(line.sendall, head)
            while not (await asyncio.to_thread(line.recv, 4096)).endswith(b"\r\n\r\n"):
                pass
            yield line, device
        await over.wait()


async def fill(line: ssl.SSLSocket, piece: bytes) -> None:
    """Send until there is no room any more, not even for the end of the connection."""

    def work() -> None:
        line.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            while True:
                line.sendall(piece)

    await asyncio.to_thread(work)


@pytest.mark.parametrize("conversation", [spliced, relayed])
@pytest.mark.parametrize("full", [False, True])
async def test_a_websocket_client_that_leaves(
    live_authority: pki.Authority, monkeypatch: pytest.MonkeyPatch, conversation: Any, full: bool
) -> None:
    monkeypatch.setattr(upgrade, "PING_SECONDS", 0.2)
    async with talking(live_authority, conversation, WEBSOCKET) as (line, device):
        line.sendall(MESSAGE)
        await device.asked.wait()
        if full:
            await fill(line, MESSAGE)
    if conversation is spliced:
        assert device.closed == (1001, "the client has left")


@pytest.mark.parametrize("full", [False, True])
async def test_a_spdy_client_that_leaves(
    live_authority: pki.Authority, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    monkeypatch.setattr(command_streams, "PING_SECONDS", 0.2)
    client = Client()
    async with talking(live_authority, commanded, SPDY) as (line, device):
        for number, kind in enumerate(("error", "stdin", "stdout")):
            line.sendall(client.open(2 * number + 1, {"streamtype": kind}))
        line.sendall(data(3, b"x"))
        await device.asked.wait()
        if full:
            await fill(line, data(3, b"x" * 60_000))
    assert device.closed == (1001, "the client has left")


@pytest.mark.parametrize("reset", [False, True])
async def test_a_hub_that_leaves_a_device_is_noticed_without_reading(reset: bool) -> None:
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        key = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key"))
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        writer.write(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n")
        writer.write(b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n")
        await writer.drain()
        await served.wait()
        if reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, asyncio.timeout(WAIT_SECONDS):
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with websocket_client.connect(url, tls=None, timeout_seconds=10) as line:
            waiting = asyncio.ensure_future(line.gone())
            await asyncio.sleep(0)
            assert not waiting.done()
            served.set()
            await waiting
