"""What was made before, by content: directories under keys, complete or absent, checked whenever they are used.

    <root>/<stage>-<key>/            the files of one step, with `entry.json`: their digests
    <root>/work/<pid>-<number>       where a step is at work; of a process that was killed it is removed

A key is the digest of everything that the result depends on. Lives here: keys, entries, making room. Must not live
here: what steps there are. Source: files appear by rename(2), so that a power cut leaves an entry whole or not at all;
one that is damaged all the same is made again.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Mapping
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import msgspec

from skerry.api.errors import InvalidError
from skerry.kit import files

ENTRY_FILE = "entry.json"
MAX_BYTES = 20 * 1024**3
"""Beyond it the entries that were used longest ago go."""
KEEP_SECONDS = 24 * 3600
"""An entry that was used within this time stays in any case: another run may be at work with it."""
_WORK = "work"


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    files: dict[str, str]
    """Name -> sha256, hex."""
    inputs: dict[str, str] = {}
    """Name -> sha256 of what the step read besides the key's own files, such as a builder's imports (`beside`)."""


class Cache:
    """A directory of finished steps."""

    def __init__(self, root: Path) -> None:
        """Open it, and make it if need be. Raises InvalidError."""
        self._root = root
        self._numbers = itertools.count()
        try:
            files.private_directory(root)
            (root / _WORK).mkdir(exist_ok=True)
        except OSError as error:
            raise InvalidError(
                f"cannot be written ({error.strerror})", element=str(root), hint="choose another --cache, or --no-cache"
            ) from error
        self._sweep()

    def find(self, stage: str, key: str, *, places: Mapping[str, Path] | None = None) -> Path | None:
        """Return the entry's directory if it is there and every file is what it was; a damaged entry is removed.

        `places` says where its inputs are: `a/x.py` is `x.py` in `places["a"]`.
        """
        directory = self._root / f"{stage}-{key}"
        try:
            entry = msgspec.json.decode((directory / ENTRY_FILE).read_bytes(), type=_Entry)
            whole = all(digest(directory / Path(name).name) == wanted for name, wanted in entry.files.items())
            current = all(digest(_place(name, places or {})) == wanted for name, wanted in entry.inputs.items())
        except (OSError, KeyError, msgspec.DecodeError):
            whole = current = False
        if whole and current:
            os.utime(directory / ENTRY_FILE)
            return directory
        shutil.rmtree(directory, ignore_errors=True)
        return None

    def work(self) -> Path:
        """Return a new empty directory on the same file system."""
        directory = self._root / _WORK / f"{os.getpid()}-{next(self._numbers)}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        return directory

    def keep(
        self,
        stage: str,
        key: str,
        made: Path,
        *,
        inputs: Mapping[str, str] | None = None,
        places: Mapping[str, Path] | None = None,
    ) -> Path:
        """Move a work directory to its entry's place and return that. Raises OSError, StorageFullError."""
        names = sorted(path.name for path in made.iterdir() if path.is_file())
        entry = _Entry(files={name: digest(made / name) for name in names}, inputs=dict(inputs or {}))
        for name in names:
            _sync(made / name)
        files.write_atomic(made / ENTRY_FILE, msgspec.json.encode(entry, order="sorted"))
        directory = self._root / f"{stage}-{key}"
        try:
            os.rename(made, directory)
        except OSError:  # another run was quicker, or a damaged entry lies there
            if found := self.find(stage, key, places=places):
                shutil.rmtree(made, ignore_errors=True)
                return found
            os.rename(made, directory)
        files.sync_directory(self._root)
        return directory

    def prune(self, *, most: int = MAX_BYTES, now: float | None = None) -> int:
        """Remove the entries used longest ago until the rest fits; return how many went."""
        moment = time.time() if now is None else now
        found = []
        for marker in self._root.glob(f"*/{ENTRY_FILE}"):
            try:
                size = sum(path.stat().st_size for path in marker.parent.iterdir())
                found.append((marker.stat().st_mtime, size, marker.parent))
            except OSError:
                continue
        total, removed = sum(size for _, size, _ in found), 0
        for used, size, directory in sorted(found):
            if total <= most or moment - used < KEEP_SECONDS:
                break
            shutil.rmtree(directory, ignore_errors=True)
            total, removed = total - size, removed + 1
        return removed

    def _sweep(self) -> None:
        for path in (self._root / _WORK).iterdir():
            owner = path.name.partition("-")[0]
            if owner.isdigit() and int(owner) != os.getpid() and not Path(f"/proc/{owner}").exists():
                shutil.rmtree(path, ignore_errors=True)


def default_root() -> Path:
    """Return the user's own place for it (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "skerry" / "optimize"


def key(parts: Mapping[str, Any]) -> str:
    """Return the digest of plain values, whatever the order of their names."""
    return sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def digest(path: Path) -> str:
    """Return the sha256 of a file, or of a directory: of all its files and their names. Raises OSError."""
    if path.is_dir():
        inside = {str(p.relative_to(path)): digest(p) for p in sorted(path.rglob("*")) if p.is_file()}
        return key(inside)
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def digest_tree(root: Path, pattern: str) -> str:
    """Return the digest of a directory's files with such names, and of the names."""
    return key({str(path.relative_to(root)): digest(path) for path in sorted(root.rglob(pattern))})


def _place(name: str, places: Mapping[str, Path]) -> Path:
    role, _, inner = name.partition("/")
    return places[role] / inner


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
