"""CertificateSigningRequest: a user's key on its way to a certificate.

Lives here: the type. Must not live here: approval and signing.
Source: Kubernetes API reference, `certificates.k8s.io/v1`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from skerry.api.meta import ObjectMeta, Struct

GROUP = "certificates.k8s.io"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"

Base64 = Annotated[str, msgspec.Meta(extra_json_schema={"format": "byte"})]


class CertificateSigningRequestSpec(Struct, frozen=True, kw_only=True):
    """What is asked for, and by whom."""

    request: Base64
    """The PKCS #10 request in PEM, base64."""
    signer_name: Annotated[str, msgspec.Meta(max_length=571)]
    """Who is to sign, as in kubernetes.io/kube-apiserver-client."""
    expiration_seconds: Annotated[int, msgspec.Meta(ge=600, le=2**31 - 1)] | None = None
    """How long the certificate is wanted for; the signer may make it shorter."""
    usages: list[str] = []
    """What the key is for, as in digital signature and client auth."""
    username: str = ""
    """Who asked; the hub sets it."""
    uid: str = ""
    """The asker's uid; the hub sets it."""
    groups: list[str] = []
    """The asker's groups; the hub sets them."""
    extra: dict[str, list[str]] = {}
    """What else is known of the asker; the hub sets it."""


class CertificateSigningRequestCondition(Struct, frozen=True, kw_only=True):
    """A decision about a request."""

    type: str
    """Approved, Denied or Failed."""
    status: Literal["True", "False", "Unknown"] = "True"
    reason: str = ""
    message: str = ""
    last_update_time: datetime | None = None
    last_transition_time: datetime | None = None


class CertificateSigningRequestStatus(Struct, frozen=True, kw_only=True):
    """What became of the request."""

    conditions: list[CertificateSigningRequestCondition] = []
    certificate: Base64 = ""
    """The certificate in PEM, base64, once it is signed."""


class CertificateSigningRequest(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A request for a client certificate, which somebody approves or denies (`kubectl certificate approve`)."""

    metadata: ObjectMeta
    spec: CertificateSigningRequestSpec
    status: CertificateSigningRequestStatus = CertificateSigningRequestStatus()
    api_version: str = API_VERSION
    kind: Literal["CertificateSigningRequest"] = "CertificateSigningRequest"
