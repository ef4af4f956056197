"""Join tokens: making them, telling real ones from others, and what is left of them.

Lives here: the token's text, its hash, expiry and uses. Must not live here: what a device gets for one
(`hub.enrollment`). The text is `skj1.<id>.<secret>.<SHA-256 of the CA certificate>`: the id finds the stored token, the
secret (256 random bits, stored as a hash only) proves it, the last part lets the device tell this hub from an impostor.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256

import msgspec

from skerry.api import duration
from skerry.api import selector as selectors
from skerry.api.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError, UnauthorizedError
from skerry.api.kinds.enrollment import JoinToken, JoinTokenStatus
from skerry.api.meta import LabelSelector
from skerry.hub.context import HubContext
from skerry.hub.objects import UNREADABLE, decode, prefix_of

log = logging.getLogger(__name__)

MAX_TOKEN_LENGTH = 1024
MAX_LIFE = timedelta(days=30)
"""A token is to be short-lived: whoever reads it in a log or a shell's history can enrol."""
MAX_LABELS = 64
KEPT_AFTER_EXPIRY = timedelta(days=7)
HINT = "make a new one with `skerry hub token create`"

_VERSION = "skj1"
_NAME = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_ID = re.compile(rf"(?:({_NAME})/)?({_NAME})")
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Presented:
    """A token as somebody presented it; nothing about it is proved yet."""

    namespace: str
    name: str
    secret: str


async def create_token(context: HubContext, token: JoinToken) -> JoinToken:
    """Store a new join token; the answer, and only the answer, has the whole token in its status.

    Raises InvalidError for a name that is none, a life that is not between 1 s and 30 days, or labels that are none;
    AlreadyExistsError.
    """
    spec, meta = token.spec, token.metadata
    name = meta.name or meta.generate_name or "token-"
    if not re.fullmatch(_NAME, name if meta.name else name + "0" * 8):
        raise InvalidError(
            f'"{name[:80]}" cannot name a join token', element="metadata.name", hint="use a-z, 0-9 and '-', at most 63"
        )
    life = duration.parse(spec.ttl)
    if not timedelta(seconds=1) <= life <= MAX_LIFE:
        raise InvalidError(
            f"{spec.ttl} is not between 1s and {duration.render(MAX_LIFE)}", element="spec.ttl", hint="try 1h"
        )
    if len(spec.labels) > MAX_LABELS:
        raise InvalidError(f"more than {MAX_LABELS} labels", element="spec.labels")
    selectors.requirements(LabelSelector(match_labels=spec.labels))
    secret = secrets.token_urlsafe(32)
    created = await context.objects.create(
        msgspec.structs.replace(
            token,
            metadata=msgspec.structs.replace(
                meta, namespace=meta.namespace or "default", generate_name="" if meta.name else name
            ),
            status=JoinTokenStatus(expires_at=context.clock.now() + life, hash=_hash(secret)),
        )
    )
    text = f"{_VERSION}.{token_id(created)}.{secret}.{context.authority.ca_fingerprint}"
    log.info("token.created token=%s uses=%d ttl=%s", token_id(created), spec.uses, spec.ttl)
    return msgspec.structs.replace(created, status=msgspec.structs.replace(created.status, token=text))


def token_id(token: JoinToken) -> str:
    """Return a token's public half: its name, with its namespace before it unless that is `default`."""
    meta = token.metadata
    return meta.name if meta.namespace == "default" else f"{meta.namespace}/{meta.name}"


def lock_of(context: HubContext, namespace: str, name: str) -> asyncio.Lock:
    """Return what is held while a use of this token is taken or its claim forgotten."""
    return context.claim_locks.setdefault(f"{namespace}/{name}", asyncio.Lock())


async def forget_expired(context: HubContext) -> None:
    """Delete join tokens that expired a week ago or longer; one that cannot be read stays."""
    limit = context.clock.now() - KEPT_AFTER_EXPIRY
    for record in (await context.objects.store.list(prefix_of(JoinToken))).records:
        try:
            token = decode(JoinToken, record)
        except UNREADABLE as error:
            log.error("token.unreadable key=%s cause=%s", record.key, error)
            continue
        if token.status.expires_at is not None and token.status.expires_at < limit:
            with contextlib.suppress(NotFoundError):
                await context.objects.delete(JoinToken, token.metadata.namespace, token.metadata.name)


async def release(context: HubContext, token: JoinToken, record: str) -> None:
    """Forget a claim: its enrollment is recorded."""

    def change(current: JoinToken) -> JoinToken:
        claims = {name: uid for name, uid in current.status.claims.items() if name != record}
        return msgspec.structs.replace(current, status=msgspec.structs.replace(current.status, claims=claims))

    with contextlib.suppress(NotFoundError):  # deleted meanwhile: nothing to take back
        async with lock_of(context, token.metadata.namespace, token.metadata.name):
            await context.objects.update_status(JoinToken, token.metadata.namespace, token.metadata.name, change)


async def write_status(context: HubContext, token: JoinToken, status: JoinTokenStatus) -> None:
    """Write the status if the token is still as it was read. Raises ConflictError otherwise."""

    def change(current: JoinToken) -> JoinToken:
        if current.metadata.resource_version != token.metadata.resource_version:
            raise ConflictError(element=f'join token "{token.metadata.name}"')
        return msgspec.structs.replace(current, status=status)

    await context.objects.update_status(JoinToken, token.metadata.namespace, token.metadata.name, change)


def check_usable(context: HubContext, token: JoinToken) -> None:
    """Raise ForbiddenError for a token that is expired or used up."""
    element, expires = f'join token "{token_id(token)}"', token.status.expires_at
    if expires is None or context.clock.now() >= expires:
        when = f" at {expires:%Y-%m-%d %H:%M:%S} UTC" if expires else ""
        raise ForbiddenError(f"expired{when}", element=element, hint=HINT)
    if token.status.used >= token.spec.uses:
        times = "once" if token.spec.uses == 1 else f"{token.spec.uses} times"
        raise ForbiddenError(f"is used up (it was good {times})", element=element, hint=HINT)


async def find(context: HubContext, presented: Presented) -> JoinToken:
    """Return the stored token that was presented, comparing hashes in constant time.

    Raises UnauthorizedError, the same for a token that does not exist or is being deleted and for a wrong secret.
    """
    token = None
    try:
        token = await context.objects.find(JoinToken, presented.namespace, presented.name)
    except UNREADABLE as error:
        log.error("token.unreadable token=%s/%s cause=%s", presented.namespace, presented.name, error)
    if token is not None and token.metadata.deletion_timestamp is not None:
        token = None
    stored = ("" if token is None else token.status.hash) or "-" * 64
    if not hmac.compare_digest(_hash(presented.secret).encode(), stored.encode()) or token is None:
        raise UnauthorizedError("is not a token of this hub", element=f'join token "{presented.name}"', hint=HINT)
    return token


def parse(text: str, fingerprint: str) -> Presented:
    """Read a token's text; `fingerprint` is this hub's. Raises UnauthorizedError."""
    parts = text.split(".") if len(text) <= MAX_TOKEN_LENGTH else []
    named = _ID.fullmatch(parts[1]) if len(parts) == 4 and parts[0] == _VERSION else None
    if named is None or not _SECRET.fullmatch(parts[2]):
        raise UnauthorizedError("cannot be read", element="join token", hint="copy it whole: skj1.<id>.<secret>.<CA>")
    if not hmac.compare_digest(parts[3].encode(errors="replace"), fingerprint.encode()):
        raise UnauthorizedError(
            "is of another hub, or this hub was set up anew", element=f'join token "{parts[1]}"', hint=HINT
        )
    return Presented(namespace=named[1] or "default", name=named[2], secret=parts[2])


def _hash(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()
