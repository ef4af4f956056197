"""Who is calling: identities as certificates state them, and what each may do.

Lives here: the identity type and the decision. Must not live here: how a certificate was read off a connection.
Organisations (O) in a client certificate's subject carry the role; the common name (CN) is the user or the device's
uid; for devices the organisational unit (OU) is the namespace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ADMINS = "skerry:admins"
DEVICES = "skerry:devices"
HUBS = "skerry:hubs"
PEERS = "skerry:peers"
"""Devices as servers of their neighbours; nobody to the hub."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """An authenticated caller, or nobody."""

    role: Literal["admin", "device", "anonymous"]
    name: str = ""
    """User name, or the device's uid."""
    namespace: str = ""
    """The device's namespace; empty for everybody else."""


ANONYMOUS = Identity(role="anonymous")


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
