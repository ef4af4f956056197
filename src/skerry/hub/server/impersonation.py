"""Acting as somebody else: the Impersonate- headers (`kubectl --as alice --as-group ops`), for those who may.

Lives here: reading the headers, and asking whether the caller may be each of what they name. Must not live here: rules.
Source: Kubernetes documentation, "Authenticating", "User impersonation".
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote

from starlette.datastructures import Headers

from skerry.api.errors import BadRequestError, DeniedError, ForbiddenError, UnauthorizedError
from skerry.core import access
from skerry.core.access import Identity
from skerry.core.rbac import Attributes
from skerry.hub.authorization import Authorizer

_USER, _GROUP, _UID, _EXTRA = "impersonate-user", "impersonate-group", "impersonate-uid", "impersonate-extra-"
_TOKENS = "authentication.k8s.io"


async def impersonated(authorizer: Authorizer, identity: Identity, headers: Headers) -> Identity:
    """Return whom the request is to be taken for: the caller, or whom the headers name.

    Raises UnauthorizedError and ForbiddenError for those who may not, BadRequestError for headers that make no sense.
    """
    if not any(name.startswith("impersonate-") for name in headers):
        return identity
    if identity.role == "anonymous":
        raise UnauthorizedError(element="impersonation")
    if identity.role == "device":
        raise ForbiddenError("a device acts as nobody else", element="impersonation")
    wanted = _wanted(headers)
    for asked in _needed(headers):
        if not (await authorizer.authorize(identity, asked)).allowed:
            raise _denied(identity, asked)
    return wanted


def _wanted(headers: Headers) -> Identity:
    users = headers.getlist(_USER)
    if len(users) != 1 or not access.is_name(users[0]):
        raise BadRequestError(
            "must be there once, with a user's name", element="Impersonate-User", hint="name the user with --as"
        )
    uids = headers.getlist(_UID)
    if len(uids) > 1:
        raise BadRequestError("must be there once at most", element="Impersonate-Uid")
    name, groups = users[0], list(dict.fromkeys(headers.getlist(_GROUP)))
    if len(groups) > access.MAX_GROUPS or not all(access.is_name(group) for group in groups):
        raise BadRequestError("must name groups", element="Impersonate-Group")
    if name == access.ANONYMOUS_USER:
        return access.ANONYMOUS
    if not groups and (account := access.account_of(name)):
        groups = [access.SERVICE_ACCOUNTS, f"{access.SERVICE_ACCOUNTS}:{account[0]}"]
    extra: dict[str, tuple[str, ...]] = {}
    for key, value in _extras(headers):
        extra[key] = (*extra.get(key, ()), value)
    return Identity(role="user", name=name, uid="".join(uids), groups=tuple(groups), extra=extra)


def _needed(headers: Headers) -> Iterator[Attributes]:
    """Yield what the caller has to be allowed: `impersonate` on each user, group, uid and extra value."""
    for name in headers.getlist(_USER):
        if account := access.account_of(name):
            yield _impersonate("serviceaccounts", account[1], namespace=account[0])
        else:
            yield _impersonate("users", name)
    for group in headers.getlist(_GROUP):
        yield _impersonate("groups", group)
    for uid in headers.getlist(_UID):
        yield _impersonate("uids", uid, group=_TOKENS)
    for key, value in _extras(headers):
        yield _impersonate("userextras", value, group=_TOKENS, subresource=key)


def _impersonate(
    resource: str, name: str, *, group: str = "", namespace: str = "", subresource: str = ""
) -> Attributes:
    return Attributes(
        verb="impersonate", group=group, resource=resource, subresource=subresource, name=name, namespace=namespace
    )


def _extras(headers: Headers) -> Iterator[tuple[str, str]]:
    for name, value in headers.items():
        if name.startswith(_EXTRA):
            yield unquote(name.removeprefix(_EXTRA)).lower(), value


def _denied(identity: Identity, asked: Attributes) -> DeniedError:
    where = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
    return DeniedError(
        f'User "{identity.username}" cannot impersonate resource "{asked.whole}" in API group "{asked.group}" {where}',
        group=asked.group,
        resource=asked.resource,
        name=asked.name,
        hint=f"only who has the verb impersonate may act as others; {access.MASTERS} has",
    )
