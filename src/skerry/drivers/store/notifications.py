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
_MAX_DIGITS = 19
"""Of a revision, a signed number of 64 bits."""

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


def read_payload(text: str) -> tuple[int, str] | None:
    """Return a notification's revision and sender; None for what no hub says. Anybody in the database may notify."""
    revision, _, sender = text.partition(" ")
    if not (revision.isascii() and revision.isdigit() and len(revision) <= _MAX_DIGITS):
        return None
    return int(revision), sender


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
        odd = False
        while True:
            async for notification in connection.notifies(timeout=settings.poll_seconds):
                heard = read_payload(notification.payload)
                if heard is None:
                    if not odd:  # once for each connection: whoever says this may say it often
                        log.warning("store.odd_notification pid=%d", notification.pid)
                    odd = True
                elif heard[1] != own and heard[0] > store.followed:
                    await _look(store)
            await _look(store)


async def _look(store: SharedLogStore) -> None:
    with suppress(SkerryError):  # the store says so itself to whoever asks, and the next look is due soon
        await store.follow()
