"""Signatures on their way: attached to a model version in the hub's registry, found there, verified, taken along."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.signing import bundles, packages

from skerry.api.errors import IntegrityError, SkerryError
from skerry.core import manifest as manifests
from skerry.drivers.client.pull import pull_package
from skerry.drivers.client.registry import push_package
from skerry.drivers.client.repository import Repository
from skerry.drivers.client.signatures import attach, fetch
from skerry.drivers.signing import package
from skerry.drivers.signing.bundle import verify

REPOSITORY = "default/digits"
KEY = bundles.new_key()


def signed(directory: Path, key: Any = KEY) -> bytes:
    """Sign a package by hand, as its files lie there; `provenance.json` stays out."""
    files = {name: digest.removeprefix("sha256:") for name, digest in package.digests(directory).items()}
    del files["provenance.json"]
    return bundles.bundle(key, bundles.statement(files))


@pytest.fixture
def place(hub: Any) -> Iterator[Repository]:
    with hub.client() as client:
        yield Repository(client, REPOSITORY)


def test_a_signature_travels_with_its_model(place, tmp_path):
    card = packages.make(tmp_path / "digits")
    raw = signed(tmp_path / "digits")
    package.add_signature(tmp_path / "digits", raw)
    index = push_package(place.client, REPOSITORY, tmp_path / "digits", card).index

    def attached() -> list[manifests.Descriptor]:
        return [one for one in place.list_referrers(index) if one.artifact_type == manifests.SIGNATURE_TYPE]

    [found] = attached()
    assert found.annotations["dev.sigstore.bundle.content"] == "dsse-envelope"
    document = json.loads(place.get_manifest(found.digest).raw)
    assert document["subject"]["digest"] == index
    assert document["layers"][0]["digest"] == manifests.digest_of(raw)
    assert document["layers"][0]["mediaType"] == manifests.SIGNATURE_TYPE

    push_package(place.client, REPOSITORY, tmp_path / "digits", card)
    assert attached() == [found], "pushing again attaches it once"

    pulled = pull_package(place, "v1", tmp_path / "back")
    [back] = package.signatures(tmp_path / "back")
    assert back.read_bytes() == raw
    verified = verify(raw, keys=[KEY.public_key()], authorities=[], now=bundles.NOW)
    assert package.compare(package.digests(tmp_path / "back"), verified.files, "") == []
    again = push_package(place.client, REPOSITORY, tmp_path / "back", pulled.card)
    assert (again.index, again.sent) == (index, 0)
    assert attached() == [found]


def test_a_signature_may_come_after_its_model(place, tmp_path):
    card = packages.make(tmp_path / "digits")
    index = push_package(place.client, REPOSITORY, tmp_path / "digits", card).index
    assert fetch(place, place.list_referrers(index)) == []
    raws = [signed(tmp_path / "digits", key) for key in (KEY, bundles.new_key())]
    for raw in raws:
        assert attach(place, place.get_manifest(index), raw) == manifests.digest_of(raw)
    assert set(fetch(place, place.list_referrers(index))) == set(raws)


@pytest.mark.parametrize("what", ["another package", "a subset", "no JSON"])
def test_a_signature_of_something_else_is_not_pushed(place, tmp_path, what):
    card = packages.make(tmp_path / "digits")
    packages.make(tmp_path / "other", weights=b"other weights")
    raw = b"no JSON" if what == "no JSON" else signed(tmp_path / "other")
    if what == "a subset":
        raw = bundles.bundle(KEY, bundles.statement({"card.json": "0" * 64}))
    (tmp_path / "digits" / "signatures").mkdir()
    (tmp_path / "digits" / "signatures" / "a.sig").write_bytes(raw)
    with pytest.raises(SkerryError) as caught:
        push_package(place.client, REPOSITORY, tmp_path / "digits", card)
    if what != "no JSON":
        assert "is not this package" in str(caught.value)
    assert place.find_manifest("v1") is None, "nothing was pushed"


def test_a_model_that_was_put_in_another_s_place_is_noticed(place, tmp_path):
    """Whoever owns the registry attaches a good signature to another model: it holds, and signs something else."""
    packages.make(tmp_path / "good")
    card = packages.make(tmp_path / "evil", weights=b"evil weights")
    index = push_package(place.client, REPOSITORY, tmp_path / "evil", card).index
    attach(place, place.get_manifest(index), signed(tmp_path / "good"))
    pull_package(place, "v1", tmp_path / "back")
    assert package.signatures(tmp_path / "back") == [], "it signs something else"
    [raw] = fetch(place, place.list_referrers(index))
    verified = verify(raw, keys=[KEY.public_key()], authorities=[], now=bundles.NOW)
    with pytest.raises(IntegrityError, match=r"changed: card\.json, digits-fp32\.onnx"):
        package.compare(package.digests(tmp_path / "back"), verified.files, "")


def test_signatures_that_are_none_do_not_crowd_the_one_that_holds_out(place, tmp_path):
    """More than a package may hold, all of which come before it by their digests."""
    card = packages.make(tmp_path / "digits")
    raw = signed(tmp_path / "digits")
    index = push_package(place.client, REPOSITORY, tmp_path / "digits", card).index
    junk: list[bytes] = []
    while len(junk) < 9:
        one = f"no signature {len(junk)} {secrets.token_hex(4)}".encode()
        junk += [one] if manifests.digest_of(one) < manifests.digest_of(raw) else []
    for one in [*junk, raw]:
        attach(place, place.get_manifest(index), one)
    assert raw in fetch(place, place.list_referrers(index))
    pull_package(place, "v1", tmp_path / "back")
    assert [path.read_bytes() for path in package.signatures(tmp_path / "back")] == [raw]
