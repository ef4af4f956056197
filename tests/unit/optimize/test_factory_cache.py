"""Finished steps are found again by content: whole, unchanged, or not at all."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import InvalidError
from skerry.optimize import cache
from skerry.optimize.cache import ENTRY_FILE, KEEP_SECONDS, Cache

KEY = "0" * 64


def make(store: Cache, key: str = KEY, content: bytes = b"content", **inputs: str) -> Path:
    directory = store.work()
    (directory / "model.bin").write_bytes(content)
    (directory / "facts.json").write_text("{}")
    return store.keep("variant", key, directory, inputs=inputs)


def test_what_was_kept_is_found_again_by_another_process(tmp_path: Path) -> None:
    kept = make(Cache(tmp_path / "cache"))
    found = Cache(tmp_path / "cache").find("variant", KEY)
    assert found == kept
    assert (found / "model.bin").read_bytes() == b"content"
    assert Cache(tmp_path / "cache").find("variant", "1" * 64) is None
    assert Cache(tmp_path / "cache").find("import", KEY) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: (d / "model.bin").write_bytes(b"c0ntent"),
        lambda d: (d / "model.bin").write_bytes(b""),
        lambda d: (d / "model.bin").unlink(),
        lambda d: (d / ENTRY_FILE).unlink(),
        lambda d: (d / ENTRY_FILE).write_bytes(b'{"files": '),
        lambda d: (d / ENTRY_FILE).write_bytes(b"[]"),
        lambda d: (d / ENTRY_FILE).write_bytes(b'{"files": {"../../elsewhere": "0"}}'),
    ],
)
def test_a_damaged_entry_is_not_used_and_can_be_made_again(tmp_path: Path, damage: object) -> None:
    store = Cache(tmp_path / "cache")
    damage(make(store))  # type: ignore[operator]
    assert store.find("variant", KEY) is None
    assert make(store) == store.find("variant", KEY)


def test_an_entry_whose_inputs_changed_is_not_used(tmp_path: Path) -> None:
    imported = tmp_path / "there" / "layers.py"
    imported.parent.mkdir()
    imported.write_text("WIDTH = 1\n")
    there = {"source": imported.parent}
    store = Cache(tmp_path / "cache")
    make(store, **{"source/layers.py": cache.digest(imported)})
    assert store.find("variant", KEY, places=there) is not None
    imported.write_text("WIDTH = 2\n")
    assert store.find("variant", KEY, places=there) is None


def test_inputs_are_those_of_the_place_that_is_asked_for(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "layers.py").write_text("WIDTH = 1\n")
    store = Cache(tmp_path / "cache")
    make(store, **{"source/layers.py": cache.digest(tmp_path / "a" / "layers.py")})
    assert store.find("variant", KEY, places={"source": tmp_path / "b"}) is not None
    (tmp_path / "b" / "layers.py").write_text("WIDTH = 2\n")
    assert store.find("variant", KEY, places={"source": tmp_path / "b"}) is None
    make(store, **{"source/layers.py": cache.digest(tmp_path / "a" / "layers.py")})
    assert store.find("variant", KEY) is None  # a role that nobody has


def test_two_that_make_the_same_at_once_share_the_first(tmp_path: Path) -> None:
    store = Cache(tmp_path / "cache")
    first = make(store, content=b"first")
    assert make(store, content=b"second") == first
    assert (first / "model.bin").read_bytes() == b"first"
    assert list((tmp_path / "cache" / "work").iterdir()) == []


WORKS = """
import sys
from pathlib import Path
from skerry.optimize.cache import Cache

store = Cache(Path(sys.argv[1]))
print(store.work(), flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_left_behind_is_removed_and_nobody_elses(tmp_path: Path) -> None:
    """By locks: a process of another container may have our own number."""
    store = Cache(tmp_path / "cache")
    ours = store.work()
    new = tmp_path / "cache" / "work" / "new"  # about to get its lock
    new.mkdir()
    command = [sys.executable, "-c", WORKS, str(tmp_path / "cache")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            theirs = Path(other.stdout.readline().strip())
            Cache(tmp_path / "cache")
            assert theirs.is_dir()
            assert theirs != ours
        finally:
            other.kill()
    Cache(tmp_path / "cache")
    assert not theirs.exists()
    assert ours.is_dir()
    assert new.is_dir()
    os.utime(new, (1e9, 1e9))
    Cache(tmp_path / "cache")
    assert not new.exists()


def test_another_checkouts_entry_stays(tmp_path: Path) -> None:
    """Somebody may be at work with it."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "layers.py").write_text(f"NAME = {name!r}\n")
    digests = {name: cache.digest(tmp_path / name / "layers.py") for name in ("a", "b")}
    store = Cache(tmp_path / "cache")
    first = make(store, content=b"a", **{"source/layers.py": digests["a"]})
    assert store.find("variant", KEY, places={"source": tmp_path / "b"}) is None
    second = make(store, content=b"b", **{"source/layers.py": digests["b"]})
    for name, kept in (("a", first), ("b", second)):
        assert store.find("variant", KEY, places={"source": tmp_path / name}) == kept
        assert (kept / "model.bin").read_bytes() == name.encode()


def test_a_distribution_of_another_version_is_another_input(tmp_path: Path) -> None:
    store = Cache(tmp_path / "cache")
    make(store, **{"distribution/numpy": importlib.metadata.version("numpy")})
    assert store.find("variant", KEY) is not None
    make(store, "1" * 64, **{"distribution/numpy": "0.1"})
    assert store.find("variant", "1" * 64) is None
    make(store, "2" * 64, **{"distribution/there-is-no-such-thing": "1"})
    assert store.find("variant", "2" * 64) is None


def test_entries_that_nobody_used_for_long_make_room(tmp_path: Path) -> None:
    store = Cache(tmp_path / "cache")
    entries = [make(store, key=str(number) * 64, content=b"x" * 1000) for number in range(4)]
    for age, entry in enumerate(entries):
        os.utime(entry / ENTRY_FILE, (1e9 - age, 1e9 - age))
    size = sum(file.stat().st_size for file in entries[0].iterdir())
    assert store.prune(most=3 * size, now=1e9 + KEEP_SECONDS - 10) == 0  # all are too young
    assert store.prune(most=3 * size, now=1e9 + 2 * KEEP_SECONDS) == 1
    assert [entry.exists() for entry in entries] == [True, True, True, False]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidError, match="--cache"):
        Cache(tmp_path / "file" / "cache")


def test_the_users_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_root() == tmp_path / "skerry" / "optimize"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.default_root() == Path.home() / ".cache" / "skerry" / "optimize"


@given(st.dictionaries(st.text(), st.integers() | st.text()), st.randoms(use_true_random=False))
def test_a_key_does_not_depend_on_order(parts: dict[str, int | str], random: object) -> None:
    shuffled = list(parts.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert cache.key(dict(shuffled)) == cache.key(parts)
    assert cache.key({**parts, "more": 1}) != cache.key(parts) or parts.get("more") == 1


def test_a_directorys_digest_is_that_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    before = cache.digest(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    renamed = cache.digest(tmp_path / "a")
    (tmp_path / "a" / "y").write_text("2")
    assert len({before, renamed, cache.digest(tmp_path / "a")}) == 3
