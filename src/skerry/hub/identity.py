"""From a verified client certificate to `scope["skerry.identity"]`.

Lives here: reading the identity out of a certificate, and the middleware that puts it into each request's scope. Must
not live here: TLS (`hub.pki`, `hub.listener`) or what an identity may do (`hub.server.access`). Nothing a client
writes into a request, no header and no path, has any influence on who it is.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cached_property

from cryptography import x509
from cryptography.x509.oid import NameOID
from starlette.types import ASGIApp, Receive, Scope, Send

from skerry.core import access
from skerry.core.ports import Clock

IDENTITY = "skerry.identity"
PEER = "skerry.peer"
"""Scope key under which the listener hands over the connection's `PeerCertificate`, or None."""


class PeerCertificate:
    """The client certificate of one connection, which TLS has verified; parsed once, when first asked for."""

    def __init__(self, der: bytes) -> None:
        self.der = der

    @cached_property
    def _parsed(self) -> tuple[access.Identity, datetime]:
        certificate = x509.load_der_x509_certificate(self.der)
        return read_identity(certificate.subject), certificate.not_valid_after_utc

    def identity(self, now: datetime) -> access.Identity:
        """Return whom the certificate names; nobody once it has expired, however long the connection lives."""
        identity, until = self._parsed
        return identity if now <= until else access.ANONYMOUS


def read_identity(subject: x509.Name) -> access.Identity:
    """Return the identity that a certificate's subject states; nobody for anything but exactly our forms."""
    organisation = _only(subject, NameOID.ORGANIZATION_NAME)
    common = _only(subject, NameOID.COMMON_NAME)
    unit = _only(subject, NameOID.ORGANIZATIONAL_UNIT_NAME)
    if organisation == access.ADMINS and common:
        return access.Identity(role="admin", name=common)
    if organisation == access.DEVICES and common and unit:
        return access.Identity(role="device", name=common, namespace=unit)
    return access.ANONYMOUS


def identify(app: ASGIApp, *, known: Callable[[str], bool], clock: Clock) -> ASGIApp:
    """Wrap an application so that each request's scope has the caller's `core.access.Identity`.

    `known` says whether a device's uid still exists: the certificate of a deleted device is worth nothing.
    """

    async def identified(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peer: PeerCertificate | None = scope.get(PEER)
            identity = access.ANONYMOUS if peer is None else peer.identity(clock.now())
            if identity.role == "device" and not known(identity.name):
                identity = access.ANONYMOUS
            scope[IDENTITY] = identity
        await app(scope, receive, send)

    return identified


def _only(subject: x509.Name, oid: x509.ObjectIdentifier) -> str:
    values = [attribute.value for attribute in subject.get_attributes_for_oid(oid)]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else ""
