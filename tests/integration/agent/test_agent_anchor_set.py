"""Setting a device's anchor, again and with an enrolment that fails: what it follows already is not forgotten by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests import trusting
from tests.integration.agent.surroundings import UID
from tests.trusting import Owners

from skerry.agent import app
from skerry.agent import trust as trusted
from skerry.agent.disk import Disk
from skerry.api.errors import AlreadyExistsError, IntegrityError, InvalidError
from skerry.core import anchor
from skerry.core.anchor import Anchored
from skerry.kit.clock import SystemClock


@pytest.fixture
def disk(tmp_path: Path, authority: Any) -> Disk:
    made = Disk(tmp_path / "own")
    made.write("device.pem", authority.issue(UID))
    return made


@pytest.fixture
def owners() -> Owners:
    """A policy key was stolen: it was replaced by the second root."""
    made = Owners(namespace="prod")
    made.rotate(policies=True)
    return made


@pytest.fixture
def kept(disk: Disk, owners: Owners) -> Anchored:
    state = Anchored(
        namespace="prod",
        root=anchor.write(owners.roots[1]),
        policy=anchor.write(owners.policy(version=5)),
        policy_version=5,
    )
    trusted.write(disk, state)
    return state


def written(directory: Path, sealed: anchor.Sealed) -> str:
    path = directory / "root.json"
    path.write_text(anchor.write(sealed))
    return str(path)


def test_an_older_anchor_or_another_one_takes_nothing_back(
    disk: Disk, owners: Owners, kept: Anchored, tmp_path: Path
) -> None:
    other = Owners()
    other.rotate()
    skipping = Owners()
    skipping.roots = [*owners.roots]
    skipping.rotate()
    words = [
        written(tmp_path, owners.roots[0]),
        anchor.digest_of(owners.roots[0]),
        anchor.digest_of(other.roots[0]),
    ]
    for word in words:
        with pytest.raises(AlreadyExistsError, match=r"obeys trust anchor 2 already.*--replace"):
            trusted.begin(disk, word)
        assert trusted.read(disk) == kept
    for sealed in (other.roots[1], skipping.roots[2]):
        with pytest.raises(AlreadyExistsError, match="obeys trust anchor 2 already: trust anchor"):
            trusted.begin(disk, written(tmp_path, sealed))
        assert trusted.read(disk) == kept


def test_the_same_anchor_again_changes_nothing_and_one_that_follows_is_followed(
    disk: Disk, owners: Owners, kept: Anchored, tmp_path: Path
) -> None:
    for word in (written(tmp_path, owners.roots[1]), anchor.digest_of(owners.roots[1]), "first-use"):
        trusted.begin(disk, word)
        assert trusted.read(disk) == kept
    third = owners.rotate()
    trusted.begin(disk, written(tmp_path, third))
    assert trusted.read(disk) == msgspec.structs.replace(kept, root=anchor.write(third))


def test_to_be_replaced_is_a_word_of_its_own_and_keeps_the_namespace(
    disk: Disk, owners: Owners, kept: Anchored, tmp_path: Path
) -> None:
    """The hub has meanwhile given it a certificate of another namespace (here: the default one)."""
    trusted.begin(disk, written(tmp_path, owners.roots[0]), replace=True)
    assert trusted.read(disk) == Anchored(namespace=kept.namespace, root=anchor.write(owners.roots[0]))
    trusted.Trust(disk, SystemClock())
    again = trusted.read(disk)
    assert again is not None
    assert again.namespace == "prod"
    trusted.begin(disk, "first-use", replace=True, namespace="lab")
    assert trusted.read(disk) == Anchored(namespace="lab")


def test_a_pin_gives_way_to_what_fits_it_alone(disk: Disk, owners: Owners, tmp_path: Path) -> None:
    trusted.begin(disk, "first-use")
    pin = anchor.digest_of(owners.roots[0])
    for word in (pin, "first-use"):
        trusted.begin(disk, word)
        assert trusted.read(disk) == Anchored(namespace="", pin=pin)
    with pytest.raises(AlreadyExistsError, match="waits for trust anchor sha256"):
        trusted.begin(disk, written(tmp_path, Owners().roots[0]))
    trusted.begin(disk, written(tmp_path, owners.roots[0]))
    assert trusted.read(disk) == Anchored(namespace="", root=anchor.write(owners.roots[0]))


def test_a_damaged_file_is_replaced_only_when_told_to(disk: Disk, owners: Owners, tmp_path: Path) -> None:
    disk.write(trusted.FILE, b'{"namespace": "pro')
    with pytest.raises(InvalidError, match=r"is damaged.*--replace"):
        trusted.begin(disk, written(tmp_path, owners.roots[0]))
    trusted.begin(disk, written(tmp_path, owners.roots[0]), replace=True, namespace="prod")
    assert trusted.read(disk) == Anchored(namespace="prod", root=anchor.write(owners.roots[0]))


@pytest.mark.parametrize("token", ["oops", f"skj1.a.b.{'0' * 64}"])
def test_an_enrolment_that_fails_leaves_the_anchor_as_it_was(
    disk: Disk, owners: Owners, tmp_path: Path, token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A token that is none, and a hub that is not there."""
    word = written(tmp_path, owners.roots[0])
    command = ["enroll", "--hub", "https://127.0.0.1:1", "--token", token, "--trust", word, "--again"]
    where = ["--state-dir", str(disk.root)]
    assert app.main([*command, *where]) == 1
    assert trusted.read(disk) is None
    trusted.write(disk, Anchored(namespace="prod", root=anchor.write(owners.roots[1]), policy_version=5))
    before = trusted.read(disk)
    capsys.readouterr()
    assert app.main([*command, *where]) == 1
    assert "obeys trust anchor 2 already" in capsys.readouterr().err, "before the hub is asked"
    assert app.main([*command, "--replace", *where]) == 1
    assert trusted.read(disk) == before


def test_a_root_that_its_owners_did_not_sign_does_not_follow(
    disk: Disk, owners: Owners, kept: Anchored, tmp_path: Path
) -> None:
    forged = trusting.signed(owners.root(version=3, policies=trusting.role(trusting.owner())), trusting.owner())
    with pytest.raises(IntegrityError, match="signatures it needs of its own owners"):
        trusted.begin(disk, written(tmp_path, forged))
    assert trusted.read(disk) == kept
