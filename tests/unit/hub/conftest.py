"""A real authority, keys and certificates for the tests of the hub's trust."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from skerry.hub import pki
from skerry.kit.clock import SystemClock


@pytest.fixture(scope="session")
def live_authority(tmp_path_factory: pytest.TempPathFactory) -> pki.Authority:
    return pki.open_authority(tmp_path_factory.mktemp("live") / "pki", names=(), clock=SystemClock())


def new_csr(key: ec.EllipticCurvePrivateKey) -> str:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def client_context(
    authority: pki.Authority, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.ca_pem.decode())
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


@pytest.fixture
def device_context(tmp_path: Path) -> Callable[[pki.Authority, str, str], ssl.SSLContext]:
    """Return a maker of client contexts for devices, with a certificate issued by the authority."""

    def make(authority: pki.Authority, uid: str, namespace: str = "default") -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file = tmp_path / f"{uid}.pem"
        file.write_bytes(pem + authority.issue_device(new_csr(key), uid, namespace))
        return client_context(authority, file)

    return make
