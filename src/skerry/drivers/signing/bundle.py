"""Verify a model's signature with `cryptography` alone, as a device does. No I/O, no clock, no network.

    read      `statement.read_bundle`: what it says of itself is not believed
    who       the trusted key that its hint names, or the key of a certificate that leads to a trusted authority
    holds     ECDSA over DSSE's pre-authentication encoding, with the hash of the key's curve
    what      only then `statement.read_statement`: path in the package -> digest

Must not live here: whether that signer may sign that model, which is policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from skerry.api.errors import IntegrityError
from skerry.drivers.signing import certificates, statement
from skerry.drivers.signing.keys import (
    Certificate,
    PublicKey,
    checked,
    digest_of,
    find,
    has_signed,
    hint_of,
    read_certificates,
    read_public_key,
)
from skerry.drivers.signing.statement import BUNDLE_TYPE, MAX_BUNDLE_BYTES

__all__ = [
    "BUNDLE_TYPE",
    "MAX_BUNDLE_BYTES",
    "Certificate",
    "PublicKey",
    "Signer",
    "Verified",
    "digest_of",
    "read_certificates",
    "read_public_key",
    "verify",
]

_ELEMENT = "signature"


@dataclass(frozen=True, kw_only=True, slots=True)
class Signer:
    """Who signed, as far as what is trusted says so."""

    key: str
    """`sha256:<hex>` of the key's SubjectPublicKeyInfo."""
    subject: str | None = None
    """Of the certificate (RFC 4514); None where it is empty, or the bare key is trusted."""
    issuer: str | None = None
    """The authority's own subject, as the certificate names it (RFC 4514)."""
    identity: str | None = None
    """The one e-mail address or URI in the certificate."""
    oidc_issuer: str | None = None
    """Who vouched for the identity, where the authority says so as Sigstore's does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What a signature that holds says."""

    signers: tuple[Signer, ...]
    """Exactly one; several signers write several signatures."""
    files: Mapping[str, str]
    """Path in the package -> `sha256:<hex>`, which is the digest of the blob that holds the file."""


def verify(bundle: bytes, *, keys: Sequence[PublicKey], authorities: Sequence[Certificate], now: datetime) -> Verified:
    """Return who signed and what, if a trusted key did, or one that a trusted authority certifies at `now` (aware).

    A key that is trusted itself needs no certificate that holds, so it outlives them. Raises IntegrityError (nobody
    who is trusted signed this, or it contradicts itself), InvalidError (malformed), TooLargeError, UnsupportedError
    (another kind of signature); whatever the bytes, nothing else.
    """
    found = statement.read_bundle(bundle)
    trusted = [checked(key, "trusted key") for key in keys]
    key, signer = _by_certificate(found, trusted, authorities, now) if found.certificates else _by_key(found, trusted)
    if not has_signed(key, found.signature, found.signed):
        raise IntegrityError(
            "does not belong to what it signs",
            element=_ELEMENT,
            hint="it was changed after it was made; take it from its signer again",
        )
    return Verified(signers=(signer,), files=statement.read_statement(found.payload))


def _by_key(found: statement.Bundle, trusted: Sequence[PublicKey]) -> tuple[PublicKey, Signer]:
    for key in trusted:
        if found.hint == hint_of(key) or (not found.hint and has_signed(key, found.signature, found.signed)):
            return key, Signer(key=digest_of(key))
    raise IntegrityError(
        f"is made with a key that is not trusted (hint {found.hint[:16]!a})",
        element=_ELEMENT,
        hint="name the signer's public key, or have it signed by one that is trusted",
    )


def _by_certificate(
    found: statement.Bundle, trusted: Sequence[PublicKey], authorities: Sequence[Certificate], now: datetime
) -> tuple[PublicKey, Signer]:
    chain = certificates.load(found.certificates)
    key = certificates.key_of(chain[0])
    pinned = find(trusted, digest_of(key))
    try:
        names = certificates.check_chain(chain, authorities, now)
    except IntegrityError:
        if pinned is None:
            raise
        return pinned, Signer(key=digest_of(key))
    return key, Signer(
        key=digest_of(key),
        subject=names.subject or None,
        issuer=names.issuer,
        identity=names.identity,
        oidc_issuer=names.oidc_issuer,
    )
