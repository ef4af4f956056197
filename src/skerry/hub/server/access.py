"""Who may ask what of the API: the middleware that decides it before anything is read.

Admins may do everything, users what the authorizer says, devices and strangers what this file says. The registry below
`/v2/` asks for itself, in its own words (`registry.callers`). Must not live here: how an identity was established
(`hub.identity`), what roles allow (`hub.authorization`), what a request wants (`attributes`).
"""

from __future__ import annotations

import re
import shlex

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from skerry.api.errors import DeniedError, ForbiddenError, UnauthorizedError
from skerry.core.access import ANONYMOUS, Identity, account_of
from skerry.hub import roles
from skerry.hub.authentication.forwarded import ACTS_AS
from skerry.hub.authorization import Attributes, Authorizer
from skerry.hub.identity import IDENTITY
from skerry.hub.server import attributes, audit, impersonation
from skerry.hub.server.forward import CALLER

OPEN_PATHS = frozenset(
    {"/healthz", "/livez", "/readyz", "/version", "/cacerts", "/.well-known/openid-configuration", "/openid/v1/jwks"}
)
"""The last two hold public keys, with which anybody may check service accounts' tokens."""
_ENROLLMENTS = re.compile(r"/apis/skerry\.dev/v1alpha1/namespaces/([^/]+)/enrollments")
_TUNNEL = re.compile(r"/apis/skerry\.dev/v1alpha1/tunnels/[^/]+")
"""A device's connection for one conversation, whose id only it and the hub know (`hub.tunnels`)."""
_REGISTRY = re.compile(r"/v2(/.*)?")
_HINT = "log in: use the hub's kubeconfig, or one that `skerry kubeconfig` has written"
_DEVICE_HINT = "use a person's kubeconfig"


def authorize(identity: Identity, *, method: str, path: str, join_token: str) -> None:
    """Return when the call is allowed; else raise UnauthorizedError (who are you?) or ForbiddenError (not you).

    Admins may do everything. A device may renew itself in its own namespace. Somebody with a join token may enrol.
    Users are for `check`.
    """
    if identity.role == "admin" or is_open(path):
        return
    enrollments = _ENROLLMENTS.fullmatch(path) if method == "POST" else None
    if enrollments is not None:
        if identity.role == "device" and identity.namespace == enrollments.group(1):
            return
        if identity.role == "anonymous" and join_token:
            return
    if identity.role == "device" and method == "GET" and _TUNNEL.fullmatch(path):
        return
    if identity.role == "anonymous":
        raise UnauthorizedError(element=f"{method} {path[:200]}", hint=_HINT)
    raise ForbiddenError(
        "a device may only renew its own certificate", element=f"{method} {path[:200]}", hint=_DEVICE_HINT
    )


async def check(authorizer: Authorizer, identity: Identity, wanted: Attributes) -> None:
    """Return when the authorizer allows it. Raises DeniedError, in Kubernetes' words; UnavailableError."""
    decision = await authorizer.authorize(identity, wanted)
    if not decision.allowed:
        raise denied(identity, wanted, decision.reason)


def denied(identity: Identity, wanted: Attributes, reason: str = "") -> DeniedError:
    """Return the refusal of a request, with the role that would allow it as its hint."""
    who = f'User "{identity.username}"'
    role = roles.granting(wanted)
    if wanted.is_resource:
        where = f'in the namespace "{wanted.namespace}"' if wanted.namespace else "at the cluster scope"
        cause = f'{who} cannot {wanted.verb} resource "{wanted.whole}" in API group "{wanted.group}" {where}'
        grant = f"rolebinding -n {wanted.namespace}" if wanted.namespace else "clusterrolebinding"
    else:
        cause, grant = f'{who} cannot {wanted.verb} path "{wanted.path[:200]}"', "clusterrolebinding"
    subject = _subject(identity)
    hint = f"the role {role} allows it: ask an admin for `kubectl create {grant} NAME --clusterrole={role} {subject}`"
    return DeniedError(
        f"{cause}: {reason}" if reason else cause,
        group=wanted.group,
        resource=wanted.resource,
        name=wanted.name,
        hint=hint,
    )


def _subject(identity: Identity) -> str:
    """Return how kubectl names somebody to whom a role is bound."""
    account = account_of(identity.username)
    text = f"--serviceaccount={account[0]}:{account[1]}" if account else f"--user={identity.username}"
    return shlex.quote(text[:300])


def is_open(path: str) -> bool:
    """Return whether everybody may ask for this, or something else looks who does."""
    return path in OPEN_PATHS or _REGISTRY.fullmatch(path) is not None


def join_token(authorization: str) -> str:
    """Return the token of a `Bearer` header, or ""."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def authorized(app: ASGIApp, *, authorizer: Authorizer) -> ASGIApp:
    """Wrap an application so that only allowed calls reach it; the errors are raised to the wrapper outside."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            caller = scope.get(IDENTITY, ANONYMOUS)
            if ACTS_AS in scope:  # another hub has asked whether the caller may
                identity = scope[ACTS_AS] or caller
            else:
                identity = await impersonation.impersonated(authorizer, caller, headers)
            if identity is not caller:
                audit.act_as(scope, identity)
                scope = {**scope, IDENTITY: identity, CALLER: caller}
            if identity.role != "user":
                token = join_token(headers.get("authorization", ""))
                authorize(identity, method=scope["method"], path=scope["path"], join_token=token)
            elif not is_open(scope["path"]):
                await check(authorizer, identity, attributes.of(scope))
        await app(scope, receive, send)

    return checked
