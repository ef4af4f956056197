"""Who may tell a device what to do: signed envelopes and the rule that versions only rise.

Signing and verifying are pure functions of keys and bytes (Ed25519, RFC 8032, over DSSE's pre-authentication encoding).
A broken-into broker has no key, so it can neither deploy nor roll back; it can only be silent.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Protocol, TypeVar

from skerry.api.errors import ForbiddenError, IntegrityError, InvalidError
from skerry.core import messages

DESIRED_TYPE = "application/vnd.skerry.desired.v1+json"
COMMAND_TYPE = "application/vnd.skerry.command.v1+json"

_TYPES: dict[type[messages.DesiredState] | type[messages.Command], str] = {
    messages.DesiredState: DESIRED_TYPE,
    messages.Command: COMMAND_TYPE,
}
_M = TypeVar("_M", messages.DesiredState, messages.Command)


class SigningKey(Protocol):
    """`cryptography`'s Ed25519PrivateKey has this shape."""

    def sign(self, data: bytes) -> bytes:
        """Return the signature over the data."""
        ...


class VerifyingKey(Protocol):
    """`cryptography`'s Ed25519PublicKey has this shape; verify raises when the signature is wrong."""

    def verify(self, signature: bytes, data: bytes) -> None:
        """Raise unless the signature holds."""
        ...


def key_id(public_key_pem: bytes) -> str:
    """Return a key's id: the first 16 hex digits of the SHA-256 of its PEM text."""
    return sha256(public_key_pem.strip()).hexdigest()[:16]


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's PAE: what is signed, so that a payload of one type cannot pass for another."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(message: messages.DesiredState | messages.Command, key: SigningKey, keyid: str) -> messages.Envelope:
    """Put a message for a device into a signed envelope."""
    payload_type, payload = _TYPES[type(message)], messages.encode(message)
    signature = key.sign(pre_authentication_encoding(payload_type, payload))
    return messages.Envelope(
        payload_type=payload_type, payload=payload, signatures=[messages.Signature(keyid=keyid, sig=signature)]
    )


def open_envelope(raw: bytes, kind: type[_M], *, uid: str, keys: Mapping[str, VerifyingKey]) -> _M:
    """Verify an envelope's bytes and return the message in it.

    Raises InvalidError for malformed bytes, IntegrityError when no known key signed it, ForbiddenError when it is
    meant for another device. The payload is not parsed before its signature holds.
    """
    envelope = messages.decode(raw, messages.Envelope)
    if envelope.payload_type != _TYPES[kind]:
        raise InvalidError(f'payload type "{envelope.payload_type[:80]}" is not {_TYPES[kind]}', element="envelope")
    signed = pre_authentication_encoding(envelope.payload_type, envelope.payload)
    if not any(_holds(keys.get(s.keyid), s.sig, signed) for s in envelope.signatures):
        raise IntegrityError(
            "is not signed by a key this device trusts",
            element="envelope",
            hint="the hub's signing key changed or somebody else wrote it; enrol again if the hub was rebuilt",
        )
    message = messages.decode(envelope.payload, kind)
    if message.uid != uid:
        raise ForbiddenError(f"is meant for device {message.uid[:64]}, this one is {uid}", element="envelope")
    return message


def check_rises(accepted: messages.DesiredState | int, offered: messages.DesiredState) -> bool:
    """Return True for a newer desired state, False for the very version already accepted.

    Raises ForbiddenError for an older one: an old envelope, however well signed, cannot roll a device back.
    """
    version = accepted if isinstance(accepted, int) else accepted.manifest_version
    if offered.manifest_version < version:
        raise ForbiddenError(
            f"version {offered.manifest_version} is older than {version}, which was accepted before",
            element="desired state",
            hint="if the hub was restored from a backup, run `skerry device reconcile`",
        )
    return offered.manifest_version > version


def check_fresh(command: messages.Command, now: datetime) -> None:
    """Refuse a command whose time has passed, so that a recorded one cannot be played back later.

    Raises ForbiddenError.
    """
    if now > command.expires_at:
        raise ForbiddenError(f"expired at {command.expires_at.isoformat()}", element=f"command {command.id}")


def _holds(key: VerifyingKey | None, signature: bytes, signed: bytes) -> bool:
    if key is None:
        return False
    try:
        key.verify(signature, signed)
    except Exception:  # noqa: BLE001 - each crypto library has its own type for "wrong signature"
        return False
    return True
