"""A store that is full, or damaged, when a hub takes over: it waits for it to be mended, and leads then."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tests.postgresql import Server, running

from skerry.api.errors import IntegrityError, SkerryError, StorageFullError
from skerry.drivers.store import address
from skerry.drivers.store.election import AdvisoryElection, ElectionSettings
from skerry.drivers.store.postgresql import open_store
from skerry.drivers.store.shared import Fence, FencedStore
from skerry.hub import leadership

WAIT = 30.0
EAGER = ElectionSettings(lease_seconds=20.0, renew_seconds=0.05, retry_seconds=0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.mark.parametrize(("state", "kind"), [("53100", StorageFullError), ("XX001", IntegrityError)])
async def test_a_hub_that_cannot_write_down_that_it_leads_tries_again(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    state: str,
    kind: type[SkerryError],
) -> None:
    monkeypatch.setattr(leadership, "PAUSE_SECONDS", 0.05)
    caplog.set_level(logging.WARNING)
    schema = server.new_schema()
    place = address.read(server.url(schema))
    async with asyncio.timeout(WAIT), open_store(place) as store:
        full = f"RAISE EXCEPTION 'could not extend file' USING ERRCODE = '{state}'"
        server.execute(
            f"CREATE FUNCTION full_() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {full}; END $$", schema=schema
        )
        server.execute(
            "CREATE TRIGGER full_ BEFORE INSERT ON log FOR EACH STATEMENT EXECUTE FUNCTION full_()", schema=schema
        )
        election, fence = AdvisoryElection(place, store, EAGER), Fence()
        led = FencedStore(store, fence)
        outcomes: asyncio.Queue[SkerryError | int] = asyncio.Queue()

        async def lead(term: int) -> None:
            try:
                await leadership.announce(led, leadership.Leader(holder="a", host="h", url="https://a", term=term))
            except SkerryError as error:
                outcomes.put_nowait(error)
                raise
            outcomes.put_nowait(term)
            await asyncio.Event().wait()

        leading = asyncio.create_task(leadership.run(election, fence, lead))
        try:
            for _ in range(2):
                assert isinstance(await outcomes.get(), kind)
            server.execute("DROP TRIGGER full_ ON log", schema=schema)
            while not isinstance(found := await outcomes.get(), int):
                assert isinstance(found, kind)
            assert fence.term == found >= 3
            assert "leadership.given_up" in caplog.text
        finally:
            leading.cancel()
            with suppress(asyncio.CancelledError):
                await leading
        assert fence.term is None


class Sole:
    """An election that this hub has won, whatever happens."""

    async def campaign(self) -> int:
        return 1

    async def hold(self, term: int) -> None:
        await asyncio.Event().wait()

    async def resign(self) -> None:
        return


async def test_a_hub_that_is_stopped_while_its_work_fails_stops() -> None:
    """The group of the work raises what failed, and says nothing of its having been cancelled."""
    ending, go = asyncio.Event(), asyncio.Event()

    async def lead(_term: int) -> None:
        async def slow() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ending.set()
                await go.wait()  # it takes a moment to end

        async with asyncio.TaskGroup() as group:
            group.create_task(slow())
            await asyncio.sleep(0)
            raise StorageFullError(element="store")

    running = asyncio.create_task(leadership.run(Sole(), Fence(), lead))
    await ending.wait()
    running.cancel()
    await asyncio.sleep(0)
    go.set()
    await asyncio.wait([running], timeout=WAIT)
    assert running.cancelled()
