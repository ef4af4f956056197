"""The port `core.ports.Store` over a log that several hubs write: each follows what the others write.

One hub after the other writes; whoever does first takes in what came before, so that revisions have one order
everywhere and a watcher is told of every change once. Reads ask the database: what another hub has acknowledged is seen
by the next read here. Must not live here: how one hears of news (`notifications`), SQL, a dialect.
"""

from __future__ import annotations

import asyncio
from functools import partial

from skerry.core.ports import Guard, Record
from skerry.drivers.store import log
from skerry.drivers.store.database import NOW, Stand
from skerry.drivers.store.logstore import LogStore


class SharedLogStore(LogStore):
    """Implements `core.ports.Store` for one of several hubs."""

    async def follow(self) -> None:
        """Take in what others have written by now, and tell the watchers."""
        self._check_open()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._followers.append(done)
        if self._idle.is_set():
            self._start_turn()
        await done

    @property
    def followed(self) -> int:
        """The revision up to which watchers here have been told everything."""
        return self._feed.revision

    def check(self) -> None:
        """Raise what every call raises once the store cannot be used any more: UnavailableError, DivergedError."""
        self._check_open()

    async def begin_term(self) -> int:
        """Begin the term of a new leader and return it; what is written in earlier ones is refused from now on."""
        self._check_open()
        return await self._in_writer(self._database.begin_term)

    async def term(self) -> int:
        """Return whose term it is now."""
        return (await self._learn()).term

    async def _newest(self) -> int:
        return (await self._learn()).newest

    async def _look_up(self, key: str) -> log.Row | None:
        return await self._read(partial(self._database.get, key, NOW))

    async def _reach(self, revision: int) -> int:
        if revision > self._feed.revision:
            await self.follow()
        return await super()._reach(revision)

    async def _check_kept(self, revision: int) -> None:
        await self._learn()
        await super()._check_kept(revision)

    async def _learn(self) -> Stand:
        stand = await self._read(self._database.stand)
        self._compacted = max(self._compacted, stand.compacted)
        return stand


class Fence:
    """The term in which this hub leads; None while it does not."""

    def __init__(self) -> None:
        self.term: int | None = None


class FencedStore:
    """A view of the store for what only the leader does: a hub that was replaced writes nothing through it any more.

    Each write carries the term, and the database refuses those of an earlier one, in the transaction of the write.
    """

    def __init__(self, store: SharedLogStore, fence: Fence) -> None:
        self._store = store
        self._fence = fence
        self.revision = store.revision
        self.get = store.get
        self.list = store.list
        self.watch = store.watch
        self.compact = store.compact
        self.close = store.close

    async def create(self, key: str, value: bytes, *, guard: Guard | None = None) -> Record:
        """As `LogStore.create`. Raises UnavailableError once another hub leads."""
        return await self._store.create(key, value, guard=guard, term=self._term())

    async def update(self, key: str, value: bytes, *, expected: int, guard: Guard | None = None) -> Record:
        """As `LogStore.update`. Raises UnavailableError once another hub leads."""
        return await self._store.update(key, value, expected=expected, guard=guard, term=self._term())

    async def delete(self, key: str, *, expected: int | None = None, guard: Guard | None = None) -> Record:
        """As `LogStore.delete`. Raises UnavailableError once another hub leads."""
        return await self._store.delete(key, expected=expected, guard=guard, term=self._term())

    def _term(self) -> int:
        return -1 if self._fence.term is None else self._fence.term
