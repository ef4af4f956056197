from __future__ import annotations

import contextlib
import os
import ssl
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api.errors import IntegrityError, InvalidError, UnavailableError
from skerry.core import trust
from skerry.hub import pki
from skerry.kit.clock import SystemClock


class SetClock(SystemClock):
    def __init__(self, now: datetime) -> None:
        self.time = now

    def now(self) -> datetime:
        return self.time


NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def open_at(directory: Path, when: datetime = NOW, names: tuple[str, ...] = (), **more: object) -> pki.Authority:
    return pki.open_authority(directory, names=names, clock=SetClock(when), **more)  # type: ignore[arg-type]


def certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def csr(key: object, *, common: str = "anything", digest: hashes.HashAlgorithm | None = hashes.SHA256()) -> bytes:  # noqa: B008
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "skerry:admins"),
        ]
    )
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    request = request.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return request.sign(key, digest).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]


def snapshot(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_first_start_makes_everything_private_and_the_second_changes_nothing(tmp_path: Path) -> None:
    first = open_at(tmp_path / "pki")
    before = snapshot(tmp_path / "pki")
    assert set(before) == {
        *("ca.crt", "ca.key", "server.crt", "server.key", "hub.crt", "hub.key", "admin.crt", "admin.key"),
        "desired.key",
    }
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700
    assert {stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "pki").iterdir()} == {0o600}
    second = open_at(tmp_path / "pki", may_create=False)
    assert snapshot(tmp_path / "pki") == before
    assert second.ca_fingerprint == first.ca_fingerprint
    assert second.desired_key_id == first.desired_key_id == trust.key_id(first.desired_public_pem)


def test_what_the_certificates_say(tmp_path: Path) -> None:
    authority = open_at(tmp_path / "pki", names=("hub.example", "192.0.2.7"))
    ca = certificate(authority.ca_file)
    assert ca.not_valid_after_utc - NOW == timedelta(days=3650)
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert ca.fingerprint(hashes.SHA256()).hex() == authority.ca_fingerprint
    server = certificate(authority.server_certificate_file)
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "hub.example"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"127.0.0.1", "::1", "192.0.2.7"} == {str(a) for a in names.get_values_for_type(x509.IPAddress)}
    admin = certificate(authority.admin_certificate_file)
    assert admin.subject.rfc4514_string() == "CN=admin,O=skerry:admins"
    assert certificate(authority.hub_certificate_file).subject.rfc4514_string() == "CN=hub,O=skerry:hubs"
    usage = admin.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


class Killed(BaseException):
    pass


@contextlib.contextmanager
def power_cut(monkeypatch: pytest.MonkeyPatch, *, after: int, renamed: bool) -> Iterator[None]:
    """Cut the power at the n-th rename: just before it (a temporary file stays behind), or just after."""
    real, seen = os.replace, 0

    def replace(source: Path, target: Path) -> None:
        nonlocal seen
        seen += 1
        if seen == after and not renamed:
            raise Killed
        real(source, target)
        if seen == after:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        yield


@pytest.mark.parametrize("renamed", [False, True])
@pytest.mark.parametrize("after", range(1, 10))
def test_a_first_start_cut_at_any_write_converges_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, renamed: bool
) -> None:
    directory = tmp_path / "pki"
    with power_cut(monkeypatch, after=after, renamed=renamed), pytest.raises(Killed):
        open_at(directory)
    kept = {name: content for name, content in snapshot(directory).items() if not name.endswith(".tmp")}
    assert len(kept) == (after if renamed else after - 1)
    open_at(directory)
    complete = snapshot(directory)
    assert len(complete) == 9
    assert kept.items() <= complete.items()
    open_at(directory, may_create=False)


@pytest.mark.parametrize("lost", ["ca.key", "ca.crt", "desired.key"])
def test_what_devices_depend_on_is_never_remade(tmp_path: Path, lost: str) -> None:
    open_at(tmp_path / "pki")
    (tmp_path / "pki" / lost).unlink()
    before = snapshot(tmp_path / "pki")
    with pytest.raises(IntegrityError, match=rf"{lost}: is missing .*restore the directory from a backup"):
        open_at(tmp_path / "pki")
    assert snapshot(tmp_path / "pki") == before


def test_a_hub_with_data_refuses_to_make_a_new_ca(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"ca\.key: is missing"):
        open_at(tmp_path / "pki", may_create=False)
    assert not (tmp_path / "pki").exists()


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_a_ca_key_that_does_not_fit_is_an_error(tmp_path: Path, name: str) -> None:
    open_at(tmp_path / "mine")
    open_at(tmp_path / "other")
    (tmp_path / "mine" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    before = snapshot(tmp_path / "mine")
    with pytest.raises(IntegrityError, match="does not belong to the key in"):
        open_at(tmp_path / "mine")
    assert snapshot(tmp_path / "mine") == before


@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "desired.key", "server.key"])
@pytest.mark.parametrize(
    "content", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    open_at(tmp_path / "pki")
    (tmp_path / "pki" / name).write_bytes(content)
    with pytest.raises(IntegrityError, match=rf"{name}: is not a .* that can be read"):
        open_at(tmp_path / "pki")
    assert (tmp_path / "pki" / name).read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_damaged_leaf_certificate_is_issued_again(tmp_path: Path, content: bytes) -> None:
    open_at(tmp_path / "pki")
    (tmp_path / "pki" / "hub.crt").write_bytes(content)
    authority = open_at(tmp_path / "pki")
    certificate(authority.hub_certificate_file).verify_directly_issued_by(certificate(authority.ca_file))


def test_keys_that_others_could_read_are_closed_again(tmp_path: Path) -> None:
    open_at(tmp_path / "pki")
    (tmp_path / "pki" / "ca.key").chmod(0o644)
    open_at(tmp_path / "pki")
    assert stat.S_IMODE((tmp_path / "pki" / "ca.key").stat().st_mode) == 0o600


def test_the_server_certificate_follows_names_and_time_and_keeps_its_key(tmp_path: Path) -> None:
    first = open_at(tmp_path / "pki")
    key, old = first.server_key_file.read_bytes(), first.server_certificate_file.read_bytes()
    open_at(tmp_path / "pki", when=NOW + pki.LEAF_LIFE * 0.6)
    assert first.server_certificate_file.read_bytes() == old
    open_at(tmp_path / "pki", when=NOW + pki.LEAF_LIFE * 0.7)
    renewed = first.server_certificate_file.read_bytes()
    assert renewed != old
    named = open_at(tmp_path / "pki", when=NOW + pki.LEAF_LIFE * 0.7, names=("new.example",))
    assert named.server_certificate_file.read_bytes() != renewed
    assert first.server_key_file.read_bytes() == key


def test_no_certificate_outlives_the_ca_and_an_expired_ca_is_an_error(tmp_path: Path) -> None:
    open_at(tmp_path / "pki")
    late = open_at(tmp_path / "pki", when=NOW + pki.CA_LIFE - timedelta(days=1))
    ca = certificate(late.ca_file)
    assert certificate(late.server_certificate_file).not_valid_after_utc == ca.not_valid_after_utc
    issued = late.issue_device(csr(ec.generate_private_key(ec.SECP256R1())), "d1", "default")
    assert x509.load_pem_x509_certificate(issued).not_valid_after_utc == ca.not_valid_after_utc
    with pytest.raises(IntegrityError, match="expired"):
        open_at(tmp_path / "pki", when=NOW + pki.CA_LIFE)


@pytest.mark.parametrize("name", ["", "a b", "*.example", "-x", "x" * 64, "1.2.3", "fe80::1%eth0", "exämple", "a..b"])
def test_a_name_that_is_none_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidError, match="is neither a host name nor an address"):
        open_at(tmp_path / "pki", names=(name,))
    assert not (tmp_path / "pki").exists()


def ed25519_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> pki.Authority:
    return open_at(tmp_path_factory.mktemp("authority") / "pki")


@pytest.mark.parametrize("kind", ["p256", "p384", "ed25519", "rsa2048"])
def test_a_device_certificate_says_what_the_hub_decided_only(authority: pki.Authority, kind: str) -> None:
    makers: dict[str, Callable[[], Any]] = {
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ed25519": ed25519_key,
        "rsa2048": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    }
    key = makers[kind]()
    request = csr(key, digest=None if kind == "ed25519" else hashes.SHA256())
    issued = x509.load_pem_x509_certificate(authority.issue_device(request, "dabc", "factory"))
    issued.verify_directly_issued_by(certificate(authority.ca_file))
    assert issued.subject.rfc4514_string() == "CN=dabc,OU=factory,O=skerry:devices"
    assert issued.public_key() == key.public_key()
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    assert issued.not_valid_after_utc == NOW + timedelta(days=90)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(lambda: rsa.generate_private_key(public_exponent=65537, key_size=1024), id="rsa1024"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP521R1()), id="p521"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP256K1()), id="secp256k1"),
        pytest.param(ed448.Ed448PrivateKey.generate, id="ed448"),
        pytest.param(lambda: dsa.generate_private_key(1024), id="dsa"),
    ],
)
def test_other_keys_are_refused(authority: pki.Authority, key: Callable[[], Any]) -> None:
    made = key()
    request = csr(made, digest=None if isinstance(made, ed448.Ed448PrivateKey) else hashes.SHA256())
    with pytest.raises(InvalidError, match=r"spec\.csr: its key is of a type or size that is not accepted; use ECDSA"):
        authority.issue_device(request, "dabc", "default")


def test_a_request_whose_signature_is_of_another_key_is_refused(authority: pki.Authority) -> None:
    request = x509.load_pem_x509_csr(csr(ec.generate_private_key(ec.SECP256R1())))
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    with pytest.raises(InvalidError, match="its signature does not fit its key"):
        authority.issue_device(forged, "dabc", "default")


@given(st.binary(max_size=4096) | st.text(max_size=4096) | st.just(b"x" * 20_000))
def test_any_bytes_as_a_request_are_refused_cleanly(raw: bytes | str) -> None:
    with pytest.raises(InvalidError, match=r"spec\.csr"):
        pki.read_request(raw)


@settings(deadline=None)
@given(position=st.integers(min_value=0), value=st.integers(min_value=0, max_value=255))
def test_a_request_with_any_byte_changed_is_refused_or_the_same(position: int, value: int) -> None:
    der = bytearray(x509.load_pem_x509_csr(REQUEST).public_bytes(serialization.Encoding.DER))
    der[position % len(der)] = value
    pem = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    try:
        fingerprint = pki.read_request(pem).fingerprint
    except InvalidError:
        return
    assert fingerprint == pki.read_request(REQUEST).fingerprint


REQUEST = csr(ec.generate_private_key(ec.SECP256R1()))


def test_the_key_not_the_request_is_fingerprinted() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    assert pki.read_request(csr(key, common="a")).fingerprint == pki.read_request(csr(key, common="b")).fingerprint
    assert pki.read_request(REQUEST).fingerprint != pki.read_request(csr(key)).fingerprint


def handshake(
    client: ssl.SSLContext, server: ssl.SSLContext, name: str = "localhost"
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """A whole TLS handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(to_client, to_server, server_hostname=name), server.wrap_bio(to_server, to_client, True))
    pending = list(ends)
    for _ in range(20):
        for end in list(pending):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                pending.remove(end)
        if not pending:
            return ends
    raise AssertionError("the handshake does not end")


def test_contexts_fit_each_other_and_refuse_the_rest(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    mine, other = open_at(tmp_path / "mine", when=now), open_at(tmp_path / "other", when=now)
    _, accepted = handshake(mine.hub_client_context(), mine.server_context())
    assert accepted.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(mine.hub_certificate_file.read_text())
    anonymous = ssl.create_default_context(cadata=mine.ca_pem.decode())
    _, accepted = handshake(anonymous, mine.server_context())
    assert accepted.getpeercert(binary_form=True) is None
    with pytest.raises(ssl.SSLError):
        handshake(anonymous, mine.server_context(client_certificate=ssl.CERT_REQUIRED))
    foreign = ssl.create_default_context(cadata=mine.ca_pem.decode())
    foreign.load_cert_chain(other.hub_certificate_file, other.hub_key_file)
    with pytest.raises(ssl.SSLError):
        handshake(foreign, mine.server_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(other.hub_client_context(), mine.server_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(mine.hub_client_context(), mine.server_context(), name="elsewhere.example")
    impostor = ssl.create_default_context(cadata=mine.ca_pem.decode())
    impostor.load_cert_chain(mine.server_certificate_file, mine.server_key_file)
    with pytest.raises(ssl.SSLError):  # a server's certificate is no client's
        handshake(impostor, mine.server_context())


def test_a_renewed_certificate_reaches_contexts_in_use(tmp_path: Path) -> None:
    authority = open_at(tmp_path / "pki", when=datetime.now(UTC))
    context = authority.server_context()
    assert authority.renew(["later.example"]) == ["server"]
    handshake(ssl.create_default_context(cadata=authority.ca_pem.decode()), context, name="later.example")
    assert authority.renew(["later.example"]) == []


def test_the_hubs_own_renewed_certificate_reaches_its_link(tmp_path: Path) -> None:
    authority = open_at(tmp_path / "pki", when=datetime.now(UTC))
    context = authority.hub_client_context()
    authority.hub_certificate_file.unlink()
    assert authority.renew(()) == ["hub"]
    _, accepted = handshake(context, authority.server_context())
    assert accepted.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(
        authority.hub_certificate_file.read_text()
    )


def test_a_clock_that_is_not_set_issues_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"clock says 1970-01-02 00:00, .*set the clock"):
        open_at(tmp_path / "pki", when=datetime(1970, 1, 2, tzinfo=UTC))
    open_at(tmp_path / "pki")
    before = snapshot(tmp_path / "pki")
    with pytest.raises(UnavailableError, match=r"ca\.crt: this machine's clock says 2026-11-22"):
        open_at(tmp_path / "pki", when=NOW - timedelta(days=1))
    assert snapshot(tmp_path / "pki") == before
