"""Uploads in progress: one directory each, resumable also after a restart, hashed while they arrive.

Lives here: everything until the bytes are complete and verified. Must not live here: where they go then (`directory`).
All functions that touch the disk block and run in threads.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from skerry.api.errors import (
    ConflictError,
    IntegrityError,
    NotFoundError,
    StorageFullError,
    TooLargeError,
    UnavailableError,
)
from skerry.kit.files import private_directory, sync_directory, write_atomic

_READ_BYTES = 1024 * 1024
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class UploadSettings:
    """Bounds of what may come in."""

    max_blob_bytes: int = 64 * 1024**3
    max_uploads: int = 1024
    """Uploads in progress at the same time."""
    max_namespace_uploads: int = 256
    """Of them into one namespace's repositories (`<namespace>/...`): one tenant must not keep out the others."""
    max_age_seconds: float = 24 * 3600.0
    """An upload nobody has added to for so long is given up."""
    reserve_bytes: int = 64 * 1024 * 1024
    """Space that uploads leave free on the disk, for everybody else who writes there."""


@dataclass(slots=True)
class Upload:
    """One upload in progress. `size` is what is safely in the file; the hash covers exactly that."""

    id: str
    repository: str
    directory: Path
    size: int = 0
    digest: hashlib._Hash | None = field(default_factory=hashlib.sha256)
    """None after a restart: then the file is read once more in the end."""
    busy: bool = False

    @property
    def file(self) -> Path:
        """Where the bytes are."""
        return self.directory / "data"

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Keep other requests away from this upload. Raises ConflictError when one is at it."""
        if self.busy:
            raise ConflictError("another request is writing to it", element=f"upload {self.id}")
        self.busy = True
        try:
            yield
        finally:
            self.busy = False


class Uploads:
    """All uploads in progress under one directory."""

    def __init__(self, root: Path, settings: UploadSettings) -> None:
        self._root = private_directory(root)
        self._settings = settings
        self._open: dict[str, Upload] = {}
        self.sweep()
        for directory in self._root.iterdir():
            with suppress(NotFoundError):  # none of ours, or one that was just being begun
                self.find(directory.name)

    def start(self, repository: str) -> Upload:
        """Begin an upload. Raises UnavailableError when there are too many, StorageFullError."""
        if self._progressing(repository):
            self.sweep()
            if full := self._progressing(repository):
                raise UnavailableError(f"{full} are in progress", element="upload", hint="try again later")
        identity = secrets.token_hex(16)
        upload = Upload(id=identity, repository=repository, directory=self._root / identity)
        with self._space_reported(upload):
            private_directory(upload.directory)
            upload.file.touch(mode=0o600)
            write_atomic(upload.directory / "repository", repository.encode(), mode=0o600)
        self._open[identity] = upload
        return upload

    def _progressing(self, repository: str) -> str:
        """Return how many uploads there are where there may be no more; empty where there may."""
        namespace = repository.partition("/")[0]
        of_it = sum(upload.repository.partition("/")[0] == namespace for upload in self._open.values())
        if of_it >= self._settings.max_namespace_uploads:
            return f"{of_it} uploads into {namespace}"
        all_of_them = len(list(self._root.iterdir()))
        return f"{all_of_them} uploads" if all_of_them >= self._settings.max_uploads else ""

    def find(self, identity: str) -> Upload:
        """Return an upload, also one begun before a restart. Raises NotFoundError."""
        known = self._open.get(identity)
        if known is not None:
            return known
        missing = NotFoundError(element=f"upload {identity[:64]!a}", hint="start again")
        if not _ID.fullmatch(identity):
            raise missing
        directory = self._root / identity
        try:
            repository = (directory / "repository").read_text(encoding="utf-8")
            size = (directory / "data").stat().st_size
        except FileNotFoundError:
            raise missing from None
        upload = Upload(id=identity, repository=repository, directory=directory, size=size, digest=None)
        return self._open.setdefault(identity, upload)

    def append(self, upload: Upload, chunk: bytes) -> None:
        """Add bytes. Raises TooLargeError or StorageFullError, after which the upload is gone."""
        if upload.size + len(chunk) > self._settings.max_blob_bytes:
            self.drop(upload)
            raise TooLargeError(
                f"is larger than a blob may be ({self._settings.max_blob_bytes} bytes)", element=f"upload {upload.id}"
            )
        with self._space_reported(upload):
            self.check_reserve(len(chunk))
            descriptor = os.open(upload.file, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                view, at = memoryview(chunk), upload.size
                while view:
                    written = os.pwrite(descriptor, view, at)
                    view, at = view[written:], at + written
            finally:
                os.close(descriptor)
        if upload.digest is not None:
            upload.digest.update(chunk)
        upload.size += len(chunk)

    def verify(self, upload: Upload, digest: str) -> None:
        """Make the bytes durable if they are the right ones. Raises IntegrityError, after which the upload is gone."""
        with self._space_reported(upload):
            descriptor = os.open(upload.file, os.O_RDWR | os.O_NOFOLLOW)
            try:
                # What a failed write left behind what was counted does not belong to the content.
                os.ftruncate(descriptor, upload.size)
                actual = upload.digest.hexdigest() if upload.digest is not None else _hash(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if digest != f"sha256:{actual}":
            self.drop(upload)
            raise IntegrityError(
                f"{upload.size} bytes arrived, and their digest is sha256:{actual}",
                element=digest,
                hint="send it again",
            )

    def check_reserve(self, size: int) -> None:
        """Raise OSError (ENOSPC) where so many bytes more would use up the reserve."""
        if shutil.disk_usage(self._root).free - size < self._settings.reserve_bytes:
            raise OSError(errno.ENOSPC, "the reserve would be used up")

    def drop(self, upload: Upload) -> None:
        """Remove an upload with all its bytes; doing so twice is harmless."""
        self._open.pop(upload.id, None)
        shutil.rmtree(upload.directory, ignore_errors=True)

    def sweep(self) -> None:
        """Give up uploads that nobody has added to for long."""
        oldest, removed = time.time() - self._settings.max_age_seconds, False
        for directory in self._root.iterdir():
            known = self._open.get(directory.name)
            try:
                touched = max(path.stat().st_mtime for path in (directory, *directory.iterdir()))
            except OSError:
                continue  # gone meanwhile, or none of ours
            if touched < oldest and not (known and known.busy):
                self._open.pop(directory.name, None)
                shutil.rmtree(directory, ignore_errors=True)
                removed = True
        if removed:  # whoever asks for one more than there may be must not make the disk work
            sync_directory(self._root)

    @contextmanager
    def _space_reported(self, upload: Upload) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            self._open.pop(upload.id, None)
            raise NotFoundError(element=f"upload {upload.id}", hint="start again") from None
        except (OSError, StorageFullError) as error:
            full = isinstance(error, StorageFullError) or error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full:
                raise
            self.drop(upload)
            raise StorageFullError(
                element=f"upload to {upload.repository}",
                hint="free some space on the hub's disk; what had arrived was removed",
            ) from error


def _hash(descriptor: int) -> str:
    digest, at = hashlib.sha256(), 0
    while chunk := os.pread(descriptor, _READ_BYTES, at):
        digest.update(chunk)
        at += len(chunk)
    return digest.hexdigest()
