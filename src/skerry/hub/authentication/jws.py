"""Signed tokens (JWS, RFC 7515, compact form): the one door to the library that makes and checks them.

Only asymmetric algorithms are known here, and a key is used with its own algorithm alone, so that neither `none` nor a
public key taken for a secret gets in. Must not live here: what a token's claims mean (`core.claims`), where keys are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.api_jws import PyJWS
from jwt.exceptions import PyJWTError

from skerry.api.errors import InvalidError, UnauthorizedError

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""RFC 7518 and 8037, without everything that is symmetric, and without `none`."""

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

_MAX_RSA_BITS = 8192
_JWS = PyJWS(algorithms=list(ALGORITHMS), options={"enforce_minimum_key_length": True})
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
_BAD = (PyJWTError, ValueError, TypeError, KeyError, RecursionError, UnicodeError, msgspec.MsgspecError)


class _Unverified(msgspec.Struct):
    iss: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a token says of itself, before anything is proved."""

    algorithm: str
    key_id: str
    issuer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VerificationKey:
    """A public key, and the one algorithm that it is for here."""

    key: PublicKey
    algorithm: str


def sign(payload: bytes, key: ec.EllipticCurvePrivateKey, *, key_id: str) -> str:
    """Return a token signed with a P-256 key (ES256)."""
    return _JWS.encode(payload, key, algorithm="ES256", headers={"kid": key_id})


def look(token: str) -> Seen | None:
    """Return what a token says of itself; None when it is no such token."""
    if token.count(".") != 2:
        return None
    try:
        found = _JWS.decode_complete(token, options={"verify_signature": False})
        header: Mapping[str, Any] = found["header"]
        if "crit" in header or "b64" in header:
            return None
        issuer = msgspec.json.decode(found["payload"], type=_Unverified).iss
        algorithm, key_id = header.get("alg", ""), header.get("kid", "")
    except _BAD:
        return None
    if not isinstance(algorithm, str) or not isinstance(key_id, str):
        return None
    return Seen(algorithm=algorithm, key_id=key_id, issuer=issuer)


def verify(token: str, key: VerificationKey) -> bytes:
    """Return the payload of a token whose signature holds. Raises UnauthorizedError, the same for whatever is wrong."""
    try:
        payload: bytes = _JWS.decode_complete(token, key.key, algorithms=[key.algorithm])["payload"]
    except _BAD:
        raise UnauthorizedError("its signature is not good", element="bearer token") from None
    return payload


def read_keys(raw: bytes, algorithms: Sequence[str], *, element: str) -> dict[tuple[str, str], VerificationKey]:
    """Return the keys of a JWK set (RFC 7517) by key id and algorithm; those for other uses or algorithms left out.

    Raises InvalidError for what is no key set, or one without a key that can be used.
    """
    try:
        listed = msgspec.json.decode(raw, type=dict[str, Any]).get("keys")
    except _BAD:
        listed = None
    if not isinstance(listed, list):
        raise InvalidError("is not a set of keys", element=element)
    found: dict[tuple[str, str], VerificationKey] = {}
    for entry in listed[:256]:
        for algorithm in algorithms:
            key = _read_key(entry, algorithm)
            if key is not None:
                found.setdefault((str(entry.get("kid", "")), algorithm), VerificationKey(key=key, algorithm=algorithm))
    if not found:
        raise InvalidError(f"has no key for {', '.join(algorithms)}", element=element)
    return found


def _read_key(entry: Any, algorithm: str) -> PublicKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or entry.get("alg", algorithm) != algorithm:
        return None
    kind = {"R": "RSA", "P": "RSA", "E": "EC"}[algorithm[0]] if algorithm != "EdDSA" else "OKP"
    if entry.get("kty") != kind or entry.get("crv") != _CURVES.get(algorithm, entry.get("crv")):
        return None
    public = {name: value for name, value in entry.items() if name in ("kty", "crv", "n", "e", "x", "y")}
    try:
        key = jwt.PyJWK(public, algorithm=algorithm).key
    except _BAD:
        return None
    if isinstance(key, rsa.RSAPublicKey):
        return key if 2048 <= key.key_size <= _MAX_RSA_BITS else None
    return key if isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) else None
