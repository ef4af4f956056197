"""Hearing of what other hubs wrote: PostgreSQL's NOTIFY, and a look now and then in case it fails.

A notification says only that there is news; what it is is read from the log. So one that is lost costs time, and one
that comes twice costs nothing. Must not live here: reading the news (`shared`).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from skerry.api.errors import SkerryError
from skerry.drivers.store.address import Address
from skerry.drivers.store.shared import SharedLogStore

CHANNEL = "skerry_log"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How news is heard of."""

    listen: bool = True
    """False where notifications do not arrive, as behind a pool of transactions."""
    poll_seconds: float = 5.0
    """Between looks where no notification came."""
    retry_seconds: float = 0.5
    """Between attempts to listen again; the looks go on meanwhile."""


def payload(revision: int, sender: str) -> str:
    """Return a notification's text."""
    return f"{revision} {sender}"


async def follow(store: SharedLogStore, address: Address, settings: Settings, *, own: str) -> None:
    """Keep the store up to date with what others write, forever; notifications by the sender `own` are skipped."""
    if not settings.listen:
        while True:
            await asyncio.sleep(settings.poll_seconds)
            await _look(store)
    heard = True
    while True:
        try:
            await _listen(store, address, settings, own)
        except psycopg.Error as error:
            if heard:
                log.warning("store.not_listening cause=%s", " ".join(str(error).split())[:200])
            heard = False
        await asyncio.sleep(settings.retry_seconds)
        await _look(store)


async def _listen(store: SharedLogStore, address: Address, settings: Settings, own: str) -> None:
    connection = await address.connect_async()
    async with connection:
        await connection.execute(f"LISTEN {CHANNEL}")
        await _look(store)
        while True:
            async for notification in connection.notifies(timeout=settings.poll_seconds):
                revision, _, sender = notification.payload.partition(" ")
                if sender != own and revision.isdigit() and int(revision) > store.followed:
                    await _look(store)
            await _look(store)


async def _look(store: SharedLogStore) -> None:
    with suppress(SkerryError):  # the store says so itself to whoever asks, and the next look is due soon
        await store.follow()
