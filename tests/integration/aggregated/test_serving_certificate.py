"""A certificate that somebody else issues and replaces, beside the hub's own, which devices know."""

from __future__ import annotations

import os
import ssl
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from tests.integration.aggregated.certificates import Ca
from tests.integration.aggregated.cluster import Cluster
from tests.integration.aggregated.conftest import ALICE, API, HubProcess, StartHub
from tests.integration.aggregated.proxy import SERVICE, Connector

from skerry.api.errors import IntegrityError, InvalidError
from skerry.hub import pki
from skerry.hub.serving_certificate import ServingCertificate
from skerry.kit.clock import SystemClock

OTHER = "skerry-hub.skerry.svc.cluster.local"


@pytest.fixture
def ca(tmp_path: Path) -> Ca:
    return Ca(tmp_path, "cert-manager")


def shown(hub: HubProcess, ca: str, name: str, certificate: Path | None = None) -> str:
    """The common name of the certificate that is shown for a name, or why it cannot be had."""
    connector = Connector(hub.port, ca, certificate, name)
    connection = connector.connect()
    try:
        connection.connect()
        der = cast(ssl.SSLSocket, connection.sock).getpeercert(binary_form=True)
        assert der is not None
        (common,) = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(common.value)
    except ssl.SSLCertVerificationError:
        return "not trusted"
    finally:
        connection.close()


def test_the_cluster_sees_its_certificate_and_devices_the_hubs(start_hub: StartHub, cluster: Cluster, ca: Ca) -> None:
    pair = ca.issue("of-the-service", SERVICE, f"*.{SERVICE}", server=True)
    files = ["--tls-cert-file", str(pair.with_suffix(".crt")), "--tls-key-file", str(pair.with_suffix(".key"))]
    hub = start_hub(*files).wait_ready()
    assert shown(hub, ca.pem, SERVICE) == "of-the-service"
    assert shown(hub, ca.pem, SERVICE.upper()) == "of-the-service"
    assert shown(hub, ca.pem, f"a.{SERVICE}") == "of-the-service"
    assert shown(hub, ca.pem, "localhost") == "not trusted"
    assert shown(hub, hub.ca, "localhost") == "skerry-hub"
    assert shown(hub, hub.ca, "127.0.0.1") == "skerry-hub"
    cluster.allows = lambda _: True
    through = Connector(hub.port, ca.pem, cluster.proxy_certificate, SERVICE)
    assert through.ask("GET", f"{API}/devices", ALICE)[0] == 200  # who shows it takes the same clients
    assert b"[+]serving-certificate ok" in through.ask("GET", "/readyz?verbose")[2]


def test_a_key_of_another_certificate_is_one_sentence(start_hub: StartHub, ca: Ca) -> None:
    one, two = ca.issue("one", SERVICE, server=True), ca.issue("two", SERVICE, server=True)
    said = start_hub(
        "--tls-cert-file", str(one.with_suffix(".crt")), "--tls-key-file", str(two.with_suffix(".key"))
    ).fail()
    assert "does not fit its key, or is none" in said
    assert "Traceback" not in said


class Later(SystemClock):
    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead


@pytest.fixture
def clock() -> Later:
    return Later()


@pytest.fixture
def files(tmp_path: Path, ca: Ca) -> tuple[Path, Path]:
    """As a mounted Secret: a directory that is a link, and replaced as a whole."""
    return write(tmp_path, ca, "first", "one", SERVICE)


def write(directory: Path, ca: Ca, version: str, common: str, *names: str, **more: timedelta) -> tuple[Path, Path]:
    pair, place = ca.issue(common, *names, server=True, **more), directory / version  # type: ignore[arg-type]
    place.mkdir()
    (place / "tls.crt").write_bytes(pair.with_suffix(".crt").read_bytes())
    (place / "tls.key").write_bytes(pair.with_suffix(".key").read_bytes())
    (directory / "new").symlink_to(place)
    os.replace(directory / "new", directory / "secret")
    return directory / "secret" / "tls.crt", directory / "secret" / "tls.key"


def opened(tmp_path: Path, files: tuple[Path, Path], clock: Later, *told: str) -> ServingCertificate:
    authority = pki.open_authority(tmp_path / "pki", names=(), clock=clock)
    return ServingCertificate(*files, authority=authority, told=told, clock=clock)


async def test_a_replaced_secret_is_shown_from_the_next_look_on(
    tmp_path: Path, ca: Ca, files: tuple[Path, Path], clock: Later
) -> None:
    prepared: list[ssl.SSLContext] = []
    authority = pki.open_authority(tmp_path / "pki", names=(), clock=clock)
    held = ServingCertificate(*files, authority=authority, told=(), clock=clock, prepare=prepared.append)
    before = held.context
    assert not held.reload()
    write(tmp_path, ca, "second", "two", OTHER)
    assert held.reload()
    assert held.context is not before
    assert prepared == [before, held.context]
    assert not held.reload()


async def test_what_cannot_be_used_is_left_for_the_next_look(
    tmp_path: Path, ca: Ca, files: tuple[Path, Path], clock: Later
) -> None:
    held = opened(tmp_path, files, clock)
    before, good = held.context, files[1].read_bytes()
    other = ca.issue("other", SERVICE, server=True).with_suffix(".key").read_bytes()
    for damaged in (other, b"", good[:40], b"\xff" * 100):  # in the moment between two writes
        files[1].write_bytes(damaged)
        assert not held.reload()
    files[1].unlink()
    assert not held.reload()
    assert held.context is before
    files[1].write_bytes(good)
    write(tmp_path, ca, "old", "old", SERVICE, life=-timedelta(days=1))
    assert not held.reload()
    await held.check()


async def test_a_certificate_that_ends_is_told_by_its_check(
    tmp_path: Path, files: tuple[Path, Path], clock: Later
) -> None:
    held = opened(tmp_path, files, clock)
    await held.check()
    clock.ahead = timedelta(days=2)
    with pytest.raises(IntegrityError, match="expired at"):
        await held.check()


def test_what_devices_are_told_stays_with_the_hubs_own(tmp_path: Path, files: tuple[Path, Path], clock: Later) -> None:
    with pytest.raises(InvalidError, match="trust the hub's own certificate alone"):
        opened(tmp_path, files, clock, SERVICE)


def test_a_key_with_a_passphrase_asks_nobody(tmp_path: Path, files: tuple[Path, Path], clock: Later) -> None:
    key = serialization.load_pem_private_key(files[1].read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))
    with pytest.raises(InvalidError, match="does not fit its key, or is none"):
        opened(tmp_path, files, clock)


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"]
)
def test_a_file_that_is_no_certificate_is_one_sentence(
    tmp_path: Path, files: tuple[Path, Path], clock: Later, content: bytes
) -> None:
    files[0].write_bytes(content)
    with pytest.raises(InvalidError, match="is no certificate chain that can be read") as raised:
        opened(tmp_path, files, clock)
    assert raised.value.element == str(files[0])
