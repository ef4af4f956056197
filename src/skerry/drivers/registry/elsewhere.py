"""`core.ports.ArtifactStore` in any OCI registry: what the hub keeps, kept there; the hub stays the devices' only door.

Every repository lies under one prefix: `default/digits` is `<prefix>/default/digits`. Uploads come together on this
machine's disk first, so nothing is sent on before its digest holds. What is read is streamed through, and a whole blob
is not completed unless its digest holds. Must not live here: requests (`drivers.client.repository`), who may read.

All requests block and run in threads of their own, so that a slow registry keeps nothing else waiting.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal, TypeVar
from weakref import WeakValueDictionary

import httpx

from skerry.api.errors import (
    ForbiddenError,
    IntegrityError,
    NotFoundError,
    SkerryError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from skerry.api.kinds.variants import Blob
from skerry.core import manifest as manifests
from skerry.core.ports import Manifest, StoredRepository
from skerry.core.reference import Reference
from skerry.drivers.client.credentials import Credentials, find_credentials
from skerry.drivers.client.registry_http import open_registry
from skerry.drivers.client.repository import Content, Repository
from skerry.drivers.registry.receiver import Receiver, in_thread
from skerry.drivers.registry.uploads import Uploads, UploadSettings

T = TypeVar("T")

THREADS = 32
"""Requests to the registry at the same time; more wait."""
IDLE_SECONDS = 20.0
"""Devices and users wait behind the hub, and try again."""
WRITE_SECONDS = 65.0
"""For an answer to what is sent there, which it makes durable first."""
SETTLE_SECONDS = 600.0
"""For an upload that has arrived there to become a blob."""
PUSHES = 8
"""Uploads sent on at the same time: never all of the threads, so that reading goes on."""
STREAMS = 256
"""Blobs being read at the same time. Each has a connection of its own and holds up to half a megabyte, however slow
its receiver is, but a thread for no longer than a piece takes to come."""
CALLER_STREAMS = 32
"""Of them for one caller: who reads slowly holds up nobody else."""
TURN_SECONDS = 20.0
MAX_SIZES = 4096
_LOGIN_HINT = "check the credentials that the hub's user has for it"
_HINT = "is the hub's registry running, and reachable from the hub?"

log = logging.getLogger(__name__)


class ElsewhereStore(Receiver):
    """Implements `core.ports.ArtifactStore`. `place` is the registry and the prefix; `spool` is for uploads."""

    def __init__(
        self, place: Reference, client: httpx.Client, spool: Path, settings: UploadSettings | None = None
    ) -> None:
        super().__init__(Uploads(spool, settings or UploadSettings()))
        self._place = place
        self._client = client
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="registry")
        self._pushes = asyncio.Semaphore(PUSHES)
        self._streams = asyncio.Semaphore(STREAMS)
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._sizes: dict[tuple[str, str], int] = {}
        self._sending: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def close(self) -> None:
        """End it; requests under way end within their time limit."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    async def check(self) -> None:
        """Ask whether the registry is there and lets us in, and log it if not: it may come back."""
        try:
            await self._run(self._at("check").list_tags)
        except NotFoundError:
            return  # there is no such repository, and it has said so
        except SkerryError as error:
            log.warning("registry.unreachable registry=%s cause=%s", self._place, error)

    # --- uploads ---------------------------------------------------------------------------------------------------

    async def finish_upload(self, upload: str, digest: str) -> None:
        """Send a complete upload on. Raises IntegrityError: the upload is gone then; it stays where sending failed."""
        manifests.check_digest(digest)
        session = await in_thread(self.uploads.find, upload)
        with session.claim():
            await in_thread(self.uploads.verify, session, digest)
            blob = Blob(digest=digest, size=session.size)
            content = Content(name=digest, blob=blob, path=session.file)
            # Registries trip over equal content that is sent to them twice at the same time.
            async with self._sending.setdefault(digest, asyncio.Lock()), self._pushes:
                await self._run(self._at(session.repository).push_blob, content)
            self._note(session.repository, blob)
            await in_thread(self.uploads.drop, session)

    # --- blobs -----------------------------------------------------------------------------------------------------

    async def mount_blob(self, repository: str, digest: str, *, source: str) -> None:
        """Give a repository a blob that another one has. Raises NotFoundError."""
        manifests.check_repository(source)
        mounted = self._at(repository).mount_blob
        if not await self._run(lambda: mounted(digest, source=self._name(source))):
            raise _missing("blob", digest, source)

    async def delete_blob(self, repository: str, digest: str) -> None:
        """Take a blob from a repository. Raises NotFoundError, UnsupportedError."""
        self._sizes.pop((repository, digest), None)
        await self._run(self._at(repository).delete_blob, digest)

    async def stat_blob(self, repository: str, digest: str) -> int:
        """Return a blob's size in bytes. Raises NotFoundError, InvalidError, UnavailableError."""
        size = await self._run(self._at(repository).stat_blob, digest)
        if size is None:
            self._sizes.pop((repository, digest), None)
            raise _missing("blob", digest, repository)
        self._note(repository, Blob(digest=digest, size=size))
        return size

    async def read_blob(
        self, repository: str, digest: str, *, start: int = 0, length: int | None = None, caller: str = ""
    ) -> AsyncIterator[bytes]:
        """Yield a blob's bytes, or a part of them. Raises NotFoundError, UnavailableError, IntegrityError.

        Waits for its turn where too many are being read, by `caller` or in all; UnavailableError if that takes long.
        """
        async with await self._turn(caller):
            size = self._sizes.get((repository, digest))
            if size is None:
                size = await self.stat_blob(repository, digest)
            end = size if length is None else min(size, start + length)
            pieces = self._at(repository).read_blob(Blob(digest=digest, size=size), start=start, end=end)
            if (start, end) == (0, size):
                pieces = _verified(pieces, digest)
            try:
                while (piece := await self._run(next, pieces, b"")) != b"":
                    yield piece
            finally:
                await self._run(_close, pieces)

    async def _turn(self, caller: str) -> AsyncExitStack:
        """Return one of the streams and one of the caller's, held until it is closed. Raises UnavailableError."""
        share = self._shares.setdefault(caller, asyncio.Semaphore(CALLER_STREAMS))
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(TURN_SECONDS):
                    await held.enter_async_context(share)
                    await held.enter_async_context(self._streams)
            except TimeoutError:
                raise UnavailableError(
                    "too many blobs are being read from it", element=f"registry {self._place.host}", hint="try again"
                ) from None
            return held.pop_all()

    # --- manifests -------------------------------------------------------------------------------------------------

    async def put_manifest(self, repository: str, reference: str, media_type: str, raw: bytes) -> Manifest:
        """Store a manifest or an index under its digest, and under a tag if `reference` is one.

        Raises InvalidError, IntegrityError, NotFoundError for what it needs, UnavailableError.
        """
        manifests.check_reference(reference)
        manifests.parse(raw, media_type)
        stored = Manifest(digest=manifests.digest_of(raw), media_type=media_type, raw=raw)
        if not manifests.is_tag(reference) and reference != stored.digest:
            raise IntegrityError(f"the manifest's digest is {stored.digest}", element=reference)
        await self._run(self._at(repository).put_manifest, reference, stored)
        return stored

    async def get_manifest(self, repository: str, reference: str) -> Manifest:
        """Return a manifest by tag or digest. Raises NotFoundError, InvalidError, IntegrityError, UnavailableError."""
        return await self._run(self._at(repository).get_manifest, reference)

    async def delete_manifest(self, repository: str, reference: str) -> None:
        """Remove a tag, or a manifest. Raises NotFoundError, UnsupportedError where the registry cannot."""
        manifests.check_reference(reference)
        await self._run(self._at(repository).delete_manifest, reference)

    async def list_tags(self, repository: str) -> Sequence[str]:
        """Return a repository's tags in order. Raises NotFoundError, UnavailableError."""
        return await self._run(self._at(repository).list_tags)

    async def list_referrers(self, repository: str, digest: str) -> Sequence[Manifest]:
        """Return the manifests whose subject this is, in the order of their digests; none for an unknown one."""
        place = self._at(repository)

        def read() -> list[Manifest]:
            found = [place.find_manifest(one.digest) for one in place.list_referrers(digest)]
            return [one for one in found if one is not None]

        return await self._run(read)

    # --- garbage ---------------------------------------------------------------------------------------------------

    async def survey(self) -> Sequence[StoredRepository]:
        """Refuse: the registry collects its own garbage. Raises UnsupportedError."""
        raise self._not_ours()

    async def discard(self, repository: str, kind: Literal["manifest", "blob"], digest: str, *, touched: int) -> bool:
        """Refuse: the registry collects its own garbage. Raises UnsupportedError."""
        del repository, kind, digest, touched
        raise self._not_ours()

    async def free_unlinked(self) -> int:
        """Refuse: the registry collects its own garbage. Raises UnsupportedError."""
        raise self._not_ours()

    def _not_ours(self) -> UnsupportedError:
        return UnsupportedError(
            "it collects its own garbage",
            element=f"registry {self._place}",
            hint="remove versions with `skerry model rm`, then use that registry's own garbage collection",
        )

    def _name(self, repository: str) -> str:
        manifests.check_repository(repository)
        return f"{self._place.repository}/{repository}"

    def _at(self, repository: str) -> Repository:
        return Repository(
            self._client,
            self._name(repository),
            hint=_HINT,
            write_seconds=WRITE_SECONDS,
            settle_seconds=SETTLE_SECONDS,
        )

    def _note(self, repository: str, blob: Blob) -> None:
        while len(self._sizes) >= MAX_SIZES:
            self._sizes.pop(next(iter(self._sizes)))
        self._sizes[repository, blob.digest] = blob.size

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        """Run what blocks in a thread of ours, to its end even if the caller is cancelled."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
        try:
            return await asyncio.shield(running)
        except (UnauthorizedError, ForbiddenError) as error:
            # It is the hub that may not, not whoever asks the hub; and it may well be mended.
            raise UnavailableError(
                f"does not let the hub in: {error.cause}", element=f"registry {self._place.host}", hint=_LOGIN_HINT
            ) from error
        except asyncio.CancelledError:
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # seen, though nobody is left to be told
            raise


def open_store(place: Reference, spool: Path, *, plain_http: bool) -> ElsewhereStore:
    """Return a store in a registry elsewhere, with the credentials of this user's files; to be closed.

    Raises InvalidError for credentials that cannot be read, and for plain HTTP to another machine.
    """
    credentials = find_credentials(place.host, place.repository)

    def look_up() -> Credentials | None:
        try:
            return find_credentials(place.host, place.repository)
        except SkerryError as error:  # it may be written just now
            log.warning("registry.credentials_unreadable registry=%s cause=%s", place.host, error)
            return None

    client = open_registry(
        place.host,
        credentials,
        plain_http=plain_http,
        idle_seconds=IDLE_SECONDS,
        look_up=look_up,
        # Streams have a bound of their own; waiting for a connection would hold a thread.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=THREADS),
    )
    return ElsewhereStore(place, client, spool)


def _verified(pieces: Iterator[bytes], digest: str) -> Iterator[bytes]:
    """Give the pieces, the last one only if all of them together have the digest."""
    hasher, held = hashlib.sha256(), b""
    try:
        for piece in pieces:
            hasher.update(piece)
            if held:
                yield held
            held = piece
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise IntegrityError("what the hub's registry has is something else", element=digest, hint="push it again")
        if held:
            yield held
    finally:
        _close(pieces)


def _close(pieces: Iterator[bytes]) -> None:
    close = getattr(pieces, "close", None)
    if close is not None:
        close()


def _missing(kind: str, reference: str, repository: str) -> NotFoundError:
    return NotFoundError(f"is not in repository {repository}", element=f"{kind} {reference}")
