"""The hub's own certificate authority, and every key the hub holds.

Lives here: making, loading, checking and renewing what is in `<state-dir>/pki`, issuing device certificates, and the
TLS contexts that follow from them. Must not live here: who may ask for a certificate (`hub.enrollment`).

Order is what makes a killed first start converge: the CA's key, its certificate, the desired-state key, the client
certificates, and last the server's certificate, each by one atomic write. Once the server's certificate exists the
first start is over, and a missing or foreign CA or desired-state key is an error: remaking it would cut off every
device. Leaf certificates are issued again whenever they no longer serve.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from skerry.api.errors import IntegrityError, InvalidError, UnavailableError
from skerry.core import access, trust
from skerry.core.ports import Clock
from skerry.hub.token_keys import TokenKeys
from skerry.kit import files

log = logging.getLogger(__name__)

MAX_CSR_BYTES = 16 * 1024
MAX_SUBJECT_BYTES = 64
"""Of one name in a subject (X.520)."""
MAX_RSA_BITS = 8192
"""Verifying larger keys costs an attacker nothing and the hub much."""
CA_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=397)
"""The hub's own certificates; also the longest that common TLS clients accept for a server."""
BACKDATE = timedelta(hours=1)
"""Certificates are valid from a little earlier, for devices whose clocks are behind."""
CA_WARNING = timedelta(days=365)
CLOCK_FLOOR = datetime(2026, 1, 1, tzinfo=UTC)
"""No hub was set up before: a clock that shows less is not set."""

PEER_DOMAIN = "peer.skerry.invalid"
"""RFC 6761: no such name exists, so a peer's certificate is good for no address that anybody could be asked for."""

_CIPHERS_TLS12 = "ECDHE+AESGCM:ECDHE+CHACHA20"
_RESTORE = "restore the directory from a backup; with a new one every device would have to enrol again"


@dataclass(frozen=True, kw_only=True, slots=True)
class CertificateRequest:
    """A request whose signature holds and whose key is strong enough."""

    public_key: CertificatePublicKeyTypes
    fingerprint: str
    """SHA-256 of the key (SubjectPublicKeyInfo, DER), hex."""
    subject: x509.Name
    """What the asker wants to be called; devices are called what the hub says."""


class Authority:
    """The CA, the keys of this hub and what they are used for. Make it with `open_authority`."""

    def __init__(
        self,
        *,
        directory: Path,
        clock: Clock,
        ca_key: ec.EllipticCurvePrivateKey,
        ca: x509.Certificate,
        desired_key: ed25519.Ed25519PrivateKey,
        device_life: timedelta,
    ) -> None:
        self._clock = clock
        self._ca_key = ca_key
        self._ca = ca
        self._device_life = device_life
        self._contexts: list[tuple[str, ssl.SSLContext]] = []
        self.ca_pem: bytes = ca.public_bytes(serialization.Encoding.PEM)
        """The CA's certificate."""
        self.ca_fingerprint: str = ca.fingerprint(hashes.SHA256()).hex()
        """SHA-256 of the CA's certificate (DER), hex; join tokens end with it."""
        self.desired_key = desired_key
        """Signs desired states and commands."""
        self.desired_public_pem: bytes = desired_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.desired_key_id: str = trust.key_id(self.desired_public_pem)
        self.ca_file = directory / "ca.crt"
        self.server_certificate_file = directory / "server.crt"
        self.server_key_file = directory / "server.key"
        self.hub_certificate_file = directory / "hub.crt"
        self.hub_key_file = directory / "hub.key"
        self.admin_certificate_file = directory / "admin.crt"
        self.admin_key_file = directory / "admin.key"
        self.token_keys = TokenKeys(directory / "tokens", clock)
        """Sign service accounts' tokens."""

    def derive_key(self, purpose: str) -> bytes:
        """Return 32 secret bytes of this hub for one purpose, the same after a restart (HKDF, RFC 5869)."""
        secret = self.desired_key.private_bytes_raw()
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=f"skerry {purpose}".encode()).derive(secret)

    def issue_device(self, csr_pem: str | bytes, uid: str, namespace: str) -> bytes:
        """Return a device's certificate in PEM: CN the uid, O devices, OU the namespace, for client use only.

        Nothing but the key is taken from the request. Raises InvalidError (see `read_request`).
        """
        subject = _subject(access.DEVICES, uid, namespace)
        certificate = self._issue(
            read_request(csr_pem).public_key, subject, life=self._device_life, usage=ExtendedKeyUsageOID.CLIENT_AUTH
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def issue_peer(self, csr_pem: str | bytes, uid: str, namespace: str) -> bytes:
        """Return what a device shows to neighbours that it serves, in PEM: for server use only, a name nobody has.

        To the hub, its broker and everybody who checks a server's name it is worth nothing. Raises InvalidError.
        """
        certificate = self._issue(
            read_request(csr_pem).public_key,
            _subject(access.PEERS, uid, namespace),
            life=self._device_life,
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            names=(f"{uid}.{PEER_DOMAIN}",),
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def issue_user(self, csr_pem: str | bytes, life: timedelta) -> bytes:
        """Return a user's certificate in PEM, for client use only: CN the user and O the groups of the request.

        Nothing else is taken from it. Raises InvalidError, ForbiddenError for names that only the hub gives.
        """
        name, groups = read_user(csr_pem)
        subject = x509.Name(
            [
                *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        certificate = self._issue(read_request(csr_pem).public_key, subject, life=life, usage=usage)
        return certificate.public_bytes(serialization.Encoding.PEM)

    def server_context(
        self, *, client_certificate: ssl.VerifyMode = ssl.CERT_OPTIONAL, files: tuple[Path, Path] | None = None
    ) -> ssl.SSLContext:
        """Return a server-side context: TLS 1.2 or later, client certificates of our CA only.

        With CERT_OPTIONAL a client may come without a certificate; a certificate of another CA ends the handshake.
        Sessions are not resumed: a resumed one would outlive its
        certificate. `files` are a certificate chain and its key that somebody else made, to show in place of our own.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _harden(context)
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 0
        context.verify_mode = client_certificate
        context.load_verify_locations(cadata=self.ca_pem.decode())
        if files is not None:
            context.load_cert_chain(*files, password="")  # a key with a passphrase is an error, and asks nobody
            return context
        return self._with_certificate("server", context)

    def hub_client_context(self) -> ssl.SSLContext:
        """Return the context with which this hub connects to its broker, by its own client certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _harden(context)
        context.load_verify_locations(cadata=self.ca_pem.decode())
        return self._with_certificate("hub", context)

    def renew(self, names: Sequence[str]) -> list[str]:
        """Issue the hub's own certificates again where they near their end, or no longer fit; return which.

        Two thirds of a certificate's life may pass. Keys stay, and contexts handed out before use the new certificate;
        call it in the thread that uses them. Raises IntegrityError for a key file that cannot be read.
        """
        renewed = [
            name
            for name, organisation, common in (("hub", access.HUBS, "hub"), ("admin", access.ADMINS, access.ADMIN))
            if self._renew_leaf(name, _subject(organisation, common), ExtendedKeyUsageOID.CLIENT_AUTH, ())
        ]
        if self._renew_leaf(
            "server", _subject("", access.SERVER), ExtendedKeyUsageOID.SERVER_AUTH, server_names(names)
        ):
            renewed.append("server")
        for name, context in self._contexts:
            if name in renewed:
                self._load(name, context)
        left = self._ca.not_valid_after_utc - self._clock.now()
        if left < CA_WARNING:
            log.warning("pki.ca_expires days=%d file=%s", left.days, self.ca_file)
        return renewed

    def check_certificates(self) -> None:
        """Return while the hub's own certificates are valid. Raises IntegrityError that names the first that is not."""
        now = self._clock.now()
        for name in ("server", "hub"):
            file = self.ca_file.with_name(f"{name}.crt")
            until = x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
            if now >= until:
                raise IntegrityError(f"expired at {until.isoformat()}", element=str(file))

    def _with_certificate(self, name: str, context: ssl.SSLContext) -> ssl.SSLContext:
        self._load(name, context)
        self._contexts.append((name, context))
        return context

    def _load(self, name: str, context: ssl.SSLContext) -> None:
        context.load_cert_chain(self.ca_file.with_name(f"{name}.crt"), self.ca_file.with_name(f"{name}.key"))

    def _renew_leaf(self, name: str, subject: x509.Name, usage: x509.ObjectIdentifier, names: Sequence[str]) -> bool:
        certificate_file = self.ca_file.with_name(f"{name}.crt")
        key = _load_or_make_key(self.ca_file.with_name(f"{name}.key"))
        if certificate_file.exists() and self._serves(certificate_file, key, subject, names):
            return False
        certificate = self._issue(key.public_key(), subject, life=LEAF_LIFE, usage=usage, names=names)
        files.write_atomic(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), mode=0o600)
        log.info("pki.issued file=%s until=%s", certificate_file, certificate.not_valid_after_utc.isoformat())
        return True

    def _serves(self, file: Path, key: ec.EllipticCurvePrivateKey, subject: x509.Name, names: Sequence[str]) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(file.read_bytes())
            certificate.verify_directly_issued_by(self._ca)
            held = _names_of(certificate)
        except (ValueError, TypeError, InvalidSignature, x509.InvalidVersion):
            return False
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        fresh = begin <= self._clock.now() < begin + (end - begin) * 2 / 3
        fits = certificate.public_key() == key.public_key() and certificate.subject == subject
        return fresh and fits and held == frozenset(names)

    def _issue(
        self,
        key: CertificatePublicKeyTypes,
        subject: x509.Name,
        *,
        life: timedelta,
        usage: x509.ObjectIdentifier,
        names: Sequence[str] = (),
    ) -> x509.Certificate:
        now = self._clock.now()
        builder = (
            _builder(subject, self._ca.subject, key, begin=now - BACKDATE, end=now + life, latest=self._ca)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._ca_key.public_key()), critical=False
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(n) for n in names]), critical=False)
        return builder.sign(self._ca_key, hashes.SHA256())


def open_authority(
    directory: Path,
    *,
    names: Sequence[str],
    clock: Clock,
    device_life: timedelta = timedelta(days=90),
    may_create: bool = True,
) -> Authority:
    """Load the hub's PKI, making on the first start whatever is not there yet, and renewing what nears its end.

    `names` are further host names and addresses of this hub. `may_create` is false when the hub already has data, so
    that its CA must exist. Raises IntegrityError when something is missing, unreadable or does not belong together;
    InvalidError for a name that is none; UnavailableError while the clock is not set; StorageFullError.
    """
    server_names(names)  # refused before anything is made
    ca_file, ca_key_file = directory / "ca.crt", directory / "ca.key"
    first = may_create and not (directory / "server.crt").exists()
    if not first or (ca_file.exists() and not ca_key_file.exists()):
        _require(ca_key_file)
        _require(ca_file)
    if not first:
        _require(directory / "desired.key")
    files.private_directory(directory)
    files.sync_directory(directory.parent)
    for unfinished in directory.glob(".*.tmp"):
        unfinished.unlink()
    ca_key = _load_or_make_key(ca_key_file)
    if not ca_file.exists():
        _check_clock(clock.now(), CLOCK_FLOOR, f"a new CA in {directory}")
        made = _self_signed(ca_key, clock.now())
        files.write_atomic(ca_file, made.public_bytes(serialization.Encoding.PEM), mode=0o600)
    authority = Authority(
        directory=directory,
        clock=clock,
        ca_key=ca_key,
        ca=_load_ca(ca_file, ca_key_file, ca_key, clock.now()),
        desired_key=_load_or_make_signing_key(directory / "desired.key"),
        device_life=device_life,
    )
    authority.renew(names)
    return authority


def read_request(csr_pem: str | bytes) -> CertificateRequest:
    """Check a PKCS #10 request: size, self-signature, key type and size (P-256, P-384, Ed25519, RSA from 2048).

    Raises InvalidError, whatever the bytes are.
    """
    element, hint = "spec.csr", "make a request with an ECDSA P-256 key"
    raw = csr_pem.encode(errors="replace") if isinstance(csr_pem, str) else csr_pem
    if len(raw) > MAX_CSR_BYTES:
        raise InvalidError(f"is longer than {MAX_CSR_BYTES} bytes", element=element, hint=hint)
    try:
        request = x509.load_pem_x509_csr(raw)
        key = request.public_key()
        _check_key(key)
        sound, subject = request.is_signature_valid, _subject_of(request)
        encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise InvalidError("is not a PKCS #10 request in PEM that can be read", element=element, hint=hint) from None
    if not sound:
        raise InvalidError("its signature does not fit its key", element=element, hint=hint)
    return CertificateRequest(public_key=key, fingerprint=sha256(encoded).hexdigest(), subject=subject)


def _subject_of(request: x509.CertificateSigningRequest) -> x509.Name:
    """Return the subject. What it complains of with a warning is no subject of ours, or is refused by `read_user`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return request.subject


def read_user(csr_pem: str | bytes) -> tuple[str, list[str]]:
    """Return the user name (CN) and the groups (O) that a request asks for; the request is checked as any.

    Raises InvalidError, ForbiddenError for names that only the hub gives.
    """
    subject = read_request(csr_pem).subject
    names = [str(one.value) for one in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    groups = [str(one.value) for one in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    if any(len(text.encode()) > MAX_SUBJECT_BYTES for text in (*names, *groups)):
        raise InvalidError(
            "a name in its subject is too long for a certificate",
            element="spec.request",
            hint=f"at most {MAX_SUBJECT_BYTES} bytes",
        )
    if len(names) != 1:
        raise InvalidError(
            "its subject must have one common name", element="spec.request", hint="as in /O=group/CN=user"
        )
    access.check_user(names[0], groups, element="spec.request")
    return names[0], groups


def server_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return every name and address the server's certificate is for, in a fixed order. Raises InvalidError."""
    hostname = socket.gethostname().lower()
    local = ["localhost", "127.0.0.1", "::1", *([hostname] if _is_name(hostname) else [])]
    for name in names:
        if not _is_address(name) and not _is_name(name.lower()):
            raise InvalidError("is neither a host name nor an address", element=f'name "{name[:80]}"')
    given = [str(ipaddress.ip_address(name)) if _is_address(name) else name.lower() for name in names]
    return tuple(dict.fromkeys([*local, *given]))


def _check_key(key: CertificatePublicKeyTypes) -> None:
    match key:
        case ec.EllipticCurvePublicKey():
            good = isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
        case rsa.RSAPublicKey():
            good = 2048 <= key.key_size <= MAX_RSA_BITS
        case _:
            good = isinstance(key, ed25519.Ed25519PublicKey)
    if not good:
        raise InvalidError(
            "its key is of a type or size that is not accepted",
            element="spec.csr",
            hint=f"use ECDSA P-256 or P-384, Ed25519, or RSA with 2048 to {MAX_RSA_BITS} bits",
        )


def _require(file: Path) -> None:
    if not file.exists():
        raise IntegrityError("is missing though this hub was set up before", element=str(file), hint=_RESTORE)


def _load_ca(file: Path, key_file: Path, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        fits = certificate.public_key() == key.public_key()
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm):
        raise IntegrityError("is not a certificate that can be read", element=str(file), hint=_RESTORE) from None
    if not fits:
        raise IntegrityError(f"does not belong to the key in {key_file}", element=str(file), hint=_RESTORE)
    _check_clock(now, certificate.not_valid_before_utc, str(file))
    if now >= certificate.not_valid_after_utc:
        raise IntegrityError(
            f"the CA's certificate expired at {certificate.not_valid_after_utc.isoformat()}",
            element=str(file),
            hint="check this machine's clock; if it is right, set up a new hub and enrol the devices there",
        )
    return certificate


def _check_clock(now: datetime, earliest: datetime, element: str) -> None:
    """Refuse to issue anything by a clock that is certainly wrong, as after a start without a battery or a network."""
    if now < earliest:
        raise UnavailableError(
            f"this machine's clock says {now:%Y-%m-%d %H:%M}, and it is later than {earliest:%Y-%m-%d %H:%M}",
            element=element,
            hint="set the clock, or wait until it is set from the network, and start again",
        )


def _load_or_make_key(file: Path) -> ec.EllipticCurvePrivateKey:
    if not file.exists():
        _write_key(file, ec.generate_private_key(ec.SECP256R1()))
    key = _read_key(file)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IntegrityError("is not an ECDSA key", element=str(file), hint="restore it from a backup")
    return key


def _load_or_make_signing_key(file: Path) -> ed25519.Ed25519PrivateKey:
    if not file.exists():
        _write_key(file, ed25519.Ed25519PrivateKey.generate())
    key = _read_key(file)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise IntegrityError("is not an Ed25519 key", element=str(file), hint=_RESTORE)
    return key


def _read_key(file: Path) -> PrivateKeyTypes:
    mode = file.stat().st_mode
    if mode & 0o077:
        file.chmod(0o600)
        log.warning("pki.mode_mended file=%s mode=%o", file, mode & 0o777)
    try:
        return serialization.load_pem_private_key(file.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IntegrityError(
            "is not a private key that can be read", element=str(file), hint="restore it from a backup"
        ) from None


def _write_key(file: Path, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files.write_atomic(file, pem, mode=0o600)


def _self_signed(key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    # The name is unique to the CA, so that a client that trusts several hubs finds the right issuer.
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:16]
    name = _subject("", f"Skerry hub CA {identifier}")
    return (
        _builder(name, name, key.public_key(), begin=now - BACKDATE, end=now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: CertificatePublicKeyTypes,
    *,
    begin: datetime,
    end: datetime,
    latest: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(min(end, latest.not_valid_after_utc) if latest else end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(organisation: str, common: str, unit: str = "") -> x509.Name:
    parts = (
        (NameOID.ORGANIZATION_NAME, organisation),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
        (NameOID.COMMON_NAME, common),
    )
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts if value])


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS_TLS12)
    context.verify_flags |= ssl.VERIFY_X509_STRICT


def _names_of(certificate: x509.Certificate) -> frozenset[str]:
    try:
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(str(name.value) for name in held)


def _general(name: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name)) if _is_address(name) else x509.DNSName(name)


def _is_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text) is not None and "%" not in text
    except ValueError:
        return False


def _is_name(text: str) -> bool:
    labels = text.split(".")
    if len(text) > 253 or not text.isascii() or all(label.isdigit() for label in labels):
        return False
    return all(
        0 < len(label) <= 63 and label.replace("-", "").isalnum() and label[0] != "-" and label[-1] != "-"
        for label in labels
    )
