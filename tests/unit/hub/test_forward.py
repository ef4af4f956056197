"""A request on its way to a hub that leads, or to what only seems to be one."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send
from tests.unit.hub.conftest import new_csr

from skerry.api.errors import UnavailableError
from skerry.core.access import Identity
from skerry.hub import pki
from skerry.hub.authentication.forwarded import ACTS_AS
from skerry.hub.forwarding import Forwarding
from skerry.hub.identity import IDENTITY
from skerry.hub.leadership import Leader
from skerry.hub.server.forward import forwarded
from skerry.kit.clock import SystemClock

PATH = "/api/v1/namespaces/default/pods/digits.till-1/log"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\nx-own: 1\r\n"


class Asked:
    """One request to a hub that does not lead, and its answer."""

    def __init__(self, forwarding: Forwarding, **changed: Any) -> None:
        self.sent: list[Message] = []
        self.here = False
        self.left = asyncio.Event()
        self.begun = asyncio.Event()
        self._first = True
        self._forwarding = forwarding
        self.scope: Scope = {
            "type": "http",
            "method": "GET",
            "path": PATH,
            "raw_path": PATH.encode(),
            "query_string": b"",
            "headers": [(b"cookie", b"secret"), (b"authorization", b"Bearer secret")],
            "client": ("192.0.2.7", 1),
            IDENTITY: Identity(role="admin", name="admin"),
            **changed,
        }
        self._app = forwarded(self._answer_here, forwarding=forwarding)

    async def run(self) -> None:
        try:
            async with asyncio.timeout(20):
                await self._app(self.scope, self._receive, self._send)
        finally:
            await self._forwarding.close()

    async def _answer_here(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive, send
        self.here = True

    async def _receive(self) -> Message:
        if self._first:
            self._first = False
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        self.begun.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


@asynccontextmanager
async def answering(
    tls: ssl.SSLContext, answer: bytes, *, hold: bool = False
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers everything alike, and what it was asked; one that holds never ends its answer."""
    heads: list[bytes] = []
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
            if hold:
                await done.wait()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
        done.set()


def pointing(authority: pki.Authority, address: str, *, holder: str = "other", leads: bool = False) -> Forwarding:
    made = Forwarding(
        authority=authority, clock=SystemClock(), leads=lambda: leads, address="127.0.0.1:1", holder="own"
    )
    made.point(leader(address, holder=holder))
    return made


def leader(address: str, *, holder: str = "other", term: int = 1) -> Leader:
    return Leader(holder=holder, host="h", url="https://hub.example.org:7443", term=term, address=address)


async def test_an_answer_comes_back_whole_and_no_credential_goes_along(live_authority: pki.Authority) -> None:
    async with answering(live_authority.server_context(), OK + b"content-length: 5\r\n\r\nlines") as (address, heads):
        asked = Asked(pointing(live_authority, address))
        await asked.run()
    assert (asked.sent[0]["status"], asked.body) == (200, b"lines")
    names = dict(asked.sent[0]["headers"])
    assert names == {b"content-type": b"text/plain", b"x-own": b"1", b"content-length": b"5"}
    assert heads[0].startswith(f"GET {PATH} HTTP/1.1\r\n".encode())
    assert b"secret" not in heads[0]
    assert b"python-httpx" not in heads[0]


@pytest.mark.parametrize(
    ("changed", "pointed"),
    [
        ({ACTS_AS: None}, {}),
        ({"path": "/api/v1/nodes"}, {}),
        ({}, {"holder": "own"}),
        ({}, {"leads": True}),
    ],
    ids=["passed on already", "answered by all", "this hub's own record", "this hub leads by now"],
)
async def test_what_is_not_another_s_is_answered_here(
    live_authority: pki.Authority, changed: dict[Any, Any], pointed: dict[str, Any]
) -> None:
    asked = Asked(pointing(live_authority, "127.0.0.1:1", **pointed), **changed)
    await asked.run()
    assert asked.here


async def test_who_is_no_hub_is_told_nothing(live_authority: pki.Authority, tmp_path: Path) -> None:
    """A server of another CA, and a device as its neighbours' server: neither gets as far as a request."""
    stranger = pki.open_authority(tmp_path / "pki", names=(), clock=SystemClock())
    key = ec.generate_private_key(ec.SECP256R1())
    files = tmp_path / "peer.crt", tmp_path / "peer.key"
    files[0].write_bytes(live_authority.issue_peer(new_csr(key), "uid-1", "default"))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    for tls in (stranger.server_context(), live_authority.server_context(files=files)):
        async with answering(tls, OK + b"content-length: 0\r\n\r\n") as (address, heads):
            with pytest.raises(UnavailableError, match="does not answer"):
                await Asked(pointing(live_authority, address)).run()
            assert not heads


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n", "does not take this hub's word"),
        (b"nonsense\r\n\r\n", "does not answer"),
        (b"", "does not answer"),
        (OK + b"content-length: 50\r\n\r\nbroken off", "does not answer"),
    ],
    ids=["not believed", "no HTTP", "gone", "broken off"],
)
async def test_a_leader_that_fails_is_named(live_authority: pki.Authority, answer: bytes, match: str) -> None:
    async with answering(live_authority.server_context(), answer) as (address, _):
        with pytest.raises(UnavailableError, match=match) as caught:
            await Asked(pointing(live_authority, address)).run()
        assert address in str(caught.value.sentence)


async def test_an_answer_ends_when_another_hub_leads(live_authority: pki.Authority) -> None:
    await _ends(live_authority, lambda forwarding, _: forwarding.point(leader("127.0.0.1:1", term=2)), UnavailableError)


async def test_an_answer_ends_when_the_client_leaves(live_authority: pki.Authority) -> None:
    await _ends(live_authority, lambda _, asked: asked.left.set(), ClientDisconnect)


async def _ends(authority: pki.Authority, end: Callable[[Forwarding, Asked], None], error: type[Exception]) -> None:
    async with answering(authority.server_context(), OK + b"content-length: 9\r\n\r\nline", hold=True) as (address, _):
        forwarding = pointing(authority, address)
        asked = Asked(forwarding)
        running = asyncio.ensure_future(asked.run())
        await asked.begun.wait()
        end(forwarding, asked)
        with pytest.raises(error):
            await running
