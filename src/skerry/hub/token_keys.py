"""The keys that sign service accounts' tokens: made, rotated, found again by their id.

Lives here: the files in `<state-dir>/pki/tokens`, one ECDSA P-256 key each, named after the second it was made. The
newest signs for `ROTATE_AFTER`; older ones verify until no token of theirs can be good any more, and are then removed.
Several hubs may share the directory: a key id that is not known has the directory read again, at a bounded rate. Must
not live here: what tokens say (`core.claims`).

A lost key is no disaster and no error: its tokens are refused, and their owners make new ones.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from skerry.api.errors import UnavailableError
from skerry.core import claims
from skerry.core.ports import Clock
from skerry.kit import files

log = logging.getLogger(__name__)

ROTATE_AFTER = timedelta(days=90)
KEPT_FOR = ROTATE_AFTER + claims.MAX_LIFE + timedelta(days=1)
RELOAD_SECONDS = 1.0
"""Between two looks at the directory for keys that are not known."""
_MAX_KEYS = 256
_NAME = re.compile(r"(\d{1,12})-[0-9a-f]{8}\.key")


@dataclass(frozen=True, kw_only=True)
class TokenKey:
    """One key pair."""

    key_id: str
    """RFC 7638 thumbprint, base64url."""
    created: int
    """Seconds since 1970, UTC."""
    private: ec.EllipticCurvePrivateKey

    @property
    def jwk(self) -> dict[str, str]:
        """The public half as RFC 7517 has it."""
        return {**_coordinates(self.private.public_key()), "kid": self.key_id, "use": "sig", "alg": "ES256"}


class TokenKeys:
    """All keys of one directory, read when first needed."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory, self._clock = directory, clock
        self._keys: dict[str, TokenKey] = {}
        self._files: dict[str, str] = {}
        """File name -> key id; empty for one that cannot be read."""
        self._loaded: float | None = None

    def signing(self) -> TokenKey:
        """Return the key to sign with, making one where there is none or the newest is due for rotation.

        Raises StorageFullError; UnavailableError when the directory cannot be written to.
        """
        self._load()
        now = self._clock.now().timestamp()
        newest = max(self._keys.values(), key=lambda key: key.created, default=None)
        if newest is not None and now < newest.created + ROTATE_AFTER.total_seconds():
            return newest
        self._forget(now)
        return self._make(int(now))

    def find(self, key_id: str) -> TokenKey | None:
        """Return the key of that id, or None."""
        now = self._clock.monotonic()
        if key_id not in self._keys and (self._loaded is None or now - self._loaded >= RELOAD_SECONDS):
            self._load()
        return self._keys.get(key_id)

    def public(self) -> Sequence[dict[str, str]]:
        """Return the public halves of all keys as JWKs, the newest first; makes the first key if there is none."""
        self.signing()
        return [key.jwk for key in sorted(self._keys.values(), key=lambda key: key.created, reverse=True)]

    def _load(self) -> None:
        """Read what is new in the directory, and forget what is gone from it."""
        self._loaded = self._clock.monotonic()
        try:
            present = sorted(name for name in os.listdir(self._directory) if _NAME.fullmatch(name))[-_MAX_KEYS:]
        except FileNotFoundError:
            present = []
        except OSError as error:
            log.error("token_keys.unreadable file=%s cause=%s", self._directory, error.strerror)
            return
        for name in self._files.keys() - set(present):
            self._keys.pop(self._files.pop(name), None)
        for name in present:
            if name not in self._files:
                self._take(name)

    def _take(self, name: str) -> None:
        created = int(name.partition("-")[0])
        key = _read(self._directory / name)
        self._files[name] = ""
        if key is not None:
            made = TokenKey(key_id=_thumbprint(key.public_key()), created=created, private=key)
            self._keys[made.key_id] = made
            self._files[name] = made.key_id

    def _make(self, now: int) -> TokenKey:
        private = ec.generate_private_key(ec.SECP256R1())
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        name = f"{now}-{secrets.token_hex(4)}.key"
        try:
            files.private_directory(self._directory)
            files.write_atomic(self._directory / name, pem, mode=0o600)
        except OSError as error:
            raise UnavailableError(
                f"no key to sign tokens with can be written there ({error.strerror})",
                element=str(self._directory),
                hint="the hub must be able to write to its keys' directory",
            ) from None
        self._take(name)
        made = self._keys[self._files[name]]
        log.info("token_keys.made key=%s file=%s", made.key_id, name)
        return made

    def _forget(self, now: float) -> None:
        for name in list(self._files):
            if int(name.partition("-")[0]) + KEPT_FOR.total_seconds() < now:
                (self._directory / name).unlink(missing_ok=True)
                self._keys.pop(self._files.pop(name), None)
                log.info("token_keys.removed file=%s", name)


def _read(file: Path) -> ec.EllipticCurvePrivateKey | None:
    try:
        mode = file.stat().st_mode
        if mode & 0o077:
            file.chmod(0o600)
            log.warning("token_keys.mode_mended file=%s mode=%o", file, mode & 0o777)
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        log.error("token_keys.unreadable file=%s cause=%s", file, type(error).__name__)
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        log.error("token_keys.unreadable file=%s cause=%s", file, "not an ECDSA P-256 key")
        return None
    return key


def _coordinates(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    numbers = key.public_numbers()
    return {"crv": "P-256", "kty": "EC", "x": _encode(numbers.x.to_bytes(32)), "y": _encode(numbers.y.to_bytes(32))}


def _thumbprint(key: ec.EllipticCurvePublicKey) -> str:
    return _encode(sha256(msgspec.json.encode(_coordinates(key), order="sorted")).digest())


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
