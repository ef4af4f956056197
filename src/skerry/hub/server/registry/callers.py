"""Who calls, and what they may do: by client certificate or by Bearer token, never by both together.

    admin's certificate     everything
    user                    what his roles say of `repositories`, by the namespace that a repository's name begins with
    device's certificate    reads what is deployed to it (see `devices`)
    Bearer token            what it was granted, in its own namespace; see `tokens`

Must not live here: reading certificates (`hub.identity`), what tokens contain (`core.registry_access`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request

from skerry.api.errors import ForbiddenError, UnauthorizedError
from skerry.core import access
from skerry.core import registry_access as scopes
from skerry.hub import roles
from skerry.hub.authentication.chain import BY_TOKEN
from skerry.hub.context import HubContext
from skerry.hub.identity import IDENTITY
from skerry.hub.server import escalation

SERVICE = "skerry-registry"
TOKEN_PATH = "/v2/token"  # noqa: S105 - a URL
BEARER_KEY = "registry bearer v1"

_HOST = re.compile(r"(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """An authenticated caller, or nobody."""

    identity: access.Identity
    grants: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What a Bearer token grants."""
    subject: str = ""
    """Whose Bearer token it is; empty for owners of certificates."""

    @property
    def is_device(self) -> bool:
        """Only devices are bound to what is deployed to them."""
        return not self.subject and self.identity.role == "device"

    @property
    def name(self) -> str:
        """Who began an upload, and alone may go on with it."""
        return f"token {self.subject}" if self.subject else f"{self.identity.role} {self.identity.name}"


def identify(context: HubContext, request: Request) -> Caller:
    """Return who calls. Raises UnauthorizedError for a Bearer token that is not (or no longer) good."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and not request.scope.get(BY_TOKEN):
        key = context.authority.derive_key(BEARER_KEY)
        claims = scopes.open_bearer(token.strip(), key, now=context.clock.now().timestamp())
        return Caller(identity=access.ANONYMOUS, grants=claims.grants, subject=claims.subject)
    return Caller(identity=cast(access.Identity, request.scope.get(IDENTITY, access.ANONYMOUS)))


async def may(context: HubContext, caller: Caller, action: str, repository: str) -> bool:
    """Return whether a caller may do that there; which content a device may read is looked at later."""
    if caller.subject:
        return action in caller.grants.get(repository, ())
    if caller.identity.role == "user":
        wanted = escalation.repository_attributes(action, repository)
        return (await context.authorizer.authorize(caller.identity, wanted)).allowed
    if action == "pull":
        return access.may_pull(caller.identity, repository)
    return access.may_push(caller.identity)


def check_known(caller: Caller) -> None:
    """Refuse nobody. Raises UnauthorizedError."""
    if not caller.subject and caller.identity.role == "anonymous":
        raise UnauthorizedError(
            element="registry", hint="log in with a token of `skerry registry token`, or present a client certificate"
        )


async def check_allowed(context: HubContext, caller: Caller, actions: Sequence[str], repository: str) -> None:
    """Refuse what this caller may not do there.

    Raises UnauthorizedError where a wider Bearer token may help, ForbiddenError for owners of certificates.
    """
    denied = [action for action in actions if not await may(context, caller, action, repository)]
    if not denied:
        return
    element = f"{caller.name[:300]}, repository {repository[:255]}"
    cause = f"may not {' or '.join(denied)} there"
    if caller.subject:
        raise UnauthorizedError(cause, element=element, hint="make a token that may, with `skerry registry token`")
    raise ForbiddenError(cause, element=element, hint=_hint(caller, denied[0], repository))


def _hint(caller: Caller, action: str, repository: str) -> str:
    if caller.identity.role != "user":
        return ""
    wanted = escalation.repository_attributes(action, repository)
    return f"the role {roles.granting(wanted)} in namespace {wanted.namespace[:63]} allows it"


def challenge(
    request: Request, context: HubContext, repository: str, actions: Sequence[str], *, known: bool
) -> dict[str, str]:
    """Return what a client needs to know to log in. Source: token authentication of the distribution project.

    To push is always among what it is told to ask for: some clients ask once, when they look what is there, and keep
    that token. It is given what its login may, and no more. `known`: its Bearer token was good, and not for this.
    """
    parts = [f'realm="{_base(request, context)}{TOKEN_PATH}"', f'service="{SERVICE}"']
    if repository:
        parts.append(f'scope="{scopes.scope_of(repository, ("pull", "push", *actions))}"')
    if request.headers.get("authorization", "").lower().startswith("bearer "):
        parts.append('error="insufficient_scope"' if known else 'error="invalid_token"')
    return {"WWW-Authenticate": f"Bearer {','.join(parts)}"}


def _base(request: Request, context: HubContext) -> str:
    """Return the hub's address as this client knows it: it is where the client sends its password next.

    What it asked under is what its TLS has checked; another name could be one that it does not reach.
    """
    host = request.headers.get("host", "")
    return f"{request.url.scheme}://{host}" if _HOST.fullmatch(host) else context.hub_url
