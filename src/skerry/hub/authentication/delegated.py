"""Bearer tokens that a cluster made, of its service accounts and users: the cluster says whose they are.

Lives here: one TokenReview a token, kept for a moment. Must not live here: the cluster's address (`hub.cluster`), or
tokens of the hub's own. A token is never kept: what it was found to be is known by a keyed digest.
Source: Kubernetes documentation, "Webhook Token Authentication"; API reference, authentication.k8s.io/v1 TokenReview.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from skerry.api.errors import ForbiddenError, NotFoundError, UnauthorizedError, UnavailableError
from skerry.core.access import ANONYMOUS_USER, Identity
from skerry.hub.authentication import front_proxy
from skerry.hub.authentication.chain import Authenticated
from skerry.hub.cluster import Cluster
from skerry.kit.expiring import Expiring

log = logging.getLogger(__name__)

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
OWN = ("skj1.", "skr1.", "skb1.")
"""What the hub's own secrets begin with: join tokens, registry tokens, and what the registry gives for them."""
MAX_TOKEN_CHARACTERS = 16 * 1024
KEEP_SECONDS = 10.0
"""A token that was taken back is good for so long yet; the cluster's own servers keep it as long."""
MAX_KEPT = 4096
MAX_ASKING = 8
"""At the same time: strangers with made-up tokens must not keep the cluster busy."""
WAIT_SECONDS = 10.0
"""For one's turn and the answer."""


class _User(msgspec.Struct):
    username: str = ""
    uid: str = ""
    groups: list[str] = []
    extra: dict[str, list[str]] = {}


class _ReviewStatus(msgspec.Struct):
    authenticated: bool = False
    user: _User = msgspec.field(default_factory=_User)
    error: str = ""


class _Review(msgspec.Struct):
    status: _ReviewStatus = msgspec.field(default_factory=_ReviewStatus)


class TokenReviews:
    """Asks the cluster whose a token is."""

    def __init__(self, cluster: Cluster, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._key = secrets.token_bytes(32)
        self._known: Expiring[bytes, Identity | None] = Expiring(MAX_KEPT, monotonic)
        self._turns = asyncio.Semaphore(MAX_ASKING)

    async def authenticate(self, token: str, audiences: Sequence[str]) -> Authenticated | None:
        """Return whose the token is, None for one of the hub's own; the cluster's API servers are its audience.

        Raises UnauthorizedError for nobody's, UnavailableError when nobody can say.
        """
        if token.startswith(OWN):  # a secret of the hub's is none of the cluster's business
            return None
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise _refused()
        key = hmac.digest(self._key, token.encode(), "sha256")
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                if (found := self._known.get(key)) is None:
                    async with self._turns:
                        found = self._known.get(key) or (await self._review(key, token),)
        except TimeoutError:
            raise UnavailableError("too many tokens are being looked at", element="TokenReview") from None
        if found[0] is None:
            raise _refused()
        return Authenticated(identity=found[0], audiences=tuple(audiences))

    async def _review(self, key: bytes, token: str) -> Identity | None:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        try:
            answer = await self._cluster.post(PATH, body)
        except (ForbiddenError, NotFoundError) as error:
            log.error("delegation.token_review_failed cause=%s", error)
            raise UnavailableError(error.cause, element="TokenReview", hint=error.hint) from None
        identity = _read(answer)
        self._known.put(key, identity, KEEP_SECONDS)
        return identity


def _read(answer: Any) -> Identity | None:
    try:
        status = msgspec.convert(answer, _Review).status
    except msgspec.ValidationError as error:
        raise UnavailableError(f"answered no TokenReview ({error})", element="TokenReview") from None
    user = status.user
    if status.error and not status.authenticated:
        log.info("delegation.token_refused cause=%r", status.error[:200])
    if not status.authenticated or not user.username or user.username == ANONYMOUS_USER:
        return None
    extra = {key: tuple(values) for key, values in user.extra.items()}
    try:
        return front_proxy.user(user.username, uid=user.uid, groups=user.groups, extra=extra, element="TokenReview")
    except UnauthorizedError:
        return None


def _refused() -> UnauthorizedError:
    return UnauthorizedError(
        "the cluster does not know this token",
        element="bearer token",
        hint="make a new one, as with kubectl create token",
    )
