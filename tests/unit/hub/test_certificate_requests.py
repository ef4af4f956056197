"""Requests for certificates: what decisions may change, and how long requests are kept."""

from __future__ import annotations

import base64
import warnings
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import InvalidError
from skerry.api.kinds.certificate_signing_request import (
    CertificateSigningRequest,
    CertificateSigningRequestCondition,
    CertificateSigningRequestSpec,
)
from skerry.api.meta import ObjectMeta
from skerry.core.access import Identity
from skerry.hub import certificate_requests, pki
from skerry.hub.identity import PeerCertificate
from skerry.kit.clock import SystemClock

NOW = datetime(2026, 5, 1, tzinfo=UTC)
TYPES = ["Approved", "Denied", "Failed", "Signed"]


def asked(name: str = "ada", *groups: str, seconds: int | None = None) -> CertificateSigningRequest:
    subject = [
        *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups),
        x509.NameAttribute(NameOID.COMMON_NAME, name),
    ]
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject)).sign(key, hashes.SHA256())
    return CertificateSigningRequest(
        metadata=ObjectMeta(name="x", creation_timestamp=NOW),
        spec=CertificateSigningRequestSpec(
            request=base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode(),
            signer_name=certificate_requests.SIGNER,
            usages=["client auth"],
            expiration_seconds=seconds,
        ),
    )


def condition(kind: str, status: str = "True") -> CertificateSigningRequestCondition:
    return msgspec.convert({"type": kind, "status": status}, CertificateSigningRequestCondition)


@given(st.lists(st.lists(st.sampled_from(TYPES), max_size=3), max_size=4))
def test_decisions_are_kept_and_never_contradict_each_other(steps: list[list[str]]) -> None:
    item = asked()
    for kinds in steps:
        before = [one.type for one in item.status.conditions]
        good = (
            set(before) <= set(kinds) <= {"Approved", "Denied", "Failed"}
            and len(set(kinds)) == len(kinds)
            and not {"Approved", "Denied"} <= set(kinds)
        )
        try:
            item = certificate_requests.decided(None, item, [condition(kind) for kind in kinds], now=NOW)
        except InvalidError:
            assert not good
        else:
            assert good
            assert [one.type for one in item.status.conditions] == kinds
            assert not item.status.certificate


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_a_decision_is_true_or_none(status: str) -> None:
    with pytest.raises(InvalidError):
        certificate_requests.decided(None, asked(), [condition("Approved", status)], now=NOW)


@pytest.mark.parametrize(
    ("seconds", "life"),
    [
        (None, certificate_requests.DEFAULT_LIFE),
        (600, timedelta(minutes=10)),
        (2**31 - 1, certificate_requests.MAX_LIFE),
    ],
)
def test_a_certificate_says_who_and_not_for_long(
    live_authority: pki.Authority, seconds: int | None, life: timedelta
) -> None:
    approved = certificate_requests.decided(
        live_authority, asked("ada", "dev", "ops", seconds=seconds), [condition("Approved")], now=NOW
    )
    certificate = x509.load_pem_x509_certificate(base64.b64decode(approved.status.certificate))
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == life + pki.BACKDATE
    peer = PeerCertificate(certificate.public_bytes(serialization.Encoding.DER))
    ca = x509.load_pem_x509_certificate(live_authority.ca_pem)
    found = peer.identity(datetime.now(UTC), ca)
    assert found == Identity(role="user", name="ada", groups=("dev", "ops"))
    again = certificate_requests.decided(live_authority, approved, approved.status.conditions, now=NOW)
    assert again == approved  # signed once


def test_a_certificate_of_another_hub_or_of_no_client_is_nobody_s(
    live_authority: pki.Authority, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = pki.open_authority(tmp_path_factory.mktemp("other") / "pki", names=(), clock=SystemClock())
    ca = x509.load_pem_x509_certificate(live_authority.ca_pem)
    server = live_authority.ca_file.with_name("server.crt")
    foreign = other.issue_user(base64.b64decode(asked("ada").spec.request), timedelta(hours=1))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ada")])
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    server_s = live_authority._issue(public, name, life=timedelta(hours=1), usage=ExtendedKeyUsageOID.SERVER_AUTH)
    pems = (foreign, server.read_bytes(), live_authority.ca_pem, server_s.public_bytes(serialization.Encoding.PEM))
    for pem in pems:
        der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
        assert PeerCertificate(der).identity(datetime.now(UTC), ca).role == "anonymous"
    assert PeerCertificate(b"rubbish").identity(datetime.now(UTC), ca).role == "anonymous"
    good = x509.load_pem_x509_certificate(
        live_authority.issue_user(base64.b64decode(asked("ada").spec.request), timedelta(hours=1))
    )
    peer = PeerCertificate(good.public_bytes(serialization.Encoding.DER))
    assert peer.identity(datetime.now(UTC), ca).name == "ada"
    assert peer.identity(datetime.now(UTC) + timedelta(hours=2), ca).role == "anonymous"
    other_ca = x509.load_pem_x509_certificate(other.ca_pem)
    assert peer.identity(datetime.now(UTC), other_ca).role == "anonymous"


def test_requests_are_kept_for_an_hour_after_the_decision_or_for_a_day() -> None:
    item = asked()
    assert not certificate_requests.is_over(item, NOW + certificate_requests.PENDING_FOR)
    assert certificate_requests.is_over(item, NOW + certificate_requests.PENDING_FOR + timedelta(seconds=1))
    late = NOW + timedelta(hours=23)
    decided = certificate_requests.decided(None, item, [condition("Denied")], now=late)
    assert not certificate_requests.is_over(decided, late + certificate_requests.DECIDED_FOR)
    assert certificate_requests.is_over(decided, late + certificate_requests.DECIDED_FOR + timedelta(seconds=1))


def test_names_longer_than_certificates_take_are_refused(live_authority: pki.Authority) -> None:
    raw = base64.b64decode(asked("a" * 64).spec.request)
    assert live_authority.issue_user(raw, timedelta(hours=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "b" * 65, _validate=False)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    signed = request.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    with pytest.raises(InvalidError):
        live_authority.issue_user(signed.public_bytes(serialization.Encoding.PEM), timedelta(hours=1))
