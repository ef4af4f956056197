"""How neighbours of one site prove themselves to each other: both by certificates of the hub's CA, one for each end.

    asks    shows the device's certificate       O=skerry:devices, OU=<namespace>, CN=<uid>   (client use only)
    serves  shows the device's peer certificate  O=skerry:peers,   OU=<namespace>, CN=<uid>   (server use only)

Each end takes the other's certificate of its own namespace alone. Names and addresses count for nothing: a neighbour is
who its certificate says. Lives here: the two contexts, and reading a subject. Must not live here: sockets.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from skerry.agent import identity
from skerry.agent.disk import Disk
from skerry.agent.identity import Identity
from skerry.api.errors import InvalidError, UnauthorizedError
from skerry.core import access

PEER_PEM_FILE = "peer.pem"


def has_certificate(disk: Disk) -> bool:
    """Return whether this device may serve neighbours: hubs before this could not give it what it takes."""
    return (disk.root / PEER_PEM_FILE).exists()


def asking(disk: Disk, known: Identity) -> ssl.SSLContext:
    """Return TLS for asking a neighbour; what it is called is not checked, see `neighbour`. Raises InvalidError."""
    context = identity.hub_context(known.ca)
    context.check_hostname = False  # neighbours are found by address; the subject says who it is
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    identity.load_certificate(disk, context)
    return context


def serving(disk: Disk, known: Identity) -> ssl.SSLContext:
    """Return TLS for answering neighbours, who must show a certificate. Raises InvalidError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0  # a resumed session would outlive its certificate
    try:
        context.load_verify_locations(cadata=known.ca)
        context.load_cert_chain(disk.root / PEER_PEM_FILE)
    except OSError as error:  # SSLError is one
        raise InvalidError(
            f"cannot be used: {error}",
            element=str(disk.root / PEER_PEM_FILE),
            hint="run `skerry agent renew`, which asks the hub for another",
        ) from None
    return context


def neighbour(certificate: Mapping[str, Any] | None, *, organisation: str, namespace: str) -> str:
    """Return the uid in a certificate that TLS has verified, as `ssl.SSLSocket.getpeercert` gives it.

    Raises UnauthorizedError for anything but exactly that organisation's form and that namespace.
    """
    parts = [pair for group in (certificate or {}).get("subject", ()) for pair in group]
    found = dict(parts)
    uid = str(found.get("commonName", ""))
    expected = {"organizationName": organisation, "organizationalUnitName": namespace, "commonName": uid}
    if not uid or not namespace or len(parts) != len(expected) or found != expected:
        shown = ", ".join(f"{key}={value}" for key, value in parts)[:200]
        raise UnauthorizedError("is no neighbour of this namespace", element=shown or "a certificate without subject")
    return uid


def server_uid(certificate: Mapping[str, Any] | None, known: Identity) -> str:
    """Return who answers. Raises UnauthorizedError."""
    return neighbour(certificate, organisation=access.PEERS, namespace=known.namespace)


def client_uid(certificate: Mapping[str, Any] | None, known: Identity) -> str:
    """Return who asks. Raises UnauthorizedError."""
    return neighbour(certificate, organisation=access.DEVICES, namespace=known.namespace)
