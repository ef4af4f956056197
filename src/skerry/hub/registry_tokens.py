"""Registry tokens: making them, and telling real ones from others.

Lives here: the token's text (`skr1.<namespace>/<name>.<secret>`), its hash and expiry. Must not live here: what a
client gets for one (`hub.server.registry.tokens`), scopes (`core.registry_access`).
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import re
import secrets
from datetime import timedelta
from hashlib import sha256

import msgspec

from skerry.api import duration
from skerry.api.errors import InvalidError, NotFoundError, UnauthorizedError
from skerry.api.kinds.registry_token import RegistryToken, RegistryTokenStatus
from skerry.hub.context import HubContext
from skerry.hub.objects import UNREADABLE, decode, prefix_of

log = logging.getLogger(__name__)

MAX_TOKEN_LENGTH = 512
MAX_LIFE = timedelta(days=90)
KEPT_AFTER_EXPIRY = timedelta(days=7)
HINT = "make a new one with `skerry registry token`"

_VERSION = "skr1"
_NAME = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_TEXT = re.compile(rf"{_VERSION}\.({_NAME})/({_NAME})\.([A-Za-z0-9_-]{{43}})")


async def create_token(context: HubContext, token: RegistryToken) -> RegistryToken:
    """Store a new registry token; the answer, and only the answer, has the whole token in its status.

    Raises InvalidError for a name that is none or a life that is not between 1 s and 90 days; AlreadyExistsError.
    """
    meta = token.metadata
    prefix = meta.generate_name or "registry-"
    if not re.fullmatch(_NAME, meta.name or prefix + "0" * 8):
        raise InvalidError(
            f'"{(meta.name or prefix)[:80]}" cannot name a registry token',
            element="metadata.name",
            hint="use a-z, 0-9 and '-', at most 63",
        )
    life = duration.parse(token.spec.ttl)
    if not timedelta(seconds=1) <= life <= MAX_LIFE:
        raise InvalidError(
            f"{token.spec.ttl} is not between 1s and {duration.render(MAX_LIFE)}", element="spec.ttl", hint="try 12h"
        )
    secret = secrets.token_urlsafe(32)
    created = await context.objects.create(
        msgspec.structs.replace(
            token,
            metadata=msgspec.structs.replace(
                meta, namespace=meta.namespace or "default", generate_name="" if meta.name else prefix
            ),
            status=RegistryTokenStatus(expires_at=context.clock.now() + life, hash=_hash(secret)),
        )
    )
    text = f"{_VERSION}.{token_id(created)}.{secret}"
    log.info("registry_token.created token=%s actions=%s ttl=%s", token_id(created), token.spec.actions, token.spec.ttl)
    return msgspec.structs.replace(created, status=msgspec.structs.replace(created.status, token=text))


def token_id(token: RegistryToken) -> str:
    """Return a token's public half: `<namespace>/<name>`."""
    return f"{token.metadata.namespace}/{token.metadata.name}"


async def find(context: HubContext, text: str) -> RegistryToken:
    """Return the stored token that was presented, comparing hashes in constant time.

    Raises UnauthorizedError, the same for a token that cannot be read, one that does not exist and a wrong secret.
    """
    presented = _TEXT.fullmatch(text) if len(text) <= MAX_TOKEN_LENGTH else None
    refusal = UnauthorizedError("is not a token of this hub", element="registry token", hint=HINT)
    if presented is None:
        raise refusal
    try:
        token = await context.objects.find(RegistryToken, presented[1], presented[2])
    except UNREADABLE as error:
        log.error("registry_token.unreadable token=%s/%s cause=%s", presented[1], presented[2], error)
        raise refusal from None
    if token is not None and token.metadata.deletion_timestamp is not None:
        token = None  # being deleted
    stored = ("" if token is None else token.status.hash) or "-" * 64
    if not hmac.compare_digest(_hash(presented[3]).encode(), stored.encode()) or token is None:
        raise refusal
    if token.status.expires_at is None or context.clock.now() >= token.status.expires_at:
        raise UnauthorizedError("is expired", element=f'registry token "{token_id(token)}"', hint=HINT)
    return token


async def forget_expired(context: HubContext) -> None:
    """Delete registry tokens that expired a week ago or longer; one that cannot be read stays."""
    limit = context.clock.now() - KEPT_AFTER_EXPIRY
    for record in (await context.objects.store.list(prefix_of(RegistryToken))).records:
        try:
            token = decode(RegistryToken, record)
        except UNREADABLE as error:
            log.error("registry_token.unreadable key=%s cause=%s", record.key, error)
            continue
        if token.status.expires_at is not None and token.status.expires_at < limit:
            with contextlib.suppress(NotFoundError):
                await context.objects.delete(RegistryToken, token.metadata.namespace, token.metadata.name)


def _hash(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
