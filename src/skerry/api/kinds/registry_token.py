"""RegistryToken: what a registry's client logs in with."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, TypeAlias

import msgspec

from skerry.api.duration import Duration
from skerry.api.meta import API_VERSION, ObjectMeta, Struct

RegistryAction: TypeAlias = Literal["pull", "push", "delete"]


class RegistryTokenSpec(Struct, frozen=True, kw_only=True):
    """How long a token is good, and for what."""

    ttl: Duration = "12h"
    """At most 90 days."""
    actions: Annotated[list[RegistryAction], msgspec.Meta(min_length=1, max_length=3)] = msgspec.field(
        default_factory=lambda: ["pull"]
    )
    """What may be done. To push takes `pull` as well: clients look at what is there first."""
    repositories: Annotated[list[Annotated[str, msgspec.Meta(max_length=255)]], msgspec.Meta(max_length=64)] = []
    """Repositories (`<namespace>/<name>`) of the token's namespace; empty means all of them."""


class RegistryTokenStatus(Struct, frozen=True, kw_only=True):
    """What the hub keeps of a token."""

    expires_at: datetime | None = None
    hash: str = ""
    """SHA-256 of the secret half, hex; the secret itself (256 random bits) is never stored."""
    token: str = ""
    """The whole token; present only in the answer to its creation."""


class RegistryToken(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A password for the hub's registry, for one namespace: `skr1.<namespace>/<name>.<secret>`; deleted, it is void."""

    metadata: ObjectMeta
    spec: RegistryTokenSpec = RegistryTokenSpec()
    status: RegistryTokenStatus = RegistryTokenStatus()
    api_version: str = API_VERSION
    kind: Literal["RegistryToken"] = "RegistryToken"
