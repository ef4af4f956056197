"""The port `core.ports.Store` over a log in a database: threads, group commit, watches.

Writes that wait while a transaction runs go into the next one together, so many writers share one fsync. All of them
run in one thread; reads run in a few others. This one is for a log that nobody else writes; `shared` is for the others.
Must not live here: SQL, a dialect.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from skerry.api.errors import ExpiredError, InvalidError, SkerryError, UnavailableError
from skerry.core.ports import Change, Guard, Page, Record
from skerry.drivers.store import log
from skerry.drivers.store.database import COMPACTION_SLICE, LogDatabase, Stand
from skerry.drivers.store.feed import Feed, FeedSettings, Watcher
from skerry.drivers.store.recent import Recent
from skerry.drivers.store.writer import LogWriter, Progress

_log = logging.getLogger(__name__)
_R = TypeVar("_R")
_Followers = list[asyncio.Future[None]]

READERS = 4
_REMEMBERED_COUNTS = 256
MAX_COUNTED = 10_000
"""Records after a page that are counted; of more it is not known how many: counting a million takes a second."""


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Bounds of a store."""

    max_value_bytes: int = log.MAX_VALUE_BYTES
    max_batch: int = 256
    """Writes in one transaction."""
    max_batch_bytes: int = 4 * 1024 * 1024
    """Bytes of values in one transaction; one write is always taken."""
    recent_bytes: int = 32 * 1024 * 1024
    """Of what was written last, kept in memory."""
    feed: FeedSettings = field(default_factory=FeedSettings)


@dataclass(slots=True)
class _Pending:
    write: log.Write
    done: asyncio.Future[Change]


_Batch = list[_Pending]


class LogStore:
    """Implements `core.ports.Store`. Made by a driver's factory, belongs to the event loop it was made in."""

    def __init__(self, database: LogDatabase, stand: Stand, settings: LogSettings) -> None:
        self._database = database
        self._settings = settings
        self._feed = Feed(stand.newest, settings.feed)
        self._recent = Recent(settings.recent_bytes)
        self._compacted = stand.compacted
        self._writer = LogWriter(database, stand.newest)
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="store-write")
        self._reading = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._pending: deque[_Pending] = deque()
        self._followers: _Followers = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed: Callable[[], SkerryError] | None = None
        self._counts: OrderedDict[tuple[str, int, str], tuple[int, bool]] = OrderedDict()
        """How many follow what comes before a key as of a revision, and whether those are all or at least so many."""

    async def revision(self) -> int:
        """Return the newest revision."""
        return await self._newest()

    async def get(self, key: str) -> Record | None:
        """Return the key's record, or None."""
        if not log.is_key(key):
            return None
        self._check_open()
        row = await self._look_up(key)
        return None if row is None or row.deleted else row.record()

    async def create(self, key: str, value: bytes, *, guard: Guard | None = None, term: int | None = None) -> Record:
        """Store a new record. Raises AlreadyExistsError, InvalidError, TooLargeError, StorageFullError.

        Of each write: with a `term`, it is refused with UnavailableError unless that is still the leader's; with a
        `guard`, with ConflictError unless that record is still the same.
        """
        return await self._write(log.Write(verb="create", key=key, value=value, guard=guard, term=term))

    async def update(
        self, key: str, value: bytes, *, expected: int, guard: Guard | None = None, term: int | None = None
    ) -> Record:
        """Replace a record last written at `expected`. Raises NotFoundError, ConflictError, as `create` otherwise."""
        write = log.Write(verb="update", key=key, value=value, expected=expected, guard=guard, term=term)
        return await self._write(write)

    async def delete(
        self, key: str, *, expected: int | None = None, guard: Guard | None = None, term: int | None = None
    ) -> Record:
        """Remove a record; return its last value at the deletion's revision. Raises NotFoundError, ConflictError."""
        return await self._write(log.Write(verb="delete", key=key, expected=expected, guard=guard, term=term))

    async def list(self, prefix: str, *, limit: int = 0, start: str = "", revision: int = 0) -> Page:
        """Return one page of the records under a prefix. See `core.ports.Store`. Raises ExpiredError, InvalidError."""
        first, end = log.key_range(prefix, start)
        self._check_open()
        at = await self._reach(revision) if revision else await self._newest()
        rows = await self._read(partial(self._database.page, first, end, at, limit + 1 if limit > 0 else 0))
        next_key: str | None = None
        remaining: int | None = 0
        if 0 < limit < len(rows):
            next_key = rows[limit].key
            rows = rows[:limit]
            remaining = await self._count(end, at, first, next_key, len(rows))
        await self._check_kept(at)  # compaction may have taken rows away while they were read
        return Page(records=[row.record() for row in rows], revision=at, next_key=next_key, remaining=remaining)

    @asynccontextmanager
    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[AsyncIterator[Change]]:
        """Every change under a prefix after a revision. See `core.ports.Store`. Raises InvalidError for the prefix."""
        start, end = log.key_range(prefix)

        async def history(since: int, upto: int) -> tuple[Sequence[Change], int]:
            found = await self._read(partial(self._database.history, start, end, since, upto))
            await self._check_kept(since)
            return found

        self._check_open()
        with suppress(ExpiredError):  # its first change is when it is told so
            await self._reach(after)
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
        self._check_open()
        newest = await self._newest()
        if before > newest:
            raise InvalidError(f"revision {before} has not happened, the newest is {newest}", element="compaction")
        if before > self._compacted:
            await self._in_writer(partial(self._database.set_compacted, before))
            self._compacted = max(self._compacted, before)
        done, upto = 0, self._compacted
        while found := await self._read(partial(self._database.find_obsolete, upto, done)):
            self._check_open()
            await self._in_writer(partial(self._database.remove_obsolete, upto, found))
            done = found[-1]
            if len(found) < COMPACTION_SLICE:
                break

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

    # --- what a log that others write too does otherwise -----------------------------------------------------------

    async def _newest(self) -> int:
        """Return the newest revision."""
        return self._feed.revision

    async def _look_up(self, key: str) -> log.Row | None:
        """Return the key's newest row."""
        row = self._recent.get(key)
        return row or await self._read(partial(self._database.get, key, self._feed.revision))

    async def _reach(self, revision: int) -> int:
        """Return the revision once it can be read here. Raises ExpiredError for one that has not happened."""
        if revision > self._feed.revision:
            raise ExpiredError(
                f"has not happened here, the newest is {self._feed.revision}; list again",
                element=f"revision {revision}",
            )
        return revision

    async def _check_kept(self, revision: int) -> None:
        """Raise ExpiredError if what a revision looked like is not known any more."""
        if revision < self._compacted:
            raise ExpiredError(element=f"revision {revision}")

    # --- writing ---------------------------------------------------------------------------------------------------

    async def _write(self, write: log.Write) -> Record:
        self._check_open()
        log.check(write, max_value_bytes=self._settings.max_value_bytes)
        done: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(write, done))
        if self._idle.is_set():
            self._start_turn()
        change = await done
        assert change.record is not None  # only bookmarks have none
        return change.record

    def _next_batch(self) -> _Batch:
        batch: _Batch = []
        size = 0
        while self._pending and len(batch) < self._settings.max_batch:
            pending = self._pending[0]
            size += len(pending.write.value)
            if batch and size > self._settings.max_batch_bytes:
                break
            self._pending.popleft()
            if not pending.done.cancelled():
                batch.append(pending)
        return batch

    def _start_turn(self) -> None:
        """Give the writing thread its next turn; there is one at a time, so what is known is as of the last one."""
        batch, followers = self._next_batch(), self._followers
        if not batch and not followers:
            self._idle.set()
            return
        self._idle.clear()
        self._followers = []
        writes = [pending.write for pending in batch]
        known = self._recent.known({key for write in writes for key in write.keys})
        running = asyncio.get_running_loop().run_in_executor(self._writing, self._writer.take_turn, writes, known)
        running.add_done_callback(partial(self._finish_turn, batch, followers))

    def _finish_turn(self, batch: _Batch, followers: _Followers, running: asyncio.Future[Progress]) -> None:
        progress = running.result()
        self._take_in(progress)
        if progress.error is not None:
            if progress.diverged:
                self._give_up(progress.error)
                batch, followers = [*batch, *self._pending], [*followers, *self._followers]
                self._pending.clear()
                self._followers = []
            self._fail(batch, followers, progress.error)
        elif progress.behind:
            self._pending.extendleft(reversed(batch))
            self._followers[:0] = followers
        else:
            for pending, outcome in zip(batch, progress.outcomes, strict=True):
                if pending.done.done():
                    continue  # its caller was cancelled meanwhile
                if isinstance(outcome, log.Written):
                    pending.done.set_result(outcome.change)
                else:
                    pending.done.set_exception(outcome())
            for follower in followers:
                if not follower.done():
                    follower.set_result(None)
        self._start_turn()

    def _take_in(self, progress: Progress) -> None:
        if progress.lost:
            _log.warning("store.fell_behind from=%d to=%d", self._feed.revision, progress.reached)
            self._recent = Recent(self._settings.recent_bytes)
            self._feed.skip(progress.reached)
        for one in progress.news:
            self._recent.put(one.row)
        if progress.news:
            self._feed.publish([one.change for one in progress.news], progress.reached)

    def _give_up(self, error: BaseException) -> None:
        """Refuse everything from now on: all that is known here, also to whoever asked, is of another log."""
        if self._closed is None:
            _log.critical("store.diverged cause=%s", error)
            self._closed = partial(_again, error)
            self._feed.close(self._closed)

    def _fail(self, batch: _Batch, followers: _Followers, error: BaseException) -> None:
        if batch:
            _log.error("store.write_failed writes=%d error=%s", len(batch), error)
        waiting: list[asyncio.Future[Any]] = [pending.done for pending in batch]
        for one in [*waiting, *followers]:
            if not one.done():
                one.set_exception(_again(error))

    # --- reading ---------------------------------------------------------------------------------------------------

    async def _read(self, function: Callable[[], _R]) -> _R:
        self._check_open()
        return await asyncio.get_running_loop().run_in_executor(self._reading, function)

    async def _in_writer(self, function: Callable[[], _R]) -> _R:
        return await asyncio.get_running_loop().run_in_executor(self._writing, function)

    async def _count(self, end: str, revision: int, start: str, next_key: str, page: int) -> int | None:
        """Return how many records follow a page, None for very many; going on from a known page costs little."""
        known, whole = self._counts.pop((end, revision, start), (0, False))
        left = known - page
        if left <= 0:
            left = await self._read(partial(self._database.count, next_key, end, revision, MAX_COUNTED))
            whole = left < MAX_COUNTED
        self._counts[end, revision, next_key] = (left, whole)
        if len(self._counts) > _REMEMBERED_COUNTS:
            self._counts.popitem(last=False)
        return left if whole else None

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed()


def _again(error: BaseException) -> SkerryError:
    """Return an error of the same kind of its own for another caller: one instance must not be raised twice."""
    if isinstance(error, SkerryError):
        copy: SkerryError = type(error)(error.cause, element=error.element, hint=error.hint)
    else:
        copy = UnavailableError(f"a write failed unexpectedly: {error}", element="store")
    copy.__cause__ = error
    return copy
