"""Signatures read and verified with `cryptography` alone: what holds, and everything that is refused."""

from __future__ import annotations

import base64
import copy
import json
import tracemalloc
from datetime import timedelta, timezone
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.signing import bundles
from tests.unit.signing.bundles import FILES, NOW, bundle, document, new_key

from skerry.api.errors import (
    IntegrityError,
    InvalidError,
    SkerryError,
    TooLargeError,
    UnsupportedError,
)
from skerry.drivers.signing import statement
from skerry.drivers.signing.bundle import Signer, verify

KEY = new_key()
VALID = document(KEY)
SIGNED = {name: f"sha256:{digest}" for name, digest in FILES.items()}


def check(raw: bytes, *keys: Any) -> Any:
    return verify(raw, keys=[key.public_key() for key in keys or (KEY,)], authorities=[], now=NOW)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_a_signature_by_a_trusted_key_says_who_and_what(curve):
    key = new_key(curve)
    found = check(bundle(key), KEY, key)
    assert found.signers == (Signer(key=bundles.spki_digest(key.public_key())),)
    assert found.files == SIGNED


def test_a_signature_without_a_hint_is_tried_with_every_key():
    raw = document(KEY)
    raw["verificationMaterial"]["publicKey"] = {}
    assert check(json.dumps(raw).encode(), new_key(), KEY).files == SIGNED
    with pytest.raises(IntegrityError, match="not trusted"):
        check(json.dumps(raw).encode(), new_key())


def test_a_valid_signature_by_another_key_is_refused():
    with pytest.raises(IntegrityError, match="key that is not trusted"):
        check(bundle(new_key()))


def test_nobody_is_trusted_by_default():
    with pytest.raises(IntegrityError, match="not trusted"):
        verify(bundle(KEY), keys=[], authorities=[], now=NOW)


def test_who_names_a_trusted_key_without_having_it_is_refused():
    forged = document(new_key())
    forged["verificationMaterial"] = VALID["verificationMaterial"]
    with pytest.raises(IntegrityError, match="does not belong to what it signs"):
        check(json.dumps(forged).encode())


def test_a_signature_over_another_payload_is_refused():
    forged = copy.deepcopy(VALID)
    other = json.dumps(bundles.statement(FILES | {"digits.onnx": "0" * 64})).encode()
    forged["dsseEnvelope"]["payload"] = bundles.b64(other)
    with pytest.raises(IntegrityError, match="does not belong"):
        check(json.dumps(forged).encode())


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_the_curve_decides_the_hash_and_the_signature_does_not(curve, algorithm):
    key = new_key(curve)
    raw = bundle(key, algorithm=algorithm)
    if algorithm.name == bundles.HASHES[curve.name].name:
        assert check(raw, key).files == SIGNED
    else:
        with pytest.raises(IntegrityError, match="does not belong"):
            check(raw, key)


def test_the_bytes_alone_are_not_signed_but_their_type_with_them():
    forged = document(KEY)
    payload = base64.b64decode(forged["dsseEnvelope"]["payload"])
    for signed in (payload, bundles.pae(payload, "text/plain"), payload + b"\n"):
        signature = KEY.sign(signed, ec.ECDSA(hashes.SHA256()))
        forged["dsseEnvelope"]["signatures"][0]["sig"] = bundles.b64(signature)
        with pytest.raises(IntegrityError, match="does not belong"):
            check(json.dumps(forged).encode())


@pytest.mark.parametrize("key", [new_key(ec.SECP256K1()), rsa.generate_private_key(65537, 2048)])
def test_keys_of_other_kinds_are_refused_when_they_are_trusted(key):
    with pytest.raises(UnsupportedError, match="trusted key"):
        check(bundle(KEY), key)


def changed(path: str, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(VALID)
    *way, last = path.split(".")
    place: Any = made
    for step in way:
        place = place[int(step)] if step.isdigit() else place[step]
    if value is ...:
        del place[last]
    elif isinstance(place, list):
        place.insert(int(last), value)
    else:
        place[last] = value
    return made


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("mediaType", "application/vnd.dev.sigstore.bundle+json;version=0.2", UnsupportedError),
        ("mediaType", ..., UnsupportedError),
        ("mediaType", 3, UnsupportedError),
        ("more", 1, InvalidError),
        ("messageSignature", {}, InvalidError),
        ("dsseEnvelope", ..., InvalidError),
        ("dsseEnvelope.more", 1, InvalidError),
        ("dsseEnvelope.payloadType", "application/json", UnsupportedError),
        ("dsseEnvelope.signatures", [], InvalidError),
        ("dsseEnvelope.signatures.1", VALID["dsseEnvelope"]["signatures"][0], InvalidError),
        ("dsseEnvelope.signatures.0.sig", "", InvalidError),
        ("dsseEnvelope.signatures.0.sig", VALID["dsseEnvelope"]["signatures"][0]["sig"][:-1], InvalidError),
        ("dsseEnvelope.signatures.0.sig", VALID["dsseEnvelope"]["signatures"][0]["sig"] + "\n", InvalidError),
        ("dsseEnvelope.signatures.0.sig", "A" * 1000, InvalidError),
        ("dsseEnvelope.signatures.0.sig", bundles.b64(b"\x30\x00"), IntegrityError),
        ("dsseEnvelope.signatures.0.sig", "ä===", InvalidError),
        ("dsseEnvelope.payload", "AAAA" + VALID["dsseEnvelope"]["payload"], IntegrityError),
        ("dsseEnvelope.payload", " " + VALID["dsseEnvelope"]["payload"], InvalidError),
        ("dsseEnvelope.payload", None, InvalidError),
        ("verificationMaterial.publicKey", ..., InvalidError),
        ("verificationMaterial.certificate", {"rawBytes": "AAAA"}, InvalidError),
        ("verificationMaterial.publicKey.rawBytes", "AAAA", InvalidError),
        ("verificationMaterial.publicKey.hint", "0" * 64, IntegrityError),
        ("verificationMaterial.tlogEntries", [{}] * 17, InvalidError),
        ("verificationMaterial.x509CertificateChain", {"certificates": []}, InvalidError),
    ],
)
def test_whatever_is_not_exactly_such_a_bundle_is_refused(path, value, error):
    with pytest.raises(error):
        check(json.dumps(changed(path, value)).encode())


def test_names_in_a_refusal_cannot_steer_a_log_or_a_terminal():
    with pytest.raises(InvalidError) as caught:
        check(json.dumps(changed("\x1b[2J\nlevel=info", 1)).encode())
    assert "level=info" in str(caught.value)
    assert str(caught.value).isprintable()


def test_base64_has_one_spelling():
    """Its last character has bits that decoding ignores: two texts of one signature would have two digests."""
    payload = b"x" + json.dumps(bundles.statement()).encode()
    text = bundles.b64(payload[: len(payload) // 3 * 3 + 1 - 3])
    assert text.endswith("==")
    other = text[:-3] + chr(ord(text[-3]) + 1) + "=="
    assert base64.b64decode(other) == base64.b64decode(text)
    with pytest.raises(InvalidError, match="payload is not base64"):
        check(json.dumps(changed("dsseEnvelope.payload", other)).encode())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"mediaType": NaN}',
        b'{"mediaType": ' + b"1" * 10_000 + b"}",
        json.dumps(VALID).encode() + b"x",
        b"\xef\xbb\xbf" + json.dumps(VALID).encode(),
        json.dumps(VALID).encode("utf-16"),
    ],
)
def test_what_is_no_json_object_is_refused(raw):
    with pytest.raises((InvalidError, UnsupportedError)):
        check(raw)


@pytest.mark.parametrize("key", ["mediaType", "payload", "sig", "hint"])
def test_an_object_with_one_key_twice_is_refused(key):
    raw = json.dumps(VALID)
    assert raw.count(f'"{key}":') == 1
    doubled = raw.replace(f'"{key}":', f'"{key}": "first", "{key}":')
    with pytest.raises(InvalidError, match="one key twice"):
        check(doubled.encode())


def test_a_bundle_beyond_the_bound_is_refused_unread():
    raw = b'{"mediaType": "' + b"x" * statement.MAX_BUNDLE_BYTES + b'"}'
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError):
            check(raw)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def signed(**changes: Any) -> bytes:
    return bundle(KEY, bundles.statement(**changes))


def predicate(**changes: Any) -> bytes:
    return signed(predicate=bundles.statement()["predicate"] | changes)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (signed(_type="https://in-toto.io/Statement/v0.1"), UnsupportedError),
        (signed(predicateType="https://slsa.dev/provenance/v1"), UnsupportedError),
        (signed(predicateType="https://model_signing/Digests/v0.1"), UnsupportedError),
        (signed(subject=[]), InvalidError),
        (signed(subject=bundles.statement()["subject"] * 2), InvalidError),
        (signed(subject=[{"name": "digits", "digest": {"sha256": "0" * 64}}]), IntegrityError),
        (signed(subject=[{"name": "digits", "digest": {}}]), IntegrityError),
        (predicate(serialization={"method": "shards", "hash_type": "sha256"}), UnsupportedError),
        (predicate(serialization={"method": "files", "hash_type": "blake3"}), UnsupportedError),
        (predicate(serialization={}), InvalidError),
        (predicate(resources=[]), InvalidError),
        (predicate(resources=[{"name": "a", "digest": "0" * 64, "algorithm": "md5"}]), InvalidError),
        (predicate(resources=[{"name": "a", "digest": "0" * 63, "algorithm": "sha256"}]), InvalidError),
        (predicate(resources=[{"name": "a", "digest": "A" * 64, "algorithm": "sha256"}]), InvalidError),
        (predicate(resources=[{"name": "a", "digest": "0" * 64, "algorithm": "sha256"}] * 2), InvalidError),
        (bundle(KEY, b"no JSON"), InvalidError),
        (bundle(KEY, b"[]"), UnsupportedError),
        (bundle(KEY, json.dumps(bundles.statement()).replace('"name"', '"name": "b", "name"').encode()), InvalidError),
    ],
)
def test_a_statement_of_anything_else_is_refused_although_the_signature_holds(raw, error):
    with pytest.raises(error):
        check(raw)


def test_a_statement_lists_no_more_files_than_its_bound():
    files = {f"f{number}": "0" * 64 for number in range(statement.MAX_FILES + 1)}
    with pytest.raises(InvalidError):
        check(bundle(KEY, bundles.statement(files)))
    files.popitem()
    assert len(check(bundle(KEY, bundles.statement(files))).files) == statement.MAX_FILES


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "/card.json", "../card.json", "a/../b", "./a", "a//b", "a/", "a\\b", "a\n", "\x00", "a" * 2000],
)
def test_a_path_that_could_mean_another_file_is_refused(name):
    with pytest.raises(InvalidError):
        check(bundle(KEY, bundles.statement({name: "0" * 64})))


def test_what_later_versions_add_to_a_statement_is_ignored():
    raw = signed(predicate=bundles.statement()["predicate"] | {"modelCard": {}}, more=1)
    assert check(raw).files == SIGNED


@given(st.binary(max_size=400))
@example(b'{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}')
def test_bytes_of_anybody_s_making_are_refused_in_words(raw):
    with pytest.raises(SkerryError):
        check(raw)


@settings(max_examples=200)
@given(data=st.data())
def test_a_mutated_bundle_is_refused_or_says_the_same(data):
    raw = bytearray(json.dumps(VALID).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "add"])):
            case "flip":
                raw[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 40))]
            case _:
                raw[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    try:
        found = check(bytes(raw))
    except SkerryError:
        return
    assert found.files == SIGNED
    assert found.signers == (Signer(key=bundles.spki_digest(KEY.public_key())),)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
PLACES = [
    "mediaType",
    "verificationMaterial",
    "verificationMaterial.publicKey",
    "verificationMaterial.publicKey.hint",
    "verificationMaterial.x509CertificateChain",
    "verificationMaterial.certificate",
    "dsseEnvelope",
    "dsseEnvelope.payload",
    "dsseEnvelope.payloadType",
    "dsseEnvelope.signatures",
    "dsseEnvelope.signatures.0.sig",
]


@given(st.sampled_from(PLACES), JSON)
def test_any_value_at_any_place_is_refused_or_says_the_same(path, value):
    try:
        found = check(json.dumps(changed(path, value)).encode())
    except SkerryError:
        return
    assert found.files == SIGNED


@given(JSON)
def test_any_signed_payload_is_refused_in_words_or_lists_files(value):
    for payload in (json.dumps(value).encode(), json.dumps(bundles.statement(predicate=value)).encode()):
        with pytest.raises(SkerryError):
            check(bundle(KEY, payload))


def test_the_moment_may_be_of_any_time_zone():
    there = NOW.astimezone(timezone(timedelta(hours=-9)))
    assert verify(bundle(KEY), keys=[KEY.public_key()], authorities=[], now=there).files == SIGNED
