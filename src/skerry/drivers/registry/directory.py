"""`core.ports.ArtifactStore` in a directory: blobs by content, links to them per repository.

    blobs/sha256/<aa>/<hex>                        the bytes, once, whoever refers to them
    repositories/<repository>/_blobs/<hex>         this repository has that blob
    repositories/<repository>/_manifests/<hex>     this repository has that manifest; holds its media type
    repositories/<repository>/_tags/<tag>          holds the manifest's digest
    repositories/<repository>/_referrers/<subject's hex>/<hex>
    uploads/<id>/                                  see `uploads`

Content is complete, verified and fsynced before a link to it exists, so a reader or a power cut never meets a part.
A link's time is when it was last looked at or referred to: what a push or a reader counts on is no garbage for a while.
No component of a repository's name begins with `_`. Must not live here: HTTP, what manifests mean.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from skerry.api.errors import IntegrityError, NotFoundError, StorageFullError, TooLargeError
from skerry.core import manifest as manifests
from skerry.core.ports import Manifest, StoredRepository
from skerry.drivers.registry import collection
from skerry.drivers.registry.receiver import CHUNK_BYTES, Receiver, in_thread
from skerry.drivers.registry.uploads import Upload, Uploads, UploadSettings
from skerry.kit.files import private_directory, sync_directory, write_atomic

MAX_REFERRERS = 256
"""Manifests that may refer to one subject."""


class DirectoryStore(Receiver):
    """Implements `core.ports.ArtifactStore`. One process owns the directory, which is made if it is not there."""

    def __init__(
        self, root: Path, settings: UploadSettings | None = None, *, time_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._blobs = private_directory(root / "blobs" / "sha256")
        self._repositories = private_directory(root / "repositories")
        super().__init__(Uploads(root / "uploads", settings or UploadSettings()))
        self._links = asyncio.Lock()  # held by whoever adds or removes links
        self._touching = threading.Lock()  # so that a link's time is never taken for old while it is renewed
        self._time_ns = time_ns

    async def finish_upload(self, upload: str, digest: str) -> None:
        """Turn an upload into a blob of its repository. Raises IntegrityError: the upload is gone then."""
        manifests.check_digest(digest)
        session = await in_thread(self.uploads.find, upload)
        with session.claim():
            await in_thread(self.uploads.verify, session, digest)
            async with self._links:
                await in_thread(self._take, session, digest)

    # --- blobs -----------------------------------------------------------------------------------------------------

    async def mount_blob(self, repository: str, digest: str, *, source: str) -> None:
        """Give a repository a blob that another one has. Raises NotFoundError."""
        manifests.check_repository(repository)
        async with self._links:
            await self.stat_blob(source, digest)
            await in_thread(self._link, self._home(repository) / "_blobs" / _hex(digest), b"")

    async def delete_blob(self, repository: str, digest: str) -> None:
        """Take a blob from a repository; its bytes go with the last link to them. Raises NotFoundError."""
        async with self._links:
            await self.stat_blob(repository, digest)
            await in_thread(self._unlink, self._home(repository) / "_blobs" / _hex(digest))
            await in_thread(self._drop_unused, _hex(digest))

    async def stat_blob(self, repository: str, digest: str) -> int:
        """Return a blob's size in bytes. Raises NotFoundError, InvalidError."""
        manifests.check_repository(repository)
        manifests.check_digest(digest)
        return await in_thread(self._stat, repository, digest)

    async def read_blob(
        self, repository: str, digest: str, *, start: int = 0, length: int | None = None, caller: str = ""
    ) -> AsyncIterator[bytes]:
        """Yield a blob's bytes, or a part of them, in pieces of at most a megabyte. Raises NotFoundError."""
        del caller  # nobody's reading holds up anybody else's
        size = await self.stat_blob(repository, digest)
        end = size if length is None else min(size, start + length)
        try:
            descriptor = os.open(self._content(_hex(digest)), os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise _missing("blob", digest, repository) from None
        try:
            while start < end:
                chunk = await in_thread(os.pread, descriptor, min(CHUNK_BYTES, end - start), start)
                if not chunk:
                    raise IntegrityError(f"ends after {start} of {size} bytes", element=digest)
                start += len(chunk)
                yield chunk
        finally:
            os.close(descriptor)

    # --- manifests -------------------------------------------------------------------------------------------------

    async def put_manifest(self, repository: str, reference: str, media_type: str, raw: bytes) -> Manifest:
        """Store a manifest or an index under its digest, and under a tag if `reference` is one.

        Raises InvalidError for what cannot be read, IntegrityError when the digest is another, NotFoundError that
        names the blob or manifest it needs and the repository lacks, StorageFullError. Its subject need not exist.
        """
        manifests.check_repository(repository)
        manifests.check_reference(reference)
        document = manifests.parse(raw, media_type)
        stored = Manifest(digest=manifests.digest_of(raw), media_type=media_type, raw=raw)
        if not manifests.is_tag(reference) and reference != stored.digest:
            raise IntegrityError(f"the manifest's digest is {stored.digest}", element=reference)
        async with self._links:
            await in_thread(self._put, repository, reference, stored, document)
        return stored

    async def get_manifest(self, repository: str, reference: str) -> Manifest:
        """Return a manifest by tag or digest. Raises NotFoundError, InvalidError, IntegrityError."""
        manifests.check_repository(repository)
        manifests.check_reference(reference)
        return await in_thread(self._get, repository, reference)

    async def delete_manifest(self, repository: str, reference: str) -> None:
        """Remove a tag, or a manifest with all its tags, damaged ones too. Raises NotFoundError."""
        manifests.check_repository(repository)
        manifests.check_reference(reference)
        async with self._links:
            await in_thread(self._remove, repository, reference)

    async def list_tags(self, repository: str) -> Sequence[str]:
        """Return a repository's tags in order. Raises NotFoundError."""
        manifests.check_repository(repository)
        return await in_thread(self._list_tags, repository)

    async def list_referrers(self, repository: str, digest: str) -> Sequence[Manifest]:
        """Return the manifests whose subject this is, in the order of their digests; none for an unknown one."""
        manifests.check_repository(repository)
        manifests.check_digest(digest)
        return await in_thread(self._list_referrers, repository, digest)

    # --- garbage ---------------------------------------------------------------------------------------------------

    async def survey(self) -> Sequence[StoredRepository]:
        """Return what all repositories hold, without touching it."""
        return await in_thread(collection.survey, self._repositories, self._content)

    async def discard(self, repository: str, kind: Literal["manifest", "blob"], digest: str, *, touched: int) -> bool:
        """Take something from its repository unless it was looked at since `touched`; whether it is gone.

        Its bytes go with `free_unlinked`.
        """
        manifests.check_repository(repository)
        manifests.check_digest(digest)
        async with self._links:
            return await in_thread(self._discard, self._home(repository), kind, _hex(digest), touched)

    async def free_unlinked(self) -> int:
        """Remove content that no repository has any more, also what a crash left behind; returns its bytes."""
        async with self._links:
            return await in_thread(collection.free_unlinked, self._repositories, self._blobs)

    # --- on the disk; all that follows blocks ----------------------------------------------------------------------

    def _home(self, repository: str) -> Path:
        return self._repositories / repository

    def _content(self, hexadecimal: str) -> Path:
        return self._blobs / hexadecimal[:2] / hexadecimal

    def _take(self, upload: Upload, digest: str) -> None:
        content = self._content(_hex(digest))
        with _full_disk_reported(digest):
            self._directory(content.parent)
            os.replace(upload.file, content)  # also where it is: what lies there may be damaged, what came was verified
            sync_directory(content.parent)
            self._link(self._home(upload.repository) / "_blobs" / _hex(digest), b"")
        self.uploads.drop(upload)

    def _stat(self, repository: str, digest: str) -> int:
        try:
            self._touch(self._home(repository) / "_blobs" / _hex(digest))
            return self._content(_hex(digest)).stat().st_size
        except FileNotFoundError:
            raise _missing("blob", digest, repository) from None

    def _put(
        self,
        repository: str,
        reference: str,
        stored: Manifest,
        document: manifests.ImageManifest | manifests.ImageIndex,
    ) -> None:
        home, name = self._home(repository), _hex(stored.digest)
        needed = "_manifests" if isinstance(document, manifests.ImageIndex) else "_blobs"
        for part in document.content:
            try:
                self._touch(home / needed / _hex(part.digest))
            except FileNotFoundError:
                raise _missing(needed[1:-1], part.digest, repository) from None
        subject = None
        if document.subject is not None:
            subject = home / "_referrers" / _hex(document.subject.digest)
            self._check_referrers(subject, name)
        with _full_disk_reported(f"manifest {stored.digest}"):
            content = self._content(name)
            if not _holds(content, stored.raw):
                self.uploads.check_reserve(len(stored.raw))
                self._directory(content.parent)
                write_atomic(content, stored.raw, mode=0o600)
            if subject is not None:
                self._link(subject / name, b"")
            self._link(home / "_manifests" / name, stored.media_type.encode())
            if manifests.is_tag(reference):
                self._link(home / "_tags" / reference, stored.digest.encode())

    def _check_referrers(self, directory: Path, name: str) -> None:
        if directory.is_dir() and name not in (known := os.listdir(directory)) and len(known) >= MAX_REFERRERS:
            raise TooLargeError(f"{MAX_REFERRERS} manifests refer to it already", element=f"sha256:{directory.name}")

    def _get(self, repository: str, reference: str) -> Manifest:
        home = self._home(repository)
        try:
            digest = reference
            if manifests.is_tag(reference):
                digest = (home / "_tags" / reference).read_text(encoding="ascii")
            self._touch(home / "_manifests" / _hex(digest))
            media_type = (home / "_manifests" / _hex(digest)).read_text(encoding="utf-8")
            raw = self._content(_hex(digest)).read_bytes()
        except FileNotFoundError:
            raise _missing("manifest", reference, repository) from None
        if manifests.digest_of(raw) != digest:
            raise IntegrityError("is damaged on the hub's disk", element=digest, hint="push it again")
        return Manifest(digest=digest, media_type=media_type, raw=raw)

    def _remove(self, repository: str, reference: str) -> None:
        home, name = self._home(repository), _hex(reference)
        link = home / ("_tags" if manifests.is_tag(reference) else "_manifests") / name
        if not link.exists():
            raise _missing("manifest", reference, repository)
        if manifests.is_tag(reference):
            self._unlink(link)
            return
        for tag in self._list_tags(repository):
            if (home / "_tags" / tag).read_bytes() == reference.encode():
                self._unlink(home / "_tags" / tag)
        self._unlink(link)
        for referrer in self._as_referrer(home, name):
            self._unlink(referrer)
        self._drop_unused(name)

    def _as_referrer(self, home: Path, name: str) -> list[Path]:
        """Return the links that list a manifest for its subject; those of a damaged one are looked for."""
        content = self._content(name)
        try:
            whole = manifests.digest_of(content.read_bytes()) == f"sha256:{name}"
        except OSError:
            whole = False
        if not whole:
            return list((home / "_referrers").glob(f"*/{name}"))
        subject = collection.subject_of(content)
        return [] if subject is None else [home / "_referrers" / _hex(subject) / name]

    def _list_tags(self, repository: str) -> list[str]:
        home = self._home(repository)
        if not any((home / part).is_dir() for part in ("_blobs", "_manifests")):
            raise NotFoundError(element=f"repository {repository}")
        try:
            return sorted(entry.name for entry in (home / "_tags").iterdir() if manifests.is_tag(entry.name))
        except FileNotFoundError:
            return []

    def _list_referrers(self, repository: str, digest: str) -> list[Manifest]:
        try:
            found = sorted(os.listdir(self._home(repository) / "_referrers" / _hex(digest)))
        except FileNotFoundError:
            return []
        referrers: list[Manifest] = []
        for name in found:
            if manifests.is_digest(f"sha256:{name}"):
                try:
                    referrers.append(self._get(repository, f"sha256:{name}"))
                except NotFoundError:
                    continue  # a push that did not come to its end, or a removal under way
        return referrers

    def _discard(self, home: Path, kind: str, name: str, touched: int) -> bool:
        link = home / f"_{kind}s" / name
        subject = collection.subject_of(self._content(name)) if kind == "manifest" else None
        try:
            with self._touching:
                if link.stat().st_mtime_ns != touched:
                    return False
                if subject is not None:
                    (home / "_referrers" / _hex(subject) / name).unlink(missing_ok=True)
                link.unlink()
        except FileNotFoundError:
            return True  # somebody else removed it
        sync_directory(link.parent)
        return True

    def _drop_unused(self, name: str) -> None:
        """Remove content that no repository links to any more."""
        for directory, _, files in os.walk(self._repositories):
            if os.path.basename(directory) in ("_blobs", "_manifests") and name in files:
                return
        self._unlink(self._content(name))

    def _directory(self, path: Path) -> None:
        """Create a directory with its parents so that they survive a power cut."""
        if not path.is_dir():
            self._directory(path.parent)
            path.mkdir(mode=0o700, exist_ok=True)
            sync_directory(path.parent)

    def _link(self, path: Path, content: bytes) -> None:
        self._directory(path.parent)
        write_atomic(path, content, mode=0o600)
        self._touch(path)

    def _touch(self, link: Path) -> None:
        """Note that somebody counts on a link. Raises FileNotFoundError."""
        with self._touching:
            now = self._time_ns()
            try:
                os.utime(link, ns=(now, now))
            except OSError:  # a disk that is read only by now can be read, and nothing is discarded there
                link.stat()

    def _unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_directory(path.parent)


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _missing(kind: str, reference: str, repository: str) -> NotFoundError:
    return NotFoundError(f"is not in repository {repository}", element=f"{kind} {reference}")


def _holds(content: Path, raw: bytes) -> bool:
    """Whether a file is there and whole."""
    try:
        return content.stat().st_size == len(raw) and content.read_bytes() == raw
    except OSError:
        return False


@contextmanager
def _full_disk_reported(element: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StorageFullError(element=element, hint="free some space on the hub's disk") from error
