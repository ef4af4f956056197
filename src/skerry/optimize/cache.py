"""What was made before, by content: directories under keys, complete or absent, checked whenever they are used.

    <root>/<stage>-<key>-<inputs>/   the files of one step, with `entry.json`: their digests
    <root>/work/<random>             where a step is at work; locked (flock), so that of a killed process it is removed

A key is the digest of everything that the result depends on and that is known before the step; the directory's name
ends with a digest of what the step turned out to read besides. So two checkouts that differ in that have an entry each,
and neither takes away what the other is at work with. Lives here: keys, entries, making room. Must not live
here: what steps there are. Source: files appear by rename(2), so that a power cut leaves an entry whole or not at all;
one that is damaged all the same is made again.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
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
DISTRIBUTION = "distribution"
"""The role of inputs that are installed distributions: `distribution/<name>` stands for its version."""
_WORK = "work"
_LOCK = ".lock"


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
        self._locks: dict[Path, int] = {}
        weakref.finalize(self, _close, self._locks)
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

        `places` says where its inputs are: `a/x.py` is `x.py` in `places["a"]`. An entry whose inputs are others here
        stays: another run may be at work with it.
        """
        for directory in sorted(self._root.glob(f"{stage}-{key}-*"), key=_used, reverse=True):
            entry = _read(directory)
            if entry is None:
                shutil.rmtree(directory, ignore_errors=True)
            elif is_current(entry.inputs, places or {}):
                with suppress(OSError):  # another user's cache, read alone
                    os.utime(directory / ENTRY_FILE)
                return directory
        return None

    def drop(self, found: Path) -> None:
        """Remove an entry that shall be made again."""
        shutil.rmtree(found, ignore_errors=True)

    def work(self) -> Path:
        """Return a new empty directory on the same file system."""
        while True:
            directory = Path(tempfile.mkdtemp(dir=self._root / _WORK))
            lock = _locked(directory)
            if lock is not None:
                self._locks[directory] = lock
                return directory

    def keep(
        self,
        stage: str,
        key: str,
        made: Path,
        *,
        inputs: Mapping[str, str] | None = None,
    ) -> Path:
        """Move a work directory to its entry's place and return that. Raises OSError, StorageFullError."""
        names = sorted(path.name for path in made.iterdir() if path.is_file() and path.name != _LOCK)
        entry = _Entry(files={name: digest(made / name) for name in names}, inputs=dict(inputs or {}))
        for name in names:
            _sync(made / name)
        files.write_atomic(made / ENTRY_FILE, msgspec.json.encode(entry, order="sorted"))
        directory = self._root / f"{stage}-{key}-{_short(entry.inputs)}"
        try:
            os.rename(made, directory)
        except OSError:  # another run was quicker, or a damaged entry lies there
            if _read(directory) is not None:
                shutil.rmtree(made, ignore_errors=True)
                self._unlock(made)
                return directory
            shutil.rmtree(directory, ignore_errors=True)
            os.rename(made, directory)
        (directory / _LOCK).unlink(missing_ok=True)
        self._unlock(made)
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
        """Remove what nobody is at work in: by locks, because process numbers mean nothing between containers."""
        for path in (self._root / _WORK).iterdir():
            try:
                descriptor = os.open(path / _LOCK, os.O_RDWR)
            except OSError:
                _remove_old(path)
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            except OSError:  # somebody is at work there, or the file system has no locks
                pass
            finally:
                os.close(descriptor)

    def _unlock(self, made: Path) -> None:
        lock = self._locks.pop(made, None)
        if lock is not None:
            os.close(lock)


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


def is_current(inputs: Mapping[str, str], places: Mapping[str, Path]) -> bool:
    """Tell whether every input is what it was when the step read it; see `Cache.find` for the places."""
    try:
        return all(_now(name, places) == wanted for name, wanted in inputs.items())
    except (OSError, KeyError, importlib.metadata.PackageNotFoundError):
        return False


def _now(name: str, places: Mapping[str, Path]) -> str:
    role, _, inner = name.partition("/")
    return importlib.metadata.version(inner) if role == DISTRIBUTION else digest(places[role] / inner)


def _read(directory: Path) -> _Entry | None:
    """Return an entry that is whole."""
    try:
        entry = msgspec.json.decode((directory / ENTRY_FILE).read_bytes(), type=_Entry)
        whole = all(digest(directory / Path(name).name) == wanted for name, wanted in entry.files.items())
    except (OSError, msgspec.DecodeError):
        return None
    return entry if whole else None


def _used(directory: Path) -> float:
    try:
        return (directory / ENTRY_FILE).stat().st_mtime
    except OSError:
        return 0.0


def _short(inputs: Mapping[str, str]) -> str:
    return key(inputs)[:16]


def _locked(directory: Path) -> int | None:
    """Lock a new work directory; None when one that sweeps was quicker."""
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(directory / _LOCK)):
            return descriptor
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.ENOENT):
            return descriptor  # the file system has no locks: nothing is ever swept there
    os.close(descriptor)
    return None


def _remove_old(path: Path) -> None:
    """Remove a work directory without a lock, unless it may just be about to get one."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > KEEP_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _close(locks: MutableMapping[Path, int]) -> None:
    for descriptor in locks.values():
        os.close(descriptor)
    locks.clear()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
