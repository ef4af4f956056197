"""Several hubs on one PostgreSQL against the same plain list: whichever of them is asked, the answers are the same."""

from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from tests.contract.test_store_stateful import StoreMachine
from tests.postgresql import Server, running

from skerry.drivers.store import address
from skerry.drivers.store.logstore import LogSettings, LogStore
from skerry.drivers.store.postgresql import PostgresqlSettings, open_store

HUBS = 3


class SharedStoreMachine(StoreMachine):
    server: ClassVar[Server]

    def __init__(self) -> None:
        super().__init__()
        self.url = self.server.new_url()

    async def _open_store(self, log: LogSettings) -> LogStore:
        self.stores = [
            await self.stack.enter_async_context(open_store(address.read(self.url), PostgresqlSettings(log=log)))
            for _ in range(HUBS)
        ]
        return self.stores[0]

    @rule(number=st.integers(0, HUBS - 1))
    def go_to(self, number: int) -> None:
        self.store = self.stores[number]


SharedStoreMachine.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with running() as found:
        SharedStoreMachine.server = found
        yield


TestSharedStore = SharedStoreMachine.TestCase
