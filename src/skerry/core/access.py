"""Who is calling: identities, and the names that nobody but the hub may give.

Lives here: the identity type, reserved names, and what devices and admins may do at the registry. Must not live here:
how somebody proved who they are (`hub.identity`, `hub.authentication`), or what users may do (`core.rbac`).

As in Kubernetes, the common name (CN) of a client certificate is the user and its organisations (O) are the groups.
Certificates of the hub's own parties have a form of their own: the organisation says the role, and for devices the
organisational unit (OU) is the namespace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from skerry.api.errors import ForbiddenError, InvalidError

ADMINS = "skerry:admins"
DEVICES = "skerry:devices"
HUBS = "skerry:hubs"
PEERS = "skerry:peers"
"""Devices as servers of their neighbours; nobody to the hub."""

MASTERS = "system:masters"
"""Who may do everything, whatever roles there are, as in all of Kubernetes; the hub's admins are."""
AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"
SERVICE_ACCOUNTS = "system:serviceaccounts"
ANONYMOUS_USER = "system:anonymous"
RESERVED_PREFIXES = ("system:", "skerry:")
"""Names and groups that begin so come from the hub itself: no request and no foreign issuer can bring one."""
SERVER = "skerry-hub"
"""The hub's own name as a server."""
ADMIN = "admin"
"""The user that the hub's own kubeconfig is for."""

MAX_NAME = 512
"""Characters of a user's or a group's name."""
MAX_GROUPS = 256

_ROLE_GROUPS = {
    "admin": (ADMINS, MASTERS, AUTHENTICATED),
    "device": (DEVICES, AUTHENTICATED),
    "user": (AUTHENTICATED,),
    "anonymous": (UNAUTHENTICATED,),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """An authenticated caller, or nobody. What the role implies is among `groups`, whatever was given."""

    role: Literal["admin", "device", "user", "anonymous"]
    name: str = ""
    """User name, or the device's uid; empty for nobody."""
    namespace: str = ""
    """The device's namespace; empty for everybody else."""
    uid: str = ""
    """What tells this user from another one who has the name at another time; empty where nothing does."""
    groups: tuple[str, ...] = ()
    """Without repetition: those given, then the role's, `system:authenticated` always among them."""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    """What else the way of logging in says, for authorizers and the audit log; nothing secret."""

    def __post_init__(self) -> None:
        """Complete the groups."""
        object.__setattr__(self, "groups", tuple(dict.fromkeys((*self.groups, *_ROLE_GROUPS[self.role]))))

    @property
    def username(self) -> str:
        """The name as Kubernetes shows it, in rules, reviews and messages: never empty, never another role's."""
        match self.role:
            case "device":
                return f"skerry:device:{self.namespace}:{self.name}"
            case "anonymous":
                return ANONYMOUS_USER
            case _:
                return self.name


ANONYMOUS = Identity(role="anonymous")


def service_account(
    namespace: str, name: str, uid: str, extra: Mapping[str, tuple[str, ...]] | None = None
) -> Identity:
    """Return the identity of a ServiceAccount. Source: Kubernetes, "Service account tokens"."""
    return Identity(
        role="user",
        name=f"system:serviceaccount:{namespace}:{name}",
        uid=uid,
        groups=(SERVICE_ACCOUNTS, f"{SERVICE_ACCOUNTS}:{namespace}"),
        extra=extra or {},
    )


def account_of(username: str) -> tuple[str, str] | None:
    """Return namespace and name of the ServiceAccount that a user's name stands for; None where it is none's."""
    head, *parts = username.removeprefix("system:").split(":")
    if username.startswith("system:") and head == "serviceaccount" and len(parts) == 2 and all(parts):
        return parts[0], parts[1]
    return None


def is_reserved(name: str) -> bool:
    """Return whether only the hub may give this name to a user. Case does not help to pass for one."""
    return is_reserved_group(name) or name.strip().lower() in (SERVER, ADMIN)


def is_reserved_group(name: str) -> bool:
    """Return whether only the hub may put users into a group of this name; `admin` is none of the hub's."""
    return name.strip().lower().startswith(RESERVED_PREFIXES)


def is_name(text: str) -> bool:
    """Return whether this can name a user or a group: printable, not empty, no blanks around it, not too long."""
    return 0 < len(text) <= MAX_NAME and text.isprintable() and text == text.strip()


def check_user(name: str, groups: Sequence[str], *, element: str) -> None:
    """Return when somebody else than the hub may give a user these names.

    Raises ForbiddenError for reserved ones, InvalidError for what is no name and for too many groups.
    """
    if len(groups) > MAX_GROUPS:
        raise InvalidError(f"has more than {MAX_GROUPS} groups", element=element)
    for what, text in (("user name", name), *(("group", group) for group in groups)):
        if not is_name(text):
            raise InvalidError(
                f'"{text[:80]}" cannot be a {what}', element=element, hint=f"1 to {MAX_NAME} printable characters"
            )
        if is_reserved(text) if what == "user name" else is_reserved_group(text):
            raise ForbiddenError(
                f'{what} "{text[:80]}" is reserved',
                element=element,
                hint=f"only the hub gives system: and skerry: names, and {ADMIN} to a user",
            )


def may_pull(identity: Identity, repository: str) -> bool:
    """Admins pull everything; a device, at most, from its namespace's repositories (`<namespace>/<model>`).

    What of them is deployed to it is looked up for each request, see `core.desired.may_fetch`.
    """
    if identity.role == "admin":
        return True
    return identity.role == "device" and repository.split("/", 1)[0] == identity.namespace


def may_push(identity: Identity) -> bool:
    """Only admins push."""
    return identity.role == "admin"
