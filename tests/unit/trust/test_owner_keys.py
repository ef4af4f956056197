"""Owners' keys: what is made, what is read, and what never counts as a signature."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from skerry.api.errors import AlreadyExistsError, InvalidError, NotFoundError, UnsupportedError
from skerry.drivers import owner_keys

SECRET = "correct horse battery"


def test_a_key_is_kept_behind_its_passphrase_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "anna.key"
    made = owner_keys.create(path, SECRET)
    assert path.stat().st_mode & 0o777 == 0o600
    assert owner_keys.needs_passphrase(path)
    signature = owner_keys.sign(owner_keys.load(path, SECRET), b"data")
    assert owner_keys.verify(owner_keys.public_der(made), signature, b"data")
    assert not owner_keys.verify(owner_keys.public_der(made), signature, b"other")
    for wrong in ("", "another horse"):
        with pytest.raises(InvalidError, match="the passphrase is wrong"):
            owner_keys.load(path, wrong)
    before = path.read_bytes()
    with pytest.raises(AlreadyExistsError):
        owner_keys.create(path, SECRET)
    assert path.read_bytes() == before
    with pytest.raises(InvalidError, match="fewer than 8"):
        owner_keys.create(tmp_path / "ben.key", "short")
    with pytest.raises(NotFoundError):
        owner_keys.load(tmp_path / "nobody.key", SECRET)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_keys_from_tokens_are_taken_too(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    private, public = tmp_path / "token.key", tmp_path / "token.pub"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    der = owner_keys.public_der(key)
    public.write_text(owner_keys.pem_of(der))
    assert owner_keys.load_public(public) == der
    assert owner_keys.verify(der, owner_keys.sign(owner_keys.load(private, ""), b"data"), b"data")


def test_other_kinds_of_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rsa.pem"
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding = serialization.Encoding.PEM
    path.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    with pytest.raises(UnsupportedError, match="Ed25519, or ECDSA"):
        owner_keys.load(path, "")
    public = key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.write_bytes(public)
    with pytest.raises(UnsupportedError):
        owner_keys.load_public(path)
    path.write_bytes(b"no key")
    with pytest.raises(InvalidError):
        owner_keys.load_public(path)


def test_one_key_has_one_encoding_so_that_it_cannot_stand_for_two() -> None:
    """A compressed point is the same key in other bytes: it would count as another owner."""
    key = ec.generate_private_key(ec.SECP256R1())
    der = owner_keys.public_der(key)
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    # SubjectPublicKeyInfo (RFC 5480) around the compressed point
    algorithm = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
    body = algorithm + bytes([0x03, len(point) + 1, 0]) + point
    twin = bytes([0x30, len(body)]) + body
    assert serialization.load_der_public_key(twin) == key.public_key()
    signature = owner_keys.sign(key, b"data")
    assert owner_keys.verify(der, signature, b"data")
    assert not owner_keys.verify(twin, signature, b"data")
