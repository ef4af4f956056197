"""What is particular to the PostgreSQL store: several writers, a server that goes away, connections that break."""

import asyncio
import contextlib
import itertools
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg as psycopg_dialect
from tests.postgresql import Server, running

from skerry.api.errors import (
    ConflictError,
    ExpiredError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from skerry.core.ports import Change
from skerry.drivers.store import address, notifications, statements
from skerry.drivers.store.database import HISTORY_PAGE
from skerry.drivers.store.feed import FeedSettings
from skerry.drivers.store.logstore import LogSettings
from skerry.drivers.store.postgresql import PostgresqlSettings, open_store
from skerry.drivers.store.shared import Fence, FencedStore, SharedLogStore
from skerry.drivers.store.statements import SCHEMA_VERSION

WAIT = 30.0
DEAF = notifications.Settings(listen=False, poll_seconds=1000.0)
"""It hears of what others write when it is asked for something newer, and when it writes."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@asynccontextmanager
async def opened(
    url: str, *, notified: notifications.Settings | None = None, **more: float
) -> AsyncIterator[SharedLogStore]:
    settings = PostgresqlSettings(
        log=LogSettings(feed=FeedSettings(bookmark_seconds=0)),
        notifications=notified or notifications.Settings(),
        **more,  # type: ignore[arg-type]
    )
    async with open_store(address.read(url), settings) as store:
        yield store


async def take(changes: AsyncIterator[Change], count: int) -> list[int]:
    async with asyncio.timeout(WAIT):
        return [(await anext(changes)).revision for _ in range(count)]


async def test_what_one_hub_was_told_is_stored_the_next_read_of_another_sees(server: Server) -> None:
    url = server.new_url()
    async with opened(url) as one, opened(url, notified=DEAF) as other:
        for number in range(20):
            record = await one.create(f"k/{number}", b"1")
            assert await other.get(f"k/{number}") == record
            assert (await other.list("k/")).revision == record.revision
            assert await other.revision() == record.revision
            assert len((await other.list("k/", revision=record.revision)).records) == number + 1
            async with other.watch("", after=record.revision - 1) as changes:
                assert await take(changes, 1) == [record.revision]


async def test_watchers_of_all_hubs_are_told_everything_once_in_one_order(server: Server) -> None:
    url, writes = server.new_url(), 60
    async with contextlib.AsyncExitStack() as stack:
        hubs = [await stack.enter_async_context(opened(url)) for _ in range(3)]
        watches = [await stack.enter_async_context(hub.watch("", after=0)) for hub in hubs]
        async with asyncio.TaskGroup() as group:
            told = [group.create_task(take(watch, 3 * writes)) for watch in watches]
            for hub, writer in itertools.product(hubs, range(4)):
                group.create_task(write(hub, f"{hubs.index(hub)}/{writer}", writes // 4))
        for one in told:
            assert one.result() == list(range(1, 3 * writes + 1))


async def write(hub: SharedLogStore, prefix: str, count: int) -> None:
    for number in range(count):
        await hub.create(f"k/{prefix}/{number}", b"x")


async def test_hubs_that_change_one_record_lose_no_update(server: Server) -> None:
    url = server.new_url()
    async with opened(url) as one, opened(url, notified=DEAF) as other:
        await one.create("counter", b"0")

        async def add(hub: SharedLogStore) -> None:
            done = 0
            while done < 15:
                record = await hub.get("counter")
                assert record is not None
                try:
                    await hub.update("counter", b"%d" % (int(record.value) + 1), expected=record.revision)
                except ConflictError:
                    continue
                done += 1

        async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
            for hub in (one, other, one, other):
                group.create_task(add(hub))
        record = await one.get("counter")
        assert record is not None
        assert (record.value, record.revision) == (b"60", 61)


async def test_a_hub_that_hears_nothing_decides_on_what_is_there(server: Server) -> None:
    url = server.new_url()
    async with opened(url) as one, opened(url, notified=DEAF) as other:
        mine = await other.create("k", b"1")  # it remembers this one
        theirs = await one.update("k", b"2", expected=mine.revision)
        with pytest.raises(ConflictError):
            await other.update("k", b"3", expected=mine.revision)
        await one.delete("k", expected=theirs.revision)
        with pytest.raises(NotFoundError):
            await other.update("k", b"3", expected=theirs.revision)
        assert (await other.create("k", b"4")).revision == 4


async def test_a_hub_far_behind_reads_it_all_before_it_writes(server: Server) -> None:
    url, many = server.new_url(), 3 * HISTORY_PAGE + 7
    async with opened(url) as one, opened(url, notified=DEAF) as other, other.watch("", after=0) as changes:
        await asyncio.gather(*(one.create(f"k/{number}", b"1") for number in range(many)))
        assert (await other.create("mine", b"2")).revision == many + 1
        assert await take(changes, many + 1) == list(range(1, many + 2))


async def test_a_hub_behind_a_compaction_lists_again(server: Server) -> None:
    url = server.new_url()
    async with opened(url) as one, opened(url, notified=DEAF) as other:
        first = await other.create("k", b"0")
        async with other.watch("", after=first.revision) as changes:
            record = first
            waiting = asyncio.ensure_future(take(changes, 1))
            await asyncio.sleep(0)
            for number in range(5):
                record = await one.update("k", b"%d" % number, expected=record.revision)
            await one.compact(record.revision)
            with pytest.raises(ExpiredError):
                await other.list("", revision=first.revision)
            assert (await other.update("k", b"mine", expected=record.revision)).revision == record.revision + 1
            with pytest.raises(ExpiredError):
                await waiting
        async with other.watch("", after=record.revision) as changes:
            assert await take(changes, 1) == [record.revision + 1]


async def test_writes_of_a_leader_that_was_replaced_are_refused_and_nobody_elses(server: Server) -> None:
    url = server.new_url()
    async with opened(url) as one, opened(url) as other:
        old, new = Fence(), Fence()
        before, after = FencedStore(one, old), FencedStore(other, new)
        with pytest.raises(UnavailableError, match="another hub leads"):
            await before.create("a", b"")  # it never led
        old.term = await one.begin_term()
        await before.create("a", b"")
        new.term = await other.begin_term()
        assert new.term == old.term + 1
        assert await one.term() == new.term
        for attempt in (before.create("b", b""), before.update("a", b"", expected=1), before.delete("a")):
            with pytest.raises(UnavailableError, match="another hub leads"):
                await attempt
        await after.update("a", b"2", expected=1)
        await one.create("b", b"")  # what users ask of that hub is not the leader's business
        assert await one.revision() == 3


async def test_a_server_that_crashes_loses_nothing_that_was_acknowledged(server: Server) -> None:
    """Writers and watchers of two hubs go on over two crashes; those who are told of a failure may try again."""
    url = server.new_url()
    async with (
        opened(url, patience_seconds=WAIT, lookup_seconds=WAIT) as one,
        opened(url, patience_seconds=WAIT, lookup_seconds=WAIT) as other,
    ):
        acknowledged: dict[str, int] = {}
        done = asyncio.Semaphore(0)
        stop = asyncio.Event()

        async def keep_writing(hub: SharedLogStore, name: str) -> None:
            for number in itertools.count():
                if stop.is_set():
                    return
                key = f"k/{name}/{number}"
                acknowledged[key] = (await hub.create(key, b"x" * 100)).revision
                done.release()

        async def more(count: int) -> None:
            for _ in range(count):
                await done.acquire()

        async with asyncio.timeout(2 * WAIT), one.watch("", after=0) as first, other.watch("", after=0) as second:
            async with asyncio.TaskGroup() as group:
                for hub, name in itertools.product((one, other), "abcd"):
                    group.create_task(keep_writing(hub, f"{hub is one}-{name}"))
                for _ in range(2):
                    await more(100)
                    await asyncio.to_thread(server.stop)
                    await asyncio.to_thread(server.start)
                await more(200)
                stop.set()
            newest = await one.revision()
            everything = list(range(1, newest + 1))
            assert await take(first, newest) == everything
            assert await take(second, newest) == everything
        stored = {record.key: record.revision for record in (await one.list("k/")).records}
        assert stored == acknowledged  # each once, and none that nobody was told of


async def test_a_server_that_stays_away_is_said_to_and_found_again(server: Server) -> None:
    async with opened(server.new_url(), patience_seconds=0.2) as store:
        await store.create("a", b"")
        await asyncio.to_thread(server.stop)
        try:
            for attempt in (store.create("b", b""), store.get("a"), store.list(""), store.revision()):
                with pytest.raises(UnavailableError, match="cannot be used"):
                    await attempt
        finally:
            await asyncio.to_thread(server.start)
        assert (await store.create("b", b"")).revision == 2
        assert [record.key for record in (await store.list("")).records] == ["a", "b"]


class Cut:
    """A way to the server that breaks at a COMMIT: before it arrives, or once the server has carried it out."""

    def __init__(self, server: Server, *, carried_out: bool) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="skerry-cut-"))
        self.armed = threading.Event()
        self.cuts = 0
        self._target = str(server.directory / ".s.PGSQL.5432")
        self._carried_out = carried_out
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(self.directory / ".s.PGSQL.5432"))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()
        (self.directory / ".s.PGSQL.5432").unlink()
        self.directory.rmdir()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.connect(self._target)
        threading.Thread(target=self._answer, args=(server, client), daemon=True).start()
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if b"COMMIT\0" in data and self.armed.is_set():
                    self.armed.clear()
                    self.cuts += 1
                    client.shutdown(socket.SHUT_RDWR)
                    if not self._carried_out:
                        break
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    @staticmethod
    def _answer(server: socket.socket, client: socket.socket) -> None:
        with server, client, contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)


@pytest.mark.parametrize("carried_out", [True, False])
async def test_a_commit_whose_answer_was_lost_is_looked_up(server: Server, carried_out: bool) -> None:
    url = server.new_url()
    cut = Cut(server, carried_out=carried_out)
    broken = url.replace(str(server.directory).replace("/", "%2F"), str(cut.directory).replace("/", "%2F"))
    assert broken != url
    try:
        async with opened(broken) as store, opened(url) as other, other.watch("", after=0) as changes:
            await store.create("before", b"")
            for number in range(3):
                cut.armed.set()
                record = await store.create(f"k/{number}", b"1")  # told the truth, and not twice
                assert record.revision == number + 2
            assert cut.cuts == 3
            assert await take(changes, 4) == [1, 2, 3, 4]
            assert [r.revision for r in (await store.list("k/")).records] == [2, 3, 4]
    finally:
        cut.close()


async def test_sessions_that_are_ended_are_replaced(server: Server) -> None:
    url = server.new_url()
    async with opened(url) as one, opened(url) as other, other.watch("", after=0) as changes:
        for number in range(3):
            await one.create(f"k/{number}", b"")
            assert await take(changes, 1) == [number + 1]
            server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'skerry-hub'"
            )
        assert (await one.list("k/")).remaining == 0
        await one.create("last", b"")
        assert await take(changes, 1) == [4]


async def test_a_backup_put_in_its_place_is_noticed(server: Server) -> None:
    schema = server.new_schema()
    async with opened(server.url(schema), notified=DEAF) as store:
        await store.create("a", b"")
        await store.create("b", b"")
        server.execute("DELETE FROM log WHERE revision = 2", schema=schema)
        with pytest.raises(IntegrityError, match="ends at revision 1"):
            await store.create("c", b"")


async def test_a_later_schema_is_refused_and_an_older_one_brought_up_to_date(server: Server) -> None:
    schema = server.new_schema()
    async with opened(server.url(schema)) as store:
        await store.create("a", b"")
    server.execute("UPDATE facts SET number = 1 WHERE name = 'schema'", schema=schema)
    server.execute("DELETE FROM facts WHERE name = 'term'", schema=schema)
    async with opened(server.url(schema)) as store:
        assert (await store.begin_term(), await store.revision()) == (1, 1)
    assert server.query("SELECT number FROM facts WHERE name = 'schema'", schema=schema) == [(SCHEMA_VERSION,)]
    server.execute(f"UPDATE facts SET number = {SCHEMA_VERSION + 1} WHERE name = 'schema'", schema=schema)
    with pytest.raises(UnsupportedError, match=f"schema version {SCHEMA_VERSION + 1}"):
        async with opened(server.url(schema)):
            raise AssertionError("opened")


async def test_a_schema_of_something_else_is_refused(server: Server) -> None:
    schema = server.new_schema()
    server.execute("CREATE TABLE customers (name text)", schema=schema)
    with pytest.raises(UnsupportedError, match="other tables"):
        async with opened(server.url(schema)):
            raise AssertionError("opened")


async def test_hubs_that_start_at_the_same_time_make_one_store(server: Server) -> None:
    url = server.new_url()
    async with contextlib.AsyncExitStack() as stack:
        hubs = await asyncio.gather(*(stack.enter_async_context(opened(url)) for _ in range(4)))
        records = await asyncio.gather(*(hub.create(f"k/{n}", b"") for n, hub in enumerate(hubs)))
        assert sorted(record.revision for record in records) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://u@db.example.org/d?sslmode=disable", "plain text"),
        ("postgresql://u@db.example.org/d?sslmode=prefer", "plain text"),
        ("postgresql://u@127.0.0.1,db.example.org/d?sslmode=allow", "plain text"),
        ("postgresql://u@localhost/d?hostaddr=192.0.2.1&sslmode=disable", "plain text"),
        ("postgresql://u@h/d?nonsense=1", "not an address"),
        ("postgresql://[", "not an address"),
        ("postgresql://u@/d?service=elsewhere", "names a service"),
    ],
)
def test_an_address_that_is_unsafe_or_none_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(InvalidError, match=sentence):
        address.read(url)


def test_what_the_environment_says_does_not_get_around_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example.org")
    monkeypatch.setenv("PGSSLMODE", "disable")
    assert address.read("postgresql://u@/d").parameters["sslmode"] == "verify-full"
    assert "sslmode" not in address.read("postgresql://u@localhost/d").parameters
    monkeypatch.setenv("PGSERVICE", "elsewhere")
    with pytest.raises(InvalidError, match="names a service"):
        address.read("postgresql://u@localhost/d")


def test_over_a_network_the_servers_certificate_is_verified() -> None:
    remote = address.read("postgresql://u@db.example.org/d", password="secret")
    assert (remote.parameters["sslmode"], remote.parameters["sslrootcert"]) == ("verify-full", "system")
    assert remote.parameters["password"] == "secret"
    assert "secret" not in f"{remote!r}{remote}{remote.shown}"
    assert "sslmode" not in address.read("postgresql://u@localhost/d").parameters
    assert "sslmode" not in address.read("postgresql:///d?host=/run/postgresql").parameters


async def test_a_server_that_is_not_there_is_one_sentence_without_the_password(tmp_path: Path) -> None:
    url = f"postgresql://skerry@/d?host={str(tmp_path).replace('/', '%2F')}"
    with pytest.raises(UnavailableError, match="cannot be used") as caught:
        async with open_store(address.read(url, password="secret")):
            raise AssertionError("opened")
    assert "secret" not in str(caught.value)
    assert str(tmp_path) in caught.value.element


async def test_a_page_of_a_long_list_costs_its_own_length(server: Server) -> None:
    """Also once the server knows how long the list is; a plan that goes through all of it is none."""
    schema, many = server.new_schema(), 20_000
    async with opened(server.url(schema)) as store:
        await store.create("devices/first", b"")
        server.execute(
            f"INSERT INTO log SELECT n, 'devices/' || lpad(n::text, 8, '0'), n, 0, false, '' "
            f"FROM generate_series(2, {many}) n",
            schema=schema,
        )
        server.execute("ANALYZE log", schema=schema)
        statement = str(statements.LIST_PAGE.compile(dialect=psycopg_dialect()))
        values = {"start": "devices/00010000", "end": "devices0", "revision": many, "limit": 500}
        with address.read(server.url(schema)).connect() as connection:
            plan = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values).fetchone()  # type: ignore
        assert plan is not None
        assert touched(plan[0][0]["Plan"]) <= 2 * 500 + 10


def touched(plan: dict[str, Any]) -> int:
    """Return how many rows the plan's scans went through."""
    below = plan.get("Plans", [])
    own = 0 if below else (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return int(own) + sum(touched(one) for one in below)


async def test_an_exception_in_the_body_passes_as_it_is(server: Server) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with opened(server.new_url()):
            raise KeyError("mine")
