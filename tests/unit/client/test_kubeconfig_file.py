"""Writing kubeconfigs: nothing of anybody's is lost, and keys are their owner's alone."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from skerry.api.errors import AlreadyExistsError, InvalidError, UnavailableError
from skerry.drivers.client import kubeconfig_file
from skerry.drivers.client.kubeconfig import load_kubeconfig
from skerry.drivers.client.kubeconfig_file import Entries

MINE = Entries(
    context="skerry",
    cluster_name="skerry",
    user_name="admin",
    server="https://127.0.0.1:7443",
    namespace="shop",
    ca=b"ca",
    certificate=b"certificate",
    key=b"key",
)
THEIRS: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Config",
    "preferences": {"colors": True},
    "extensions": [{"name": "x", "extension": {"a": 1}}],
    "clusters": [{"name": "prod", "cluster": {"server": "https://prod.example"}}],
    "users": [{"name": "me", "user": {"exec": {"command": "login"}}}],
    "contexts": [{"name": "prod", "context": {"cluster": "prod", "user": "me"}}],
    "current-context": "prod",
}


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text())
    return found


def test_a_new_file_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "new" / "config"
    kubeconfig_file.write_new(file, MINE, replace=False)
    made = load_kubeconfig(file)
    assert (made.server, made.namespace, made.ca, made.certificate, made.key) == (
        "https://127.0.0.1:7443",
        "shop",
        b"ca",
        b"certificate",
        b"key",
    )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(AlreadyExistsError, match="--merge"):
        kubeconfig_file.write_new(file, replace(MINE, token="t"), replace=False)
    assert load_kubeconfig(file).token == ""
    kubeconfig_file.write_new(file, replace(MINE, token="t"), replace=True)
    assert load_kubeconfig(file).token == "t"
    assert [each.name for each in file.parent.iterdir()] == ["config"]


def test_merging_keeps_everything_else(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(yaml.safe_dump(THEIRS))
    file.chmod(0o644)
    assert not kubeconfig_file.merge(file, MINE, replace=False)
    merged = read(file)
    assert merged["current-context"] == "prod"
    for name in ("preferences", "extensions"):
        assert merged[name] == THEIRS[name]
    for name in ("clusters", "users", "contexts"):
        assert merged[name][0] == THEIRS[name][0]
        assert len(merged[name]) == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    kubeconfig_file.merge(file, MINE, replace=False)  # the same again is no conflict
    assert file.read_bytes() == before
    assert load_kubeconfig(file, "skerry").namespace == "shop"


def test_an_entry_of_the_same_name_is_replaced_only_when_asked(tmp_path: Path) -> None:
    file = tmp_path / "config"
    assert kubeconfig_file.merge(file, MINE, replace=False)
    before = file.read_bytes()
    with pytest.raises(AlreadyExistsError, match="--context"):
        kubeconfig_file.merge(file, replace(MINE, key=b"another"), replace=False)
    assert file.read_bytes() == before
    kubeconfig_file.merge(file, replace(MINE, key=b"another"), replace=True)
    assert load_kubeconfig(file).key == b"another"
    assert len(read(file)["users"]) == 1


def test_links_are_followed_and_locks_respected(tmp_path: Path) -> None:
    target, link = tmp_path / "real", tmp_path / "link"
    target.write_text(yaml.safe_dump(THEIRS))
    link.symlink_to(target)
    kubeconfig_file.merge(link, MINE, replace=False)
    assert link.is_symlink()
    assert len(read(target)["users"]) == 2
    lock = tmp_path / "real.lock"
    lock.touch()
    with pytest.raises(UnavailableError, match="remove"):
        kubeconfig_file.merge(link, MINE, replace=False)
    assert lock.exists()


@pytest.mark.parametrize("content", ["a: [", "kind: Pod", "- 1", "kind: Config\nusers: x\n", "#" * (1024 * 1024 + 1)])
def test_a_file_that_is_no_kubeconfig_stays_as_it_is(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config"
    file.write_text(content)
    with pytest.raises(InvalidError):
        kubeconfig_file.merge(file, MINE, replace=False)
    assert file.read_text() == content
    assert [each.name for each in tmp_path.iterdir()] == ["config"]


def test_an_empty_file_is_filled(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.touch()
    assert kubeconfig_file.merge(file, MINE, replace=False)
    assert load_kubeconfig(file).namespace == "shop"


def test_credentials_are_in_no_representation() -> None:
    assert "secret" not in repr(replace(MINE, token="secret", key=b"secret"))
