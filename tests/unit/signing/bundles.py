"""Keys, certificates and bundles for tests, written by hand: independent of the code that reads them, and of the
library that others write them with."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
FILES = {"card.json": sha256(b"card").hexdigest(), "digits.onnx": sha256(b"weights").hexdigest()}
HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


def new_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve or ec.SECP256R1())


def statement(files: Mapping[str, str] = FILES, **changes: Any) -> dict[str, Any]:
    whole = sha256(b"".join(bytes.fromhex(digest) for digest in files.values())).hexdigest()
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "digits", "digest": {"sha256": whole}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "resources": [{"name": n, "digest": d, "algorithm": "sha256"} for n, d in files.items()],
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False},
        },
    } | changes


def pae(payload: bytes, kind: str = "application/vnd.in-toto+json") -> bytes:
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def hint(key: ec.EllipticCurvePublicKey) -> str:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return sha256(key.public_bytes(serialization.Encoding.PEM, spki)).hexdigest()


def spki_digest(key: ec.EllipticCurvePublicKey) -> str:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return f"sha256:{sha256(key.public_bytes(serialization.Encoding.DER, spki)).hexdigest()}"


def document(
    key: ec.EllipticCurvePrivateKey,
    payload: bytes | Mapping[str, Any] | None = None,
    *,
    chain: Sequence[x509.Certificate] = (),
    algorithm: hashes.HashAlgorithm | None = None,
) -> dict[str, Any]:
    """Return a bundle as JSON, signed over that payload."""
    if not isinstance(payload, bytes):
        payload = json.dumps(payload or statement(), indent=2).encode()
    signature = key.sign(pae(payload), ec.ECDSA(algorithm or HASHES[key.curve.name]))
    der = [{"rawBytes": b64(one.public_bytes(serialization.Encoding.DER))} for one in chain]
    by = {"x509CertificateChain": {"certificates": der}} if chain else {"publicKey": {"hint": hint(key.public_key())}}
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": by | {"tlogEntries": []},
        "dsseEnvelope": {
            "payload": b64(payload),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": b64(signature), "keyid": ""}],
        },
    }


def bundle(key: ec.EllipticCurvePrivateKey, payload: bytes | Mapping[str, Any] | None = None, **how: Any) -> bytes:
    return json.dumps(document(key, payload, **how)).encode()


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


@dataclass(frozen=True)
class Party:
    """A key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def usage(**granted: bool) -> x509.KeyUsage:
    names = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    names += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**{name: granted.get(name, False) for name in names})


def authority(
    name: str, issuer: Party | None = None, *, path_length: int | None = None, ca: bool = True, **how: Any
) -> Party:
    extensions = [(usage(key_cert_sign=True), True)]
    return party(name, issuer, (x509.BasicConstraints(ca=ca, path_length=path_length), True), *extensions, **how)


def holder(name: str, issuer: Party, *extensions: tuple[x509.ExtensionType, bool], **how: Any) -> Party:
    """Return a party that may sign code, and more."""
    signs = (usage(digital_signature=True), True), (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)
    return party(name, issuer, *signs, *extensions, **how)


def party(
    name: str,
    issuer: Party | None,
    *extensions: tuple[x509.ExtensionType, bool],
    days: tuple[int, int] = (-10, 10),
    curve: ec.EllipticCurve | None = None,
) -> Party:
    key = new_key(curve)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=days[0]))
        .not_valid_after(NOW + timedelta(days=days[1]))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return Party(key, builder.sign(issuer.key if issuer else key, hashes.SHA256()))
