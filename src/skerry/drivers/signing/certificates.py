"""A signer's certificate, judged: it leads to a trusted authority, holds at that moment, and may sign. No I/O.

Path building is `cryptography`'s (RFC 5280: signatures, validity, path lengths, name constraints, critical extensions,
bounded). What it leaves to us is said in `_LEAF` and `_AUTHORITY`. Nobody is asked for revocation: devices are offline,
so keep certificates short-lived, or take the key or the authority out of what is trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from skerry.api.errors import IntegrityError, InvalidError
from skerry.drivers.signing import keys
from skerry.drivers.signing.statement import MAX_CERTIFICATES, shown

_OIDC_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
"""Fulcio: who vouched for the identity, as a DER-encoded UTF8String."""
_MAX_TEXT = 1024
_ELEMENT = "signature"


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """What a certificate says about its holder."""

    subject: str
    """RFC 4514."""
    issuer: str
    """RFC 4514, of the authority that issued it."""
    identity: str | None
    """Its one e-mail address or URI (subjectAltName)."""
    oidc_issuer: str | None
    """Who vouched for the identity, where the authority says so as Sigstore's does."""


def load(chain: Sequence[bytes]) -> list[x509.Certificate]:
    """Parse DER certificates. Raises InvalidError, whatever the bytes."""
    try:
        return [x509.load_der_x509_certificate(raw) for raw in chain]
    except keys.UNREADABLE as error:
        raise InvalidError(f"a certificate in it cannot be read: {str(error)[:200]}", element=_ELEMENT) from None


def key_of(certificate: x509.Certificate) -> keys.PublicKey:
    """Return the key that it certifies. Raises UnsupportedError, InvalidError."""
    try:
        return keys.checked(certificate.public_key(), _ELEMENT)
    except keys.UNREADABLE as error:
        raise InvalidError(f"the key of its certificate cannot be read: {str(error)[:200]}", element=_ELEMENT) from None


def check_chain(chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate], now: datetime) -> Names:
    """Return what the first certificate says when it leads to one of the authorities and may sign at that moment.

    The chain's others are only hints for the way. There is no trusted time in a signature, so the certificates must
    hold at `now` (aware), and not when it was made. Raises IntegrityError.
    """
    if not authorities:
        raise _refused("no authority is trusted")
    try:
        verifier = (
            verification.PolicyBuilder()
            .store(verification.Store(list(authorities)))
            .time(now.astimezone(UTC))
            .max_chain_depth(MAX_CERTIFICATES)
            .extension_policies(ca_policy=_AUTHORITY, ee_policy=_LEAF)
            .build_client_verifier()
        )
        verifier.verify(chain[0], list(chain[1:]))
        return _names(chain[0])
    except (verification.VerificationError, *keys.UNREADABLE) as error:
        raise _refused(str(error)[:300]) from None


def _names(leaf: x509.Certificate) -> Names:
    return Names(
        subject=leaf.subject.rfc4514_string()[:_MAX_TEXT],
        issuer=leaf.issuer.rfc4514_string()[:_MAX_TEXT],
        identity=_identity(leaf),
        oidc_issuer=_oidc_issuer(leaf),
    )


def _identity(leaf: x509.Certificate) -> str | None:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    found = [name.value for name in names if isinstance(name, x509.RFC822Name | x509.UniformResourceIdentifier)]
    return found[0][:_MAX_TEXT] if len(found) == 1 else None


def _oidc_issuer(leaf: x509.Certificate) -> str | None:
    for extension in leaf.extensions:
        if extension.oid == _OIDC_ISSUER and isinstance(extension.value, x509.UnrecognizedExtension):
            raw = extension.value.value
            for head in (bytes([0x0C, max(len(raw) - 2, 0) & 0x7F]), bytes([0x0C, 0x81, max(len(raw) - 3, 0) & 0xFF])):
                if raw.startswith(head) and len(raw) - len(head) == head[-1]:
                    return raw[len(head) :].decode()  # a UTF8String of up to 255 bytes
            raise ValueError("the OIDC issuer in its certificate cannot be read")
    return None


def _may_sign(_: verification.Policy, leaf: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.digital_signature:
        raise ValueError("its certificate's key usage is not digitalSignature")
    if usage is None and _extended(leaf) is None:
        raise ValueError("its certificate does not say that it may sign")


def _may_sign_code(_: verification.Policy, certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    if usage is not None and not {ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(
        usage
    ):
        name = certificate.subject.rfc4514_string()[:80]
        raise ValueError(f"certificate {name!a} has an extended key usage, and it is not codeSigning")


def _may_issue(_: verification.Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("an authority's key usage is not keyCertSign")


def _is_leaf(_: verification.Policy, __: x509.Certificate, constraints: x509.BasicConstraints | None) -> None:
    if constraints is not None and constraints.ca:
        raise ValueError("its certificate is an authority's")


def _extended(certificate: x509.Certificate) -> x509.ExtendedKeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None


_ANY = verification.Criticality.AGNOSTIC
_LEAF = (
    verification.ExtensionPolicy.permit_all()
    .may_be_present(x509.BasicConstraints, _ANY, _is_leaf)
    .may_be_present(x509.KeyUsage, _ANY, _may_sign)
    .may_be_present(x509.ExtendedKeyUsage, _ANY, _may_sign_code)
)
_AUTHORITY = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, verification.Criticality.CRITICAL, None)
    .may_be_present(x509.KeyUsage, _ANY, _may_issue)
    .may_be_present(x509.ExtendedKeyUsage, _ANY, _may_sign_code)
)


def _refused(cause: str) -> IntegrityError:
    return IntegrityError(
        f"its certificate is not trusted: {shown(cause)}",
        element=_ELEMENT,
        hint="name the authority that issued it, renew the certificate and sign again, or trust the key itself",
    )
