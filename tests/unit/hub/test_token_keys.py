"""The keys that sign tokens: rotation, sharing, damage."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest

from skerry.api.errors import UnauthorizedError, UnavailableError
from skerry.hub import token_keys
from skerry.hub.authentication import jws
from skerry.hub.token_keys import TokenKeys


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.time = datetime(2026, 5, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


def test_one_key_signs_until_it_is_due_and_is_the_same_after_a_restart(tmp_path: Path) -> None:
    clock = Hands()
    keys = TokenKeys(tmp_path / "tokens", clock)
    first = keys.signing()
    clock.time += token_keys.ROTATE_AFTER - timedelta(seconds=1)
    assert keys.signing().key_id == TokenKeys(tmp_path / "tokens", clock).signing().key_id == first.key_id
    clock.time += timedelta(seconds=1)
    second = keys.signing()
    assert second.key_id != first.key_id
    assert keys.find(first.key_id) is not None
    assert [key["kid"] for key in keys.public()] == [second.key_id, first.key_id]
    clock.time += token_keys.ROTATE_AFTER + timedelta(days=1)  # half a year after the first
    third = keys.signing()
    clock.time += token_keys.ROTATE_AFTER + timedelta(days=2)
    keys.signing()
    assert keys.find(first.key_id) is None
    assert {file.name for file in (tmp_path / "tokens").iterdir()} == set(keys._files)
    assert keys.find(third.key_id) is not None


def test_files_and_directory_are_for_their_owner_alone(tmp_path: Path) -> None:
    TokenKeys(tmp_path / "tokens", Hands()).signing()
    (file,) = (tmp_path / "tokens").iterdir()
    assert (stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)) == (0o600, 0o700)
    file.chmod(0o644)
    TokenKeys(tmp_path / "tokens", Hands()).signing()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_another_hub_s_key_is_found_but_the_directory_is_not_read_for_every_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Hands()
    one, other = TokenKeys(tmp_path / "tokens", clock), TokenKeys(tmp_path / "tokens", clock)
    assert one.find("x") is None
    made = other.signing()
    looks: list[object] = []
    listdir = os.listdir

    def look(path: Path) -> list[str]:
        looks.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", look)
    for _ in range(50):
        assert one.find(made.key_id) is None
    assert looks == []
    clock.time += timedelta(seconds=token_keys.RELOAD_SECONDS)
    assert one.find(made.key_id) is not None
    assert len(looks) == 1


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_a_damaged_key_voids_its_own_tokens_alone(tmp_path: Path, content: bytes | None) -> None:
    clock = Hands()
    keys = TokenKeys(tmp_path / "tokens", clock)
    lost = keys.signing()
    (file,) = (tmp_path / "tokens").iterdir()
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    clock.time += timedelta(seconds=5)
    fresh = TokenKeys(tmp_path / "tokens", clock)
    assert fresh.find(lost.key_id) is None
    assert fresh.signing().key_id != lost.key_id


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokens").touch()
    keys = TokenKeys(tmp_path / "tokens", Hands())
    assert keys.find("x") is None
    with pytest.raises(UnavailableError, match="tokens"):
        keys.signing()


def test_published_keys_verify_what_was_signed(tmp_path: Path) -> None:
    keys = TokenKeys(tmp_path / "tokens", Hands())
    token = jws.sign(b'{"iss":"x"}', keys.signing().private, key_id=keys.signing().key_id)
    (published,) = keys.public()
    assert not {"d", "k"} & published.keys()
    assert jwt.decode(token, jwt.PyJWK(published), algorithms=["ES256"], options={"verify_exp": False}) == {"iss": "x"}
    seen = jws.look(token)
    assert seen == jws.Seen(algorithm="ES256", key_id=published["kid"], issuer="x")
    head, body, signature = token.split(".")
    good = jws.VerificationKey(key=keys.signing().private.public_key(), algorithm="ES256")
    assert jws.verify(token, good) == b'{"iss":"x"}'
    swapped = signature[:-2] + ("AA" if signature[-2:] != "AA" else "BA")
    for broken in (f"{head}.{body}.", f"{head}.{body}.{swapped}", f"{head}.eyJpc3MiOiJ5In0.{signature}"):
        with pytest.raises(UnauthorizedError):
            jws.verify(broken, good)
