"""How long events are kept: an hour unless set otherwise, and no more of them than a bound, whoever writes them.

Beyond the bound the oldest go of the namespace that has most.

The store is listed once, then followed: what is due is known without looking at anything else. Must not live here:
writing events.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from contextlib import suppress
from datetime import datetime, timedelta

import msgspec

from skerry.api.errors import ConflictError, ExpiredError, NotFoundError, SkerryError
from skerry.api.kinds.event import Event
from skerry.api.meta import Struct
from skerry.core.ports import Change, Clock, Record, Store
from skerry.core.shares import Shed
from skerry.hub.objects import UNREADABLE, prefix_of

log = logging.getLogger(__name__)

TTL = timedelta(hours=1)
MAX_EVENTS = 50_000
"""Kept at the same time; beyond it some go before their time."""
_PAGE = 500
_RETRY_SECONDS = 1.0
_FARTHEST = 60.0
"""Seconds between two looks, at most: wall clocks are set."""


class _Meta(Struct, frozen=True, kw_only=True):
    creation_timestamp: datetime | None = None


class _Series(Struct, frozen=True, kw_only=True):
    last_observed_time: datetime | None = None


class _Dated(Struct, frozen=True, kw_only=True):
    """An Event, as far as it says when it was written."""

    metadata: _Meta = _Meta()
    last_timestamp: datetime | None = None
    series: _Series | None = None


class EventExpiry:
    """Removes events that are old, or too many; see `run`."""

    def __init__(
        self, store: Store, clock: Clock, *, ttl: timedelta = TTL, most: int = MAX_EVENTS, shed: Shed | None = None
    ) -> None:
        self._store, self._clock, self._ttl, self._most = store, clock, ttl, most
        self._prefix = prefix_of(Event)
        self._kept: OrderedDict[str, tuple[datetime, int]] = OrderedDict()
        """When each is due, and its revision; in the order in which they were written."""
        self._of = dict[str, OrderedDict[str, None]]()
        """The same keys in the same order, by namespace."""
        self._shed = shed or Shed()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._kept)

    async def run(self) -> None:
        """Follow and remove, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(), name="events-follow")
            group.create_task(self._remove(), name="events-remove")

    async def _follow(self) -> None:
        while True:
            try:
                revision = await self._list()
                async with self._store.watch(self._prefix, after=revision) as changes:
                    async for change in changes:
                        self._note(change)
            except ExpiredError:
                log.info("events.relist")
            except SkerryError as error:
                log.warning("events.watch_failed cause=%s", error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _list(self) -> int:
        found: list[tuple[datetime, str, int]] = []
        start, revision = "", 0
        while True:
            page = await self._store.list(self._prefix, limit=_PAGE, start=start, revision=revision)
            revision = page.revision
            found += [(self._written(record) + self._ttl, record.key, record.revision) for record in page.records]
            if page.next_key is None:
                break
            start = page.next_key
        self._kept.clear()
        self._of.clear()
        for due, key, number in sorted(found):
            self._keep(key, due, number)
        self._changed.set()
        return revision

    def _note(self, change: Change) -> None:
        if change.record is None:
            return
        self._drop(change.record.key)
        if change.type != "DELETED":
            self._keep(change.record.key, self._clock.now() + self._ttl, change.record.revision)
        self._changed.set()

    def _keep(self, key: str, due: datetime, revision: int) -> None:
        self._kept[key] = (due, revision)
        self._of.setdefault(self._namespace(key), OrderedDict())[key] = None

    def _drop(self, key: str) -> None:
        if self._kept.pop(key, None) is None:
            return
        namespace = self._namespace(key)
        del self._of[namespace][key]
        if not self._of[namespace]:
            del self._of[namespace]

    def _namespace(self, key: str) -> str:
        return key.removeprefix(self._prefix).partition("/")[0]

    async def _remove(self) -> None:
        while True:
            self._changed.clear()
            wait = await self._remove_due()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def _remove_due(self) -> float:
        """Remove what is due; returns the seconds until more is."""
        while self._kept:
            key, (due, revision) = next(iter(self._kept.items()))
            left = (due - self._clock.now()).total_seconds()
            if left > 0:
                if len(self._kept) <= self._most:
                    return min(left, _FARTHEST)
                namespace = max(self._of, key=lambda one: len(self._of[one]))
                key = next(iter(self._of[namespace]))
                due, revision = self._kept[key]
            try:
                await self._store.delete(key, expected=revision)
                if left > 0:
                    self._shed.count("events-expired", self._namespace(key))
            except (NotFoundError, ConflictError):
                pass  # whoever was quicker is told of by the watch
            except SkerryError as error:
                log.warning("events.not_removed key=%s cause=%s", key, error)
                return _RETRY_SECONDS
            if self._kept.get(key, (due, 0))[1] == revision:
                self._drop(key)
        return _FARTHEST

    def _written(self, record: Record) -> datetime:
        """Return when an event was written last, as far as it says; now, where it says nothing or something else."""
        now = self._clock.now()
        try:
            event = msgspec.json.decode(record.value, type=_Dated)
        except UNREADABLE:
            return now
        series = event.series.last_observed_time if event.series else None
        when = series or event.last_timestamp or event.metadata.creation_timestamp
        return now if when is None or when.tzinfo is None else min(when, now)
