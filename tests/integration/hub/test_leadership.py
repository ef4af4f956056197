"""Who leads, by a real PostgreSQL: one at a time, through restarts, and what a leader does when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from tests.postgresql import Server, running

from skerry.api.errors import UnavailableError
from skerry.drivers.store import address
from skerry.drivers.store.election import AdvisoryElection, ElectionSettings
from skerry.drivers.store.postgresql import PostgresqlSettings, open_store
from skerry.drivers.store.shared import Fence, FencedStore, SharedLogStore
from skerry.hub import leadership

WAIT = 30.0
EAGER = ElectionSettings(lease_seconds=20.0, renew_seconds=0.05, retry_seconds=0.05)
_END_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'skerry-hub'"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@dataclass(frozen=True)
class Hub:
    store: SharedLogStore
    election: AdvisoryElection
    fence: Fence

    @property
    def led(self) -> FencedStore:
        return FencedStore(self.store, self.fence)


@asynccontextmanager
async def hub(url: str, settings: ElectionSettings = EAGER) -> AsyncIterator[Hub]:
    place = address.read(url)
    async with open_store(place, PostgresqlSettings(patience_seconds=WAIT)) as store:
        election = AdvisoryElection(place, store, settings)
        try:
            yield Hub(store, election, Fence())
        finally:
            await election.resign()


@asynccontextmanager
async def task(coroutine: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    running = asyncio.create_task(coroutine)
    try:
        yield running
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_one_leads_until_it_resigns(server: Server) -> None:
    url = server.new_url()
    async with asyncio.timeout(WAIT), hub(url) as one, hub(url) as other:
        assert await one.election.campaign() == 1
        async with task(other.election.campaign()) as waiting:
            done, _ = await asyncio.wait([waiting], timeout=0.3)
            assert not done
            await one.election.resign()
            assert await waiting == 2


async def test_a_leader_keeps_its_term_over_a_restart_when_nobody_else_wants_it(server: Server) -> None:
    async with asyncio.timeout(2 * WAIT), hub(server.new_url()) as one:
        term = await one.election.campaign()
        async with task(one.election.hold(term)) as holding:
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            one.fence.term = term
            await one.led.create("k", b"")  # waits for the server; it is still this hub's term
            async with hub(server.url()) as elsewhere:  # in another schema, somebody else leads
                assert await elsewhere.election.campaign() == 1
            assert not holding.done()


async def test_a_leader_whose_lock_another_one_took_is_told_so(server: Server) -> None:
    url = server.new_url()
    async with asyncio.timeout(WAIT), hub(url) as one, hub(url) as other:
        term = await one.election.campaign()
        slow = AdvisoryElection(address.read(url), one.store, ElectionSettings(renew_seconds=1.0))
        slow._session, one.election._session = one.election._session, None
        async with task(slow.hold(term)) as holding:
            server.execute(_END_SESSIONS)
            assert await other.election.campaign() == term + 1
            await holding
        await slow.resign()
        one.fence.term = term
        with pytest.raises(UnavailableError, match="another hub leads"):
            await one.led.create("k", b"")


async def test_a_leader_that_hears_nothing_from_the_server_gives_up(server: Server) -> None:
    settings = ElectionSettings(lease_seconds=0.5, renew_seconds=0.05, retry_seconds=0.05)
    async with asyncio.timeout(2 * WAIT), hub(server.new_url(), settings) as one:
        term = await one.election.campaign()
        async with task(one.election.hold(term)) as holding:
            await asyncio.to_thread(server.stop)
            try:
                await holding  # by its own clock
            finally:
                await asyncio.to_thread(server.start)
        assert await one.election.campaign() == term + 1


async def test_a_leader_that_says_nothing_is_replaced_by_the_server(server: Server) -> None:
    url = server.new_url()
    short = ElectionSettings(lease_seconds=0.5, renew_seconds=0.05, retry_seconds=0.05)
    async with asyncio.timeout(WAIT), hub(url, short) as silent, hub(url) as other:
        assert await silent.election.campaign() == 1  # and nobody holds it, as if its process stood still
        assert await other.election.campaign() == 2


class Work:
    """A leader's work that tells when it is at it."""

    def __init__(self, fails: Callable[[int], BaseException | None] = lambda _: None) -> None:
        self.terms: asyncio.Queue[int] = asyncio.Queue()
        self.at_it = 0
        self._fails = fails

    async def __call__(self, term: int) -> None:
        self.at_it += 1
        self.terms.put_nowait(term)
        try:
            failure = self._fails(term)
            if failure is not None:
                raise failure
            await asyncio.Event().wait()
        finally:
            self.at_it -= 1


async def test_work_is_done_by_one_hub_at_a_time_and_handed_over(server: Server) -> None:
    url, work = server.new_url(), [Work(), Work()]
    async with (
        asyncio.timeout(WAIT),
        hub(url) as one,
        hub(url) as other,
        task(leadership.run(one.election, one.fence, work[0])) as first,
    ):
        assert await work[0].terms.get() == 1
        async with task(leadership.run(other.election, other.fence, work[1])):
            assert (one.fence.term, other.fence.term, work[1].at_it) == (1, None, 0)
            first.cancel()
            assert await work[1].terms.get() == 2
            assert (one.fence.term, other.fence.term, work[0].at_it) == (None, 2, 0)


async def test_work_that_cannot_be_done_here_is_left_to_another_hub(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "PAUSE_SECONDS", 1.0)
    url = server.new_url()
    failing, able = Work(lambda _: UnavailableError("port in use", element="broker")), Work()
    async with (
        asyncio.timeout(WAIT),
        hub(url) as one,
        hub(url) as other,
        task(leadership.run(one.election, one.fence, failing)),
    ):
        assert await failing.terms.get() == 1
        async with task(leadership.run(other.election, other.fence, able)):
            assert await able.terms.get() >= 2


async def test_work_with_a_defect_ends_the_hub(server: Server) -> None:
    async with asyncio.timeout(WAIT), hub(server.new_url()) as one:
        with pytest.raises(ExceptionGroup) as caught:
            await leadership.run(one.election, one.fence, Work(lambda _: ZeroDivisionError("a defect")))
        assert caught.group_contains(ZeroDivisionError)
        assert one.fence.term is None


async def test_who_leads_is_written_down_for_the_others(server: Server) -> None:
    url = server.new_url()
    async with asyncio.timeout(WAIT), hub(url) as one, hub(url) as other:
        told: asyncio.Queue[leadership.Leader | None] = asyncio.Queue()
        async with task(leadership.follow(other.store, told.put_nowait)):
            for term, url in ((1, "https://one"), (2, "https://two")):
                one.fence.term = await one.store.begin_term()
                leader = leadership.Leader(holder=url, host="here", url=url, term=term)
                await leadership.announce(one.led, leader)
                assert await told.get() == leader
