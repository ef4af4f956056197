"""Keys that sign trust anchors and policies: made, kept in a file behind a passphrase, and verified with. No clock.

A key file is PKCS#8 in PEM, encrypted by the best that `cryptography` has, 0600. Ed25519 is what is made; ECDSA on
P-256 and P-384, as tokens and HSMs hold it, is verified too. Must not live here: which keys are trusted
(`core.anchor`), keys of models' signers (`drivers.signing`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from skerry.api.errors import AlreadyExistsError, InvalidError, NotFoundError, UnsupportedError
from skerry.kit import files

PrivateKey: TypeAlias = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
MAX_KEY_FILE_BYTES = 64 * 1024
MIN_PASSPHRASE = 8
"""Characters."""
_HASHES: dict[str, type[hashes.HashAlgorithm]] = {"secp256r1": hashes.SHA256, "secp384r1": hashes.SHA384}


def verify(key: bytes, signature: bytes, data: bytes) -> bool:
    """Return whether the key made that signature; never raises. See `core.anchor.Verify`.

    Only a key's one canonical encoding is a key, so that none can stand for two.
    """
    try:
        public = serialization.load_der_public_key(key)
        if _der(public) != key:
            return False
        if isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(signature, data)
        elif isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in _HASHES:
            public.verify(signature, data, ec.ECDSA(_HASHES[public.curve.name]()))
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError, OverflowError):
        return False
    return True


def sign(key: PrivateKey, data: bytes) -> bytes:
    """Return a signature that `verify` accepts."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    return key.sign(data, ec.ECDSA(_HASHES[key.curve.name]()))


def public_der(key: PrivateKey) -> bytes:
    """Return the public half as a DER SubjectPublicKeyInfo."""
    return _der(key.public_key())


def create(path: Path, passphrase: str) -> PrivateKey:
    """Make a key and keep it in a new file. Raises AlreadyExistsError, InvalidError for a short passphrase."""
    if len(passphrase) < MIN_PASSPHRASE:
        raise InvalidError(
            f"the passphrase has fewer than {MIN_PASSPHRASE} characters",
            element=str(path),
            hint="whoever finds the file must not be able to guess it",
        )
    if path.exists() or path.is_symlink():
        raise AlreadyExistsError(element=str(path), hint="a key is never overwritten; choose another name")
    key = ed25519.Ed25519PrivateKey.generate()
    protection = serialization.BestAvailableEncryption(passphrase.encode())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
    files.write_atomic(path, pem, mode=0o600)
    return key


def load(path: Path, passphrase: str) -> PrivateKey:
    """Return the key in a file. Raises NotFoundError, InvalidError (also for a wrong passphrase), UnsupportedError."""
    raw = _read(path)
    try:
        key = serialization.load_pem_private_key(raw, passphrase.encode() if is_protected(raw) else None)
    except (ValueError, TypeError):
        raise InvalidError(
            "cannot be opened: the passphrase is wrong, or it is no private key in PEM", element=str(path)
        ) from None
    except UnsupportedAlgorithm as error:
        raise UnsupportedError(str(error)[:200], element=str(path)) from None
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _HASHES:
        return key
    raise UnsupportedError(
        "is no key for trust anchors", element=str(path), hint="use Ed25519, or ECDSA on P-256 or P-384"
    )


def needs_passphrase(path: Path) -> bool:
    """Return whether a key file is protected. Raises NotFoundError, InvalidError."""
    return is_protected(_read(path))


def is_protected(pem: bytes) -> bool:
    """Return whether a PEM text is encrypted."""
    return b"ENCRYPTED" in pem


def load_public(path: Path) -> bytes:
    """Return the public key in a PEM file as canonical DER. Raises NotFoundError, InvalidError, UnsupportedError."""
    try:
        key = serialization.load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidError("is no public key in PEM", element=str(path)) from None
    good = isinstance(key, ed25519.Ed25519PublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _HASHES
    )
    if not good:
        raise UnsupportedError("is no key for trust anchors", element=str(path), hint="Ed25519, or ECDSA P-256, P-384")
    return _der(key)


def pem_of(der: bytes) -> str:
    """Return a public key as PEM. Raises InvalidError."""
    try:
        key = serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidError("is no public key", element="key") from None
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_KEY_FILE_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(element=str(path)) from None
    except OSError as error:
        raise InvalidError(f"cannot be read: {error.strerror}", element=str(path)) from None
    if len(raw) > MAX_KEY_FILE_BYTES:
        raise InvalidError(f"is larger than {MAX_KEY_FILE_BYTES} bytes", element=str(path))
    return raw


def _der(key: object) -> bytes:
    encode = getattr(key, "public_bytes", None)
    if encode is None:
        raise TypeError("not a public key")
    raw: bytes = encode(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return raw
