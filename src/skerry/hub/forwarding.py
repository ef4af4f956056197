"""The way from a hub that does not lead to the one that does: where that is, and connections to it.

Both ends prove themselves by certificates of the CA that the hubs share. A hub's certificate as a server is known by
a name that only hubs have, not by its address: several hubs share the addresses that others know. Must not live here:
what is passed on and its answers (`server.forward`), the word that goes with it (`core.forwarding`).
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

from skerry.api.errors import BadRequestError, UnavailableError
from skerry.core import forwarding
from skerry.core.access import Identity
from skerry.core.forwarding import Word
from skerry.core.ports import Clock
from skerry.hub.leadership import Leader
from skerry.kit import websocket_client
from skerry.kit.websocket_client import WebSocket

if TYPE_CHECKING:
    import ssl

    from skerry.hub.pki import Authority

SERVER_NAME = "localhost"
"""In every hub's own certificate as a server, and in nobody else's of this CA."""
CONNECT_SECONDS = 5.0
HEAD_SECONDS = 75.0
"""Until the leader's answer begins: it gives up after 60 itself."""
WRITE_SECONDS = 30.0
MAX_CONNECTIONS = 1000
KEPT_CONNECTIONS = 16
KEPT_SECONDS = 30.0
"""Less than the listener keeps an idle connection."""
# A log that is followed may be silent for long; that its hub leads no more ends it.
_TIMEOUT = {"timeout": httpx.Timeout(CONNECT_SECONDS, read=None, write=WRITE_SECONDS).as_dict()}
HINT = "try again in some seconds: another hub takes over when the one that leads is gone"


@dataclass(kw_only=True, eq=False)
class Forwarding:
    """One hub's way to the leader."""

    authority: Authority
    clock: Clock
    leads: Callable[[], bool]
    """Whether this hub leads now."""
    address: str
    """Where other hubs reach this one, as in 10.0.0.7:7443."""
    holder: str = field(default_factory=lambda: secrets.token_hex(8))
    """By which this hub knows itself among those that share its store."""
    _leader: Leader | None = field(default=None, init=False)
    _over: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _client: httpx.AsyncClient | None = field(default=None, init=False)
    _tls: ssl.SSLContext | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Derive what is the same as long as the hub lives."""
        self.key: bytes = self.authority.derive_key(forwarding.PURPOSE)

    def point(self, leader: Leader | None) -> None:
        """Take notice of who leads; what is under way to another one is over."""
        if leader != self._leader:
            self._over.set()
            self._over = asyncio.Event()
        self._leader = leader

    def leader(self) -> tuple[Leader, asyncio.Event] | None:
        """Return another hub that leads, and what is set when it does no more; None: this one, or nobody knows."""
        if self._leader is None or self._leader.holder == self.holder or self.leads():
            return None
        return self._leader, self._over

    def seal(
        self, leader: Leader, *, method: str, target: str, caller: Identity, acts_as: Identity | None, source: str
    ) -> str:
        """Return this hub's word for who asks. Raises BadRequestError when it is too long."""
        word = Word(
            to=leader.holder,
            method=method,
            target=target,
            at=self.clock.now(),
            caller=forwarding.person_of(caller),
            acts_as=None if acts_as is None else forwarding.person_of(acts_as),
            source=source,
        )
        text = forwarding.seal(word, self.key)
        if len(text) > forwarding.MAX_LENGTH:
            raise BadRequestError("its groups are too long to be passed on", element="user", hint=f"ask {leader.url}")
        return text

    @asynccontextmanager
    async def ask(
        self, leader: Leader, method: str, target: str, headers: Mapping[str, str], body: AsyncIterable[bytes] | None
    ) -> AsyncIterator[httpx.Response]:
        """Ask the leader and hand out its answer, of which the body is still to come. Raises UnavailableError."""
        client = self._opened()
        request = httpx.Request(  # not by the client, which would ask for more than who asked did
            method,
            f"https://{place_of(leader)}/",
            headers={"accept-encoding": "identity", **headers},
            content=body,
            extensions={"sni_hostname": SERVER_NAME, "target": target.encode("ascii"), **_TIMEOUT},
        )
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                answer = await client.send(request, stream=True)
        except (httpx.HTTPError, OSError, TimeoutError) as error:
            raise unreachable(leader, str(error) or type(error).__name__) from None
        try:
            yield answer
        finally:
            await answer.aclose()

    def connect(
        self, leader: Leader, target: str, headers: Mapping[str, str], protocols: Sequence[str]
    ) -> AbstractAsyncContextManager[WebSocket]:
        """Connect to the leader by WebSocket. Raises as `websocket_client.connect`."""
        self._opened()
        return websocket_client.connect(
            f"https://{place_of(leader)}{target}",
            tls=self._tls,
            protocols=protocols,
            headers=headers,
            timeout_seconds=HEAD_SECONDS,
            server_name=SERVER_NAME,
        )

    async def close(self) -> None:
        """Close what is kept open."""
        if self._client is not None:
            await self._client.aclose()

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            self._tls = self.authority.hub_client_context()
            self._client = httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(
                    verify=self._tls,
                    limits=httpx.Limits(
                        max_connections=MAX_CONNECTIONS,
                        max_keepalive_connections=KEPT_CONNECTIONS,
                        keepalive_expiry=KEPT_SECONDS,
                    ),
                    socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
                ),
                trust_env=False,
            )
        return self._client


def place_of(leader: Leader) -> str:
    """Return host and port where a hub reaches the one that leads."""
    return leader.address or leader.url.partition("://")[2]


def disbelieved(leader: Leader) -> UnavailableError:
    """Return the error of a leader that refuses this hub's word: whoever asked has logged in, and is not to again."""
    return UnavailableError(
        "does not take this hub's word for who asks",
        element=f"the hub that leads ({place_of(leader)})",
        hint="the hubs must be of one version and their clocks right; nothing between them may end TLS",
    )


def unreachable(leader: Leader, cause: str) -> UnavailableError:
    """Return the error of a leader that does not answer."""
    return UnavailableError(
        f"does not answer ({cause[:200]})", element=f"the hub that leads ({place_of(leader)})", hint=HINT
    )
