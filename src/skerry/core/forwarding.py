"""What one hub tells another of a request that it passes on: who asks, for whom it is meant, and that a hub says so.

The word is sealed with a key that only the hubs on one store have, and is good for one method, one path, one receiver
and a short time. Pure: the caller brings key and time. Must not live here: the passing on (`hub.forwarding`), whose
connection the word comes by (`hub.authentication.forwarded`, which asks for a hub's certificate besides).
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Literal

import msgspec

from skerry.api.errors import UnauthorizedError, UnavailableError
from skerry.api.meta import Struct
from skerry.core.access import Identity
from skerry.core.rbac import Attributes

HEADER = "skerry-forwarded"
PURPOSE = "requests passed on between hubs"
"""Of the key."""
LIFE = timedelta(seconds=60)
"""From the sealing on; as much may the hubs' clocks differ."""
MAX_LENGTH = 48 * 1024
"""Characters; a request's head has no room for more."""

_ELEMENT = "request passed on by another hub"
_OF_DEVICES = frozenset({("skerry.dev", "devices", "log"), ("skerry.dev", "devices", "infer")})
_OF_PODS = frozenset({("", "pods", name) for name in ("log", "exec", "attach", "portforward")})


class Person(Struct, frozen=True, kw_only=True):
    """An identity, as it travels."""

    role: Literal["admin", "device", "user", "anonymous"]
    name: str = ""
    namespace: str = ""
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = {}


class Word(Struct, frozen=True, kw_only=True):
    """What is said of one request."""

    to: str
    """The holder, as the leader calls itself: no other hub takes it."""
    method: str
    target: str
    """Path and query, as sent."""
    at: datetime
    caller: Person
    """Who asked, as the first hub has found proven."""
    acts_as: Person | None = None
    """Whom the caller was let act as, if anybody."""
    source: str = ""
    """The caller's address."""


def is_for_leader(wanted: Attributes) -> bool:
    """Return whether a request can only be answered where the devices are connected, or is a device's for there."""
    whole = (wanted.group, wanted.resource, wanted.subresource)
    if whole in _OF_DEVICES or whole in _OF_PODS:
        return bool(wanted.name)
    if wanted.group == "metrics.k8s.io":
        return wanted.resource in ("nodes", "pods")
    return wanted.group == "skerry.dev" and wanted.resource == "tunnels" and bool(wanted.name)


def seal(word: Word, key: bytes) -> str:
    """Return the word as a header's value, which proves that it comes from who has the key."""
    raw = base64.urlsafe_b64encode(msgspec.json.encode(word)).decode("ascii")
    return f"{raw}.{_proof(raw, key)}"


def unseal(text: str, key: bytes, *, to: str, method: str, target: str, now: datetime) -> Word:
    """Return the word of a header's value, when it is a hub's own, for this request and for this hub, and fresh.

    Raises UnauthorizedError; UnavailableError for one that is meant for another hub.
    """
    raw, _, proof = text.rpartition(".")
    if len(text) > MAX_LENGTH or not text.isascii() or not hmac.compare_digest(proof, _proof(raw, key)):
        raise UnauthorizedError("is not sealed by a hub of this store", element=_ELEMENT)
    try:
        word = msgspec.json.decode(base64.urlsafe_b64decode(raw), type=Word)
    except (msgspec.DecodeError, binascii.Error):
        raise UnauthorizedError(
            "cannot be read", element=_ELEMENT, hint="the hubs on one store must be of one version"
        ) from None
    if (word.method, word.target) != (method, target):
        raise UnauthorizedError("is for another request", element=_ELEMENT)
    if word.at.tzinfo is None or abs(now - word.at) > LIFE:
        raise UnauthorizedError(
            f"is not of the last {LIFE.seconds} s", element=_ELEMENT, hint="set the clocks of the hubs' machines"
        )
    if word.to != to:
        raise UnavailableError("was meant for another hub", element=_ELEMENT, hint="try again")
    return word


def person_of(identity: Identity) -> Person:
    """Return an identity as it travels."""
    return Person(
        role=identity.role,
        name=identity.name,
        namespace=identity.namespace,
        uid=identity.uid,
        groups=identity.groups,
        extra=dict(identity.extra),
    )


def identity_of(person: Person) -> Identity:
    """Return the identity that travelled."""
    return Identity(
        role=person.role,
        name=person.name,
        namespace=person.namespace,
        uid=person.uid,
        groups=person.groups,
        extra=person.extra,
    )


def _proof(raw: str, key: bytes) -> str:
    return hmac.new(key, raw.encode(), sha256).hexdigest()
