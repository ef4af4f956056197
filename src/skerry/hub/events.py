"""Events: what operators see in `kubectl describe`, as v1 Event objects that repeat by count and not by number.

`normal` and `warning` only note something: they never wait and never fail. One writer puts what was noted into the
store, at a bounded rate. The same again raises a count; one object alone cannot take all of the rate; and what happens
to many objects at the same time is told in one event about their namespace. Namespaces take turns, and when there is no
room the one that has most gives way. Must not live here: what is worth telling (`core.events`), how long events are
kept (`event_expiry`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import msgspec

from skerry.api.errors import NotFoundError, SkerryError
from skerry.api.kinds import Resource
from skerry.api.kinds.event import Event, EventSeries, EventSource
from skerry.api.kinds.namespace import Namespace
from skerry.api.kinds.references import ObjectReference
from skerry.api.meta import ObjectMeta
from skerry.core.allowance import Bucket, Buckets, Rate
from skerry.core.events import MAX_MESSAGE, EventType
from skerry.core.ports import Clock
from skerry.core.shares import FairQueue, Shed, in_turn
from skerry.hub.objects import Objects

log = logging.getLogger(__name__)

COMPONENT = "skerry-hub"
DEFAULT = "default"
"""The namespace of events about what is in none."""
_COMBINED = "(combined from similar events)"
_MAX_NAME = 220


@dataclass(frozen=True, kw_only=True)
class EventLimits:
    """How much is written, and how much is remembered."""

    each: Rate = field(default_factory=lambda: Rate(burst=25, seconds=60.0))
    """Writes about one object."""
    all: Rate = field(default_factory=lambda: Rate(burst=100, seconds=0.1))
    """Writes in all."""
    pending: int = 500
    """Different events that wait to be written; beyond it they are told all together."""
    per_object: int = 10
    """Of them about one object; beyond it similar ones become one."""
    summaries: int = 200
    """Different kinds of news that are told all together; beyond it they are only counted in the log."""
    summary_seconds: float = 5.0
    """What is told all together is gathered for so long."""
    known: int = 4096
    """Events that are known again, so that their count rises; others begin anew."""
    objects: int = 20_000
    """Objects whose rate is remembered."""


class _Key(NamedTuple):
    """What makes two events the same."""

    namespace: str
    about: str
    part: str
    type: EventType
    reason: str
    message: str


class _Sort(NamedTuple):
    """What is told all together: the same that happened to objects of one kind."""

    kind: str
    type: EventType
    reason: str


@dataclass(kw_only=True)
class _Pending:
    """One event that is to be written."""

    about: ObjectReference
    message: str
    first: datetime
    last: datetime
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class _Known:
    """One event that was written."""

    name: str
    namespace: str


@dataclass(kw_only=True)
class _Summary:
    """The same that happened to many."""

    since: float
    example: str
    first: datetime
    last: datetime
    count: int = 0


class Recorder:
    """Takes notes at once and writes them by and by; see `run`."""

    def __init__(
        self,
        objects: Objects,
        clock: Clock,
        *,
        instance: str = "",
        limits: EventLimits | None = None,
        shed: Shed | None = None,
    ) -> None:
        self._objects, self._clock = objects, clock
        self._limits = limits or EventLimits()
        self._instance = instance
        self._each: Buckets[str] = Buckets(self._limits.each, most=self._limits.objects)
        self._all = Bucket(self._limits.all, clock.monotonic())
        self._pending = FairQueue[str, _Key, _Pending](self._limits.pending)
        self._of_object: dict[str, int] = {}
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._summaries = FairQueue[str, _Sort, _Summary](self._limits.summaries)
        self._turns: list[str] = []
        """Namespaces, the one that was written of longest ago first."""
        self._shed = shed or Shed()
        self._writing = 0
        self._dropped = 0
        self._wake = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How much is noted and not written yet."""
        return len(self._pending) + len(self._summaries) + self._writing

    def normal(self, about: Resource | ObjectReference, reason: str, message: str, *, part: str = "") -> None:
        """Note something that is as it should be: a reason in one word, a message in one sentence."""
        self._note(about, "Normal", reason, message, part)

    def warning(self, about: Resource | ObjectReference, reason: str, message: str, *, part: str = "") -> None:
        """Note something that somebody should look at."""
        self._note(about, "Warning", reason, message, part)

    async def run(self) -> None:
        """Write what was noted, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            wait = await self._write_what_may()
            if wait is not None:
                try:
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
                except TimeoutError:
                    self._wake.set()

    # --- noting -----------------------------------------------------------------------------------------------------

    def _note(self, about: Resource | ObjectReference, kind: EventType, reason: str, message: str, part: str) -> None:
        found = about if isinstance(about, ObjectReference) else reference_to(about)
        found = msgspec.structs.replace(found, field_path=part) if part else found
        object_id, now = found.uid or f"{found.kind}/{found.namespace}/{found.name}", self._clock.now()
        key = _Key(found.namespace or DEFAULT, object_id, part, kind, reason[:128], message[:MAX_MESSAGE])
        namespace = key.namespace
        if self._pending.get(namespace, key) is None and self._of_object.get(object_id, 0) >= self._limits.per_object:
            key = key._replace(message=_COMBINED)
        known = self._pending.get(namespace, key)
        if known is not None:
            known.count, known.last, known.message = known.count + 1, now, message
        else:
            self._of_object[object_id] = self._of_object.get(object_id, 0) + 1
            gone = self._pending.put(namespace, key, _Pending(about=found, message=message, first=now, last=now))
            if gone is not None:
                _, other, item = gone
                self._forget_one(other.about)
                self._sum_up(other, item)
        self._wake.set()

    def _forget_one(self, object_id: str) -> None:
        self._of_object[object_id] -= 1
        if not self._of_object[object_id]:
            del self._of_object[object_id]

    def _sum_up(self, key: _Key, item: _Pending) -> None:
        """Tell something all together with others, which has no room of its own."""
        self._shed.count("events-together", key.namespace, item.count)
        sort = _Sort(item.about.kind, key.type, key.reason)
        known = self._summaries.get(key.namespace, sort)
        if known is None:
            example = f"{item.about.name}: {item.message}"[:MAX_MESSAGE]
            since = self._clock.monotonic()
            known = _Summary(since=since, example=example, first=item.first, last=item.last)
            gone = self._summaries.put(key.namespace, sort, known)
            if gone is not None:
                namespace, _, summary = gone
                dropped = summary.count or item.count
                self._dropped += dropped
                self._shed.count("events-dropped", namespace, dropped)
        known.count, known.last = known.count + item.count, max(known.last, item.last)

    # --- writing ----------------------------------------------------------------------------------------------------

    async def _write_what_may(self) -> float | None:
        """Write as much as may be written now; returns the seconds until more may, None when nothing waits."""
        if self._dropped:
            log.warning("events.dropped count=%d", self._dropped)
            self._dropped = 0
        held, due = 0, self._due()
        known = [one for one in self._turns if one in due]
        self._turns = [*(one for one in due if one not in known), *known]
        for namespace, key in in_turn(due, tuple(self._turns)):
            now = self._clock.monotonic()
            if self._all.wait(now):
                return self._all.wait(now)
            if isinstance(key, _Key):
                if self._pending.get(namespace, key) is None:  # it has given way meanwhile
                    continue
                if not self._each.take(key.about, now):
                    held += 1
                    continue
                self._served(namespace, now)
                self._forget_one(key.about)
                await self._write(key, self._pending.pop(namespace, key))
            elif self._summaries.get(namespace, key) is not None:
                self._served(namespace, now)
                await self._write_summary(namespace, key, self._summaries.pop(namespace, key))
        if not held and not len(self._summaries):
            return None
        return min(self._limits.each.seconds, self._limits.summary_seconds)

    def _due(self) -> dict[str, list[_Key | _Sort]]:
        """Return what may be written, by namespace: what was gathered for long enough, then the rest."""
        latest = self._clock.monotonic() - self._limits.summary_seconds
        due: dict[str, list[_Key | _Sort]] = {
            namespace: [sort for sort, summary in items if summary.since <= latest]
            for namespace, items in self._summaries.items().items()
        }
        for namespace, items in self._pending.items().items():
            due.setdefault(namespace, []).extend(key for key, _ in items)
        return {namespace: keys for namespace, keys in due.items() if keys}

    def _served(self, namespace: str, now: float) -> None:
        self._all.take(now)
        self._turns.remove(namespace)
        self._turns.append(namespace)

    async def _write(self, key: _Key, item: _Pending) -> None:
        self._writing += 1
        try:
            known = self._known.get(key)
            if known is None or not await self._repeat(known, item):
                if not await self._has_place(key.namespace):
                    return
                event = await self._objects.create(self._event(key, item))
                self._remember(key, _Known(name=event.metadata.name, namespace=event.metadata.namespace))
            else:
                self._known.move_to_end(key)
        except SkerryError as error:  # what it is about has happened nevertheless
            log.warning("events.not_written reason=%s about=%s cause=%s", key.reason, key.about, error)
        finally:
            self._writing -= 1

    async def _has_place(self, namespace: str) -> bool:
        """Return whether the namespace is there to stay: news of what was in it must not bring it back."""
        if namespace == DEFAULT:
            return True
        found = await self._objects.find(Namespace, "", namespace)
        return found is not None and found.metadata.deletion_timestamp is None

    async def _repeat(self, known: _Known, item: _Pending) -> bool:
        """Raise the count of an event; False when it is gone."""

        def again(event: Event) -> Event:
            count = max(event.count, 1) + item.count
            return msgspec.structs.replace(
                event,
                count=count,
                last_timestamp=_second(item.last),
                message=_text(item),
                series=EventSeries(count=count, last_observed_time=item.last),
            )

        try:
            await self._objects.update_status(Event, known.namespace, known.name, again)
        except NotFoundError:
            return False
        return True

    async def _write_summary(self, namespace: str, sort: _Sort, summary: _Summary) -> None:
        what, type_, reason = sort
        about = ObjectReference(kind="Namespace", name=namespace, namespace=namespace, api_version="v1")
        text = f"{summary.count} more of kind {what}, for example {summary.example}"[:MAX_MESSAGE]
        key = _Key(namespace, f"Namespace//{namespace}", "", type_, reason, text)
        await self._write(
            key, _Pending(about=about, message=text, first=summary.first, last=summary.last, count=summary.count)
        )

    def _event(self, key: _Key, item: _Pending) -> Event:
        name = f"{item.about.name[:_MAX_NAME].rstrip('.-') or 'event'}.{secrets.token_hex(8)}"
        return Event(
            metadata=ObjectMeta(name=name, namespace=key.namespace),
            involved_object=item.about,
            type=key.type,
            reason=key.reason,
            message=_text(item),
            source=EventSource(component=COMPONENT, host=self._instance),
            first_timestamp=_second(item.first),
            last_timestamp=_second(item.last),
            count=item.count,
            event_time=item.first,
            series=EventSeries(count=item.count, last_observed_time=item.last) if item.count > 1 else None,
            action=key.reason,
            reporting_component=COMPONENT,
            reporting_instance=self._instance or COMPONENT,
        )

    def _remember(self, key: _Key, known: _Known) -> None:
        self._known[key] = known
        self._known.move_to_end(key)
        if len(self._known) > self._limits.known:
            self._known.popitem(last=False)


def reference_to(item: Resource) -> ObjectReference:
    """Return how an event names an object."""
    meta = item.metadata
    return ObjectReference(
        kind=item.kind,
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        api_version=item.api_version,
        resource_version=meta.resource_version,
    )


def _text(item: _Pending) -> str:
    return item.message[:MAX_MESSAGE]


def _second(when: datetime) -> datetime:
    return when.replace(microsecond=0)
