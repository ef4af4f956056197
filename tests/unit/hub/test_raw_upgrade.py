"""Connections that become bytes: who may ask, that nothing is read ahead, and that each end waits for the other."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from skerry.hub import listener, pki, raw_upgrade
from skerry.hub.upgrade import UPGRADE, Gone, Switching

HEAD = b"POST /x HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
WAIT_SECONDS = 20.0
ENOUGH = 64 * 2**20
Talk = Callable[[Any], Awaitable[None]]


@asynccontextmanager
async def serving(
    authority: pki.Authority, app: Any
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the hub's listener with this application behind it."""
    sock = listener.bind("127.0.0.1", 0, purpose="test", option="--port")
    async with listener.serve(app, sock, authority.server_context(), listener.Limits()), asyncio.timeout(WAIT_SECONDS):
        tls = ssl.create_default_context(cadata=authority.ca_pem.decode())
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", sock.getsockname()[1], ssl=tls, server_hostname="localhost", limit=2**20
        )
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


def switching(talk: Talk, *, protocol: str = "") -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if isinstance(scope.get(UPGRADE), raw_upgrade.RawUpgrade):
            await Switching(talk, protocol=protocol)(scope, receive, send)
            return
        headers = [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"plain"})

    return app


async def echo(wire: Any) -> None:
    while (data := await wire.receive()) is not None:
        await wire.send(data)


async def test_bytes_pass_as_they_are_both_ways(live_authority: pki.Authority) -> None:
    async with serving(live_authority, switching(echo, protocol="v4.channel.k8s.io")) as (reader, writer):
        writer.write(HEAD + b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head == (
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\n"
            b"x-stream-protocol-version: v4.channel.k8s.io\r\n\r\n"
        )
        content = bytes(range(256)) * 8000
        writer.write(content)
        assert await reader.readexactly(len(content)) == content
        writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert await reader.readexactly(25) == b"GET /healthz HTTP/1.1\r\n\r\n", "nobody reads it as HTTP any more"


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"Content-Length: 4\r\n\r\nbody",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n",
        HEAD.replace(b"POST", b"PUT") + b"\r\n",
        HEAD.replace(b"SPDY/3.1", b"SPDY/3") + b"\r\n",
        HEAD.replace(b"SPDY/3.1", b"h2c") + b"\r\n",
        HEAD + b"Upgrade: SPDY/3.1\r\n\r\n",
        HEAD.replace(b"Connection: Upgrade", b"Connection: keep-alive") + b"\r\n",
    ],
)
async def test_what_asks_in_no_due_form_is_answered_as_ever(live_authority: pki.Authority, head: bytes) -> None:
    async with serving(live_authority, switching(echo)) as (reader, writer):
        writer.write(head)
        assert (await reader.readline()).split(b" ")[1] in (b"200", b"400")


async def test_a_refusal_is_an_answer_and_the_connection_goes_on(live_authority: pki.Authority) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})

    async with serving(live_authority, app) as (reader, writer):
        for _ in range(2):
            writer.write(HEAD + b"\r\n")
            assert (await reader.readuntil(b"\r\n\r\nno")).startswith(b"HTTP/1.1 403 ")


async def test_who_does_not_wait_for_the_answer_is_given_up(
    live_authority: pki.Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What came too early was read as HTTP, and would be missing."""
    asked, seen, talked = asyncio.Event(), asyncio.Event(), False
    complete = listener.HubProtocol.on_message_complete

    def completed(protocol: listener.HubProtocol) -> None:
        complete(protocol)
        if asked.is_set():
            seen.set()

    monkeypatch.setattr(listener.HubProtocol, "on_message_complete", completed)

    async def talk(wire: Any) -> None:
        nonlocal talked
        talked = True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await seen.wait()
        await Switching(talk)(scope, receive, send)

    async with serving(live_authority, app) as (reader, writer):
        writer.write(HEAD + b"\r\n")
        await asked.wait()
        writer.write(b"POST /smuggled HTTP/1.1\r\nHost: hub\r\nContent-Length: 3\r\n\r\nabc")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1)
    assert not talked
    assert not caplog.records, "it is the client's to choose"


async def test_who_reads_nothing_fills_no_memory_and_hears_the_end(live_authority: pki.Authority) -> None:
    written, stuck, ended = 0, asyncio.Event(), asyncio.Event()

    async def talk(wire: Any) -> None:
        nonlocal written
        with contextlib.suppress(Gone):
            while written < ENOUGH:
                sending = asyncio.ensure_future(wire.send(bytes(65536)))
                if not (await asyncio.wait({sending}, timeout=0.3))[0]:
                    stuck.set()
                await sending
                written += 65536
            stuck.set()
        ended.set()

    async with serving(live_authority, switching(talk)) as (_, writer):
        transport: Any = writer.transport
        transport.pause_reading()
        writer.write(HEAD + b"\r\n")
        await stuck.wait()
        assert written < ENOUGH, "what the system's buffers hold, and no more"
        writer.transport.abort()
        await ended.wait()


async def test_who_is_not_listened_to_waits(live_authority: pki.Authority) -> None:
    longest = 0

    async def talk(wire: Any) -> None:
        nonlocal longest
        while wire.connection.transport.is_reading():  # noqa: ASYNC110 - asyncio tells nobody
            await asyncio.sleep(0.001)
        while (data := await wire.receive()) is not None:
            longest = max(longest, len(data))
            await wire.send(data)

    async with serving(live_authority, switching(talk)) as (reader, writer):
        writer.write(HEAD + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        content = bytes(16 * 2**20)
        writer.write(content)
        assert len(await reader.readexactly(len(content))) == len(content)
    assert longest <= raw_upgrade.HIGH_WATER_BYTES + 2**18


async def test_a_conversation_that_fails_ends_the_connection(
    live_authority: pki.Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(wire: Any) -> None:
        await wire.send(b"last")
        raise ConnectionAbortedError("it broke")

    async with serving(live_authority, switching(talk)) as (reader, writer):
        writer.write(HEAD + b"\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\nlast")
    assert not caplog.records, "it was logged where it broke"


async def test_a_hub_that_ends_ends_its_conversations(live_authority: pki.Authority) -> None:
    ended = asyncio.Event()

    async def talk(wire: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(live_authority, switching(talk)) as (reader, writer):
        writer.write(HEAD + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert not ended.is_set()
    assert ended.is_set()
