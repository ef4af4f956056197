"""A store copied into another one, from a file to PostgreSQL and back: nobody can tell the difference."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.postgresql import Server, running
from typer.testing import CliRunner

from skerry.api.errors import ConflictError, ExpiredError, InvalidError, NotFoundError, UnavailableError
from skerry.cli.main import app
from skerry.core.ports import Change
from skerry.drivers.store import address, copying, postgresql, sqlite
from skerry.drivers.store.logstore import LogStore
from skerry.hub import stores
from skerry.hub.stores import Passwords

WAIT = 20.0
MANY = copying.PAGE + 30


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@asynccontextmanager
async def opened(place: str) -> AsyncIterator[LogStore]:
    opening: AbstractAsyncContextManager[Any] = (
        postgresql.open_store(address.read(place))
        if place.startswith("postgresql:")
        else sqlite.open_store(Path(place) / "hub.db")
    )
    async with opening as store:
        yield store


async def fill(place: str) -> None:
    async with opened(place) as store:
        await asyncio.gather(*(store.create(f"k/{number}", bytes([number % 256])) for number in range(MANY)))
        for number in range(20):
            record = await store.get(f"k/{number}")
            assert record is not None
            await store.update(record.key, b"changed", expected=record.revision)
        await store.compact(MANY + 10)
        await store.create("late", b"")
        await store.delete("k/20")


async def picture(place: str) -> tuple[Any, ...]:
    """Return all that can be asked of a store."""
    async with opened(place) as store:
        newest = await store.revision()
        with pytest.raises(ExpiredError):
            await store.list("", revision=MANY + 9)
        lists = [(await store.list("", revision=at)).records for at in range(MANY + 10, newest + 1)]
        async with asyncio.timeout(WAIT), store.watch("", after=MANY + 10) as changes:
            told: list[Change] = [await anext(changes) for _ in range(newest - MANY - 10)]
        return newest, lists, told


def copy(source: str, target: str, said: Callable[[int], None] = lambda _: None) -> int:
    return stores.copy(source, target, passwords=Passwords(), said=said)


async def test_a_copy_tells_the_same_story(server: Server, tmp_path: Path) -> None:
    first, shared, last = str(tmp_path / "first"), server.new_url(), str(tmp_path / "last")
    await fill(first)
    story = await picture(first)
    counts: list[int] = []
    assert await asyncio.to_thread(copy, first, shared, counts.append) == story[0]
    assert counts[-1] > copying.PAGE
    assert await picture(shared) == story
    await asyncio.to_thread(copy, shared, last)
    assert await picture(last) == story
    async with opened(shared) as store:
        assert (await store.create("next", b"")).revision == story[0] + 1


async def test_only_an_empty_store_is_copied_into(server: Server, tmp_path: Path) -> None:
    first, shared = str(tmp_path / "first"), server.new_url()
    await fill(first)
    async with opened(shared) as store:
        await store.create("theirs", b"")
        await store.delete("theirs")
    with pytest.raises(ConflictError, match="not empty"):
        await asyncio.to_thread(copy, first, shared)
    async with opened(shared) as store:
        assert await store.revision() == 2


async def test_a_source_that_is_not_there_is_not_made(server: Server, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="has no store"):
        await asyncio.to_thread(copy, str(tmp_path / "nowhere"), server.new_url())
    assert not (tmp_path / "nowhere").exists()


async def test_a_copy_that_breaks_leaves_the_target_empty(server: Server, tmp_path: Path) -> None:
    first, shared = str(tmp_path / "first"), server.new_url()
    await fill(first)

    def interrupted(copied: int) -> None:
        if copied > copying.PAGE:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(first, shared, interrupted)
    async with opened(shared) as store:
        assert await store.revision() == 0
    assert copy(first, shared) == MANY + 22


def test_a_password_on_the_command_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="does not belong on the command line"):
        copy(str(tmp_path), "postgresql://skerry:geheim@db/skerry")


async def test_a_store_that_is_in_use_is_not_copied(server: Server, tmp_path: Path) -> None:
    first = str(tmp_path / "first")
    async with opened(first):
        with pytest.raises(UnavailableError, match="in use by another hub"):
            await asyncio.to_thread(copy, first, server.new_url())


def test_the_command_says_what_it_did(server: Server, tmp_path: Path) -> None:
    first, shared = str(tmp_path / "first"), server.new_url()
    asyncio.run(fill(first))
    result = CliRunner().invoke(app, ["hub", "store", "copy", first, shared])
    assert result.exit_code == 0, result.output
    assert f"up to revision {MANY + 22}" in " ".join(result.output.split())
