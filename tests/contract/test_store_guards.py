"""Writes that depend on another record: decided with it, in one transaction, whoever else writes; by every driver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.postgresql import Server, running

from skerry.api.errors import ConflictError, UnavailableError
from skerry.core.ports import Guard, Store
from skerry.drivers.store import address, log, notifications, postgresql, sqlite
from skerry.drivers.store.log import Row, Write, Written
from skerry.drivers.store.shared import Fence, FencedStore

DEAF = postgresql.PostgresqlSettings(notifications=notifications.Settings(listen=False, poll_seconds=1000.0))
"""It knows only what it wrote itself."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "sqlite":
        async with sqlite.open_store(tmp_path / "hub.db") as embedded:
            yield embedded
    else:
        place = address.read(request.getfixturevalue("server").new_url())
        async with postgresql.open_store(place, DEAF) as shared:
            yield shared


async def test_a_write_happens_while_its_guard_is_as_it_was_and_not_afterwards(store: Store) -> None:
    held = await store.create("namespaces/a", b"1")
    guard = Guard(key=held.key, revision=held.revision)
    made = await store.create("k", b"1", guard=guard)
    changed = await store.update("k", b"2", expected=made.revision, guard=guard)
    await store.update(held.key, b"2", expected=held.revision)
    newest = await store.revision()
    for attempt in (
        store.create("other", b"", guard=guard),
        store.update("k", b"3", expected=changed.revision, guard=guard),
        store.delete("k", expected=changed.revision, guard=guard),
    ):
        with pytest.raises(ConflictError, match="namespaces/a"):
            await attempt
    assert await store.get("k") == changed
    assert await store.revision() == newest
    await store.delete("k", guard=Guard(key=held.key, revision=newest))
    assert await store.get("k") is None


async def test_a_guard_that_is_gone_or_came_again_holds_nothing_up(store: Store) -> None:
    held = await store.create("namespaces/a", b"1")
    guards = [Guard(key="namespaces/never", revision=0), Guard(key=held.key, revision=held.revision)]
    deleted = await store.delete(held.key)
    guards.append(Guard(key=held.key, revision=deleted.revision))
    for guard in guards:
        with pytest.raises(ConflictError):
            await store.create("k", b"", guard=guard)
    again = await store.create(held.key, b"1")
    for guard in guards:
        with pytest.raises(ConflictError):
            await store.create("k", b"", guard=guard)
    await store.create("k", b"", guard=Guard(key=held.key, revision=again.revision))


async def test_writes_that_go_together_see_what_the_ones_before_did(store: Store) -> None:
    held = await store.create("namespaces/a", b"1")
    guard = Guard(key=held.key, revision=held.revision)
    outcomes = await asyncio.gather(
        store.create("before", b"", guard=guard),
        store.update(held.key, b"2", expected=held.revision),
        store.create("after", b"", guard=guard),
        return_exceptions=True,
    )
    assert [isinstance(outcome, ConflictError) for outcome in outcomes] == [False, False, True]


async def test_what_another_hub_wrote_counts(server: Server) -> None:
    place = address.read(server.new_url())
    async with postgresql.open_store(place, DEAF) as one, postgresql.open_store(place, DEAF) as other:
        held = await one.create("namespaces/a", b"1")  # it remembers this one
        guard = Guard(key=held.key, revision=held.revision)
        await other.update(held.key, b"2", expected=held.revision)
        with pytest.raises(ConflictError):
            await one.create("k", b"", guard=guard)
        fence = Fence()
        led = FencedStore(one, fence)
        fence.term = await one.begin_term()
        with pytest.raises(ConflictError):
            await led.create("k", b"", guard=guard)
        fence.term -= 1
        with pytest.raises(UnavailableError, match="another hub leads"):
            await led.create("k", b"", guard=Guard(key=held.key, revision=held.revision + 1))


keys = st.sampled_from(["a", "b"])
guards = st.none() | st.builds(Guard, key=keys, revision=st.integers(0, 6))
writes = st.builds(
    Write, verb=st.sampled_from(["create", "update", "delete"]), key=keys, expected=st.none() | st.just(1), guard=guards
)


@given(st.lists(writes, max_size=8))
def test_a_guarded_write_is_the_same_write_where_the_guard_holds_and_none_where_not(batch: list[Write]) -> None:
    outcomes = log.decide(batch, {}, 0)
    state: dict[str, Row] = {}
    for write, outcome in zip(batch, outcomes, strict=True):
        last = max((row.revision for row in state.values()), default=0)
        held = state.get(write.guard.key) if write.guard else None
        kept = write.guard is None or (held is not None and not held.deleted and held.revision == write.guard.revision)
        plain = Write(verb=write.verb, key=write.key, value=write.value, expected=write.expected)
        (without,) = log.decide([plain], state, last)
        if not kept:
            assert isinstance(outcome, type(lambda: None))
            assert isinstance(outcome(), ConflictError)
        elif isinstance(outcome, Written):
            assert outcome == without
            state[write.key] = outcome.row
        else:
            assert not isinstance(without, Written)
            assert type(outcome()) is type(without())
