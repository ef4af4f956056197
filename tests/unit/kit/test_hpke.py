"""Encryption to a P-256 key, held against another implementation of the same RFC."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api.errors import IntegrityError
from skerry.kit import hpke

KEY = ec.derive_private_key(7**40, ec.SECP256R1())


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_what_is_encrypted_to_a_key_opens_with_it(plain: bytes, info: bytes) -> None:
    sealed = hpke.encrypt(KEY.public_key(), plain, info=info, aad=b"for x")
    assert hpke.decrypt(KEY, sealed, info=info, aad=b"for x") == plain
    for other in (
        lambda: hpke.decrypt(KEY, sealed, info=info + b"!", aad=b"for x"),
        lambda: hpke.decrypt(KEY, sealed, info=info, aad=b"for y"),
        lambda: hpke.decrypt(ec.generate_private_key(ec.SECP256R1()), sealed, info=info, aad=b"for x"),
    ):
        with pytest.raises(IntegrityError):
            other()


def test_it_is_the_rfc_s_as_the_library_has_it() -> None:
    theirs = pytest.importorskip(
        "cryptography.hazmat.primitives.hpke", reason="this release of cryptography has no HPKE of its own"
    )
    suite = theirs.Suite(theirs.KEM.P256, theirs.KDF.HKDF_SHA256, theirs.AEAD.AES_256_GCM)
    sealed = suite.encrypt(b"a secret", KEY.public_key(), info=b"what for")
    assert hpke.decrypt(KEY, sealed, info=b"what for") == b"a secret"
    assert (
        suite.decrypt(hpke.encrypt(KEY.public_key(), b"another", info=b"what for"), KEY, info=b"what for") == b"another"
    )


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_no_bytes_break_it(raw: bytes) -> None:
    with pytest.raises(IntegrityError):
        hpke.decrypt(KEY, raw, info=b"")
