"""Which way a model comes: made from a blob that is here by a delta, or whole.

The shortest way is taken whose base is in the cache. One that turns out to be none (not there, damaged, not leading to
the digest it promised) is not tried again; where this device only had no room or leave for it, it is. One that a
registry that is there fails to send `MAX_TRIES` times in a row rests for a while. The next best is asked for, and what
is then missing counts anew, so that on a metered link nobody is surprised by a whole download. What comes out bears its
name only once its digest holds.
Lives here: that choice, and carrying a delta out. Must not live here: the format (`core.delta`), when anything may be
fetched (`policy`), how (`drivers.registry`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator

from skerry.agent.disk import Disk
from skerry.agent.sealed import SealedBlobs
from skerry.api.errors import (
    BadRequestError,
    IntegrityError,
    NotFoundError,
    StorageFullError,
    UnavailableError,
    UnreachableError,
    UnsupportedError,
)
from skerry.api.kinds.variants import Blob, Delta
from skerry.core import delta
from skerry.core.messages import WorkloadDesired
from skerry.core.ports import Clock

log = logging.getLogger(__name__)

Cache = Disk | SealedBlobs

MAX_TRIES = 3
"""Of one delta, without a byte of it coming."""
REST_SECONDS = 600.0
"""After these; where nothing else may come (a metered link), it is tried again then."""


class Ways:
    """The ways to the models of one workload."""

    def __init__(self, disk: Disk, clock: Clock) -> None:
        self._disk = disk
        self._clock = clock
        self._spoiled: set[str] = set()
        """Digests of deltas that were tried in vain."""
        self._tries: dict[str, int] = {}
        """Of those that do not come, in a row."""
        self._rests_until: dict[str, float] = {}
        self._saved: dict[str, int] = {}

    def missing(self, desired: WorkloadDesired, *, elsewhere: Collection[str] = ()) -> int:
        """Return the bytes that have still to come over the network, without blobs that are to be had elsewhere."""
        way = self._best(desired)
        model = desired.blob if way is None or desired.blob.digest in elsewhere else way.blob
        wanted = [blob for blob in (model, desired.golden) if blob is not None and blob.digest not in elsewhere]
        return self._disk.cache(desired).missing_bytes(wanted)

    def take_saved(self, blob: Blob) -> int:
        """Return how much less than the whole came for a blob, once."""
        return self._saved.pop(blob.digest, 0)

    async def bring(self, desired: WorkloadDesired, blob: Blob, fetch: Callable[[Blob], Awaitable[bool]]) -> bool:
        """Bring a blob; False where that is not done yet, and may be tried at once another way.

        `fetch` brings something whole into the cache, and says whether it did. Raises what it raises for the whole.
        """
        way = self._best(desired) if blob == desired.blob else None
        if way is None:
            return await fetch(blob)
        cache = self._disk.cache(desired)
        before = cache.partial_size(way.blob)
        try:
            if not await asyncio.to_thread(cache.has_blob, way.blob) and not await fetch(way.blob):
                return False
            await _in_thread(cache, way, blob)
        except UnreachableError:
            raise
        except UnavailableError as error:
            if cache.partial_size(way.blob) > before or not self._is_hopeless(way, desired.name, error):
                raise
            return False
        except (IntegrityError, UnsupportedError, NotFoundError, BadRequestError) as error:
            log.warning("workload.delta_failed workload=%s error=%s", desired.name, error)
            self._spoiled.add(way.blob.digest)
            _drop(cache, way.blob)
            return False
        _drop(cache, way.blob)
        self._saved[blob.digest] = blob.size - way.blob.size
        log.info("workload.delta_applied workload=%s bytes=%d of=%d", desired.name, way.blob.size, blob.size)
        return True

    def _is_hopeless(self, way: Delta, workload: str, error: UnavailableError) -> bool:
        """Count a try in vain; whether to go another way for a while."""
        digest = way.blob.digest
        tries = self._tries[digest] = self._tries.get(digest, 0) + 1
        if tries < MAX_TRIES:
            return False
        log.warning("workload.delta_rests workload=%s seconds=%d error=%s", workload, REST_SECONDS, error)
        del self._tries[digest]
        self._rests_until[digest] = self._clock.monotonic() + REST_SECONDS
        return True

    def _best(self, desired: WorkloadDesired) -> Delta | None:
        cache = self._disk.cache(desired)
        whole, now = cache.missing_bytes([desired.blob]), self._clock.monotonic()
        possible = [
            (cache.missing_bytes([one.blob]), index)
            for index, one in enumerate(desired.deltas)
            if one.encoding == delta.ENCODING
            and one.target == desired.blob.digest
            and one.blob.digest not in self._spoiled
            and now >= self._rests_until.get(one.blob.digest, now)
            and self._disk.holds(one.base)
        ]
        missing, index = min(possible, default=(whole, -1))
        return desired.deltas[index] if missing < whole else None


def _drop(cache: Cache, blob: Blob) -> None:
    """Remove what is needed no more; on a disk that became read-only it stays, and is pruned later."""
    with contextlib.suppress(OSError):
        cache.blob(blob).unlink(missing_ok=True)


async def _in_thread(cache: Cache, way: Delta, blob: Blob) -> None:
    given_up = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(apply, cache, way, blob, given_up))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        given_up.set()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # seen, though nobody is left to be told
        raise


def apply(cache: Cache, way: Delta, blob: Blob, given_up: threading.Event) -> None:
    """Make a blob from the delta's base, both in the cache; blocks, in memory of a few blocks whatever the size.

    What is made, and the delta, are kept as the cache keeps things; the base may be here in either form.

    Raises IntegrityError, UnsupportedError, StorageFullError; UnavailableError when it was given up. The blob's name
    exists only once its digest holds.
    """
    base = Blob(digest=way.base, size=0)
    try:
        cache.check_room(blob.size, blob.digest)
        with cache.open_blob(way.blob) as packed, cache.open_blob(base) as old:
            header = delta.read_header(packed.read)
            known = (way.base, old.size, blob.digest, blob.size)
            if (header.old_digest, header.old_size, header.new_digest, header.new_size) != known:
                raise IntegrityError("leads from or to something else", element=way.blob.digest)
            pieces = delta.decode(header, packed.read, lambda offset, length: old.pread(length, offset))
            cache.write_blob(blob, _while_wanted(pieces, blob, given_up))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFullError(element=blob.digest, hint="free some space on the device") from error
        raise IntegrityError(f"cannot be applied: {error.strerror}", element=way.blob.digest) from error
    except IntegrityError as error:
        if error.element != blob.digest:
            raise
        raise IntegrityError("does not lead to what it should", element=way.blob.digest) from None


def _while_wanted(pieces: Iterable[bytes], blob: Blob, given_up: threading.Event) -> Iterator[bytes]:
    for piece in pieces:
        if given_up.is_set():
            raise UnavailableError("was given up", element=blob.digest)
        yield piece
