"""One of several hubs on one store leads: it alone runs the controllers and talks to the devices.

The others answer the API and wait. A leader that finds itself replaced ends what it was doing; until it has, the store
refuses what it writes, for its term is over. Must not live here: how the leader is found (`drivers.store.election`),
what a leader does (`duties`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from skerry.api.errors import AlreadyExistsError, ConflictError, NotFoundError, SkerryError
from skerry.api.meta import Struct
from skerry.core.ports import Record, Store
from skerry.hub.controllers.informer import Informer

log = logging.getLogger(__name__)

PREFIX = "hub/"
KEY = f"{PREFIX}leader"
PAUSE_SECONDS = 1.0
"""After a hub could not do a leader's work, for another one to try."""


class Election(Protocol):
    """Says which hub leads: at most one of them in each term, and a later term ends the earlier ones."""

    async def campaign(self) -> int:
        """Wait until this hub leads, and return its term."""
        ...

    async def hold(self, term: int) -> None:
        """Return when the term is over."""
        ...

    async def resign(self) -> None:
        """Let another hub lead; without a term it does nothing."""
        ...


class Fence(Protocol):
    """What a leader's writes pass; closed where `term` is None."""

    term: int | None


class Leader(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Who leads, as the others may know it."""

    holder: str
    """Made up by the process that leads; several hubs may be reached under one URL."""
    host: str
    url: str
    term: int
    address: str = ""
    """Host and port where other hubs reach this one; empty: as `url` says."""


async def run(election: Election, fence: Fence, lead: Callable[[int], Awaitable[None]]) -> None:
    """Campaign, and do a leader's work while this hub leads; forever.

    Work that fails with a SkerryError is left to another hub, or tried again, as a store that is full or damaged may be
    mended meanwhile and answers reads until then; every other failure is the hub's.
    """
    try:
        while True:
            term = await election.campaign()
            log.info("leadership.acquired term=%d", term)
            fence.term = term
            try:
                await _until_lost(election, term, lead)
            except* SkerryError as group:
                log.warning("leadership.given_up term=%d cause=%s", term, _first(group))
            finally:
                fence.term = None
                await election.resign()
            log.warning("leadership.ended term=%d", term)
            _stop_if_told()
            await asyncio.sleep(PAUSE_SECONDS)
    finally:
        await election.resign()


async def _until_lost(election: Election, term: int, lead: Callable[[int], Awaitable[None]]) -> None:
    async def work() -> None:
        await lead(term)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(), name="lead"), group.create_task(election.hold(term), name="hold")]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


def _stop_if_told() -> None:
    """Raise what a group forgets that was cancelled while tasks of it failed: it raises their errors alone."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def announce(store: Store, leader: Leader) -> None:
    """Write down who leads. Raises UnavailableError when another hub leads by now."""
    value = msgspec.json.encode(leader)
    while True:
        found = await store.get(KEY)
        try:
            if found is None:
                await store.create(KEY, value)
            else:
                await store.update(KEY, value, expected=found.revision)
        except (AlreadyExistsError, ConflictError, NotFoundError):
            continue
        return


async def follow(store: Store, told: Callable[[Leader | None], None]) -> None:
    """Tell who leads, now and whenever it changes; forever."""

    def changed(_old: Leader | None, new: Leader | None) -> None:
        told(new)

    await Informer(store, KEY, _decode, changed).run()


def _decode(record: Record) -> Leader:
    return msgspec.json.decode(record.value, type=Leader)
