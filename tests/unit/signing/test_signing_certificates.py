"""Signers known by certificates: the chain, its validity, what each certificate may be used for."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.signing import bundles
from tests.unit.signing.bundles import NOW, Party, authority, document, holder, new_key, party, usage

from skerry.api.errors import IntegrityError, InvalidError, SkerryError, UnsupportedError
from skerry.drivers.signing.bundle import Signer, verify
from skerry.drivers.signing.statement import MAX_CERTIFICATES

ROOT = authority("root")
MIDDLE = authority("middle", ROOT, path_length=0)
SIGNER = holder("Ada", MIDDLE, (x509.SubjectAlternativeName([x509.RFC822Name("ada@example.org")]), False))
FILES = {name: f"sha256:{digest}" for name, digest in bundles.FILES.items()}
OIDC = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")


def sign(signer: Party, *others: Party) -> bytes:
    return bundles.bundle(signer.key, chain=[one.certificate for one in (signer, *others)])


def check(raw: bytes, *roots: Party, at=NOW, keys=()):
    authorities = [one.certificate for one in roots or (ROOT,)]
    return verify(raw, keys=[key.public_key() for key in keys], authorities=authorities, now=at)


def test_a_chain_to_a_trusted_authority_says_who_signed():
    found = check(sign(SIGNER, MIDDLE))
    assert found.signers == (
        Signer(
            key=bundles.spki_digest(SIGNER.key.public_key()),
            subject="CN=Ada",
            issuer="CN=middle",
            identity="ada@example.org",
        ),
    )
    assert found.files == FILES


def test_the_chain_may_hold_the_root_and_certificates_that_lead_nowhere():
    assert check(sign(SIGNER, authority("somebody"), ROOT, MIDDLE)).files == FILES


def test_an_authority_in_the_middle_may_be_what_is_trusted():
    assert check(sign(SIGNER), MIDDLE).files == FILES


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_a_signer_s_key_may_be_on_each_of_the_curves(curve):
    signer = holder("Ada", ROOT, curve=curve)
    assert check(sign(signer)).signers[0].subject == "CN=Ada"


def test_a_single_certificate_as_sigstore_writes_it_is_read_too():
    """As a private Fulcio issues them: an identity, and who vouched for it."""
    vouched = x509.UnrecognizedExtension(OIDC, b"\x0c\x1fhttps://accounts.example.org/ci")
    url = x509.UniformResourceIdentifier("https://example.org/ci/train.yml")
    fulcio = authority("fulcio")
    signer = holder("", fulcio, (x509.SubjectAlternativeName([url]), True), (vouched, False))
    raw = document(signer.key, chain=[signer.certificate])
    [only] = raw["verificationMaterial"].pop("x509CertificateChain")["certificates"]
    raw["verificationMaterial"] |= {"certificate": only, "tlogEntries": [{"logIndex": "1"}]}
    [found] = check(json.dumps(raw).encode(), fulcio).signers
    assert (found.subject, found.issuer) == (None, "CN=fulcio")
    assert (found.identity, found.oidc_issuer) == (url.value, "https://accounts.example.org/ci")


@pytest.mark.parametrize("value", [b"", b"\x0c", b"\x0c\x05abc", b"\x13\x01a", b"\x0c\x01\xff", b"\x0c\x82\x00\x01a"])
def test_a_voucher_that_cannot_be_read_is_no_voucher(value):
    signer = holder("Ada", ROOT, (x509.UnrecognizedExtension(OIDC, value), False))
    with pytest.raises(IntegrityError):
        check(sign(signer))


def test_a_long_voucher_is_read():
    url = "https://example.org/" + "a" * 150
    value = b"\x0c\x81" + bytes([len(url)]) + url.encode()
    signer = holder("Ada", ROOT, (x509.UnrecognizedExtension(OIDC, value), False))
    assert check(sign(signer)).signers[0].oidc_issuer == url


def test_two_identities_are_none():
    names = [x509.RFC822Name("ada@example.org"), x509.RFC822Name("root@example.org")]
    signer = holder("Ada", ROOT, (x509.SubjectAlternativeName(names), False))
    assert check(sign(signer)).signers[0].identity is None


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        ([SIGNER], "no authority between"),
        ([holder("Ada", authority("root"))], "another authority of the same name"),
        ([party("Ada", None, (usage(digital_signature=True), True))], "signed by itself"),
        ([holder("Ada", authority("low", MIDDLE)), authority("low", MIDDLE), MIDDLE], "another key of that name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_chain_that_does_not_lead_there_is_refused(chain, why):
    with pytest.raises(IntegrityError, match="not trusted"):
        check(sign(*chain))


def test_each_link_of_the_chain_is_looked_at():
    eve, ca = holder("Eve", ROOT), authority("Eve", ROOT, ca=False)
    low = authority("low", MIDDLE)
    unlimited = authority("unlimited", ROOT)
    for issuer, others in ((eve, [eve]), (ca, [ca]), (low, [low, MIDDLE])):
        with pytest.raises(IntegrityError, match="not trusted"):
            check(sign(holder("Ada", issuer), *others))
    below = authority("below", unlimited)
    assert check(sign(holder("Ada", below), below, unlimited)).files == FILES


@pytest.mark.parametrize("days", [(-10, -1), (1, 10)])
@pytest.mark.parametrize("which", ["root", "middle", "signer"])
def test_every_certificate_must_hold_at_that_moment(days, which):
    root = authority("root", days=days if which == "root" else (-10, 10))
    middle = authority("middle", root, days=days if which == "middle" else (-10, 10))
    signer = holder("Ada", middle, days=days if which == "signer" else (-10, 10))
    with pytest.raises(IntegrityError, match="not trusted"):
        check(sign(signer, middle), root)
    moment = NOW + timedelta(days=sum(days) / 2)
    assert check(sign(signer, middle), root, at=moment).files == FILES


@pytest.mark.parametrize(
    ("extensions", "allowed"),
    [
        ([usage(digital_signature=True)], True),
        ([x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])], True),
        ([x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])], True),
        ([], False),
        ([usage(key_agreement=True)], False),
        ([usage(key_agreement=True), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])], False),
        ([usage(digital_signature=True), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])], False),
        ([usage(digital_signature=True), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])], False),
        ([usage(digital_signature=True), x509.BasicConstraints(ca=True, path_length=None)], False),
        ([usage(digital_signature=True), x509.BasicConstraints(ca=False, path_length=None)], True),
        ([usage(digital_signature=True), x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"")], False),
    ],
)
def test_a_certificate_must_say_that_it_may_sign(extensions, allowed):
    signer = party("Ada", ROOT, *((one, True) for one in extensions))
    if allowed:
        assert check(sign(signer)).files == FILES
    else:
        with pytest.raises(IntegrityError, match="not trusted"):
            check(sign(signer))


@pytest.mark.parametrize(
    "extensions",
    [
        [usage(digital_signature=True)],
        [usage(key_cert_sign=True), x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])],
    ],
)
def test_an_authority_must_be_one_for_signers(extensions):
    extensions = [x509.BasicConstraints(ca=True, path_length=None), *extensions]
    eve = party("eve", ROOT, *((one, True) for one in extensions))
    with pytest.raises(IntegrityError, match="not trusted"):
        check(sign(holder("Ada", eve), eve))


def test_name_constraints_are_kept():
    only = x509.NameConstraints(permitted_subtrees=[x509.DNSName("example.org")], excluded_subtrees=None)
    limited = party(
        "limited", ROOT, (x509.BasicConstraints(ca=True, path_length=None), True), (only, True), days=(-10, 10)
    )
    inside, outside = (
        holder("Ada", limited, (x509.SubjectAlternativeName([x509.DNSName(name)]), False))
        for name in ("a.example.org", "example.com")
    )
    assert check(sign(inside, limited)).files == FILES
    with pytest.raises(IntegrityError, match="not trusted"):
        check(sign(outside, limited))


def test_no_authority_trusted_means_nobody():
    with pytest.raises(IntegrityError, match="no authority is trusted"):
        verify(sign(SIGNER, MIDDLE), keys=[], authorities=[], now=NOW)


def test_somebody_else_s_certificate_does_not_help():
    forged = bundles.document(new_key(), chain=[SIGNER.certificate, MIDDLE.certificate])
    with pytest.raises(IntegrityError, match="does not belong"):
        check(json.dumps(forged).encode())


def test_a_key_that_is_trusted_itself_outlives_its_certificate():
    signer = holder("Ada", authority("unknown"), days=(-10, -1))
    assert check(sign(signer), keys=[signer.key]).signers == (Signer(key=bundles.spki_digest(signer.key.public_key())),)
    with pytest.raises(IntegrityError, match="not trusted"):
        check(sign(signer), keys=[new_key()])


def test_a_key_s_certificate_is_told_where_it_holds():
    assert check(sign(SIGNER, MIDDLE), keys=[SIGNER.key]).signers[0].subject == "CN=Ada"


def test_a_certificate_of_another_kind_of_key_is_refused():
    signer = holder("Ada", ROOT, curve=ec.SECP256K1())
    raw = json.loads(sign(SIGNER, MIDDLE))
    raw["verificationMaterial"] = bundles.document(SIGNER.key, chain=[signer.certificate])["verificationMaterial"]
    with pytest.raises(UnsupportedError):
        check(json.dumps(raw).encode())


def test_there_is_a_bound_to_the_chain():
    with pytest.raises(InvalidError):
        check(sign(SIGNER, *[MIDDLE] * MAX_CERTIFICATES))


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@settings(max_examples=150)
@given(st.data())
def test_mutated_certificates_are_refused_or_say_the_same(data):
    signer = SIGNER.certificate.public_bytes(serialization.Encoding.DER)
    raw = bytearray(signer)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    made = json.loads(sign(SIGNER, MIDDLE))
    made["verificationMaterial"]["x509CertificateChain"]["certificates"][0]["rawBytes"] = bundles.b64(bytes(raw))
    if bytes(raw) != signer:
        with pytest.raises(SkerryError):
            check(json.dumps(made).encode())


@given(st.binary(min_size=1, max_size=200))
def test_bytes_of_anybody_s_making_are_no_certificate(raw):
    made = json.loads(sign(SIGNER, MIDDLE))
    made["verificationMaterial"]["x509CertificateChain"]["certificates"][0]["rawBytes"] = bundles.b64(raw)
    with pytest.raises(SkerryError):
        check(json.dumps(made).encode())


def test_a_certificate_of_another_version_is_refused():
    der = SIGNER.certificate.public_bytes(serialization.Encoding.DER)
    assert der.count(b"\xa0\x03\x02\x01\x02") == 1  # [0] INTEGER 2: version 3
    made = json.loads(sign(SIGNER, MIDDLE))
    raw = bundles.b64(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07"))
    made["verificationMaterial"]["x509CertificateChain"]["certificates"][0]["rawBytes"] = raw
    with pytest.raises(InvalidError, match="cannot be read"):
        check(json.dumps(made).encode())


def test_names_in_a_refusal_cannot_steer_a_log_or_a_terminal():
    with pytest.raises(IntegrityError) as caught:
        check(sign(holder("Eve\n\x1b[2Jlevel=info", ROOT, days=(-10, -1))))
    assert str(caught.value).isprintable()
