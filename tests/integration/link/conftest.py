"""A broker, a store and certificates as a hub has them, for the tests in this directory."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from skerry.core import access
from skerry.drivers.link.broker import BrokerSettings, EmbeddedBroker
from skerry.drivers.link.mqtt import MqttSettings
from skerry.drivers.link.tls import server_context


class Authority:
    """A CA that signs whatever a test, or an attacker, wants to have signed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {directory.name}")])
        self.ca_file = directory / "ca.pem"
        now = datetime.now(UTC)
        certificate = (
            _builder(self._name, self._name, self._key, now - timedelta(days=2), now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        file: str,
        common: list[str],
        organisation: list[str],
        *,
        unit: str = "",
        days: tuple[float, float] = (-1, 1),
    ) -> Path:
        """Write a certificate with its key into one PEM file."""
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        subject = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, value) for value in organisation]
            + ([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit)] if unit else [])
            + [x509.NameAttribute(NameOID.COMMON_NAME, value) for value in common]
        )
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        certificate = (
            _builder(subject, self._name, key, now + timedelta(days=days[0]), now + timedelta(days=days[1]))
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path = self.directory / f"{file}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return path

    def client(self, certificate: Path | None) -> ssl.SSLContext:
        """Return a context that trusts this CA and shows that certificate."""
        context = ssl.create_default_context(cafile=self.ca_file)
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context

    def device(self, uid: str, namespace: str = "default") -> ssl.SSLContext:
        """Return the context of an enrolled device."""
        return self.client(self.issue(f"device-{uid}", [uid], [access.DEVICES], unit=namespace))

    def hub(self) -> ssl.SSLContext:
        """Return the hub's context."""
        return self.client(self.issue("hub", ["hub"], [access.HUBS]))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


@dataclass
class Site:
    """A running embedded broker, who is known to it, and the settings to reach it."""

    authority: Authority
    broker: EmbeddedBroker
    known: set[str] = field(default_factory=set)

    def settings(self, tls: ssl.SSLContext) -> MqttSettings:
        return MqttSettings(host="localhost", port=self.broker.port, tls=tls, connect_timeout_seconds=5)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
def server_tls(authority: Authority) -> ssl.SSLContext:
    file = authority.issue("server", ["localhost"], [])
    return server_context(certificate=file, key=file, ca=authority.ca_file)


@pytest.fixture
def broker_settings() -> BrokerSettings:
    return BrokerSettings(port=0, unknown_grace_seconds=0.1)


@pytest.fixture
async def site(
    authority: Authority, server_tls: ssl.SSLContext, broker_settings: BrokerSettings
) -> AsyncIterator[Site]:
    known = {"dev-a", "dev-b"}
    async with EmbeddedBroker(broker_settings, tls=server_tls, known=lambda uid, _: uid in known) as broker:
        yield Site(authority, broker, known)


Connects = Callable[[str], MqttSettings]
