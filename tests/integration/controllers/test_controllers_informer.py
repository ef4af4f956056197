"""Informers and reconcilers over the real store: nothing missed, nothing stale, one bad key alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from skerry.api.errors import ConflictError, InvalidError
from skerry.core.ports import Record, Store
from skerry.drivers.store.feed import FeedSettings
from skerry.drivers.store.logstore import LogSettings
from skerry.drivers.store.sqlite import SqliteSettings, open_store
from skerry.hub.controllers.informer import Informer
from skerry.hub.controllers.reconciler import Reconciler

WAIT = 20.0  # seconds until a test that waits gives up


class Note(msgspec.Struct, frozen=True):
    """A value of these tests."""

    text: str


class Copy:
    """An informer of notes, and what it has signalled."""

    def __init__(self, store: Store) -> None:
        self.signals: list[tuple[str | None, str | None]] = []
        self._turned = asyncio.Event()
        self.informer = Informer(store, "notes/", self._decode, self._changed)

    @staticmethod
    def _decode(record: Record) -> Note:
        return msgspec.json.decode(record.value, type=Note)

    def _changed(self, old: Note | None, new: Note | None) -> None:
        self.signals.append((old.text if old else None, new.text if new else None))
        self._turned.set()

    def texts(self) -> list[str]:
        return sorted(note.text for note in self.informer.values())

    async def until(self, *texts: str) -> None:
        async with asyncio.timeout(WAIT):
            while self.texts() != sorted(texts):
                self._turned.clear()
                await self._turned.wait()


@asynccontextmanager
async def following(path: Path, **feed: int) -> AsyncIterator[tuple[Store, Copy]]:
    settings = SqliteSettings(log=LogSettings(feed=FeedSettings(**feed)))  # type: ignore[arg-type]
    async with open_store(path / "hub.db", settings) as store:
        await store.create("notes/a", b'{"text": "a"}')
        copy = Copy(store)
        task = asyncio.create_task(copy.informer.run())
        try:
            async with asyncio.timeout(WAIT):
                await copy.informer.wait_synced()
            yield store, copy
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


async def test_the_copy_follows_creations_changes_and_deletions(tmp_path: Path) -> None:
    async with following(tmp_path) as (store, copy):
        assert copy.texts() == ["a"]
        b = await store.create("notes/b", b'{"text": "b"}')
        await store.create("other/c", b'{"text": "c"}')
        await copy.until("a", "b")
        await store.update("notes/b", b'{"text": "B"}', expected=b.revision)
        await copy.until("a", "B")
        await store.delete("notes/a")
        await copy.until("B")
        assert copy.signals == [(None, "a"), (None, "b"), ("b", "B"), ("a", None)]


async def test_a_reader_that_fell_behind_lists_again_and_misses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with following(tmp_path, max_changes=3) as (store, copy):
        await copy.until("a")
        async with asyncio.TaskGroup() as group:
            for number in range(60):
                group.create_task(store.create(f"notes/n{number}", b'{"text": "n%d"}' % number))
            group.create_task(store.delete("notes/a"))
        await copy.until(*(f"n{number}" for number in range(60)))
        assert sorted(new or "" for old, new in copy.signals if old is None) == sorted(
            ["a", *(f"n{number}" for number in range(60))]
        ), "each was signalled once"
    assert "informer.relist prefix=notes/" in caplog.text


async def test_a_late_word_of_what_was_deleted_meanwhile_puts_nothing_back(tmp_path: Path) -> None:
    async with following(tmp_path) as (store, copy):
        written = await store.create("notes/b", b'{"text": "b"}')
        await store.delete("notes/b")
        await store.create("notes/z", b'{"text": "z"}')
        await copy.until("a", "z")  # the watch has told everything up to here
        copy.informer.observe("b", Note(text="b"), written.revision)
        assert copy.texts() == ["a", "z"]


async def test_an_own_write_is_seen_at_once_and_an_older_event_does_not_undo_it(tmp_path: Path) -> None:
    async with following(tmp_path) as (store, copy):
        first = await store.create("notes/b", b'{"text": "b1"}')
        second = await store.update("notes/b", b'{"text": "b2"}', expected=first.revision)
        copy.informer.observe("b", Note(text="b2"), second.revision)
        assert copy.informer.get("b") == Note(text="b2")
        await store.create("notes/z", b'{"text": "z"}')
        await copy.until("a", "b2", "z")
        assert ("b2", "b1") not in copy.signals
        assert copy.signals.count((None, "b2")) + copy.signals.count(("b1", "b2")) == 1


async def test_what_cannot_be_read_is_known_but_not_shown(tmp_path: Path) -> None:
    async with following(tmp_path) as (store, copy):
        record = await store.get("notes/a")
        assert record is not None
        broken = await store.update("notes/a", b"rubbish", expected=record.revision)
        await copy.until()
        assert copy.informer.unreadable() == ["a"]
        assert copy.informer.unreadable("b") == []
        mended = await store.update("notes/a", b'{"text": "again"}', expected=broken.revision)
        await copy.until("again")
        assert copy.informer.unreadable() == []
        await store.update("notes/a", b"rubbish", expected=mended.revision)
        await copy.until()
        await store.delete("notes/a")
        await store.create("notes/z", b'{"text": "z"}')
        await copy.until("z")
        assert copy.informer.unreadable() == []


async def test_what_could_not_be_read_is_forgotten_with_the_own_write_that_mended_it(tmp_path: Path) -> None:
    async with following(tmp_path) as (store, copy):
        broken = await store.create("notes/b", b"rubbish")
        await store.create("notes/y", b'{"text": "y"}')
        await copy.until("a", "y")
        assert copy.informer.unreadable() == ["b"]
        copy.informer.observe("b", Note(text="b"), broken.revision + 2)  # which is what the next write gets
        assert (
            await store.update("notes/b", b'{"text": "b"}', expected=broken.revision)
        ).revision == broken.revision + 2
        await store.create("notes/z", b'{"text": "z"}')
        await copy.until("a", "b", "y", "z")
        assert copy.informer.unreadable() == []


class Handler:
    """Handles keys as told, and remembers what happened."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.failures: list[tuple[str, str]] = []
        self.active = 0
        self.overlaps = 0
        self._turned = asyncio.Event()

    async def handle(self, key: str) -> float | None:
        self.active += 1
        self.overlaps += self.seen.count(f"{key}:begun") != self.seen.count(f"{key}:done")
        self.seen.append(f"{key}:begun")
        try:
            await asyncio.sleep(0)
            return self.answer(key)
        finally:
            self.active -= 1
            self.seen.append(f"{key}:done")
            self._turned.set()

    def answer(self, key: str) -> float | None:
        times = self.seen.count(f"{key}:begun")
        if key == "bad" and times < 3:
            raise InvalidError("is bad", element=key)
        if key == "conflict" and times < 2:
            raise ConflictError(element=key)
        if key == "bug" and times < 2:
            raise ZeroDivisionError
        return 0.01 if key == "timer" and times < 4 else None

    async def failed(self, key: str, error: Exception) -> None:
        self.failures.append((key, type(error).__name__))
        if key == "bug":
            raise RuntimeError("telling fails too")

    async def until(self, mark: str, count: int) -> None:
        async with asyncio.timeout(WAIT):
            while self.seen.count(mark) < count:
                self._turned.clear()
                await self._turned.wait()


async def test_keys_are_handled_alone_again_after_errors_and_at_their_time() -> None:
    handler = Handler()
    work: Reconciler[str] = Reconciler("test", handler.handle, handler.failed, workers=3)
    task = asyncio.create_task(work.run())
    try:
        for key in ("bad", "conflict", "bug", "timer", "good", "good"):
            work.add(key)
        for mark, count in (
            ("bad:done", 3),
            ("conflict:done", 2),
            ("bug:done", 2),
            ("timer:done", 4),
            ("good:done", 1),
        ):
            await handler.until(mark, count)
        work.add("good")
        await handler.until("good:done", 2)
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert handler.overlaps == 0
    assert handler.active == 0
    assert sorted(handler.failures) == [("bad", "InvalidError")] * 2 + [("bug", "ZeroDivisionError")]


async def test_timers_end_with_the_reconciler() -> None:
    handler = Handler()
    work: Reconciler[str] = Reconciler("test", handler.handle, handler.failed, workers=1)
    task = asyncio.create_task(work.run())
    work.add("timer")
    await handler.until("timer:done", 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work._timers == {}
