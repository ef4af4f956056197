"""Uploads into a store, as every store takes them: on this machine's disk, resumable, verified before they go on.

Lives here: the part of `core.ports.ArtifactStore` that is about uploads in progress. Must not live here: where complete
ones go (the stores), how bytes are kept meanwhile (`uploads`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import ParamSpec, TypeVar

from skerry.api.errors import ConflictError
from skerry.core import manifest as manifests
from skerry.drivers.registry.uploads import Uploads

CHUNK_BYTES = 1024 * 1024
_P = ParamSpec("_P")
_R = TypeVar("_R")


class Receiver:
    """Takes uploads; a store adds `finish_upload`."""

    def __init__(self, uploads: Uploads) -> None:
        self.uploads = uploads

    async def start_upload(self, repository: str) -> str:
        """Begin an upload; return its id. Raises InvalidError, UnavailableError, StorageFullError."""
        manifests.check_repository(repository)
        return (await in_thread(self.uploads.start, repository)).id

    async def upload_repository(self, upload: str) -> str:
        """Return the repository an upload was begun in. Raises NotFoundError."""
        return (await in_thread(self.uploads.find, upload)).repository

    async def upload_size(self, upload: str) -> int:
        """Return the bytes that have arrived. Raises NotFoundError."""
        return (await in_thread(self.uploads.find, upload)).size

    async def append_upload(self, upload: str, chunks: AsyncIterator[bytes], *, offset: int | None = None) -> int:
        """Add bytes; what arrived before the sender broke off is kept, so that it can go on from there.

        Raises NotFoundError; ConflictError when `offset` is not the upload's size or another request is at it;
        TooLargeError or StorageFullError, after which the upload is gone.
        """
        session = await in_thread(self.uploads.find, upload)
        with session.claim():
            if offset is not None and offset != session.size:
                raise ConflictError(f"has {session.size} bytes, not {offset}", element=f"upload {upload}")
            buffer = bytearray()
            try:
                async for chunk in chunks:
                    buffer += chunk
                    if len(buffer) >= CHUNK_BYTES:
                        full, buffer = buffer, bytearray()
                        await in_thread(self.uploads.append, session, bytes(full))
            finally:
                if buffer:
                    await in_thread(self.uploads.append, session, bytes(buffer))
            return session.size

    async def cancel_upload(self, upload: str) -> None:
        """Drop an upload. Raises NotFoundError; ConflictError while a request is writing to it."""
        session = await in_thread(self.uploads.find, upload)
        with session.claim():
            await in_thread(self.uploads.drop, session)


async def in_thread(function: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Run blocking code in a thread, to its end even if the caller is cancelled: it must not go on behind our back."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # seen, though nobody is left to be told
        raise
