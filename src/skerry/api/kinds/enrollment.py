"""Enrollment and JoinToken: how a device comes into the fleet."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from skerry.api.duration import Duration
from skerry.api.kinds.device import DeviceFacts, DeviceName
from skerry.api.meta import API_VERSION, ObjectMeta, Struct


class EnrollmentSpec(Struct, frozen=True, kw_only=True):
    """What the device asks for."""

    device_name: DeviceName
    csr: Annotated[str, msgspec.Meta(max_length=16384)]
    """PKCS #10 request in PEM; its key becomes the device's identity. The subject in it is ignored."""
    facts: DeviceFacts = DeviceFacts()
    token_id: str = ""
    """Set by the hub: the public half of the join token that was used."""


class Endpoints(Struct, frozen=True, kw_only=True):
    """Where an enrolled device finds everything."""

    mqtt_host: str
    mqtt_port: int
    hub_url: str
    """Base of the hub's HTTPS API; its registry is below `/v2/`."""


class EnrollmentStatus(Struct, frozen=True, kw_only=True):
    """The hub's answer."""

    phase: Literal["Pending", "Approved", "Denied"] = "Pending"
    message: str = ""
    device_uid: str = ""
    device_name: str = ""
    certificate: str = ""
    """The device's certificate in PEM."""
    peer_certificate: str = ""
    """What it shows to neighbours that it serves, in PEM, for the same key; empty from a hub that is too old."""
    ca: str = ""
    """The hub's CA in PEM."""
    desired_keys: dict[str, str] = {}
    """Key id -> Ed25519 public key (PEM) that signs desired states and commands."""
    endpoints: Endpoints | None = None


class Enrollment(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One device's request to join: CSR, facts and the token used; then its certificate."""

    metadata: ObjectMeta
    spec: EnrollmentSpec
    status: EnrollmentStatus = EnrollmentStatus()
    api_version: str = API_VERSION
    kind: Literal["Enrollment"] = "Enrollment"


class JoinTokenSpec(Struct, frozen=True, kw_only=True):
    """How long, how often and for which devices a token is good."""

    ttl: Duration = "1h"
    uses: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    labels: dict[str, str] = {}
    """Put on every device that enrols with it."""


class JoinTokenStatus(Struct, frozen=True, kw_only=True):
    """What is left of a token."""

    expires_at: datetime | None = None
    used: int = 0
    hash: str = ""
    """SHA-256 of the secret half, hex; the secret itself (256 random bits) is never stored."""
    claims: dict[str, str] = {}
    """Enrollments that took a use and are not recorded yet, with the uid of each one's device; a repeated request takes
    no second use."""
    token: str = ""
    """The whole token; present only in the answer to its creation."""


class JoinToken(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A short-lived secret that lets devices enrol: `skj1.<id>.<secret>.<SHA-256 of the CA certificate>`."""

    metadata: ObjectMeta
    spec: JoinTokenSpec = JoinTokenSpec()
    status: JoinTokenStatus = JoinTokenStatus()
    api_version: str = API_VERSION
    kind: Literal["JoinToken"] = "JoinToken"
