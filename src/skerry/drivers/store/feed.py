"""Committed changes on their way to watchers, in memory: bounded, in order, none missed, none twice.

A watcher first reads history from the log at its own pace. When nothing is left to read it joins the feed; both happen
in one step of the event loop, so nothing can fall between. Must not live here: SQL.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from skerry.api.errors import ExpiredError, SkerryError, UnavailableError
from skerry.core.ports import Change


@dataclass(frozen=True, kw_only=True)
class FeedSettings:
    """Bounds of one watcher."""

    max_changes: int = 10_000
    """Changes a reader may lag behind before it has to list again."""
    max_bytes: int = 64 * 1024 * 1024
    """Bytes of values a reader may lag behind. Values are shared between watchers, not copied."""
    bookmark_seconds: float = 30.0
    """How long a watcher is idle before it says how far it has got; 0 turns bookmarks off."""


History = Callable[[int, int], Awaitable[tuple[Sequence[Change], int]]]
"""`history(after, upto)`: some changes of the watcher's range, and the revision up to which that is all there is."""


class Feed:
    """The newest published revision, and all open watches."""

    def __init__(self, revision: int, settings: FeedSettings) -> None:
        self.revision = revision
        self.settings = settings
        self._watchers: set[Watcher] = set()

    def publish(self, changes: Sequence[Change], revision: int) -> None:
        """Hand committed changes to everybody; the last one has that revision."""
        self.revision = revision
        for watcher in tuple(self._watchers):
            watcher.offer(changes)

    def skip(self, revision: int) -> None:
        """Go on from a revision though something before it is unknown; end every watch with ExpiredError."""
        self.revision = revision
        for watcher in tuple(self._watchers):
            watcher.stop(lambda: ExpiredError("what happened meanwhile is forgotten; list again", element="watch"))

    def join(self, watcher: Watcher) -> None:
        """Tell this watcher of every change to come."""
        self._watchers.add(watcher)

    def leave(self, watcher: Watcher) -> None:
        """Forget this watcher; leaving twice is harmless."""
        self._watchers.discard(watcher)

    def close(self, end: Callable[[], SkerryError] | None = None) -> None:
        """End every watch, with what `end` makes or with UnavailableError."""
        for watcher in tuple(self._watchers):
            watcher.stop(end or (lambda: UnavailableError("the store was closed", element="watch")))


class Watcher:
    """The iterator of one watch. Waiting for the next change may be cancelled and taken up again without loss."""

    def __init__(self, feed: Feed, prefix: str, after: int, history: History) -> None:
        self._feed = feed
        self._prefix = prefix
        self._history = history
        self._at = after  # everything up to this revision is in `_ready` or was delivered
        self._ready: deque[Change] = deque()
        self._bytes = 0
        self._live = False
        self._end: Callable[[], SkerryError] | None = None
        self._arrived = asyncio.Event()

    def __aiter__(self) -> Watcher:
        return self

    async def __anext__(self) -> Change:
        while not self._ready:
            if self._end is not None:
                raise self._end()
            if self._live:
                bookmark = await self._wait()
                if bookmark is not None:
                    return bookmark
            else:
                await self._catch_up()
        change = self._ready.popleft()
        self._bytes -= _size(change)
        return change

    def offer(self, changes: Sequence[Change]) -> None:
        """Take what concerns this watcher; a reader that is too slow loses its watch, not single changes."""
        if not self._live:
            return  # it will read them from the log
        settings = self._feed.settings
        for change in changes:
            if change.record is None or not change.record.key.startswith(self._prefix):
                continue
            self._ready.append(change)
            self._bytes += _size(change)
            if len(self._ready) > settings.max_changes or self._bytes > settings.max_bytes:
                self.stop(lambda: ExpiredError("the reader is too slow for this watch; list again", element="watch"))
                return
        self._at = self._feed.revision
        if self._ready:
            self._arrived.set()

    def stop(self, end: Callable[[], SkerryError]) -> None:
        """End the watch: whatever is asked next raises what `end` makes."""
        self._feed.leave(self)
        self._ready.clear()
        self._bytes = 0
        self._end = end
        self._arrived.set()

    async def _catch_up(self) -> None:
        upto = self._feed.revision
        if self._at > upto:
            raise ExpiredError(
                f"revision {self._at} has not happened here, the newest is {upto}; list again", element="watch"
            )
        if self._at < upto:
            changes, reached = await self._history(self._at, upto)
            if self._end is None:
                self._ready.extend(changes)
                self._bytes += sum(map(_size, changes))
                self._at = reached
        if self._at >= self._feed.revision and self._end is None:
            self._live = True

    async def _wait(self) -> Change | None:
        self._arrived.clear()
        try:
            async with asyncio.timeout(self._feed.settings.bookmark_seconds or None):
                await self._arrived.wait()
        except TimeoutError:
            # What arrived in the very moment comes first: a bookmark says that all before it was told.
            if not self._ready and self._end is None:
                return Change(type="BOOKMARK", revision=self._at)
        return None


def _size(change: Change) -> int:
    return len(change.record.value) if change.record is not None else 0
