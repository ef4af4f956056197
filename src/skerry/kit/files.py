"""Atomic, fsynced files: a reader sees the old content or the new, never a part, also after a power cut."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from skerry.api.errors import StorageFullError


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace a file's content in one step, fsyncing file and directory. `mode` holds from its first byte on.

    Raises StorageFullError when the disk is full; the old content stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        try:
            os.fchmod(descriptor, mode)
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(element=str(path), hint="free some space; nothing was changed") from error
        raise


def remove_drafts(directory: Path) -> int:
    """Remove what writers that were killed left behind in a directory and below; return how many there were.

    For whoever owns the directory, before it writes there: drafts of processes that still run stay.
    """
    removed = 0
    for path in directory.rglob(".*.tmp"):
        owner = path.name.removesuffix(".tmp").rpartition(".")[2]
        if owner.isdigit() and (int(owner) == os.getpid() or not Path(f"/proc/{owner}").exists()):
            try:
                path.unlink(missing_ok=True)
            except OSError:  # a disk that became read-only
                return removed
            removed += 1
    return removed


def sync_directory(path: Path) -> None:
    """Make a rename or an unlink in this directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_directory(path: Path) -> Path:
    """Create a directory, with parents, that only its owner may enter."""
    path.mkdir(parents=True, exist_ok=True)
    if stat.S_IMODE(path.stat().st_mode) != 0o700:  # on a disk that became read-only it must not be touched
        path.chmod(0o700)
    return path
