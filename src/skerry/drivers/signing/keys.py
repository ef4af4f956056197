"""Keys and certificates as people hand them over: PEM files, read and named. No I/O.

Keys are elliptic-curve keys on P-256, P-384 or P-521, which is what OpenSSF Model Signing signs with; the curve decides
the hash, so no signature can choose a weaker one. Must not live here: who is trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from skerry.api.errors import InvalidError, UnsupportedError

PublicKey: TypeAlias = ec.EllipticCurvePublicKey
PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey
Certificate: TypeAlias = x509.Certificate

MAX_PEM_BYTES = 256 * 1024
UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for keys and certificates that it cannot read."""
_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
_CURVES = "use an elliptic-curve key on P-256, P-384 or P-521; `skerry model keygen` makes one"


def read_public_key(pem: bytes, element: str) -> PublicKey:
    """Return the public key of a PEM text (a public key, or a certificate's). Raises InvalidError, UnsupportedError."""
    try:
        if b"-----BEGIN CERTIFICATE-----" in pem[:MAX_PEM_BYTES]:
            return checked(x509.load_pem_x509_certificate(pem[:MAX_PEM_BYTES]).public_key(), element)
        return checked(serialization.load_pem_public_key(pem[:MAX_PEM_BYTES]), element)
    except UNREADABLE as error:
        raise InvalidError("is not a public key in PEM", element=element, hint=_CURVES) from error


def read_private_key(pem: bytes, password: bytes | None, element: str) -> PrivateKey:
    """Return the private key of a PEM text (PKCS#8 or SEC 1).

    Raises InvalidError, also when the password is wrong, missing or superfluous; UnsupportedError for other keys.
    """
    try:
        key = serialization.load_pem_private_key(pem[:MAX_PEM_BYTES], password)
    except TypeError:
        wrong = "is protected by a password" if password is None else "is not protected, but a password was given"
        hint = "give --password-file" if password is None else "leave --password-file out"
        raise InvalidError(wrong, element=element, hint=hint) from None
    except (ValueError, UnsupportedAlgorithm):
        cause = "is not a private key in PEM" if password is None else "is not a private key, or the password is wrong"
        raise InvalidError(cause, element=element, hint=_CURVES) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UnsupportedError("is not an elliptic-curve key", element=element, hint=_CURVES)
    checked(key.public_key(), element)
    return key


def read_certificates(pem: bytes, element: str) -> list[Certificate]:
    """Return the certificates of a PEM text, at least one. Raises InvalidError."""
    try:
        return x509.load_pem_x509_certificates(pem[:MAX_PEM_BYTES])
    except UNREADABLE as error:
        raise InvalidError("holds no certificate in PEM", element=element) from error


def checked(key: object, element: str) -> PublicKey:
    """Return the key if it is one that models are signed with. Raises UnsupportedError."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise UnsupportedError("is not a key that models are signed with", element=element, hint=_CURVES)
    return key


def digest_of(key: PublicKey) -> str:
    """Return a key's name: `sha256:<hex>` of its SubjectPublicKeyInfo (DER)."""
    raw = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"sha256:{sha256(raw).hexdigest()}"


def hint_of(key: PublicKey) -> str:
    """Return how OpenSSF Model Signing names a key in a bundle: SHA-256 (hex) of its PEM text."""
    raw = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return sha256(raw).hexdigest()


def has_signed(key: PublicKey, signature: bytes, data: bytes) -> bool:
    """Return whether the key signed the data: ECDSA, with the one hash that belongs to its curve."""
    try:
        key.verify(signature, data, ec.ECDSA(_HASHES[key.curve.name]()))
    except InvalidSignature:
        return False
    return True


def find(keys: Sequence[PublicKey], digest: str) -> PublicKey | None:
    """Return the key of that name."""
    return next((key for key in keys if digest_of(key) == digest), None)
