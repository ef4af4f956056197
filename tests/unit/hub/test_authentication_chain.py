"""The order of ways to log in: what is asked when, and what is never asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from skerry.api.errors import UnauthorizedError, UnavailableError
from skerry.core.access import ANONYMOUS, Identity
from skerry.hub.authentication import chain
from skerry.hub.authentication.chain import Authenticated, Authentication
from skerry.hub.identity import IDENTITY

HUB = "https://hub:7443"
ADA, BOB = Identity(role="user", name="ada"), Identity(role="user", name="bob")
ENROLMENTS = "/apis/skerry.dev/v1alpha1/namespaces/default/enrollments"


class Tokens:
    """Knows tokens that begin with its own word."""

    def __init__(self, word: str, identity: Identity, error: Exception | None = None) -> None:
        self.word, self.identity, self.error = word, identity, error
        self.asked: list[tuple[str, Sequence[str]]] = []

    async def authenticate(self, token: str, audiences: Sequence[str]) -> Authenticated | None:
        self.asked.append((token, audiences))
        if not token.startswith(self.word):
            return None
        if self.error is not None:
            raise self.error
        return Authenticated(identity=self.identity, audiences=tuple(audiences))


class Proxy:
    """A front proxy in front of whoever says so."""

    async def identify(self, scope: Scope) -> Identity | None:
        return BOB if (b"x-proxied", b"yes") in scope["headers"] else None


async def ask(
    authentication: Authentication, path: str = "/api", method: str = "GET", identity: Any = None, **headers: str
) -> Scope:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        del receive, send
        seen.append(scope)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "path": path, "method": method, "headers": raw}
    if identity is not None:
        scope[IDENTITY] = identity
    wrapped: Any = chain.authenticated(app, authentication=authentication, audience=HUB)
    await wrapped(scope, None, None)
    return seen[0]


async def test_the_first_that_knows_a_token_answers() -> None:
    first, second, third = Tokens("a", ADA), Tokens("b", BOB), Tokens("", ANONYMOUS)
    found = await ask(Authentication(tokens=(first, second, third)), authorization="bearer b1")
    assert found[IDENTITY] == BOB
    assert found[chain.BY_TOKEN] is True
    assert (first.asked, second.asked, third.asked) == ([("b1", (HUB,))], [("b1", (HUB,))], [])


async def test_a_certificate_and_a_proxy_go_before_tokens() -> None:
    tokens = Tokens("", ADA)
    both = Authentication(requests=(Proxy(),), tokens=(tokens,))
    device = Identity(role="device", name="d1", namespace="lab")
    assert (await ask(both, identity=device, authorization="Bearer x", x_proxied="yes"))[IDENTITY] == device
    proxied = await ask(both, identity=ANONYMOUS, authorization="Bearer x", x_proxied="yes")
    assert proxied[IDENTITY] == BOB
    assert not proxied.get(chain.BY_TOKEN)
    assert tokens.asked == []
    assert (await ask(both, identity=ANONYMOUS, authorization="Bearer x"))[IDENTITY] == ADA


@pytest.mark.parametrize("header", ["", "Basic eDp5", "Negotiate x", "Bear er x"])
async def test_without_a_bearer_nobody_is_asked(header: str) -> None:
    tokens = Tokens("", ADA)
    found = await ask(Authentication(tokens=(tokens,)), **({"authorization": header} if header else {}))
    assert found.get(IDENTITY, ANONYMOUS) == ANONYMOUS
    assert tokens.asked == []


@pytest.mark.parametrize("token", ["", " ", "unknown", "x" * (chain.MAX_TOKEN_LENGTH + 1), "a\x7f", "\xe9"])
async def test_a_bearer_that_nobody_knows_is_refused(token: str) -> None:
    tokens = Tokens("known", ADA)
    with pytest.raises(UnauthorizedError, match="not one that this hub knows"):
        await ask(Authentication(tokens=(tokens,)), path="/healthz", authorization=f"Bearer {token}")


@pytest.mark.parametrize("error", [UnauthorizedError("no"), UnavailableError("later")])
async def test_one_that_knows_a_token_and_refuses_it_ends_the_search(error: Exception) -> None:
    last = Tokens("", ADA)
    with pytest.raises(type(error)):
        await ask(Authentication(tokens=(Tokens("", BOB, error), last)), authorization="Bearer x")
    assert last.asked == []


async def test_join_tokens_and_registry_bearers_are_not_its_own() -> None:
    tokens = Tokens("known", ADA)
    authentication = Authentication(tokens=(tokens,))
    enrolling = await ask(authentication, ENROLMENTS, "POST", authorization="Bearer skj1.x")
    assert enrolling.get(IDENTITY, ANONYMOUS) == ANONYMOUS
    assert tokens.asked == []
    for method, path in (("GET", ENROLMENTS), ("POST", f"{ENROLMENTS}/x"), ("POST", f"/x{ENROLMENTS}")):
        with pytest.raises(UnauthorizedError):
            await ask(authentication, path, method, authorization="Bearer skj1.x")
    registry = await ask(authentication, "/v2/x/blobs/y", authorization="Bearer skb1.x")
    assert registry.get(IDENTITY, ANONYMOUS) == ANONYMOUS
    assert not registry.get(chain.BY_TOKEN)
    assert (await ask(authentication, "/v2/", authorization="Bearer known"))[IDENTITY] == ADA
    with pytest.raises(UnauthorizedError):
        await ask(authentication, "/v2x", authorization="Bearer skb1.x")
