"""Who may ask what of the API: the rules, and the middleware that applies them before anything is read.

The registry below `/v2/` asks `core.access` itself, in its own words. Must not live here: how an identity was
established (`hub.identity`).
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from skerry.api.errors import ForbiddenError, UnauthorizedError
from skerry.core.access import ANONYMOUS, Identity
from skerry.hub.identity import IDENTITY

OPEN_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/version", "/cacerts"})
_ENROLLMENTS = re.compile(r"/apis/skerry\.dev/v1alpha1/namespaces/([^/]+)/enrollments")
_REGISTRY = re.compile(r"/v2(/.*)?")
_HINT = "use the hub's kubeconfig, which has an admin certificate"


def authorize(identity: Identity, *, method: str, path: str, join_token: str) -> None:
    """Return when the call is allowed; else raise UnauthorizedError (who are you?) or ForbiddenError (not you).

    Admins may do everything. A device may renew itself in its own namespace. Somebody with a join token may enrol.
    """
    if identity.role == "admin" or path in OPEN_PATHS or _REGISTRY.fullmatch(path):
        return
    enrollments = _ENROLLMENTS.fullmatch(path) if method == "POST" else None
    if enrollments is not None:
        if identity.role == "device" and identity.namespace == enrollments.group(1):
            return
        if identity.role == "anonymous" and join_token:
            return
    if identity.role == "anonymous":
        raise UnauthorizedError(element=f"{method} {path[:200]}", hint=_HINT)
    raise ForbiddenError("a device may only renew its own certificate", element=f"{method} {path[:200]}", hint=_HINT)


def join_token(authorization: str) -> str:
    """Return the token of a `Bearer` header, or ""."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def authorized(app: ASGIApp) -> ASGIApp:
    """Wrap an application so that only allowed calls reach it; the errors are raised to the wrapper outside."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            authorize(
                scope.get(IDENTITY, ANONYMOUS),
                method=scope["method"],
                path=scope["path"],
                join_token=join_token(Headers(scope=scope).get("authorization", "")),
            )
        await app(scope, receive, send)

    return checked
