"""From a verified client certificate to `scope["skerry.identity"]`.

Lives here: reading the identity out of a certificate, and the middleware that puts it into each request's scope. Must
not live here: TLS (`hub.pki`, `hub.listener`), tokens (`hub.authentication`, which is asked about those whom their
certificate makes nobody), or what an identity may do (`hub.server.access`). Nothing a client writes into a request, no
header and no path, has any influence on whom its certificate names.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cached_property

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from starlette.types import ASGIApp, Receive, Scope, Send

from skerry.api.errors import ForbiddenError, InvalidError
from skerry.core import access
from skerry.core.ports import Clock

IDENTITY = "skerry.identity"
PEER = "skerry.peer"
"""Scope key under which the listener hands over the connection's `PeerCertificate`, or None."""


_HUB = (NameOID.ORGANIZATION_NAME, access.HUBS)
_UNREADABLE = (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion)


class PeerCertificate:
    """The client certificate of one connection, which TLS has verified; parsed once, when first asked for."""

    def __init__(self, der: bytes) -> None:
        self.der = der
        self._issued_by: tuple[x509.Certificate, bool] | None = None

    @cached_property
    def certificate(self) -> x509.Certificate | None:
        """The certificate; None when it cannot be read."""
        try:
            return x509.load_der_x509_certificate(self.der)
        except _UNREADABLE:
            return None

    @cached_property
    def _stated(self) -> access.Identity:
        if self.certificate is None or not is_for_clients(self.certificate):
            return access.ANONYMOUS
        try:
            return read_identity(self.certificate.subject)
        except _UNREADABLE:
            return access.ANONYMOUS

    def is_issued_by(self, ca: x509.Certificate) -> bool:
        """Return whether that very CA signed it: a listener may trust more than one, each for something else."""
        if self._issued_by is None or self._issued_by[0] is not ca:
            self._issued_by = (ca, _is_issued_by(self.certificate, ca))
        return self._issued_by[1]

    def identity(self, now: datetime, ca: x509.Certificate) -> access.Identity:
        """Return whom the certificate names; nobody once it has expired, however long the connection lives."""
        return self._stated if self._is_good(now) and self.is_issued_by(ca) else access.ANONYMOUS

    def is_hub(self, now: datetime, ca: x509.Certificate) -> bool:
        """Return whether it is what a hub shows as a client: a name that this CA gives to nobody else."""
        certificate = self.certificate
        if certificate is None or not self._is_good(now) or not self.is_issued_by(ca):
            return False
        try:
            subject = [(attribute.oid, attribute.value) for attribute in certificate.subject]
            return subject == [_HUB, (NameOID.COMMON_NAME, "hub")] and is_for_clients(certificate)
        except _UNREADABLE:
            return False

    def _is_good(self, now: datetime) -> bool:
        certificate = self.certificate
        return certificate is not None and certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def read_identity(subject: x509.Name) -> access.Identity:
    """Return the identity that a certificate's subject states; nobody for anything but exactly our forms.

    A device's is O=skerry:devices, OU=<namespace>, CN=<uid>; an admin's O=skerry:admins, CN=<name>. Any other is a
    user's: CN is the name and each O a group, none of them reserved.
    """
    organisations = _all(subject, NameOID.ORGANIZATION_NAME)
    names = _all(subject, NameOID.COMMON_NAME)
    units = _all(subject, NameOID.ORGANIZATIONAL_UNIT_NAME)
    if len(names) != 1 or not names[0]:
        return access.ANONYMOUS
    match organisations:
        case [access.ADMINS]:
            return access.Identity(role="admin", name=names[0])
        case [access.DEVICES]:
            unit = units[0] if len(units) == 1 else ""
            return access.Identity(role="device", name=names[0], namespace=unit) if unit else access.ANONYMOUS
    try:
        access.check_user(names[0], organisations, element="subject")
    except (ForbiddenError, InvalidError):
        return access.ANONYMOUS
    return access.Identity(role="user", name=names[0], groups=tuple(organisations))


def is_for_clients(certificate: x509.Certificate) -> bool:
    """Return whether a certificate is for TLS clients, and no CA's."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, *_UNREADABLE):
        return False
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage and not constraints.ca


def identify(
    app: ASGIApp, *, ca_pem: bytes, known: Callable[[str, str], bool], clock: Clock, users: bool = True
) -> ASGIApp:
    """Wrap an application so that each request's scope has the caller's `core.access.Identity`.

    Only certificates that this very CA signed count. `known` says whether a device of that uid and namespace exists:
    the certificate of a deleted one is worth nothing. `users` is false where somebody else says who its users are, and
    a certificate of this CA must not pass for one of theirs.
    """
    ca = x509.load_pem_x509_certificate(ca_pem)

    async def identified(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peer: PeerCertificate | None = scope.get(PEER)
            identity = access.ANONYMOUS if peer is None else peer.identity(clock.now(), ca)
            is_gone = identity.role == "device" and not known(identity.name, identity.namespace)
            if is_gone or (identity.role == "user" and not users):
                identity = access.ANONYMOUS
            scope[IDENTITY] = identity
        await app(scope, receive, send)

    return identified


def _is_issued_by(certificate: x509.Certificate | None, ca: x509.Certificate) -> bool:
    if certificate is None:
        return False
    try:
        certificate.verify_directly_issued_by(ca)
    except _UNREADABLE:
        return False
    return True


def _all(subject: x509.Name, oid: x509.ObjectIdentifier) -> list[str]:
    return [str(attribute.value) for attribute in subject.get_attributes_for_oid(oid)]
