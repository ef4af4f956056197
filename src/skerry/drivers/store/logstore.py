"""The port `core.ports.Store` over a log in a database: threads, group commit, watches.

Writes that wait while a transaction runs go into the next one together, so many writers share one fsync. All of them
run in one thread; reads run in a few others. Must not live here: SQL, a dialect.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from skerry.api.errors import ExpiredError, InvalidError, SkerryError, UnavailableError
from skerry.core.ports import Change, Page, Record
from skerry.drivers.store import log
from skerry.drivers.store.database import LogDatabase
from skerry.drivers.store.feed import Feed, FeedSettings, Watcher
from skerry.drivers.store.recent import Recent

_log = logging.getLogger(__name__)
_R = TypeVar("_R")

_Outcomes = Sequence[log.Written | log.Refusal]

READERS = 4
_REMEMBERED_COUNTS = 256


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Bounds of a store."""

    max_value_bytes: int = log.MAX_VALUE_BYTES
    max_batch: int = 256
    """Writes in one transaction."""
    max_batch_bytes: int = 4 * 1024 * 1024
    """Bytes of values in one transaction; one write is always taken."""
    recent_bytes: int = 32 * 1024 * 1024
    """Of what was written last, kept in memory; 0 for a log that others write too."""
    feed: FeedSettings = field(default_factory=FeedSettings)


@dataclass(slots=True)
class _Pending:
    write: log.Write
    done: asyncio.Future[Change]


class LogStore:
    """Implements `core.ports.Store`. Made by a driver's factory, belongs to the event loop it was made in."""

    def __init__(self, database: LogDatabase, *, revision: int, compacted: int, settings: LogSettings) -> None:
        self._database = database
        self._settings = settings
        self._feed = Feed(revision, settings.feed)
        self._recent = Recent(settings.recent_bytes)
        self._compacted = compacted
        self._last = revision  # belongs to the writing thread, as does
        self._doubtful = False  # whether the last transaction failed, so that its outcome has to be looked up
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._reading = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._pending: deque[_Pending] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed: Callable[[], SkerryError] | None = None
        self._counts: OrderedDict[tuple[str, int, str], int] = OrderedDict()

    async def revision(self) -> int:
        """Return the newest revision."""
        return self._feed.revision

    async def get(self, key: str) -> Record | None:
        """Return the key's record, or None."""
        if not log.is_key(key):
            return None
        self._check_open()
        row = self._recent.get(key)
        if row is None:
            row = await self._read(partial(self._database.get, key, self._feed.revision))
        return None if row is None or row.deleted else row.record()

    async def create(self, key: str, value: bytes) -> Record:
        """Store a new record. Raises AlreadyExistsError, InvalidError, TooLargeError, StorageFullError."""
        return await self._write(log.Write(verb="create", key=key, value=value))

    async def update(self, key: str, value: bytes, *, expected: int) -> Record:
        """Replace a record last written at `expected`. Raises NotFoundError, ConflictError, as `create` otherwise."""
        return await self._write(log.Write(verb="update", key=key, value=value, expected=expected))

    async def delete(self, key: str, *, expected: int | None = None) -> Record:
        """Remove a record; return its last value at the deletion's revision. Raises NotFoundError, ConflictError."""
        return await self._write(log.Write(verb="delete", key=key, expected=expected))

    async def list(self, prefix: str, *, limit: int = 0, start: str = "", revision: int = 0) -> Page:
        """Return one page of the records under a prefix. See `core.ports.Store`. Raises ExpiredError, InvalidError."""
        first, end = log.key_range(prefix, start)
        at = revision or self._feed.revision
        self._check_known(at)
        rows = await self._read(partial(self._database.page, first, end, at, limit + 1 if limit > 0 else 0))
        next_key, remaining = None, 0
        if 0 < limit < len(rows):
            next_key = rows[limit].key
            rows = rows[:limit]
            remaining = await self._count(end, at, first, next_key, len(rows))
        self._check_known(at)  # compaction may have taken rows away while they were read
        return Page(records=[row.record() for row in rows], revision=at, next_key=next_key, remaining=remaining)

    @asynccontextmanager
    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[AsyncIterator[Change]]:
        """Every change under a prefix after a revision. See `core.ports.Store`. Raises InvalidError for the prefix."""
        start, end = log.key_range(prefix)

        async def history(since: int, upto: int) -> tuple[Sequence[Change], int]:
            self._check_known(since)
            found = await self._read(partial(self._database.history, start, end, since, upto))
            self._check_known(since)
            return found

        self._check_open()
        watcher = Watcher(self._feed, prefix, after, history)
        self._feed.join(watcher)
        try:
            yield watcher
        finally:
            self._feed.leave(watcher)

    async def compact(self, before: int) -> None:
        """Forget history up to and including a revision; its state can still be listed, as with etcd.

        Raises InvalidError for a revision that has not happened.
        """
        if before > self._feed.revision:
            raise InvalidError(
                f"revision {before} has not happened, the newest is {self._feed.revision}", element="compaction"
            )
        self._check_open()
        if before > self._compacted:
            await self._in_writer(partial(self._database.set_compacted, before))
            self._compacted = max(self._compacted, before)
        cursor: int | None = 0
        while cursor is not None:
            self._check_open()
            cursor = await self._in_writer(partial(self._database.remove_obsolete, self._compacted, cursor))

    async def close(self) -> None:
        """Finish the writes that are under way, end all watches, close the database. Closing twice is harmless."""
        if self._closed is None:
            self._closed = lambda: UnavailableError("the store is closed", element="store")
        await self._idle.wait()
        self._feed.close()
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._writing.shutdown()
        self._reading.shutdown()
        self._database.dispose()

    # --- writing ---------------------------------------------------------------------------------------------------

    async def _write(self, write: log.Write) -> Record:
        self._check_open()
        log.check(write, max_value_bytes=self._settings.max_value_bytes)
        done: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(write, done))
        if self._idle.is_set():
            self._start_batch()
        change = await done
        assert change.record is not None  # only bookmarks have none
        return change.record

    def _start_batch(self) -> None:
        batch: list[_Pending] = []
        size = 0
        while self._pending and len(batch) < self._settings.max_batch:
            pending = self._pending[0]
            size += len(pending.write.value)
            if batch and size > self._settings.max_batch_bytes:
                break
            self._pending.popleft()
            if not pending.done.cancelled():
                batch.append(pending)
        if not batch:
            self._idle.set()
            return
        self._idle.clear()
        writes = [pending.write for pending in batch]
        known = self._recent.known({write.key for write in writes})
        running = asyncio.get_running_loop().run_in_executor(self._writing, self._append, writes, known)
        running.add_done_callback(partial(self._finish_batch, batch))

    def _append(self, writes: Sequence[log.Write], known: Mapping[str, log.Row]) -> _Outcomes:
        """Run in the writing thread."""
        if self._doubtful and self._database.last_revision() > self._last:
            raise UnavailableError(
                "a write that was reported as failed is in the database after all", element="store", hint="restart"
            )
        self._doubtful = True
        outcomes = self._database.append(writes, self._last, known)
        self._doubtful = False
        self._last = max([self._last, *(o.row.revision for o in outcomes if isinstance(o, log.Written))])
        return outcomes

    def _finish_batch(self, batch: Sequence[_Pending], running: asyncio.Future[_Outcomes]) -> None:
        error = running.exception()
        if error is not None:
            self._fail_batch(batch, error)
        else:
            outcomes = running.result()
            written = [outcome for outcome in outcomes if isinstance(outcome, log.Written)]
            for one in written:
                self._recent.put(one.row)
            if written:
                self._feed.publish([one.change for one in written], written[-1].row.revision)
            for pending, outcome in zip(batch, outcomes, strict=True):
                if pending.done.done():
                    continue  # its caller was cancelled meanwhile
                if isinstance(outcome, log.Written):
                    pending.done.set_result(outcome.change)
                else:
                    pending.done.set_exception(outcome())
        self._start_batch()

    def _fail_batch(self, batch: Sequence[_Pending], error: BaseException) -> None:
        _log.error("store.write_failed writes=%d error=%s", len(batch), error)
        for pending in batch:
            if not pending.done.done():
                pending.done.set_exception(_again(error))

    # --- reading ---------------------------------------------------------------------------------------------------

    async def _read(self, function: Callable[[], _R]) -> _R:
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._reading, function)

    async def _in_writer(self, function: Callable[[], _R]) -> _R:
        return await asyncio.get_running_loop().run_in_executor(self._writing, function)

    async def _count(self, end: str, revision: int, start: str, next_key: str, page: int) -> int:
        """Return how many records follow a page; going on from a page known before costs nothing."""
        known = self._counts.pop((end, revision, start), None)
        if known is None:
            remaining = await self._read(partial(self._database.count, next_key, end, revision))
        else:
            remaining = known - page
        self._counts[end, revision, next_key] = remaining
        if len(self._counts) > _REMEMBERED_COUNTS:
            self._counts.popitem(last=False)
        return remaining

    def _check_known(self, revision: int) -> None:
        if revision < self._compacted:
            raise ExpiredError(element=f"revision {revision}")
        if revision > self._feed.revision:
            raise ExpiredError(
                f"has not happened here, the newest is {self._feed.revision}; list again",
                element=f"revision {revision}",
            )

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed()


def _again(error: BaseException) -> BaseException:
    """Return an error of the same kind of its own for another caller: one instance must not be raised twice."""
    if isinstance(error, SkerryError):
        copy = type(error)(error.cause, element=error.element, hint=error.hint)
    else:
        copy = UnavailableError(f"a write failed unexpectedly: {error}", element="store")
    copy.__cause__ = error
    return copy
