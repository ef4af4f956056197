"""Compaction beside writes: what is obsolete is found without the log's lock, and looked at again with it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from tests.postgresql import Server, running

from skerry.drivers.store import address, database, log, logstore, postgresql, sqlite
from skerry.drivers.store.database import LogDatabase
from skerry.drivers.store.writer import LogWriter

Locked = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[LogDatabase, Locked]]:
    """A log, and somebody else's lock that keeps everybody from writing it."""
    if request.param == "sqlite":

        @contextmanager
        def locked() -> Iterator[None]:
            with closing(sqlite3.connect(tmp_path / "hub.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                yield

        with sqlite.open_database(tmp_path / "hub.db") as opened:
            yield opened, locked
        return
    url = request.getfixturevalue("server").new_url()

    @contextmanager
    def held() -> Iterator[None]:
        with psycopg.connect(url) as other:
            other.execute("SELECT pg_advisory_xact_lock(%s, hashtext(current_schema()))", (postgresql._LOG_LOCK,))
            yield

    with postgresql.open_database(address.read(url)) as opened:
        yield opened, held


def fill(opened: LogDatabase) -> None:
    """Revisions 1 to 6; obsolete as of 5 are 1 (replaced by 4), 2 and 5 (deleted)."""
    writer = LogWriter(opened, 0)
    verbs = {"+": "create", "~": "update", "-": "delete"}
    for step in ("+a", "+b", "+c", "~a", "-b", "~c"):
        verb, key = verbs[step[0]], step[1]
        progress = writer.take_turn([log.Write(verb=verb, key=key)], {})  # type: ignore[arg-type]
        assert progress.error is None
    assert progress.reached == 6


def test_what_is_obsolete_is_found_while_somebody_else_writes(place: tuple[LogDatabase, Locked]) -> None:
    opened, locked = place
    fill(opened)
    with locked():
        assert opened.find_obsolete(5, 0) == [1, 2, 5]
        assert opened.find_obsolete(5, 2) == [5]
        assert opened.find_obsolete(6, 0) == [1, 2, 3, 5]


def test_only_what_is_obsolete_is_removed(place: tuple[LogDatabase, Locked]) -> None:
    opened, _ = place
    fill(opened)
    opened.remove_obsolete(5, [1, 2, 3, 4, 5, 6])
    assert [row.revision for row in opened.rows(0, 6, 10)] == [3, 4, 6]
    opened.remove_obsolete(5, [1, 2, 5])  # another hub was faster
    assert [row.revision for row in opened.rows(0, 6, 10)] == [3, 4, 6]


async def test_every_slice_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "COMPACTION_SLICE", 2)
    monkeypatch.setattr(logstore, "COMPACTION_SLICE", 2)
    async with sqlite.open_store(tmp_path / "hub.db") as store:
        record = await store.create("k", b"0")
        for number in range(7):
            record = await store.update("k", b"%d" % number, expected=record.revision)
        await store.compact(record.revision)
    with sqlite.open_database(tmp_path / "hub.db") as opened:
        assert [row.revision for row in opened.rows(0, 100, 100)] == [record.revision]
