"""What a device shows to neighbours: it comes with its enrolment, and is worth nothing anywhere else."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.integration.hub.conftest import HubProcess

from skerry.agent import app, identity, neighbourhood, peers_tls
from skerry.agent.disk import Disk
from skerry.agent.settings import AgentSettings, PeerSettings
from skerry.core import access
from skerry.hub.identity import read_identity

API = "/apis/skerry.dev/v1alpha1/namespaces/default"


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """One hub for all tests here, which has nothing to complain of."""
    hub = HubProcess(tmp_path_factory.mktemp("shared") / "hub", "--api-port", "0", "--mqtt-port", "0")
    try:
        yield hub.wait_ready()
        hub.terminate()
    finally:
        hub.end()


@pytest.fixture
def enrolled(shared_hub: HubProcess, tmp_path: Path) -> Disk:
    directory, token = tmp_path / "device", shared_hub.create_token(test="peers")
    arguments = [
        "enroll",
        "--hub",
        shared_hub.record["url"],
        "--token",
        token,
        "--name",
        tmp_path.name.replace("_", "-"),
    ]
    assert app.main([*arguments, "--state-dir", str(directory)]) == 0
    return Disk(directory)


def peer_certificate(disk: Disk) -> x509.Certificate:
    return x509.load_pem_x509_certificate(disk.read(peers_tls.PEER_PEM_FILE))


def test_it_is_for_serving_alone_and_for_no_name_that_exists(enrolled: Disk) -> None:
    known, certificate = identity.load(enrolled), peer_certificate(enrolled)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [f"{known.uid}.peer.skerry.invalid"]
    assert read_identity(certificate.subject) == access.ANONYMOUS
    assert known.namespace == "default"
    assert (enrolled.root / peers_tls.PEER_PEM_FILE).stat().st_mode & 0o777 == 0o600


def test_the_hub_takes_it_for_nobody(shared_hub: HubProcess, enrolled: Disk) -> None:
    context = identity.hub_context(identity.load(enrolled).ca)
    context.load_cert_chain(enrolled.root / peers_tls.PEER_PEM_FILE)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shared_hub.call(context, "GET", f"{API}/devices")


def test_it_cannot_pose_as_the_hub(enrolled: Disk) -> None:
    known = identity.load(enrolled)
    server = peers_tls.serving(enrolled, known)
    server.verify_mode = ssl.CERT_NONE
    client = identity.hub_context(known.ca)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    there = server.wrap_bio(to_server, to_client, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        here.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        there.do_handshake()
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        here.do_handshake()


def test_a_renewal_brings_another_and_a_neighbourhood_takes_it_up(enrolled: Disk) -> None:
    before = peer_certificate(enrolled)
    hood = neighbourhood.open_neighbourhood(
        enrolled, AgentSettings(peers=PeerSettings(listen="127.0.0.1:0")), identity.load(enrolled)
    )
    assert hood is not None
    assert app.main(["renew", "--state-dir", str(enrolled.root)]) == 0
    after = peer_certificate(enrolled)
    assert after.serial_number != before.serial_number
    assert after.public_key() != before.public_key()
    neighbourhood.renewed(enrolled, hood)
    (enrolled.root / peers_tls.PEER_PEM_FILE).write_bytes(b"damaged")
    with pytest.raises(Exception, match="cannot be used"):
        neighbourhood.renewed(enrolled, hood)
