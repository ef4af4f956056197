"""Hybrid public key encryption to a P-256 key, one message at a time: RFC 9180, base mode.

The suite is DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM. By hand, because the oldest release of `cryptography`
that is supported has the parts and not the whole; a test holds it against the library's own.
Lives here: that suite. Must not live here: whose keys, or what is said.
"""

from __future__ import annotations

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from skerry.api.errors import IntegrityError

ENCAPSULATED_BYTES = 65
_KEM_SUITE = b"KEM" + (0x0010).to_bytes(2, "big")
_SUITE = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (0x0010, 0x0001, 0x0002))
_BASE_MODE = b"\x00"


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a public key as an uncompressed point (65 bytes)."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def encrypt(recipient: ec.EllipticCurvePublicKey, plain: bytes, *, info: bytes, aad: bytes = b"") -> bytes:
    """Return the encapsulated key (65 bytes) followed by the ciphertext and its tag."""
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    encapsulated = public_bytes(ephemeral.public_key())
    shared = _shared(ephemeral.exchange(ec.ECDH(), recipient), encapsulated, public_bytes(recipient))
    key, nonce = _schedule(shared, info)
    return encapsulated + AESGCM(key).encrypt(nonce, plain, aad)


def decrypt(key: ec.EllipticCurvePrivateKey, sealed: bytes, *, info: bytes, aad: bytes = b"") -> bytes:
    """Return what was encrypted to this key. Raises IntegrityError, whatever the bytes."""
    encapsulated = sealed[:ENCAPSULATED_BYTES]
    try:
        ephemeral = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), encapsulated)
        agreed = key.exchange(ec.ECDH(), ephemeral)
        secret, nonce = _schedule(_shared(agreed, encapsulated, public_bytes(key.public_key())), info)
        return AESGCM(secret).decrypt(nonce, sealed[ENCAPSULATED_BYTES:], aad)
    except (ValueError, InvalidTag):
        raise IntegrityError("is not encrypted to this key", element="wrapped key") from None


def _shared(agreed: bytes, encapsulated: bytes, recipient: bytes) -> bytes:
    secret = _extract(_KEM_SUITE, b"", b"eae_prk", agreed)
    return _expand(_KEM_SUITE, secret, b"shared_secret", encapsulated + recipient, 32)


def _schedule(shared: bytes, info: bytes) -> tuple[bytes, bytes]:
    context = _BASE_MODE + _extract(_SUITE, b"", b"psk_id_hash", b"") + _extract(_SUITE, b"", b"info_hash", info)
    secret = _extract(_SUITE, shared, b"secret", b"")
    return _expand(_SUITE, secret, b"key", context, 32), _expand(_SUITE, secret, b"base_nonce", context, 12)


def _extract(suite: bytes, salt: bytes, label: bytes, material: bytes) -> bytes:
    """RFC 9180, section 4: LabeledExtract."""
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + material, "sha256")


def _expand(suite: bytes, secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """RFC 9180, section 4: LabeledExpand, for at most one block of the hash."""
    labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(secret, labelled + b"\x01", "sha256")[:length]
