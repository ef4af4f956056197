"""Which of several hubs on one PostgreSQL leads: the one whose session holds an advisory lock.

The server gives the lock up with the session: at once when the process ends, and after `lease_seconds` without a word
when it stands still or its machine is gone. Holding the lock is not proof enough for a write, which may have been on
its way for longer; so each leader begins a term, and the log refuses writes of earlier ones. Must not live here: what a
leader does (`hub.leadership`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any

import psycopg

from skerry.api.errors import SkerryError
from skerry.drivers.store.address import Address
from skerry.drivers.store.shared import SharedLogStore

log = logging.getLogger(__name__)

_LEADER_LOCK = 1936421484  # another class of advisory locks than the log's
_TRY = f"SELECT pg_try_advisory_lock({_LEADER_LOCK}, hashtext(current_schema()))"
_TERM = "SELECT number FROM facts WHERE name = 'term'"


@dataclass(frozen=True, kw_only=True)
class ElectionSettings:
    """How soon another hub takes over."""

    lease_seconds: float = 10.0
    """Without a word from the leader, the server ends its session; without a word from the server, it stops leading."""
    renew_seconds: float = 2.0
    """Between two words."""
    retry_seconds: float = 1.0
    """Between two attempts to lead."""


class AdvisoryElection:
    """Implements `hub.leadership.Election`."""

    def __init__(self, address: Address, store: SharedLogStore, settings: ElectionSettings | None = None) -> None:
        self._address = address
        self._store = store
        self._settings = settings or ElectionSettings()
        self._session: psycopg.AsyncConnection[Any] | None = None

    async def campaign(self) -> int:
        """Wait until this hub leads, and return its term."""
        while True:
            try:
                self._store.check()
                async with asyncio.timeout(self._settings.lease_seconds):
                    if await self._try():
                        return await self._store.begin_term()
            except (psycopg.Error, OSError, TimeoutError, SkerryError) as error:
                log.warning("election.unreachable cause=%s", " ".join(str(error).split())[:200])
                await self.resign()
            await asyncio.sleep(self._settings.retry_seconds)

    async def hold(self, term: int) -> None:
        """Keep the term for as long as possible, and return when it is over."""
        renewed = time.monotonic()
        while time.monotonic() < renewed + self._settings.lease_seconds:
            await asyncio.sleep(self._settings.renew_seconds)
            asked = time.monotonic()
            try:
                self._store.check()
                async with asyncio.timeout(max(0.1, renewed + self._settings.lease_seconds - asked)):
                    if not await self._still(term):
                        return
            except SkerryError as error:
                log.error("election.given_up term=%d cause=%s", term, error)
                return
            except (psycopg.Error, OSError, TimeoutError) as error:
                log.warning("election.not_renewed term=%d cause=%s", term, " ".join(str(error).split())[:200])
                await self.resign()
            else:
                renewed = asked

    async def resign(self) -> None:
        """Let another hub lead."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _try(self) -> bool:
        """Return whether the lock is this hub's; without a session it opens one."""
        if self._session is None:
            milliseconds = int(self._settings.lease_seconds * 1000)
            self._session = await self._address.connect_async(idle_session_timeout=str(milliseconds))
        cursor = await self._session.execute(_TRY)
        return bool((await cursor.fetchone() or (False,))[0])

    async def _still(self, term: int) -> bool:
        """Return whether nobody else leads; a session that was lost, as when the server restarts, is replaced."""
        if self._session is None and not await self._try():
            return False
        assert self._session is not None
        cursor = await self._session.execute(_TERM)
        return await cursor.fetchone() == (term,)
