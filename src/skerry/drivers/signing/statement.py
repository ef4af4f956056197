"""A signature's bytes, read: strict, bounded, and nothing believed before the signature holds. No I/O.

A signature is a Sigstore bundle (JSON) that holds a DSSE envelope that holds an in-toto statement, which lists files of
a model with their SHA-256 digests. `read_bundle` reads the outside, `read_statement` the signed inside. Refused:
duplicate keys, base64 that is cut off or has a second spelling, several signatures, other media, payload and predicate
types, digests of anything but whole files, paths that could mean another file. Must not live here: keys, trust.

Source: Sigstore bundle v0.3 (protobuf-specs), DSSE v1.0.2, in-toto attestation v1, OpenSSF Model Signing v1.0.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec

from skerry.api.errors import IntegrityError, InvalidError, TooLargeError, UnsupportedError
from skerry.core.manifest import MAX_SIGNATURE_BYTES, SIGNATURE_TYPE

BUNDLE_TYPE = SIGNATURE_TYPE
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"

MAX_BUNDLE_BYTES = MAX_SIGNATURE_BYTES
MAX_FILES = 4096
"""Listed in one statement."""
MAX_CERTIFICATES = 8
MAX_CERTIFICATE_BYTES = 16 * 1024
_MAX_ECDSA_BYTES = 512
MAX_PATH_LENGTH = 1024
_ELEMENT = "signature"


_Text = Annotated[str, msgspec.Meta(max_length=MAX_PATH_LENGTH)]
_T = TypeVar("_T")


class _Strict(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What must hold nothing else."""


class _PublicKey(_Strict, frozen=True):
    hint: Annotated[str, msgspec.Meta(max_length=256)] | None = None


class _Certificate(_Strict, frozen=True):
    raw_bytes: str


class _Chain(_Strict, frozen=True):
    certificates: Annotated[list[_Certificate], msgspec.Meta(min_length=1, max_length=MAX_CERTIFICATES)]


class _Material(_Strict, frozen=True):
    public_key: _PublicKey | None = None
    x509_certificate_chain: _Chain | None = None
    certificate: _Certificate | None = None
    tlog_entries: Annotated[list[dict[str, Any]], msgspec.Meta(max_length=16)] | None = None
    timestamp_verification_data: dict[str, Any] | None = None


class _Signature(_Strict, frozen=True):
    sig: str
    keyid: Annotated[str, msgspec.Meta(max_length=256)] | None = None


class _Envelope(_Strict, frozen=True):
    payload: str
    payload_type: str
    signatures: list[_Signature]


class _Bundle(_Strict, frozen=True):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


class _Subject(msgspec.Struct, frozen=True):
    digest: dict[str, str]
    name: str = ""


class _Resource(msgspec.Struct, frozen=True):
    name: _Text
    algorithm: _Text
    digest: _Text


class _Serialization(msgspec.Struct, frozen=True):
    method: _Text
    hash_type: _Text


class _Predicate(msgspec.Struct, frozen=True):
    serialization: _Serialization
    resources: Annotated[list[_Resource], msgspec.Meta(min_length=1, max_length=MAX_FILES)]


class _Statement(msgspec.Struct, frozen=True):
    subject: Annotated[list[_Subject], msgspec.Meta(min_length=1, max_length=1)]
    predicate: _Predicate
    kind: str = msgspec.field(name="_type")
    predicate_type: str = msgspec.field(name="predicateType")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A bundle as it lies there; nothing of it has been verified."""

    payload: bytes
    signature: bytes
    """DER-encoded ECDSA."""
    certificates: tuple[bytes, ...]
    """DER, the signer's first; empty where a bare key signed."""
    hint: str
    """SHA-256 (hex) of the PEM text of the key that is said to have signed; may be empty."""

    @property
    def signed(self) -> bytes:
        """What the signature is over: DSSE's pre-authentication encoding."""
        return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(self.payload), self.payload)


def read_bundle(raw: bytes) -> Bundle:
    """Read a bundle's outside.

    Raises TooLargeError, UnsupportedError (another kind of bundle or payload), InvalidError; nothing else, whatever the
    bytes.
    """
    if len(raw) > MAX_BUNDLE_BYTES:
        raise TooLargeError(f"{len(raw)} bytes are more than {MAX_BUNDLE_BYTES}", element=_ELEMENT)
    document = _load(raw)
    said = document.get("mediaType") if isinstance(document, dict) else None
    if said != BUNDLE_TYPE:
        raise UnsupportedError(
            f"media type {str(said)[:80]!a} is not {BUNDLE_TYPE}",
            element=_ELEMENT,
            hint="sign with `skerry model sign`, or model-signing 1.0 or later",
        )
    bundle = _convert(document, _Bundle)
    envelope, material = bundle.dsse_envelope, bundle.verification_material
    if envelope.payload_type != PAYLOAD_TYPE:
        raise UnsupportedError(f"payload type {envelope.payload_type[:80]!a} is not {PAYLOAD_TYPE}", element=_ELEMENT)
    if len(envelope.signatures) != 1:
        raise InvalidError(
            f"holds {len(envelope.signatures)} signatures, not one",
            element=_ELEMENT,
            hint="each signer writes a file of its own",
        )
    kinds = (material.public_key, material.x509_certificate_chain, material.certificate)
    if sum(kind is not None for kind in kinds) != 1:
        raise InvalidError("names its signer not exactly once: by a key, or by certificates", element=_ELEMENT)
    chain = material.x509_certificate_chain.certificates if material.x509_certificate_chain else []
    chain = [material.certificate] if material.certificate else chain
    return Bundle(
        payload=_decode(envelope.payload, "payload", MAX_BUNDLE_BYTES),
        signature=_decode(envelope.signatures[0].sig, "sig", _MAX_ECDSA_BYTES),
        certificates=tuple(_decode(one.raw_bytes, "rawBytes", MAX_CERTIFICATE_BYTES) for one in chain),
        hint=(material.public_key.hint or "") if material.public_key else "",
    )


def read_statement(payload: bytes) -> Mapping[str, str]:
    """Return what a statement lists: path in the package -> `sha256:<hex>`. Only for payloads whose signature holds.

    Raises UnsupportedError (a statement of something else), IntegrityError (it contradicts itself), InvalidError.
    """
    document = _load(payload)
    for key, wanted in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        said = document.get(key) if isinstance(document, dict) else None
        if said != wanted:
            raise UnsupportedError(
                f"{key} {str(said)[:80]!a} is not {wanted}",
                element=_ELEMENT,
                hint="it signs something else than a model, or in a version that is not known here",
            )
    statement = _convert(document, _Statement)
    how = statement.predicate.serialization
    if (how.method, how.hash_type) != ("files", "sha256"):
        raise UnsupportedError(
            f"lists {how.hash_type[:20]!a} of {how.method[:20]!a}, not sha256 of files",
            element=_ELEMENT,
            hint="sign again with the default way of hashing",
        )
    files: dict[str, str] = {}
    whole = sha256()
    for resource in statement.predicate.resources:
        _check_path(resource.name)
        if resource.algorithm != "sha256" or not _is_hex(resource.digest):
            raise InvalidError(f"file {resource.name[:120]!a} has no sha256 digest", element=_ELEMENT)
        if resource.name in files:
            raise InvalidError(f"lists {resource.name[:120]!a} twice", element=_ELEMENT)
        files[resource.name] = f"sha256:{resource.digest}"
        whole.update(bytes.fromhex(resource.digest))
    if statement.subject[0].digest != {"sha256": whole.hexdigest()}:
        raise IntegrityError("its subject is not what its files add up to", element=_ELEMENT)
    return files


def shown(text: str) -> str:
    """Return text with names of anybody's making in it such that it cannot steer a log or a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _load(raw: bytes) -> Any:
    """Parse JSON in UTF-8: no key twice, no NaN, no depth that would exhaust the stack."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("an object has one key twice")
        return found

    def constant(text: str) -> NoReturn:
        raise ValueError(f"{text} is not JSON")

    try:
        return json.loads(raw.decode(), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise InvalidError(
            f"cannot be read: {str(error)[:200] or type(error).__name__}",
            element=_ELEMENT,
            hint="it is damaged, or no signature of a model",
        ) from None


def _convert(document: Any, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(document, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidError(shown(str(error)[:300]), element=_ELEMENT) from None


def _decode(text: str, field: str, most: int) -> bytes:
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raw = b""
    if not 0 < len(raw) <= most or base64.b64encode(raw).decode() != text:
        raise InvalidError(f"{field} is not base64 of 1 to {most} bytes", element=_ELEMENT)
    return raw


def _check_path(name: str) -> None:
    """Refuse every path that could mean another file than the one it spells. Raises InvalidError."""
    path = PurePosixPath(name)
    plain = str(path) == name and not path.is_absolute() and ".." not in path.parts and name != "."
    if not plain or not name.isprintable() or "\\" in name:
        raise InvalidError(
            f"{name[:120]!a} is not a path inside a package",
            element=_ELEMENT,
            hint="sign the package's directory, not a file in it",
        )


def _is_hex(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
