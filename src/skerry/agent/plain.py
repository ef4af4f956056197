"""Blobs as plain files: reading them from anywhere, seeing that they are what they were, making them in one step.

Lives here: bytes of one file. Must not live here: which files there are (`disk`), encryption (`sealed`).
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from skerry.api.errors import IntegrityError, NotFoundError, StorageFullError
from skerry.api.kinds.variants import Blob
from skerry.core.ports import Content
from skerry.kit import files

_CHUNK_BYTES = 256 * 1024


class PlainContent:
    """An open file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read = file.read

    @property
    def size(self) -> int:
        """Bytes of it."""
        return os.fstat(self._file.fileno()).st_size

    def pread(self, length: int, offset: int) -> bytes:
        """Return bytes from an offset on, fewer only at the end."""
        return os.pread(self._file.fileno(), length, offset)


@contextmanager
def opened(path: Path) -> Iterator[Content]:
    """Open a file. Raises NotFoundError."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise NotFoundError(element=str(path)) from None
    with file:
        yield PlainContent(file)


def verify(path: Path, blob: Blob) -> None:
    """Read all of a file. Raises NotFoundError, IntegrityError when it is not that blob, or cannot be read."""
    hasher = hashlib.sha256()
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == blob.size:
                while chunk := file.read(_CHUNK_BYTES):
                    hasher.update(chunk)
    except FileNotFoundError:
        raise NotFoundError(element=str(path)) from None
    except OSError as error:  # a dying SD card
        raise IntegrityError(f"cannot be read: {error.strerror}", element=str(path)) from None
    if f"sha256:{hasher.hexdigest()}" != blob.digest:
        raise IntegrityError(f"is not {blob.digest} of {blob.size} bytes any more", element=str(path))


def write(target: Path, blob: Blob, pieces: Iterable[bytes]) -> None:
    """Make a file from its content, in order; its name exists once its digest holds.

    Raises IntegrityError when it does not, StorageFullError, OSError.
    """
    draft, hasher = target.with_name(f".{target.name}.{os.getpid()}.tmp"), hashlib.sha256()
    draft.unlink(missing_ok=True)
    try:
        with draft.open("xb") as new:
            os.fchmod(new.fileno(), 0o600)
            for piece in pieces:
                new.write(piece)
                hasher.update(piece)
            if f"sha256:{hasher.hexdigest()}" != blob.digest:
                raise IntegrityError("is not what it should be", element=blob.digest)
            new.flush()
            os.fsync(new.fileno())
        os.replace(draft, target)
        files.sync_directory(target.parent)
    except OSError as error:
        raise full_or(error, blob.digest) from error
    finally:
        draft.unlink(missing_ok=True)


def full_or(error: OSError, element: str) -> Exception:
    """Return what is raised for a write that failed: StorageFullError where there was no room, else the error."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageFullError(element=element, hint="free some space; nothing was changed")
    return error
