"""Credentials from a hub, for others: a user's certificate by its signing API, a service account's token.

Lives here: the requests, in the order that `kubectl` and `openssl` would make them. Must not live here: files.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from skerry.api.errors import InvalidError, UnavailableError
from skerry.drivers.client.api import HubClient

SIGNER = "kubernetes.io/kube-apiserver-client"
_REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"


@dataclass(frozen=True, kw_only=True)
class Obtained:
    """What somebody logs in with, and until when."""

    expires: datetime
    certificate: bytes = b""
    key: bytes = b""
    token: str = ""

    def __repr__(self) -> str:
        """Show until when it is good, nothing else."""
        return f"Obtained(expires={self.expires.isoformat()})"


def obtain_certificate(client: HubClient, name: str, groups: list[str], seconds: int) -> Obtained:
    """Make a key, have its certificate approved with the client's own rights, and return both.

    The key never leaves this process but to the caller. Raises InvalidError, ForbiddenError.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    called = f"skerry-{secrets.token_hex(8)}"
    request = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": called},
        "spec": {
            "request": base64.b64encode(_csr(key, name, groups)).decode(),
            "signerName": SIGNER,
            "expirationSeconds": seconds,
            "usages": ["client auth", "digital signature"],
        },
    }
    made = client.call("POST", _REQUESTS, request)
    approval = {"type": "Approved", "status": "True", "reason": "SkerryKubeconfig", "message": "by skerry kubeconfig"}
    approved = {**made, "status": {"conditions": [approval]}}
    signed = client.call("PUT", f"{_REQUESTS}/{called}/approval", approved)
    certificate = _certificate_of(signed, client.server)
    return Obtained(
        certificate=certificate,
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        expires=x509.load_pem_x509_certificate(certificate).not_valid_after_utc,
    )


def obtain_token(client: HubClient, namespace: str, name: str, seconds: int) -> Obtained:
    """Return a new token of a service account. Raises NotFoundError, InvalidError, ForbiddenError."""
    asked = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": seconds},
    }
    status = client.call("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", asked).get("status")
    try:
        if not isinstance(status, dict) or not isinstance(status.get("token"), str) or not status["token"]:
            raise ValueError
        expires = datetime.fromisoformat(status["expirationTimestamp"]).astimezone(UTC)
    except (ValueError, TypeError, KeyError):
        raise _strange(client.server) from None
    return Obtained(token=status["token"], expires=expires)


def _csr(key: ec.EllipticCurvePrivateKey, name: str, groups: list[str]) -> bytes:
    try:
        subject = x509.Name(
            [
                *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
    except ValueError:
        raise InvalidError("user and groups must have 1 to 64 characters", element=f'user "{name[:80]}"') from None
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def _certificate_of(signed: dict[str, Any], server: str) -> bytes:
    try:
        pem = base64.b64decode(signed["status"]["certificate"], validate=True)
        x509.load_pem_x509_certificate(pem)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise _strange(server) from None
    return pem


def _strange(server: str) -> UnavailableError:
    return UnavailableError("approved it and gave no credentials", element=server, hint="is it a hub?")
