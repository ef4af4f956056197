"""Scopes of a registry's clients, and the short-lived Bearer tokens that carry them. Pure.

Lives here: the grammar of scopes, what of them a login grants, sealing and opening Bearer tokens. Must not live here:
HTTP, where logins are kept (`hub.registry_tokens`), what devices may do (`core.desired.may_fetch`).

A Bearer token is `skb1.<claims>.<mac>`: JSON and HMAC-SHA256, each base64url; nothing about it is stored. Source: token
authentication of the distribution project (scope grammar, intersection of what is asked for with what is granted).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

import msgspec

from skerry.api.errors import InvalidError, UnauthorizedError
from skerry.api.meta import Struct
from skerry.core import manifest

ACTIONS = ("pull", "push", "delete")
MAX_SCOPES = 32
MAX_SCOPE_LENGTH = 512
MAX_BEARER_LENGTH = 32 * 1024

_VERSION = "skb1"
_SCOPE = re.compile(r"repository(?:\([a-z]*\))?:(?P<name>[^:\s]+):(?P<actions>[a-z*]+(?:,[a-z*]+)*)")
_BASE64 = re.compile(r"[A-Za-z0-9_-]+")

Grants = Mapping[str, frozenset[str]]
"""Repository -> actions."""


class Claims(Struct, frozen=True, kw_only=True):
    """What a Bearer token says."""

    subject: str
    """`<namespace>/<name>` of the registry token that it was given for."""
    expires: float
    """Seconds since 1970, UTC."""
    grants: dict[str, list[str]] = {}


def parse_scopes(texts: Sequence[str]) -> Grants:
    """Read `repository:<name>:<action>,...`, several to a text parted by spaces; other kinds of things are left out.

    Raises InvalidError for more or longer ones than anybody needs.
    """
    words = [word for text in texts for word in text.split(" ") if word]
    if len(words) > MAX_SCOPES or any(len(word) > MAX_SCOPE_LENGTH for word in words):
        raise InvalidError(f"more than {MAX_SCOPES} scopes, or longer than {MAX_SCOPE_LENGTH}", element="scope")
    wanted: dict[str, frozenset[str]] = {}
    for word in words:
        found = _SCOPE.fullmatch(word)
        if found is None:
            continue
        actions = frozenset(found["actions"].split(","))
        known = frozenset(ACTIONS) if "*" in actions else actions & frozenset(ACTIONS)
        wanted[found["name"]] = wanted.get(found["name"], frozenset()) | known
    return wanted


def scope_of(repository: str, actions: Iterable[str]) -> str:
    """Return what a client has to ask for."""
    return f"repository:{repository}:{','.join(action for action in ACTIONS if action in set(actions))}"


def grant(wanted: Grants, *, namespace: str, repositories: Sequence[str], actions: Sequence[str]) -> Grants:
    """Return what of the wanted is granted to a login of a namespace; no `repositories` means all of the namespace."""
    granted: dict[str, frozenset[str]] = {}
    for name, asked in wanted.items():
        if manifest.is_repository(name) and name.startswith(f"{namespace}/"):
            allowed = asked & frozenset(actions) if not repositories or name in repositories else frozenset()
            if allowed:
                granted[name] = allowed
    return granted


def seal(claims: Claims, key: bytes) -> str:
    """Return a Bearer token."""
    body = _encode(msgspec.json.encode(claims, order="sorted"))
    return f"{_VERSION}.{body}.{_encode(_mac(body, key))}"


def open_bearer(token: str, key: bytes, *, now: float) -> Claims:
    """Return what a Bearer token says; its MAC is compared in constant time. Raises UnauthorizedError."""
    parts = token.split(".") if len(token) <= MAX_BEARER_LENGTH else []
    wrong = UnauthorizedError("is not a token of this hub", element="Bearer token", hint="log in again")
    if len(parts) != 3 or parts[0] != _VERSION or not all(_BASE64.fullmatch(part) for part in parts[1:]):
        raise wrong
    if not hmac.compare_digest(_encode(_mac(parts[1], key)).encode(), parts[2].encode()):
        raise wrong
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)), type=Claims)
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError):
        raise wrong from None
    if now >= claims.expires:
        raise UnauthorizedError("expired", element="Bearer token", hint="ask for a new one")
    return claims


def _mac(body: str, key: bytes) -> bytes:
    return hmac.new(key, f"{_VERSION}.{body}".encode(), sha256).digest()


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
