"""What anybody in the database may say on the hubs' channel ends no hub and hides no news."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.postgresql import Server, running

from skerry.drivers.store import address, notifications, postgresql

WAIT = 30.0
ODD = ["9" * 5000, "9" * 20, "-1 x", "+1 x", "1.0 x", "\u00b2 x", "\u0661 x", "", " ", "x", "1_0 x", " 1 x"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.mark.parametrize("text", ODD)
def test_what_no_hub_says_is_none(text: str) -> None:
    assert notifications.read_payload(text) is None


@given(st.integers(0, (1 << 63) - 1), st.text("0123456789abcdef", min_size=16, max_size=16))
def test_what_a_hub_says_is_read_back(revision: int, sender: str) -> None:
    assert notifications.read_payload(notifications.payload(revision, sender)) == (revision, sender)


@given(st.text())
def test_anything_else_is_a_number_or_nothing(text: str) -> None:
    found = notifications.read_payload(text)
    assert found is None or 0 <= found[0] < 10**19


async def test_a_hub_hears_news_after_whatever_else_was_said(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    place = address.read(server.new_url())
    # Looks now and then would find the news too: only a connection that still listens finds it in time.
    hearing = postgresql.PostgresqlSettings(
        notifications=notifications.Settings(poll_seconds=1000.0, retry_seconds=900.0)
    )
    async with (
        asyncio.timeout(WAIT),
        postgresql.open_store(place) as one,
        postgresql.open_store(place, hearing) as other,
        other.watch("", after=0) as changes,
    ):
        await one.create("a", b"")
        assert (await anext(changes)).revision == 1
        with psycopg.connect(server.url(), autocommit=True) as stranger:
            for text in ODD:
                stranger.execute("SELECT pg_notify(%s, %s)", (notifications.CHANNEL, text))
        await one.create("b", b"")
        assert (await anext(changes)).revision == 2
    assert "store.odd_notification" in caplog.text
