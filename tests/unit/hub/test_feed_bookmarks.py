"""A bookmark never says more than what was told: changes and timers in the same pass of the loop, in any order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import UnavailableError
from skerry.core.ports import Change, Record
from skerry.drivers.store.feed import Feed, FeedSettings, Watcher

PREFIX = "devices/"
SECONDS = 30.0


class Watched:
    """A watcher that waits, in a loop whose clock is set by hand."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._time, self._ahead = self.loop.time, 0.0
        self.loop.time = lambda: self._time() + self._ahead  # type: ignore[method-assign]
        self.feed = Feed(5, FeedSettings(bookmark_seconds=SECONDS))
        self.watcher = Watcher(self.feed, PREFIX, 5, self._history)
        self.feed.join(self.watcher)

    @staticmethod
    async def _history(_since: int, upto: int) -> tuple[Sequence[Change], int]:
        return [], upto

    def elapse(self) -> None:
        self._ahead += 2 * SECONDS

    def publish(self, key: str) -> None:
        revision = self.feed.revision + 1
        record = Record(key=key, value=b"{}", revision=revision, created=revision)
        self.feed.publish([Change(type="ADDED", revision=revision, record=record)], revision)

    async def waiting(self) -> asyncio.Task[Change]:
        task = asyncio.ensure_future(anext(self.watcher))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not task.done()
        return task


async def test_a_change_that_comes_with_the_timer_comes_before_the_bookmark() -> None:
    watched = Watched()
    first = await watched.waiting()
    watched.loop.call_soon(watched.publish, "devices/a/b")  # in the next pass, in which the timer is due as well
    watched.elapse()
    told = [await first, await (await watched_after(watched))]
    assert [(change.type, change.revision) for change in told] == [("ADDED", 6), ("BOOKMARK", 6)]


async def watched_after(watched: Watched) -> asyncio.Task[Change]:
    task = await watched.waiting()
    watched.elapse()
    return task


async def test_a_store_that_closes_with_the_timer_says_so() -> None:
    watched = Watched()
    first = await watched.waiting()
    watched.loop.call_soon(watched.feed.close)
    watched.elapse()
    with pytest.raises(UnavailableError):
        await first


@given(st.lists(st.sampled_from(["told", "other", "elapse", "pass"]), max_size=30))
def test_whatever_comes_together_no_change_comes_after_a_bookmark_that_covers_it(steps: list[str]) -> None:
    async def main() -> None:
        watched = Watched()
        seen: list[Change] = []

        async def read() -> None:
            async for change in watched.watcher:
                seen.append(change)  # noqa: PERF401 - it never ends

        reading = asyncio.create_task(read())
        published = 0
        for step in steps:
            if step == "pass":
                await asyncio.sleep(0)
            elif step == "elapse":
                watched.elapse()
            else:
                published += step == "told"
                watched.loop.call_soon(watched.publish, PREFIX if step == "told" else "rollouts/a")
        for _ in range(10):
            await asyncio.sleep(0)
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        assert sum(change.type != "BOOKMARK" for change in seen) == published
        reached = 5
        for change in seen:
            assert change.revision >= reached if change.type == "BOOKMARK" else change.revision > reached
            reached = change.revision

    asyncio.run(main())
