"""The store against a plain list of what happened: any sequence of calls gives the same answers."""

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from skerry.api.errors import AlreadyExistsError, ConflictError, ExpiredError, NotFoundError
from skerry.core.ports import Change, Record
from skerry.drivers.store.feed import FeedSettings, Watcher
from skerry.drivers.store.logstore import LogSettings, LogStore
from skerry.drivers.store.sqlite import SqliteSettings, open_store

WAIT = 20.0
RECENT_BYTES = 2000
"""A few rows are remembered, others are read."""
KEYS = ("a", "a/", "a/b", "a/c", "a0", "b/a", "b/b")
PREFIXES = ("", "a", "a/", "b/", "c")

keys = st.sampled_from(KEYS)
values = st.binary(max_size=3)


class Model:
    """Everything that happened, in a list; every answer is worked out from it anew."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.compacted = 0

    @property
    def revision(self) -> int:
        return len(self.changes)

    def state(self, revision: int) -> dict[str, Record]:
        state: dict[str, Record] = {}
        for change in self.changes[:revision]:
            assert change.record is not None
            if change.type == "DELETED":
                del state[change.record.key]
            else:
                state[change.record.key] = change.record
        return state

    def write(self, verb: str, key: str, value: bytes, expected: int | None) -> Record | type[Exception]:
        old = self.state(self.revision).get(key)
        if verb == "create" and old is not None:
            return AlreadyExistsError
        if verb != "create" and old is None:
            return NotFoundError
        if verb != "create" and expected is not None and old is not None and expected != old.revision:
            return ConflictError
        revision = self.revision + 1
        record = Record(
            key=key,
            value=old.value if verb == "delete" and old else value,
            revision=revision,
            created=old.created if old else revision,
        )
        kind = {"create": "ADDED", "update": "MODIFIED", "delete": "DELETED"}[verb]
        self.changes.append(Change(type=kind, revision=revision, record=record, previous=old))  # type: ignore[arg-type]
        return record


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.directory = Path(tempfile.mkdtemp(prefix="skerry-store-"))
        self.runner = asyncio.Runner()
        self.watchers: list[tuple[str, int, Watcher, AsyncExitStack]] = []
        self.pages: list[tuple[str, int, str]] = []

    @initialize()
    def start(self) -> None:
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.stack = AsyncExitStack()
        feed = FeedSettings(bookmark_seconds=0, max_changes=10_000)
        self.store = await self._open_store(LogSettings(feed=feed, recent_bytes=RECENT_BYTES))

    async def _open_store(self, log: LogSettings) -> LogStore:
        return await self.stack.enter_async_context(open_store(self.directory / "hub.db", SqliteSettings(log=log)))

    async def _close(self) -> None:
        for *_, stack in self.watchers:
            await stack.aclose()
        self.watchers.clear()
        await self.stack.aclose()

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.runner.run(self._close())
        self.runner.close()
        shutil.rmtree(self.directory)

    async def _write(self, verb: str, key: str, value: bytes, expected: int | None) -> Record | type[Exception]:
        try:
            if verb == "create":
                return await self.store.create(key, value)
            if verb == "update":
                assert expected is not None
                return await self.store.update(key, value, expected=expected)
            return await self.store.delete(key, expected=expected)
        except (AlreadyExistsError, NotFoundError, ConflictError) as error:
            return type(error)

    def _expected(self, key: str, right: bool) -> int:
        old = self.model.state(self.model.revision).get(key)
        return (old.revision if old else 1) + (0 if right else 1)

    @rule(key=keys, value=values)
    def create(self, key: str, value: bytes) -> None:
        assert self.runner.run(self._write("create", key, value, None)) == self.model.write("create", key, value, None)

    @rule(key=keys, value=values, right=st.booleans())
    def update(self, key: str, value: bytes, right: bool) -> None:
        expected = self._expected(key, right)
        got = self.runner.run(self._write("update", key, value, expected))
        assert got == self.model.write("update", key, value, expected)

    @rule(key=keys, how=st.sampled_from(["unconditional", "right", "wrong"]))
    def delete(self, key: str, how: str) -> None:
        expected = None if how == "unconditional" else self._expected(key, how == "right")
        got = self.runner.run(self._write("delete", key, b"", expected))
        assert got == self.model.write("delete", key, b"", expected)

    @rule(
        batch=st.lists(
            st.tuples(st.sampled_from(["create", "update", "delete"]), keys, values, st.booleans()),
            min_size=2,
            max_size=8,
        )
    )
    def write_at_once(self, batch: list[tuple[str, str, bytes, bool]]) -> None:
        planned = [(verb, key, value, self._expected(key, right)) for verb, key, value, right in batch]

        async def all_of_them() -> list[Record | type[Exception]]:
            return await asyncio.gather(*(self._write(*write) for write in planned))

        got = self.runner.run(all_of_them())
        # They start in this order, and the store takes them in the order in which they came.
        assert got == [
            self.model.write(verb, key, value, None if verb == "create" else expected)
            for verb, key, value, expected in planned
        ]

    @rule(prefix=st.sampled_from(PREFIXES), limit=st.integers(0, 3), back=st.integers(0, 6))
    def list_(self, prefix: str, limit: int, back: int) -> None:
        self._check_list(prefix, limit, "", max(0, self.model.revision - back))

    @precondition(lambda self: self.pages)
    @rule(data=st.data(), limit=st.integers(0, 3))
    def list_on(self, data: st.DataObject, limit: int) -> None:
        prefix, revision, start = data.draw(st.sampled_from(self.pages))
        self._check_list(prefix, limit, start, revision)

    def _check_list(self, prefix: str, limit: int, start: str, revision: int) -> None:
        call = self.store.list(prefix, limit=limit, start=start, revision=revision)
        if 0 < revision < self.model.compacted:
            with pytest.raises(ExpiredError):
                self.runner.run(call)
            return
        page = self.runner.run(call)
        at = revision or self.model.revision
        matching = [r for k, r in sorted(self.model.state(at).items()) if k.startswith(prefix) and k >= start]
        shown = matching[:limit] if limit else matching
        assert list(page.records) == shown
        assert page.revision == at
        assert page.remaining == len(matching) - len(shown)
        assert page.next_key == (matching[len(shown)].key if page.remaining else None)
        if page.next_key is not None and len(self.pages) < 50:
            self.pages.append((prefix, at, page.next_key))

    @rule(back=st.integers(0, 10))
    def compact(self, back: int) -> None:
        before = max(0, self.model.revision - back)
        self.runner.run(self.store.compact(before))
        self.model.compacted = max(self.model.compacted, before)

    @precondition(lambda self: len(self.watchers) < 5)
    @rule(prefix=st.sampled_from(PREFIXES), back=st.integers(0, 10))
    def watch(self, prefix: str, back: int) -> None:
        after = max(0, self.model.revision - back)

        async def begin() -> None:
            stack = AsyncExitStack()
            watcher = await stack.enter_async_context(self.store.watch(prefix, after=after))
            assert isinstance(watcher, Watcher)
            self.watchers.append((prefix, after, watcher, stack))

        self.runner.run(begin())

    @precondition(lambda self: self.watchers)
    @rule(data=st.data())
    def read_watch(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.watchers) - 1))
        prefix, after, watcher, stack = self.watchers[index]
        due = [c for c in self.model.changes[after:] if c.record is not None and c.record.key.startswith(prefix)]
        count = data.draw(st.integers(0, len(due)))

        async def read() -> list[Change] | None:
            try:
                async with asyncio.timeout(WAIT):
                    return [await anext(watcher) for _ in range(count)]
            except ExpiredError:
                await stack.aclose()
                return None

        got = self.runner.run(read())
        if got is None:
            assert after < self.model.compacted  # the only reason here: what it had still to read was compacted away
            del self.watchers[index]
            return
        assert got == due[:count]
        self.watchers[index] = (prefix, got[-1].revision if got else after, watcher, stack)

    @rule()
    def reopen(self) -> None:
        self.runner.run(self._close())
        self.runner.run(self._open())

    @rule(key=keys)
    def get(self, key: str) -> None:
        assert self.runner.run(self.store.get(key)) == self.model.state(self.model.revision).get(key)

    @invariant()
    def same_revision(self) -> None:
        if hasattr(self, "store"):
            assert self.runner.run(self.store.revision()) == self.model.revision


StoreMachine.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestStore = StoreMachine.TestCase
