"""The order in which ways to log in are tried, and the middleware that tries them.

First comes the client certificate (`hub.identity`, around all this): whom it names, that is who calls. For others each
authenticator is asked in turn. One that does not know what was presented says None; one that knows it and finds it
wrong raises, and so does the chain when nobody knows a bearer token: who presents a token is never nobody.

Two bearers are none of this chain's: join tokens, which enrolment reads itself, and the registry's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from skerry.api.errors import UnauthorizedError
from skerry.core.access import ANONYMOUS, Identity
from skerry.hub.identity import IDENTITY

BY_TOKEN = "skerry.by_token"  # noqa: S105 - a scope's key
"""Scope key, true where a bearer token said who calls."""
MAX_TOKEN_LENGTH = 32 * 1024
"""Characters; one with a user's many groups is long, and a request's head is bounded anyway."""

_ENROLLMENTS = re.compile(r"/apis/skerry\.dev/v1alpha1/namespaces/[^/]+/enrollments")
_HINT = "it may have expired; make a new one, or log in again"


@dataclass(frozen=True, kw_only=True)
class Authenticated:
    """Whom a token names, and which of the audiences asked for it is meant for."""

    identity: Identity
    audiences: tuple[str, ...]


class TokenAuthenticator(Protocol):
    """One kind of bearer tokens."""

    async def authenticate(self, token: str, audiences: Sequence[str]) -> Authenticated | None:
        """Return whom it names, or None when it is not of this kind.

        Raises UnauthorizedError for one that is of this kind and not good, or for none of the audiences;
        UnavailableError when that cannot be told at the moment.
        """
        ...


class RequestAuthenticator(Protocol):
    """A way to log in that looks at the whole request, as a front proxy's headers with its certificate."""

    async def identify(self, scope: Scope) -> Identity | None:
        """Return who calls, or None when the request does not come this way. Raises UnauthorizedError."""
        ...


@dataclass(frozen=True, kw_only=True)
class Authentication:
    """Everything that is tried besides the hub's own certificates, in this order."""

    requests: Sequence[RequestAuthenticator] = ()
    tokens: Sequence[TokenAuthenticator] = ()

    async def identify(self, scope: Scope) -> Identity | None:
        """Return who calls by anything but a token, or None. Raises UnauthorizedError."""
        for authenticator in self.requests:
            found = await authenticator.identify(scope)
            if found is not None:
                return found
        return None

    async def review(self, token: str, audiences: Sequence[str]) -> Authenticated:
        """Return whom a token names. Raises UnauthorizedError, UnavailableError; never says what the token was."""
        if 0 < len(token) <= MAX_TOKEN_LENGTH and token.isascii() and token.isprintable():
            for authenticator in self.tokens:
                found = await authenticator.authenticate(token, audiences)
                if found is not None:
                    return found
        raise UnauthorizedError("is not one that this hub knows", element="bearer token", hint=_HINT)


def authenticated(app: ASGIApp, *, authentication: Authentication, audience: str) -> ASGIApp:
    """Wrap an application so that whoever has no certificate of the hub's may be known otherwise.

    `audience` is what tokens for this API name. The errors are raised to the wrapper outside.
    """

    async def known(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get(IDENTITY, ANONYMOUS).role == "anonymous" and not _is_enrolment(scope):
            await _identify(scope, authentication, audience)
        await app(scope, receive, send)

    return known


def bearer(headers: Headers) -> str | None:
    """Return the token of an `Authorization: Bearer` header (RFC 6750), or None without such a header."""
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


async def _identify(scope: Scope, authentication: Authentication, audience: str) -> None:
    """Put who calls into the scope, if anything says so. Raises UnauthorizedError, UnavailableError."""
    found = await authentication.identify(scope)
    if found is not None:
        scope[IDENTITY] = found
        return
    token = bearer(Headers(scope=scope))
    if token is None:
        return
    try:
        reviewed = await authentication.review(token, (audience,))
    except UnauthorizedError:
        if not _is_registry(scope["path"]):
            raise
        return  # the registry has bearers of its own, and refuses in its own words what is none of them either
    scope[IDENTITY], scope[BY_TOKEN] = reviewed.identity, True


def _is_registry(path: str) -> bool:
    return path == "/v2" or path.startswith("/v2/")


def _is_enrolment(scope: Scope) -> bool:
    return scope["method"] == "POST" and _ENROLLMENTS.fullmatch(scope["path"]) is not None
