"""Keys that several hubs share: made once, whoever is first, and never mixed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skerry.api.errors import IntegrityError, UnavailableError
from skerry.hub import pki, shared_keys
from skerry.hub.pki import Authority
from skerry.kit.clock import SystemClock

CLOCK = SystemClock()


def opened(keys: Path, own: Path, *, may_create: bool = True) -> Authority:
    def opening(create: bool) -> Authority:
        return pki.open_authority(own, names=("hub.example.org",), clock=CLOCK, may_create=create)

    return shared_keys.open_with(keys, own, opening, clock=CLOCK, may_create=may_create)


def test_hubs_that_start_at_the_same_time_have_one_authority(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        hubs = list(pool.map(lambda name: opened(tmp_path / "keys", tmp_path / name), "abcd"))
    assert len({hub.ca_fingerprint for hub in hubs}) == 1
    assert len({hub.desired_key_id for hub in hubs}) == 1
    assert len({hub.token_keys.signing().key_id for hub in hubs}) == 1
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "keys").iterdir() if file.is_file()} == {0o600}
    again = opened(tmp_path / "keys", tmp_path / "a", may_create=False)
    assert again.ca_fingerprint == hubs[0].ca_fingerprint


def test_a_hub_that_has_keys_leaves_them_for_the_others(tmp_path: Path) -> None:
    first = pki.open_authority(tmp_path / "a", names=(), clock=CLOCK)
    assert opened(tmp_path / "keys", tmp_path / "a", may_create=False).ca_fingerprint == first.ca_fingerprint
    assert opened(tmp_path / "keys", tmp_path / "b", may_create=False).ca_fingerprint == first.ca_fingerprint


def test_a_hub_with_other_keys_keeps_its_own_and_is_refused(tmp_path: Path) -> None:
    opened(tmp_path / "keys", tmp_path / "a")
    pki.open_authority(tmp_path / "b", names=(), clock=CLOCK)
    before = (tmp_path / "b" / "ca.key").read_bytes()
    with pytest.raises(IntegrityError, match="is another one than in"):
        opened(tmp_path / "keys", tmp_path / "b")
    assert (tmp_path / "b" / "ca.key").read_bytes() == before


@pytest.mark.parametrize("there", [1, 2])
def test_what_a_killed_hub_left_unfinished_is_not_mixed_with_others(tmp_path: Path, there: int) -> None:
    opened(tmp_path / "left", tmp_path / "gone")
    (tmp_path / "keys").mkdir()
    for name in shared_keys.NAMES[:there]:
        (tmp_path / "keys" / name).write_bytes((tmp_path / "left" / name).read_bytes())
    first = opened(tmp_path / "keys", tmp_path / "a")
    assert opened(tmp_path / "keys", tmp_path / "b").ca_fingerprint == first.ca_fingerprint


def test_keys_that_are_lost_are_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="is missing"):
        opened(tmp_path / "keys", tmp_path / "a", may_create=False)
    assert not (tmp_path / "keys" / "ca.crt").exists()


def test_a_directory_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("")
    with pytest.raises(UnavailableError, match=r"^keys directory .*/keys: cannot be used"):
        opened(tmp_path / "keys", tmp_path / "a")
