"""What every `core.ports.Store` does, whatever it is made of."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from tests.postgresql import Server, running

from skerry.api.errors import (
    AlreadyExistsError,
    ConflictError,
    ExpiredError,
    InvalidError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
)
from skerry.core.ports import Change, Store
from skerry.drivers.store import address, postgresql
from skerry.drivers.store.feed import FeedSettings
from skerry.drivers.store.log import MAX_KEY_LENGTH, MAX_VALUE_BYTES
from skerry.drivers.store.logstore import LogSettings
from skerry.drivers.store.postgresql import PostgresqlSettings
from skerry.drivers.store.sqlite import SqliteSettings, open_store

WAIT = 20.0  # seconds until a test that waits gives up

Open = Callable[..., AbstractAsyncContextManager[Store]]


def sqlite_driver(directory: Path, *, batch: int) -> Open:
    @asynccontextmanager
    async def opened(**feed: float) -> AsyncIterator[Store]:
        settings = SqliteSettings(log=LogSettings(max_batch=batch, feed=FeedSettings(**feed)))  # type: ignore[arg-type]
        async with open_store(directory / "hub.db", settings) as store:
            yield store

    return opened


def postgresql_driver(url: str) -> Open:
    @asynccontextmanager
    async def opened(**feed: float) -> AsyncIterator[Store]:
        settings = PostgresqlSettings(log=LogSettings(feed=FeedSettings(**feed)))  # type: ignore[arg-type]
        async with postgresql.open_store(address.read(url), settings) as store:
            yield store

    return opened


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "sqlite-without-group-commit", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the store is: a PostgreSQL URL, or a file."""
    if request.param == "postgresql":
        return request.getfixturevalue("server").new_url()
    return str(tmp_path / "hub.db")


@pytest.fixture
def opening(request: pytest.FixtureRequest, place: str, tmp_path: Path) -> Open:
    if place.startswith("postgresql:"):
        return postgresql_driver(place)
    return sqlite_driver(tmp_path, batch=1 if "without-group-commit" in request.node.name else 256)


@pytest.fixture
async def store(opening: Open) -> AsyncIterator[Store]:
    async with opening(bookmark_seconds=0) as store:
        yield store


async def take(changes: AsyncIterator[Change], count: int) -> list[Change]:
    async with asyncio.timeout(WAIT):
        return [await anext(changes) for _ in range(count)]


def told(changes: list[Change]) -> list[tuple[str, int, str, bytes]]:
    return [(c.type, c.revision, c.record.key, c.record.value) for c in changes if c.record is not None]


async def test_a_new_store_is_at_revision_zero_and_empty(store: Store) -> None:
    assert await store.revision() == 0
    assert await store.get("devices/a/b") is None
    page = await store.list("")
    assert (list(page.records), page.revision, page.next_key, page.remaining) == ([], 0, None, 0)


async def test_each_write_raises_the_one_revision_by_one(store: Store) -> None:
    first = await store.create("devices/default/a", b"1")
    second = await store.create("rollouts/default/r", b"2")
    changed = await store.update("devices/default/a", b"3", expected=first.revision)
    assert (first.revision, first.created) == (1, 1)
    assert (second.revision, second.created) == (2, 2)
    assert (changed.revision, changed.created, changed.value) == (3, 1, b"3")
    assert await store.get("devices/default/a") == changed
    assert await store.revision() == 3


async def test_a_refused_write_takes_no_revision(store: Store) -> None:
    record = await store.create("k", b"1")
    with pytest.raises(AlreadyExistsError):
        await store.create("k", b"2")
    with pytest.raises(ConflictError):
        await store.update("k", b"2", expected=record.revision + 1)
    with pytest.raises(ConflictError):
        await store.delete("k", expected=99)
    with pytest.raises(NotFoundError):
        await store.update("absent", b"2", expected=1)
    with pytest.raises(NotFoundError):
        await store.delete("absent")
    assert await store.revision() == 1
    assert await store.get("k") == record


async def test_a_deletion_returns_the_last_value_and_a_key_can_live_again(store: Store) -> None:
    await store.create("k", b"old")
    gone = await store.delete("k", expected=1)
    assert (gone.value, gone.revision, gone.created) == (b"old", 2, 1)
    assert await store.get("k") is None
    with pytest.raises(NotFoundError):
        await store.update("k", b"x", expected=2)
    again = await store.create("k", b"new")
    assert (again.revision, again.created) == (3, 3)


async def test_a_list_holds_exactly_the_prefix_in_key_order(store: Store) -> None:
    for key in ("a/b", "a/B", "a%/c", "a_/d", "a/", "a", "a0", "ab/x", "b/a"):
        await store.create(key, key.encode())
    page = await store.list("a/")
    assert [record.key for record in page.records] == ["a/", "a/B", "a/b"]
    assert [r.key for r in (await store.list("a_/")).records] == ["a_/d"]
    assert [r.key for r in (await store.list("a%")).records] == ["a%/c"]
    everything = [record.key for record in (await store.list("")).records]
    assert everything == sorted(everything)
    assert len(everything) == 9


async def test_pages_continue_at_one_revision_whatever_is_written_meanwhile(store: Store) -> None:
    for number in range(7):
        await store.create(f"k/{number}", b"old")
    page = await store.list("k/", limit=3)
    assert ([r.key for r in page.records], page.next_key, page.remaining) == (["k/0", "k/1", "k/2"], "k/3", 4)
    await store.delete("k/3")
    await store.update("k/4", b"new", expected=5)
    await store.create("k/35", b"new")
    page = await store.list("k/", limit=3, start=page.next_key or "", revision=page.revision)
    assert [(r.key, r.value) for r in page.records] == [("k/3", b"old"), ("k/4", b"old"), ("k/5", b"old")]
    assert (page.revision, page.remaining) == (7, 1)
    page = await store.list("k/", limit=3, start=page.next_key or "", revision=page.revision)
    assert ([r.key for r in page.records], page.next_key, page.remaining) == (["k/6"], None, 0)
    now = await store.list("k/")
    assert [r.key for r in now.records] == ["k/0", "k/1", "k/2", "k/35", "k/4", "k/5", "k/6"]


async def test_a_page_that_just_fits_is_the_last_one(store: Store) -> None:
    for number in range(3):
        await store.create(f"k/{number}", b"")
    page = await store.list("k/", limit=3)
    assert (len(page.records), page.next_key, page.remaining) == (3, None, 0)


async def test_a_revision_that_has_not_happened_is_refused(store: Store) -> None:
    await store.create("k", b"")
    with pytest.raises(ExpiredError, match="has not happened"):
        await store.list("", revision=2)
    async with store.watch("", after=2) as changes:
        with pytest.raises(ExpiredError, match="has not happened"):
            await take(changes, 1)


async def test_a_watch_tells_history_and_then_what_happens(store: Store) -> None:
    await store.create("k/a", b"1")
    await store.create("other", b"x")
    await store.update("k/a", b"2", expected=1)
    async with store.watch("k/", after=0) as changes:
        assert told(await take(changes, 2)) == [("ADDED", 1, "k/a", b"1"), ("MODIFIED", 3, "k/a", b"2")]
        await store.create("other2", b"x")
        await store.delete("k/a")
        await store.create("k/a", b"3")
        assert told(await take(changes, 2)) == [("DELETED", 5, "k/a", b"2"), ("ADDED", 6, "k/a", b"3")]
    async with store.watch("k/", after=3) as changes:
        assert told(await take(changes, 2)) == [("DELETED", 5, "k/a", b"2"), ("ADDED", 6, "k/a", b"3")]


@pytest.mark.parametrize("live", [True, False])
async def test_a_change_carries_what_was_there_before(store: Store, live: bool) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if live:
            await store.create("warm-up", b"")
            changes = await stack.enter_async_context(store.watch("", after=0))
            await take(changes, 1)
        base = await store.revision()
        created = await store.create("k", b"1")
        updated = await store.update("k", b"2", expected=created.revision)
        deleted = await store.delete("k")
        if not live:
            changes = await stack.enter_async_context(store.watch("", after=base))
        first, second, third = await take(changes, 3)
    assert (first.record, first.previous) == (created, None)
    assert (second.record, second.previous) == (updated, created)
    assert (third.record, third.previous) == (deleted, updated)


async def test_a_cancelled_wait_loses_nothing(store: Store) -> None:
    async with store.watch("", after=0) as changes:
        waiting = asyncio.ensure_future(anext(changes))
        await store.create("warm-up", b"")
        async with asyncio.timeout(WAIT):
            await waiting
        idle = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        idle.cancel()
        with pytest.raises(asyncio.CancelledError):
            await idle
        await store.create("k", b"1")
        assert told(await take(changes, 1)) == [("ADDED", 2, "k", b"1")]


async def test_an_idle_watch_says_how_far_it_has_got(opening: Open) -> None:
    async with opening(bookmark_seconds=0.02) as store, store.watch("k/", after=0) as changes:
        await store.create("elsewhere", b"")
        (bookmark,) = await take(changes, 1)
        assert (bookmark.type, bookmark.revision, bookmark.record) == ("BOOKMARK", 1, None)
        await store.create("k/a", b"")
        await store.create("elsewhere2", b"")
        change, bookmark = await take(changes, 2)
        assert (change.type, change.revision) == ("ADDED", 2)
        assert (bookmark.type, bookmark.revision) == ("BOOKMARK", 3)


@pytest.mark.parametrize("bound", [{"max_changes": 5}, {"max_bytes": 50}])
async def test_a_reader_that_is_too_slow_is_told_so_and_misses_nothing_silently(
    opening: Open, bound: dict[str, int]
) -> None:
    async with opening(bookmark_seconds=0, **bound) as store:
        async with store.watch("", after=0) as slow, store.watch("", after=0) as fast:
            await store.create("k/0", bytes(10))
            await take(slow, 1)
            for number in range(1, 7):
                await store.create(f"k/{number}", bytes(10))
                await take(fast, 1)
            with pytest.raises(ExpiredError, match="too slow"):
                await take(slow, 1)
            with pytest.raises(ExpiredError, match="too slow"):
                await take(slow, 1)
        async with store.watch("", after=1) as changes:  # the log still has it
            assert [c.revision for c in await take(changes, 6)] == [2, 3, 4, 5, 6, 7]


async def test_compaction_forgets_history_and_keeps_the_present(store: Store) -> None:
    await store.create("k/a", b"1")  # 1
    await store.update("k/a", b"2", expected=1)  # 2
    await store.create("k/b", b"1")  # 3
    await store.delete("k/b")  # 4
    await store.create("k/c", b"1")  # 5
    await store.update("k/a", b"3", expected=2)  # 6
    await store.compact(5)
    with pytest.raises(ExpiredError):
        await store.list("k/", revision=4)
    async with store.watch("k/", after=4) as changes:
        with pytest.raises(ExpiredError):
            await take(changes, 1)
    assert [(r.key, r.value) for r in (await store.list("k/", revision=5)).records] == [("k/a", b"2"), ("k/c", b"1")]
    assert [(r.key, r.value) for r in (await store.list("k/")).records] == [("k/a", b"3"), ("k/c", b"1")]
    async with store.watch("k/", after=5) as changes:
        (change,) = await take(changes, 1)
        assert (change.revision, change.previous and change.previous.value) == (6, b"2")
    await store.compact(2)  # going back is harmless
    with pytest.raises(InvalidError, match="has not happened"):
        await store.compact(7)
    with pytest.raises(ExpiredError):
        await store.list("k/", revision=4)


async def test_a_watch_outlives_the_compaction_of_what_it_has_seen(store: Store) -> None:
    async with store.watch("", after=0) as changes:
        await store.create("a", b"")
        await take(changes, 1)
        await store.compact(1)
        await store.create("b", b"")
        assert [c.revision for c in await take(changes, 1)] == [2]


async def test_compaction_in_slices_never_brings_the_deleted_back(store: Store) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(300):
            group.create_task(store.create(f"k/{number}", b"1"))
    async with asyncio.TaskGroup() as group:
        for number in range(300):
            group.create_task(store.delete(f"k/{number}"))
    seen: list[int] = []
    compacting = asyncio.ensure_future(store.compact(600))
    while not compacting.done():
        seen.append(len((await store.list("")).records))
    await compacting
    assert set(seen) <= {0}
    assert await store.revision() == 600
    assert (await store.create("k/1", b"")).revision == 601


async def test_everything_survives_reopening(opening: Open) -> None:
    async with opening() as store:
        await store.create("a", b"1")
        await store.create("b", b"1")
        await store.delete("b")
        await store.compact(3)
    async with opening() as store:
        assert await store.revision() == 3  # though its row is gone
        assert [(r.key, r.revision) for r in (await store.list("")).records] == [("a", 1)]
        with pytest.raises(ExpiredError):
            await store.list("", revision=2)
        assert (await store.create("c", b"")).revision == 4


async def test_concurrent_writers_of_one_key_lose_no_update(store: Store) -> None:
    await store.create("counter", b"0")

    async def add(times: int) -> None:
        for _ in range(times):
            while True:
                record = await store.get("counter")
                assert record is not None
                try:
                    await store.update("counter", b"%d" % (int(record.value) + 1), expected=record.revision)
                except ConflictError:
                    continue
                break

    async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(add(6))
    record = await store.get("counter")
    assert record is not None
    assert (record.value, record.revision) == (b"30", 31)


async def test_of_concurrent_creations_one_wins(store: Store) -> None:
    results = await asyncio.gather(*(store.create("k", b"%d" % n) for n in range(20)), return_exceptions=True)
    won = [r for r in results if not isinstance(r, BaseException)]
    assert len(won) == 1
    assert all(isinstance(r, AlreadyExistsError) for r in results if r not in won)
    assert await store.revision() == 1


async def test_a_cancelled_writer_does_not_harm_the_others(store: Store) -> None:
    tasks = [asyncio.ensure_future(store.create(f"k/{n}", b"")) for n in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(not isinstance(result, BaseException) for result in results[1::2])
    revisions = sorted(record.revision for record in (await store.list("")).records)
    assert revisions == list(range(1, await store.revision() + 1))


@pytest.mark.parametrize("key", ["", "a b", "ä", "a\n", "a\x00", "\ud800", "k" * (MAX_KEY_LENGTH + 1)])
async def test_an_impossible_key_is_refused_and_found_nowhere(store: Store, key: str) -> None:
    with pytest.raises(InvalidError):
        await store.create(key, b"")
    assert await store.get(key) is None
    with pytest.raises(NotFoundError):
        await store.update(key, b"", expected=1)
    with pytest.raises(NotFoundError):
        await store.delete(key)
    if key:
        with pytest.raises(InvalidError):
            await store.list(key)
        with pytest.raises(InvalidError):
            await store.list("", start=key)


async def test_values_are_bytes_up_to_the_limit(store: Store) -> None:
    value = bytes(range(256)) * (MAX_VALUE_BYTES // 256)
    await store.create("k" * MAX_KEY_LENGTH, value)
    record = await store.get("k" * MAX_KEY_LENGTH)
    assert record is not None
    assert record.value == value
    with pytest.raises(TooLargeError):
        await store.create("big", value + b"x")
    assert (await store.create("empty", b"")).value == b""


async def test_a_closed_store_says_so(opening: Open) -> None:
    async with opening() as store:
        write = asyncio.ensure_future(store.create("a", b""))
        await asyncio.sleep(0)
        async with store.watch("", after=0) as changes:
            await store.close()
            await store.close()
            assert (await write).revision == 1  # what was under way is finished first
            with pytest.raises(UnavailableError):
                await take(changes, 1)
        for attempt in (store.get("a"), store.create("b", b""), store.list(""), store.compact(1)):
            with pytest.raises(UnavailableError):
                await attempt


_WRITER = """
import asyncio, json, sys
from pathlib import Path
from skerry.drivers.store import address, postgresql, sqlite

def opened(place):
    if place.startswith("postgresql:"):
        return postgresql.open_store(address.read(place))
    return sqlite.open_store(Path(place))

async def main():
    async with opened(sys.argv[1]) as store:
        async def write(writer):
            number = 0
            while True:
                record = await store.create(f"k/{sys.argv[2]}/{writer}/{number}", b"v" * 200)
                print(json.dumps([record.key, record.revision]), flush=True)
                number += 1
        await asyncio.gather(*(write(writer) for writer in range(20)))

asyncio.run(main())
"""


def write_until_killed(place: str, series: str) -> dict[str, int]:
    """Kill a process that writes with twenty tasks at once; return what it was told is stored."""
    command = [sys.executable, "-c", _WRITER, place, series]
    acknowledged: dict[str, int] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for number, line in enumerate(process.stdout):
            if line.endswith("]\n"):
                key, revision = json.loads(line)
                acknowledged[key] = revision
            if number == 150:
                os.kill(process.pid, signal.SIGKILL)
    return acknowledged


async def test_a_killed_process_loses_no_acknowledged_write(opening: Open, place: str) -> None:
    acknowledged: dict[str, int] = {}
    for series in ("a", "b", "c"):
        acknowledged |= await asyncio.to_thread(write_until_killed, place, series)
    assert len(acknowledged) >= 450
    async with opening(bookmark_seconds=0) as store:
        stored = {record.key: record.revision for record in (await store.list("k/")).records}
        assert {key: stored.get(key) for key in acknowledged} == acknowledged
        newest = await store.revision()
        async with store.watch("", after=0) as changes:
            assert [change.revision for change in await take(changes, newest)] == list(range(1, newest + 1))
