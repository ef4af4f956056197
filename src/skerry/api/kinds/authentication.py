"""What is asked about who somebody is, and never kept: TokenRequest, TokenReview, SelfSubjectReview.

Source: Kubernetes API reference, `authentication.k8s.io/v1`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from skerry.api.meta import ObjectMeta, Struct

GROUP = "authentication.k8s.io"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"

Audiences = Annotated[list[Annotated[str, msgspec.Meta(max_length=512)]], msgspec.Meta(max_length=32)]


class BoundObjectReference(Struct, frozen=True, kw_only=True):
    """The object that a token is bound to besides its account; the hub has none that tokens can be bound to."""

    kind: str = ""
    api_version: str = ""
    name: str = ""
    uid: str = ""


class TokenRequestSpec(Struct, frozen=True, kw_only=True):
    """For whom, and for how long."""

    audiences: Audiences = []
    """Who is to accept the token; the hub's own API when empty."""
    expiration_seconds: int | None = None
    """From 600 on, 3600 by default; what is more than 90 days is made 90 days."""
    bound_object_ref: BoundObjectReference | None = None


class TokenRequestStatus(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """The token, shown this once."""

    token: str = ""
    expiration_timestamp: datetime | None = None


class TokenRequest(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A token of a service account (`kubectl create token`)."""

    metadata: ObjectMeta = ObjectMeta()
    spec: TokenRequestSpec = TokenRequestSpec()
    status: TokenRequestStatus = TokenRequestStatus()
    api_version: str = API_VERSION
    kind: Literal["TokenRequest"] = "TokenRequest"


class UserInfo(Struct, frozen=True, kw_only=True):
    """A user as the hub knows him."""

    username: str = ""
    uid: str = ""
    groups: list[str] = []
    extra: dict[str, list[str]] = {}


class TokenReviewSpec(Struct, frozen=True, kw_only=True):
    """Which token, and whom it should be for."""

    token: Annotated[str, msgspec.Meta(max_length=32 * 1024)] = ""
    audiences: Audiences = []
    """Whoever asks, by his names; the hub's own API when empty."""


class TokenReviewStatus(Struct, frozen=True, kw_only=True):
    """Whom it names."""

    authenticated: bool = False
    user: UserInfo | None = None
    audiences: list[str] = []
    """Those of the audiences asked for that the token is meant for."""
    error: str = ""
    """Why it is not good."""


class TokenReview(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """The question whose token this is."""

    metadata: ObjectMeta = ObjectMeta()
    spec: TokenReviewSpec = TokenReviewSpec()
    status: TokenReviewStatus = TokenReviewStatus()
    api_version: str = API_VERSION
    kind: Literal["TokenReview"] = "TokenReview"


class SelfSubjectReviewStatus(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Who asks."""

    user_info: UserInfo = UserInfo()


class SelfSubjectReview(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """The question who I am (`kubectl auth whoami`)."""

    metadata: ObjectMeta = ObjectMeta()
    status: SelfSubjectReviewStatus = SelfSubjectReviewStatus()
    api_version: str = API_VERSION
    kind: Literal["SelfSubjectReview"] = "SelfSubjectReview"
