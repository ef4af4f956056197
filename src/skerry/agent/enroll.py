"""Enrolment: from a join token to a certificate; and renewal: from a certificate to the next.

The private key is made here and never leaves. It is on the disk before the hub hears of it, so that a device that lost
the hub's answer asks again with the same key and remains the same device. The hub is trusted from the first byte that
matters: the token names its CA's fingerprint. Blocks; run as a process of its own, so that what it loads is not kept by
the agent.

Lives here: the dialogue and the key. Must not live here: what is kept afterwards (`identity`).
"""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import ssl
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from skerry.agent import facts, identity, peers_tls
from skerry.agent.disk import DESIRED_FILE, Disk
from skerry.agent.identity import Identity
from skerry.agent.settings import AgentSettings
from skerry.api.errors import (
    AlreadyExistsError,
    BadRequestError,
    ForbiddenError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    SkerryError,
    TimedOutError,
    UnauthorizedError,
    UnavailableError,
)
from skerry.api.kinds.enrollment import Enrollment, EnrollmentSpec, EnrollmentStatus
from skerry.api.meta import ObjectMeta

PENDING_KEY = "pending.key"
TIMEOUT_SECONDS = 20.0
MAX_ANSWER_BYTES = 1024 * 1024
PATH = "/apis/skerry.dev/v1alpha1/namespaces/{namespace}/enrollments"
_TOKEN = re.compile(r"skj1\.(?P<id>[^.\s]{1,300})\.(?P<secret>[^.\s]{1,300})\.(?P<fingerprint>[0-9a-fA-F]{64})")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]{1,20000}-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True)
class _Hub:
    url: str
    host: str
    port: int


def enroll(
    disk: Disk,
    settings: AgentSettings,
    *,
    hub_url: str,
    token: str,
    name: str = "",
    again: bool = False,
    accepted: Callable[[], None] | None = None,
) -> Identity:
    """Make this device a member of a hub's fleet and return who it is now.

    One that was a member comes back with the key it has, when its certificate has expired or with `again`; a hub that
    still knows the key takes it for the same device. `again` also forgets which desired states were accepted: a join
    token is a person's word, and the way out for a device that was told a version that no hub can exceed.
    `accepted` is called when the hub's answer is good and before anything of it is kept: a device that is cut off must
    not come up without its trust anchor, and none that is refused loses the one it has.
    Raises AlreadyExistsError when it is one already, InvalidError, UnauthorizedError, ForbiddenError (the token),
    IntegrityError (another hub answered than the token is for), UnavailableError, TimedOutError.
    """
    known = _known(disk, again=again)
    if known is not None and not again and datetime.now(UTC) < known.not_after:
        raise AlreadyExistsError(
            f'is enrolled already, as "{known.name}" at {known.endpoints.hub_url}',
            element=f"state directory {disk.root}",
            hint="run the agent; or enrol this device --again, or another one with another --state-dir",
        )
    match = _TOKEN.fullmatch(token.strip())
    if match is None:
        raise InvalidError(
            "is not a join token", element="--token", hint="copy all of `skerry hub token create`'s output"
        )
    hub = _parse_url(hub_url)
    ca = _pin(hub, match["fingerprint"].lower())
    key = _present_key(disk) or _pending_key(disk)
    asked = EnrollmentSpec(
        device_name=name or (known.name if known else _default_name()),
        csr=_request(key),
        facts=facts.collect(settings, disk.root),
    )
    status = _ask(hub, identity.hub_context(ca), asked, token=token.strip())
    found = _accept(status, key, ca, hub)
    if accepted is not None:
        accepted()
    _keep(disk, found, key, status)
    if again:
        disk.delete(DESIRED_FILE)
    return found


def renew(disk: Disk, settings: AgentSettings) -> Identity:
    """Exchange this device's certificate for a new one, with a new key. Raises what `enroll` raises."""
    known = identity.load(disk)
    hub = _parse_url(identity.endpoints(known, settings.hub).hub_url)
    key = _pending_key(disk)
    asked = EnrollmentSpec(device_name=known.name, csr=_request(key), facts=facts.collect(settings, disk.root))
    status = _ask(hub, identity.client_context(disk, known), asked, namespace=_namespace(disk))
    if status.device_uid != known.uid:
        raise IntegrityError("the hub answered for another device", element=f"device {known.uid}")
    found = _accept(status, key, known.ca, hub)
    _keep(disk, found, key, status)
    return found


def _known(disk: Disk, *, again: bool) -> Identity | None:
    """Return who this device was. Raises InvalidError for a damaged identity, unless it is to be enrolled `again`."""
    try:
        return identity.load(disk)
    except NotFoundError:
        return None
    except InvalidError:
        if again:
            return None
        raise


def _keep(disk: Disk, found: Identity, key: ec.EllipticCurvePrivateKey, status: EnrollmentStatus) -> None:
    if status.peer_certificate:
        disk.write(peers_tls.PEER_PEM_FILE, _private_pem(key) + status.peer_certificate.strip().encode() + b"\n")
    disk.vault.rewrap(key)  # while the present one opens it
    identity.save(disk, found, pem=_private_pem(key) + status.certificate.strip().encode() + b"\n")
    disk.delete(PENDING_KEY)


# --- the device's key ---------------------------------------------------------------------------------------------


def _present_key(disk: Disk) -> ec.EllipticCurvePrivateKey | None:
    """Return the key of the present certificate; None when there is none or it is damaged."""
    try:
        key = serialization.load_pem_private_key(disk.read(identity.PEM_FILE), password=None)
    except (NotFoundError, InvalidError, ValueError):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _pending_key(disk: Disk) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(disk.read(PENDING_KEY), password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key
    except (NotFoundError, ValueError):  # none yet, or half of one from before files were atomic
        pass
    key = ec.generate_private_key(ec.SECP256R1())
    disk.write(PENDING_KEY, _private_pem(key))
    return key


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _request(key: ec.EllipticCurvePrivateKey) -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def _default_name() -> str:
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower())[:63].strip("-")
    return name or "device"


# --- the dialogue -------------------------------------------------------------------------------------------------


def _pin(hub: _Hub, fingerprint: str) -> str:
    """Fetch the hub's CA from whoever answers, and take it only if it is the one the token names."""
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    code, body = _send(hub, unverified, "GET", "/cacerts")
    if code != 200:
        raise UnavailableError(f"answered {code} when asked for its CA", element=hub.url, hint="is this a Skerry hub?")
    for pem in _CERTIFICATE.findall(body.decode(errors="replace")):
        try:
            der = ssl.PEM_cert_to_DER_cert(pem)
        except ValueError:
            continue
        if hashlib.sha256(der).hexdigest() == fingerprint:
            return str(pem) + "\n"
    raise IntegrityError(
        "has another CA than the token names",
        element=hub.url,
        hint="the token is for another hub, or somebody sits between; nothing was sent",
    )


def _namespace(disk: Disk) -> str:
    """Return the namespace this device was enrolled into: its certificate's organisational unit."""
    return _unit(x509.load_pem_x509_certificate(disk.read(identity.PEM_FILE))) or "default"


def _unit(certificate: x509.Certificate) -> str:
    units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    return str(units[0].value) if units else ""


def _ask(
    hub: _Hub, tls: ssl.SSLContext, asked: EnrollmentSpec, *, token: str = "", namespace: str = "default"
) -> EnrollmentStatus:
    """Ask for a certificate. For the first one the token decides the namespace, whatever the path says."""
    body = msgspec.json.encode(Enrollment(metadata=ObjectMeta(generate_name="device-"), spec=asked))
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    code, raw = _send(hub, tls, "POST", PATH.format(namespace=namespace), body=body, headers=headers)
    if code not in (200, 201):
        raise _refusal(code, raw, hub)
    try:
        status = msgspec.json.decode(raw, type=Enrollment).status
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UnavailableError(
            f"answered something that is no Enrollment: {str(error)[:200]}", element=hub.url
        ) from None
    if status.phase == "Denied":
        raise ForbiddenError(status.message[:500] or "was denied", element=f'device "{asked.device_name}"')
    if status.phase == "Pending":
        raise UnavailableError(
            "waits for approval", element=f'device "{asked.device_name}"', hint="run the same command again later"
        )
    return status


def _accept(status: EnrollmentStatus, key: ec.EllipticCurvePrivateKey, ca: str, hub: _Hub) -> Identity:
    """Check that the answer is for our key and from our CA before anything is kept."""
    try:
        certificate = x509.load_pem_x509_certificate(status.certificate.encode())
        authority = x509.load_pem_x509_certificate(ca.encode())
        issued = [certificate]
        if status.peer_certificate:
            issued.append(x509.load_pem_x509_certificate(status.peer_certificate.encode()))
        for one in issued:
            one.verify_directly_issued_by(authority)
    except Exception as error:  # noqa: BLE001 - `cryptography` raises ValueError, TypeError, InvalidSignature
        raise IntegrityError(f"sent no certificate of its own CA: {error}", element=hub.url) from None
    if any(one.public_key() != key.public_key() for one in issued):
        raise IntegrityError("sent a certificate for another key", element=hub.url)
    if status.endpoints is None or not status.device_uid or not status.desired_keys:
        raise IntegrityError("sent an incomplete answer", element=hub.url, hint="update the older side, hub or agent")
    found = Identity(
        uid=status.device_uid,
        name=status.device_name,
        endpoints=status.endpoints,
        ca=ca,
        desired_keys=status.desired_keys,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        namespace=_unit(certificate),
    )
    identity.verifying_keys(found)
    return found


def _send(
    hub: _Hub, tls: ssl.SSLContext, method: str, path: str, *, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection(hub.host, hub.port, timeout=TIMEOUT_SECONDS, context=tls)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        raw = response.read(MAX_ANSWER_BYTES + 1)
    except TimeoutError:
        raise TimedOutError(f"no answer within {TIMEOUT_SECONDS:g} s", element=hub.url) from None
    except ssl.SSLCertVerificationError as error:
        raise IntegrityError(
            f"its certificate does not hold: {error.verify_message}",
            element=hub.url,
            hint="use a name or address that the hub's certificate is for (`--advertise` adds one)",
        ) from None
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnavailableError(
            f"cannot be reached: {cause}", element=hub.url, hint="is the hub running, and is this its API's URL?"
        ) from None
    finally:
        connection.close()
    if len(raw) > MAX_ANSWER_BYTES:
        raise UnavailableError(f"answered more than {MAX_ANSWER_BYTES} bytes", element=hub.url)
    return response.status, raw


def _refusal(code: int, raw: bytes, hub: _Hub) -> SkerryError:
    """Return the hub's Status (metav1) as the error it stands for."""
    try:
        said: Any = msgspec.json.decode(raw)
        message = said["message"] if isinstance(said, dict) else ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        message = ""
    sentence = message[:1000] if isinstance(message, str) and message else f"answered {code}"
    kinds: dict[int, type[SkerryError]] = {
        400: BadRequestError,
        401: UnauthorizedError,
        403: ForbiddenError,
        409: AlreadyExistsError,
        422: InvalidError,
    }
    kind = kinds.get(code, UnavailableError if code >= 500 or code == 429 else BadRequestError)
    return kind(sentence, element=hub.url)


def _parse_url(text: str) -> _Hub:
    try:
        parts = urllib.parse.urlsplit(text if "://" in text else f"https://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urllib.parse.urlsplit("")
    if parts.scheme != "https" or not host or parts.path not in ("", "/"):
        raise InvalidError(
            f'"{text[:200]}" is not a hub\'s URL', element="--hub", hint="as in https://hub.example:7443"
        )
    port = port or 7443
    shown = f"[{host}]" if ":" in host else host
    return _Hub(url=f"https://{shown}:{port}", host=host, port=port)
