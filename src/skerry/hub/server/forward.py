"""Requests that only the leading hub can answer, passed on to it by the one that was asked.

The one that was asked has found out who asks, and whether he may, and has recorded it; the leader does so again, with
the word that comes with the request. What was passed on is never passed on again. Lives here: requests, answers and
WebSocket connections on their way. Must not live here: where the leader is (`hub.forwarding`), which requests these
are (`core.forwarding`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol, cast
from urllib.parse import quote

import httpcore
import httpx
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from skerry.api.errors import TimedOutError, UnavailableError
from skerry.core import forwarding as words
from skerry.core.access import ANONYMOUS, Identity
from skerry.hub.authentication.forwarded import ACTS_AS, target_of
from skerry.hub.forwarding import HINT, Forwarding, disbelieved, unreachable
from skerry.hub.identity import IDENTITY
from skerry.hub.leadership import Leader
from skerry.hub.server import attributes, audit
from skerry.hub.tunnels import IDLE_SECONDS
from skerry.hub.upgrade import FAILED, LEAVE_SECONDS, UPGRADE, Gone, Switching, Upgrade
from skerry.kit.websocket import ABNORMAL, Closed, RefusedError

CALLER = "skerry.caller"
"""Scope key of who called, where that is another one than the caller was let act as."""
_PASSED = ("accept", "accept-encoding", "content-type", "content-encoding", "user-agent")
_KEPT_BACK = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"trailer", b"date", b"audit-id", b"server"}
)
"""Of an answer: what is between two hubs alone, or said by this one anyhow."""
_SPDY = "SPDY/3.1"
_VERSION = "x-stream-protocol-version"
"""What is spoken inside SPDY, as Kubernetes' clients offer it."""
_CHUNK = 64 * 1024
_SAFE = "!\"$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""Printable, and no fragment: sent as it came."""


def forwarded(app: ASGIApp, *, forwarding: Forwarding | None) -> ASGIApp:
    """Wrap an application so that what another hub has to answer is asked there."""

    async def forward(scope: Scope, receive: Receive, send: Send) -> None:
        found = None if forwarding is None or scope["type"] != "http" or ACTS_AS in scope else forwarding.leader()
        if forwarding is None or found is None or not words.is_for_leader(attributes.of(scope)):
            await app(scope, receive, send)
            return
        leader, over = found
        request = _Request(forwarding, leader, scope, receive, send)
        await request.run(over)

    return forward


class _Request:
    """One request on its way."""

    def __init__(self, forwarding: Forwarding, leader: Leader, scope: Scope, receive: Receive, send: Send) -> None:
        self._forwarding = forwarding
        self._leader = leader
        self._scope = scope
        self._receive = receive
        self._send = send
        self._method = cast(str, scope["method"])
        self._target = quote(target_of(scope).encode("latin-1"), safe=_SAFE)
        self._said = asyncio.Event()
        """The client has said all it has to say, so what comes next is its leaving."""
        self._switched = False

    async def run(self, over: asyncio.Event) -> None:
        """Pass it on and answer, until the client leaves or the leader is none any more.

        Raises what is to be answered instead: UnavailableError, BadRequestError.
        """
        passing = self._talk() if isinstance(self._scope.get(UPGRADE), Upgrade) else self._ask()
        work = asyncio.ensure_future(passing)
        ending, leaving = asyncio.ensure_future(over.wait()), asyncio.ensure_future(self._left())
        try:
            await asyncio.wait({work, ending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if self._switched and leaving.done() and not ending.done():
                # What it said last is still passed on.
                await asyncio.wait({work, ending}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return
        finally:
            for task in (work, ending, leaving):
                task.cancel()
            await asyncio.gather(work, ending, leaving, return_exceptions=True)
        if not ending.done() or ending.cancelled():
            raise ClientDisconnect
        raise UnavailableError("does not lead any more", element="the hub that was asked", hint=HINT)

    async def _left(self) -> None:
        await self._said.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _ask(self) -> None:
        """Pass on a request and its answer, which may be to go on in bytes, as SPDY."""
        body = None if self._method in ("GET", "HEAD") or UPGRADE in self._scope else self._body()
        if body is None:
            self._said.set()
        async with self._forwarding.ask(self._leader, self._method, self._target, self._headers(), body) as answer:
            if answer.status_code == 101:
                await self._switch(_Bytes(answer.extensions["network_stream"]), answer.headers.get(_VERSION, ""))
                return
            if answer.status_code == 401:
                raise disbelieved(self._leader)
            lowered = [(name.lower(), value) for name, value in answer.headers.raw]
            headers = [(name, value) for name, value in lowered if name not in _KEPT_BACK]
            await self._send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
            try:
                async for piece in answer.aiter_raw():
                    await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            except httpx.HTTPError as error:
                raise unreachable(self._leader, str(error) or type(error).__name__) from None
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _body(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            more = message.get("more_body", False)
            yield message.get("body", b"")
        self._said.set()

    async def _talk(self) -> None:
        """Pass on a WebSocket connection, or the answer of one that is refused."""
        client: Upgrade = self._scope[UPGRADE]
        self._said.set()
        try:
            async with self._forwarding.connect(
                self._leader, self._target, self._headers(), client.protocols
            ) as leading:
                await self._switch(leading, leading.protocol)
        except RefusedError as refused:
            if refused.status == 401:
                raise disbelieved(self._leader) from None
            answer = Response(refused.body, refused.status, media_type="application/json")
            await answer(self._scope, self._receive, self._send)
        except (TimedOutError, UnavailableError) as error:
            raise unreachable(self._leader, error.sentence) from None

    async def _switch(self, leading: _Leading, protocol: str) -> None:
        """Switch as the leader has, and talk to the end."""
        self._switched = True

        async def talk(_: object) -> None:
            await _join(self._scope[UPGRADE], leading)

        await Switching(talk, protocol=protocol)(self._scope, self._receive, self._send)

    def _headers(self) -> dict[str, str]:
        """Return what the leader is told: who asks, and of the request's headers what its answer depends on."""
        scope = self._scope
        came = Headers(scope=scope)
        found = {name: ", ".join(filter(_is_plain, came.getlist(name))) for name in _PASSED if name in came}
        if came.get("upgrade", "").lower() == _SPDY.lower():
            versions = ", ".join(value for value in came.getlist(_VERSION) if _is_plain(value))
            found |= {"upgrade": _SPDY, "connection": "Upgrade", **({_VERSION: versions} if versions else {})}
        record = scope.get(audit.RECORD)
        if isinstance(record, audit.Record):
            found[audit.HEADER.lower()] = record.audit_id
        identity: Identity = scope.get(IDENTITY, ANONYMOUS)
        caller: Identity = scope.get(CALLER, identity)
        client = scope.get("client")
        found[words.HEADER] = self._forwarding.seal(
            self._leader,
            method=self._method,
            target=self._target,
            caller=caller,
            acts_as=None if caller is identity else identity,
            source=client[0] if client else "",
        )
        return found


class _Leading(Protocol):
    """The leader's end of a conversation."""

    ended: Closed | None

    async def receive(self) -> bytes | None: ...

    async def send(self, data: bytes) -> None: ...

    async def close(self, code: int = 1000, reason: str = "") -> None: ...


class _Bytes:
    """The leader's end of a conversation that is bytes, once it has switched; whoever asked closes it."""

    def __init__(self, stream: Any) -> None:
        self.ended: Closed | None = None
        self._stream = stream

    async def receive(self) -> bytes | None:
        try:
            data: bytes = await self._stream.read(_CHUNK)
        except (httpcore.NetworkError, OSError):
            self.ended = Closed(ABNORMAL)
            return None
        self.ended = None if data else Closed()
        return data or None

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.write(data)
        except (httpcore.NetworkError, OSError) as error:
            raise UnavailableError(str(error)[:200]) from None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        del code, reason


async def _join(client: Any, leading: _Leading) -> None:
    """Pass on both ways until either end has said its last, and tell the other one how it ended."""
    try:
        await _until_either_ends(client, leading)
    except Gone:
        return
    except UnavailableError:
        leading.ended = Closed(ABNORMAL)
    if leading.ended is None:
        await leading.close(_sendable(client.code), client.reason)
    elif leading.ended.code == ABNORMAL:
        await client.close(FAILED, "the connection to the hub that leads broke", patience=IDLE_SECONDS)
    else:
        await client.close(_sendable(leading.ended.code), leading.ended.reason, patience=IDLE_SECONDS)


async def _until_either_ends(client: Any, leading: _Leading) -> None:
    """Raises Gone for a client that has left, UnavailableError for a leader."""

    async def up() -> None:
        while (data := await client.receive()) is not None:
            await leading.send(data)

    async def down() -> None:
        while (data := await leading.receive()) is not None:
            await client.send(data)

    async def leave() -> None:
        await client.gone()
        await asyncio.sleep(LEAVE_SECONDS)  # for what it said last to be taken
        raise Gone

    tasks = [asyncio.ensure_future(one) for one in (up(), down(), leave())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _sendable(code: int) -> int:
    """Return a code that may be sent (RFC 6455, 7.4): some say only that none was."""
    return 1000 if code == 1005 else FAILED if code in (1004, 1006, 1015) or not 1000 <= code < 5000 else code


def _is_plain(value: str) -> bool:
    return value.isascii() and value.isprintable()
