"""Which files a signature must be over: exactly those that a registry carries, as they are."""

from __future__ import annotations

import os
from hashlib import sha256

import msgspec
import pytest
from tests.unit.signing import bundles, packages

from skerry.api.errors import IntegrityError, InvalidError, SkerryError, TooLargeError
from skerry.core import card as cards
from skerry.core.messages import MAX_SIGNATURES
from skerry.drivers.signing import package
from skerry.drivers.signing.bundle import MAX_BUNDLE_BYTES


@pytest.fixture
def made(tmp_path):
    directory = tmp_path / "digits"
    return directory, packages.make(directory)


def carried(card):
    return package.carried(card, cards.encode(card))


def listed(found):
    return {name: digest.removeprefix("sha256:") for name, digest in found.items()}


def test_what_is_signed_is_what_a_registry_carries(made):
    directory, card = made
    found = package.digests(directory)
    package.check_complete(found, card, directory)
    assert package.compare(found, carried(card), "digits") == ["provenance.json"]
    assert found["digits-fp32.onnx"] == card.variants[0].variant.blob.digest


def change(directory):
    (directory / "golden.npz").write_bytes(b"other")


def add(directory):
    (directory / "weights.bin").write_bytes(b"")


def add_below(directory):
    (directory / "extra").mkdir()
    (directory / "extra" / ".gitignore").write_bytes(b"")


def remove(directory):
    (directory / "digits-fp32.onnx").unlink()


def rename(directory):
    (directory / "digits-fp32.onnx").rename(directory / "digits-fp16.onnx")


def link(directory):
    target = directory.parent / "elsewhere.onnx"
    (directory / "digits-fp32.onnx").rename(target)
    (directory / "digits-fp32.onnx").symlink_to(target)


def link_directory(directory):
    (directory / "extra").symlink_to(directory.parent, target_is_directory=True)


def pipe(directory):
    os.mkfifo(directory / "pipe")


def link_signatures(directory):
    (directory / "signatures").symlink_to(directory.parent, target_is_directory=True)


@pytest.mark.parametrize("alter", [change, add, add_below, remove, rename, link, link_directory, pipe, link_signatures])
def test_a_package_that_is_another_one_is_refused(made, alter):
    directory, card = made
    alter(directory)
    with pytest.raises(IntegrityError):
        package.compare(package.digests(directory), carried(card), "digits")


def test_the_sentence_names_what_differs(made):
    directory, card = made
    for alter in (rename, change):
        alter(directory)
    with pytest.raises(IntegrityError) as caught:
        package.compare(package.digests(directory), carried(card), "digits")
    assert "missing: digits-fp32.onnx; added: digits-fp16.onnx; changed: golden.npz" in str(caught.value)


def test_a_subset_is_not_enough(made):
    directory, card = made
    signed = dict(carried(card))
    del signed["golden.npz"]
    with pytest.raises(IntegrityError, match=r"added: golden\.npz"):
        package.compare(package.digests(directory), signed, "digits")


def test_provenance_may_be_signed_too_and_counts_then(made):
    directory, card = made
    found = dict(package.digests(directory))
    assert package.compare(found, found, "digits") == []
    assert package.compare(carried(card), found, "digits") == []  # a registry does not carry it
    (directory / "provenance.json").write_text("[]")
    with pytest.raises(IntegrityError, match=r"changed: provenance\.json"):
        package.compare(package.digests(directory), found, "digits")


def test_signatures_are_beside_the_files_and_sent_each_once(made):
    directory, card = made
    raw = bundles.bundle(bundles.new_key(), bundles.statement(listed(carried(card))))
    path = package.add_signature(directory, raw)
    assert package.add_signature(directory, raw) == path
    (path.parent / "again.sig").write_bytes(raw)
    (path.parent / "notes.txt").write_text("not one")
    assert package.compare(package.digests(directory), carried(card), "") == ["provenance.json"]
    assert package.read_signatures(directory, carried(card)) == [raw]


def test_two_signers_have_a_file_each(made):
    directory, card = made
    what = bundles.statement(listed(carried(card)))
    paths = {package.add_signature(directory, bundles.bundle(bundles.new_key(), what)) for _ in range(2)}
    assert len(paths) == 2
    assert len(package.read_signatures(directory, carried(card))) == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        bundles.bundle(bundles.new_key()),
        b"x" * (MAX_BUNDLE_BYTES + 1),
    ],
)
def test_a_signature_of_something_else_is_not_sent(made, raw):
    directory, card = made
    (directory / "signatures").mkdir()
    (directory / "signatures" / "a.sig").write_bytes(raw)
    with pytest.raises(SkerryError):
        package.read_signatures(directory, carried(card))


def test_the_number_of_signatures_is_bounded(made):
    directory, card = made
    (directory / "signatures").mkdir()
    for number in range(MAX_SIGNATURES + 1):
        (directory / "signatures" / f"{number}.sig").write_bytes(b"")
    with pytest.raises(TooLargeError):
        package.read_signatures(directory, carried(card))


def test_a_signature_that_leads_elsewhere_is_refused(made):
    directory, card = made
    (directory / "signatures").mkdir()
    (directory / "signatures" / "a.sig").symlink_to("/etc/passwd")
    with pytest.raises(IntegrityError):
        package.read_signatures(directory, carried(card))


def test_a_directory_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InvalidError, match="cannot be read"):
        package.digests(tmp_path / "none")


def test_hashes_are_of_the_content(made):
    directory, _ = made
    assert package.digests(directory)["golden.npz"] == f"sha256:{sha256(b'golden').hexdigest()}"


def test_signatures_from_a_registry_are_kept_beside_those_that_are_there(made):
    directory, card = made
    key, what = bundles.new_key(), bundles.statement(listed(carried(card)))
    mine = package.add_signature(directory, bundles.bundle(key, what))
    before, theirs = mine.read_bytes(), bundles.bundle(key, what)  # by the same key, or by who says so
    package.keep_signatures(directory, [theirs, before, b"{}", bundles.bundle(key), theirs], carried(card))
    assert mine.read_bytes() == before
    assert set(package.read_signatures(directory, carried(card))) == {before, theirs}
    many = [bundles.bundle(key, what) for _ in range(MAX_SIGNATURES)]
    package.keep_signatures(directory, many, carried(card))
    assert len(package.read_signatures(directory, carried(card))) == MAX_SIGNATURES


def test_a_card_that_people_wrote_is_signed_as_it_is(made):
    directory, card = made
    text = cards.encode(card).replace(b"  ", b"    ")
    (directory / "card.json").write_bytes(text)
    found = package.digests(directory)
    package.check_complete(found, card, directory)
    assert package.compare(found, package.carried(card, text), "") == ["provenance.json"]
    with pytest.raises(IntegrityError, match=r"changed: card\.json"):
        package.compare(found, carried(card), "")


@pytest.mark.parametrize("name", ["provenance.json", "pareto.png", "signatures", "golden.npz"])
def test_no_variant_hides_among_what_is_not_signed(made, name):
    directory, card = made
    [packaged] = card.variants
    hiding = msgspec.structs.replace(card, variants=[msgspec.structs.replace(packaged, file=name)])
    with pytest.raises(InvalidError, match="no variant may have the file"):
        package.check_complete(package.digests(directory), hiding, directory)


def test_directories_in_one_another_are_bounded(made):
    directory, _ = made
    (directory / "/".join("d" * 20)).mkdir(parents=True)
    with pytest.raises(TooLargeError, match="in one another"):
        package.digests(directory)
