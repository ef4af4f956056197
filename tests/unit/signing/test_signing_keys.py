"""Key files as people have them: PKCS#8, SEC 1, with and without passwords; and what is no signing key."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.signing import bundles

from skerry.api.errors import InvalidError, SkerryError, UnsupportedError
from skerry.drivers.signing import keys

PEM = serialization.Encoding.PEM
PKCS8, SEC1 = serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo
OPEN, LOCKED = serialization.NoEncryption(), serialization.BestAvailableEncryption(b"tide")
KEY = bundles.new_key()


@pytest.mark.parametrize("form", [PKCS8, SEC1])
@pytest.mark.parametrize("password", [None, b"tide"])
def test_private_keys_are_read_in_both_forms(form, password):
    pem = KEY.private_bytes(PEM, form, LOCKED if password else OPEN)
    assert keys.read_private_key(pem, password, "k").private_numbers() == KEY.private_numbers()


@pytest.mark.parametrize("form", [PKCS8, SEC1])
@pytest.mark.parametrize(
    ("locked", "password", "said"),
    [
        (LOCKED, None, "is protected by a password"),
        (LOCKED, b"ebb", "the password is wrong"),
        (OPEN, b"tide", "is not protected"),
    ],
)
def test_a_password_that_does_not_fit_is_told(form, locked, password, said):
    with pytest.raises(InvalidError, match=said):
        keys.read_private_key(KEY.private_bytes(PEM, form, locked), password, "k")


@pytest.mark.parametrize(
    "key",
    [ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048), bundles.new_key(ec.SECP256K1())],
)
def test_keys_that_models_are_not_signed_with_are_refused(key):
    with pytest.raises(UnsupportedError):
        keys.read_private_key(key.private_bytes(PEM, PKCS8, OPEN), None, "k")
    with pytest.raises(UnsupportedError):
        keys.read_public_key(key.public_key().public_bytes(PEM, SPKI), "k")


def test_a_public_key_may_come_in_its_certificate():
    signer = bundles.holder("Ada", bundles.authority("root"))
    found = keys.read_public_key(signer.certificate.public_bytes(PEM), "k")
    assert keys.digest_of(found) == bundles.spki_digest(signer.key.public_key())


def test_certificates_are_read_in_their_order():
    chain = [bundles.authority("a"), bundles.authority("b")]
    pem = b"".join(one.certificate.public_bytes(PEM) for one in chain)
    assert keys.read_certificates(pem, "c") == [one.certificate for one in chain]


@given(st.binary(max_size=200), st.sampled_from(["PUBLIC KEY", "CERTIFICATE", "PRIVATE KEY", "EC PRIVATE KEY"]))
def test_bytes_of_anybody_s_making_are_refused_in_words(raw, kind):
    for pem in (raw, f"-----BEGIN {kind}-----\n{bundles.b64(raw)}\n-----END {kind}-----\n".encode()):
        with pytest.raises(SkerryError):
            keys.read_public_key(pem, "k")
        with pytest.raises(SkerryError):
            keys.read_certificates(pem, "c")
        for password in (None, b"tide"):
            with pytest.raises(SkerryError):
                keys.read_private_key(pem, password, "k")
