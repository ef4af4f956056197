"""Who this device is to its hub: uid, certificate, the keys that may command it, where the hub is.

Lives here: what an enrollment leaves behind, on the disk and as TLS contexts and verifying keys. Must not live here:
how it was obtained (`enroll`).

`identity.json` is written last: a device without it is not enrolled. The private key and its certificate share one file
(`device.pem`), so that a renewal replaces both at once.
"""

from __future__ import annotations

import base64
import binascii
import ssl
from collections.abc import Mapping
from datetime import datetime

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from skerry.agent.disk import Disk
from skerry.agent.settings import HubSettings
from skerry.api.errors import InvalidError, NotFoundError
from skerry.api.kinds.enrollment import Endpoints
from skerry.core.trust import VerifyingKey

FILE = "identity.json"
PEM_FILE = "device.pem"
_ED25519_PREFIX = bytes.fromhex("302a300506032b6570032100")
"""What comes before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410)."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """An enrolled device; the private key is not in it."""

    uid: str
    name: str
    endpoints: Endpoints
    ca: str
    """The hub's CA in PEM: the only one that is trusted."""
    desired_keys: dict[str, str]
    """Key id -> Ed25519 public key in PEM."""
    not_before: datetime
    not_after: datetime
    """Of the certificate."""
    namespace: str = ""
    """Of this device; empty where it was enrolled by an agent that did not keep it, until the next renewal."""


def load(disk: Disk) -> Identity:
    """Return who this device is. Raises NotFoundError when it is not enrolled, InvalidError for a damaged file."""
    try:
        return msgspec.json.decode(disk.read(FILE), type=Identity)
    except NotFoundError:
        raise NotFoundError(
            "this device is not enrolled",
            element=f"state directory {disk.root}",
            hint="run `skerry agent enroll --hub URL --token T` with the same --state-dir first",
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidError(
            f"is damaged: {error}", element=str(disk.root / FILE), hint="enrol again in another state directory"
        ) from None


def is_enrolled(disk: Disk) -> bool:
    """Return whether there is an identity."""
    return (disk.root / FILE).exists()


def save(disk: Disk, identity: Identity, *, pem: bytes) -> None:
    """Keep an identity with its private key and certificate, the key first."""
    disk.write(PEM_FILE, pem)
    disk.write(FILE, msgspec.json.encode(identity))


def endpoints(identity: Identity, settings: HubSettings) -> Endpoints:
    """Return where the hub is, with the settings' word where they have one."""
    told = identity.endpoints
    return Endpoints(
        mqtt_host=settings.mqtt_host or told.mqtt_host,
        mqtt_port=settings.mqtt_port or told.mqtt_port,
        hub_url=settings.url or told.hub_url,
    )


def client_context(disk: Disk, identity: Identity) -> ssl.SSLContext:
    """Return TLS towards the hub: its CA alone is trusted, this device's certificate shown. Raises InvalidError."""
    context = hub_context(identity.ca)
    load_certificate(disk, context)
    return context


def hub_context(ca: str) -> ssl.SSLContext:
    """Return TLS that trusts this CA alone, names checked, version 1.2 at least. Raises InvalidError."""
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=ca)
    except ssl.SSLError as error:
        raise InvalidError(f"is no certificate: {error.reason}", element="the hub's CA") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def load_certificate(disk: Disk, context: ssl.SSLContext) -> None:
    """Show this device's present certificate from the next connection on. Raises InvalidError."""
    try:
        context.load_cert_chain(disk.root / PEM_FILE)
    except OSError as error:  # SSLError is one
        raise InvalidError(
            f"cannot be used: {error}", element=str(disk.root / PEM_FILE), hint="enrol again in another state directory"
        ) from None


def verifying_keys(identity: Identity) -> Mapping[str, VerifyingKey]:
    """Return the hub's signing keys by id. Raises InvalidError.

    The PEM is read by hand: all of `cryptography`'s key loading would stay in memory for 32 bytes.
    """
    return {keyid: _read_key(keyid, pem) for keyid, pem in identity.desired_keys.items()}


def _read_key(keyid: str, pem: str) -> Ed25519PublicKey:
    lines = [line.strip() for line in pem.strip().splitlines()]
    try:
        raw = base64.b64decode("".join(lines[1:-1]), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != len(_ED25519_PREFIX) + 32 or not raw.startswith(_ED25519_PREFIX):
        raise InvalidError("is not an Ed25519 public key in PEM", element=f"signing key {keyid[:64]}")
    return Ed25519PublicKey.from_public_bytes(raw[len(_ED25519_PREFIX) :])
