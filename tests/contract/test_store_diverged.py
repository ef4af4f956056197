"""An old backup, or another database, in the store's place under a hub that was not restarted: it changes nothing."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from tests.postgresql import Server, running

from skerry.api.errors import DivergedError
from skerry.core.ports import Change, Record
from skerry.drivers.store import address, log, notifications, postgresql, sqlite
from skerry.drivers.store.election import AdvisoryElection, ElectionSettings
from skerry.drivers.store.feed import FeedSettings
from skerry.drivers.store.logstore import LogSettings
from skerry.drivers.store.shared import Fence, SharedLogStore
from skerry.drivers.store.writer import LogWriter
from skerry.hub import leadership
from skerry.hub.server.status import status_of

WAIT = 30.0
DEAF = notifications.Settings(listen=False, poll_seconds=1000.0)
EAGER = ElectionSettings(lease_seconds=20.0, renew_seconds=0.05, retry_seconds=0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@asynccontextmanager
async def opened(url: str, notified: notifications.Settings | None = None) -> AsyncIterator[SharedLogStore]:
    settings = postgresql.PostgresqlSettings(
        log=LogSettings(feed=FeedSettings(bookmark_seconds=0)), notifications=notified or notifications.Settings()
    )
    async with postgresql.open_store(address.read(url), settings) as store:
        yield store


async def fill(store: SharedLogStore) -> Record:
    """Write revisions 1 to 8, the last of which will be lost: they are of one record."""
    for number in range(5):
        await store.create(f"k/{number}", b"old")
    record = await store.update("k/0", b"lost 6", expected=1)
    record = await store.update("k/0", b"lost 7", expected=record.revision)
    return await store.update("k/0", b"lost 8", expected=record.revision)


def put_back(server: Server, schema: str) -> None:
    server.execute("DELETE FROM log WHERE revision > 5", schema=schema)


async def end_of(changes: AsyncIterator[Change]) -> list[Change]:
    seen: list[Change] = []
    async with asyncio.timeout(WAIT):
        with suppress(DivergedError):
            async for change in changes:
                seen.append(change)  # noqa: PERF401 - it ends with the error
            pytest.fail("it ended without a word")
    return seen


def calls(store: SharedLogStore, lost: Record) -> Iterator[Callable[[], Awaitable[object]]]:
    yield lambda: store.update("k/0", b"overwritten", expected=lost.revision)
    yield lambda: store.create("k/new", b"")
    yield lambda: store.delete("k/1")
    yield lambda: store.get("k/0")
    yield lambda: store.list("k/")
    yield store.revision
    yield store.follow
    yield store.begin_term
    yield lambda: store.compact(1)


@pytest.mark.parametrize("more", [1, 3, 20])
async def test_a_hub_that_was_not_restarted_refuses_everything(
    server: Server, caplog: pytest.LogCaptureFixture, more: int
) -> None:
    """The restarted one has written less than was lost, or as much, or more."""
    schema = server.new_schema()
    url = server.url(schema)
    async with opened(url, DEAF) as store, store.watch("", after=0) as changes:
        lost = await fill(store)
        put_back(server, schema)
        async with opened(url) as restarted:
            record = await restarted.update("k/0", b"true", expected=1)
            for number in range(more - 1):
                await restarted.create(f"r/{number}", b"")
            before = [(one.key, one.value, one.revision) for one in (await restarted.list("")).records]
            for call in calls(store, lost):
                with pytest.raises(DivergedError, match="restart the hubs"):
                    await call()
            assert [(one.key, one.value, one.revision) for one in (await restarted.list("")).records] == before
            assert [change.revision for change in await end_of(changes)] in ([], list(range(1, 9)))
            assert caplog.text.count("store.diverged") == 1
            assert "CRITICAL" in caplog.text
        async with opened(url) as again:
            assert await again.get("k/0") == record


async def test_a_hub_notices_by_itself(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody asks it for anything: notifications, or a look now and then, tell."""
    caplog.set_level(logging.CRITICAL)
    for notified in (
        notifications.Settings(poll_seconds=1000.0),
        notifications.Settings(listen=False, poll_seconds=0.05),
    ):
        schema = server.new_schema()
        async with opened(server.url(schema), notified) as store:
            await fill(store)
            async with store.watch("", after=8) as changes:
                ended = asyncio.ensure_future(end_of(changes))
                put_back(server, schema)
                async with opened(server.url(schema)) as restarted:
                    for number in range(4):
                        await restarted.create(f"r/{number}", b"")
                    assert await ended == []
            with pytest.raises(DivergedError):
                await store.revision()  # which is what readiness asks
    assert caplog.text.count("store.diverged") == 2


async def test_writes_that_wait_are_refused_too(server: Server) -> None:
    schema = server.new_schema()
    async with opened(server.url(schema), DEAF) as store:
        await fill(store)
        put_back(server, schema)
        many = await asyncio.gather(*(store.create(f"n/{one}", b"") for one in range(600)), return_exceptions=True)
        assert {type(one) for one in many} == {DivergedError}
    assert server.query("SELECT max(revision) FROM log", schema=schema) == [(5,)]


async def test_one_that_only_compaction_shortened_is_the_same(server: Server) -> None:
    """The last write was a deletion, and is compacted away."""
    schema = server.new_schema()
    url = server.url(schema)
    async with opened(url) as one, opened(url, DEAF) as other:
        await one.create("k", b"")
        await other.follow()
        await other.delete("k")
        await one.compact(2)
        assert server.query("SELECT count(*) FROM log", schema=schema) == [(0,)]
        await other.follow()
        assert (await other.create("k", b"")).revision == 3
        assert (await one.create("l", b"")).revision == 4
        await other.follow()


def test_a_replica_that_lags_behind_is_not_believed(tmp_path: Path) -> None:
    """What readers are told is asked of the writer again, who is right."""
    with sqlite.open_database(tmp_path / "hub.db") as database:
        writer = LogWriter(database, 0)
        for key in ("a", "b"):
            assert writer.take_turn([log.Write(verb="create", key=key)], {}).error is None
            if key == "a":
                shutil.copy(tmp_path / "hub.db-wal", tmp_path / "replica.db-wal")
                shutil.copy(tmp_path / "hub.db", tmp_path / "replica.db")
        with sqlite.open_database(tmp_path / "replica.db") as replica:
            assert replica.stand().newest == 1
            readers, database._readers = database._readers, replica._readers
            progress = writer.take_turn([], {})
            assert isinstance(progress.error, DivergedError)
            assert not progress.diverged
            database._readers = readers
        assert writer.take_turn([], {}).error is None
        assert writer.take_turn([log.Write(verb="create", key="c")], {}).reached == 3


async def test_a_leader_of_a_store_that_diverged_lets_another_one_lead(server: Server) -> None:
    schema = server.new_schema()
    place, url = address.read(server.url(schema)), server.url(schema)
    async with asyncio.timeout(WAIT), opened(url, DEAF) as store:
        election, fence, led = AdvisoryElection(place, store, EAGER), Fence(), asyncio.Event()

        async def lead(_term: int) -> None:
            led.set()
            await asyncio.Event().wait()

        leading = asyncio.create_task(leadership.run(election, fence, lead))
        try:
            await led.wait()
            await fill(store)
            put_back(server, schema)
            with pytest.raises(DivergedError):
                await store.follow()
            async with opened(url) as restarted:
                other = AdvisoryElection(place, restarted, EAGER)
                assert await other.campaign() == 2
                assert not leading.done()
                await other.resign()
        finally:
            leading.cancel()
            with suppress(asyncio.CancelledError):
                await leading
        assert fence.term is None


def test_clients_are_told_to_ask_another_hub() -> None:
    answer = status_of(DivergedError("ends at revision 1", element="store"))
    assert (answer["code"], answer["reason"], answer["details"]["retryAfterSeconds"]) == (503, "ServiceUnavailable", 1)
