"""The same Event in the words of `events.k8s.io/v1`: another view of what is kept as `v1` Event.

Lives here: the type and the way between the two, which loses nothing. Source: Kubernetes API reference, Event
`events.k8s.io/v1`, and its conversion to `v1`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from skerry.api.kinds import event as core
from skerry.api.kinds.event import EventSeries, EventSource
from skerry.api.kinds.references import ObjectReference
from skerry.api.meta import ObjectMeta, Struct

GROUP = "events.k8s.io"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"


class Event(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Something that happened to an object."""

    metadata: ObjectMeta
    event_time: datetime | None = None
    """When it was first seen, to the microsecond."""
    series: EventSeries | None = None
    """How often it has happened since; without one it happened once."""
    reporting_controller: str = ""
    """Which controller says so, as in skerry.dev/rollout."""
    reporting_instance: Annotated[str, msgspec.Meta(max_length=128)] = ""
    """Which of its instances."""
    action: Annotated[str, msgspec.Meta(max_length=128)] = ""
    """What was done to the object, or not done."""
    reason: Annotated[str, msgspec.Meta(max_length=128)] = ""
    """Why, in one word for programs, as in RolledBack."""
    regarding: ObjectReference = ObjectReference()
    """The object that this is about."""
    related: ObjectReference | None = None
    """Another object that this is about."""
    note: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    """What happened, for people."""
    type: str = ""
    """Normal or Warning."""
    deprecated_source: EventSource = EventSource()
    deprecated_first_timestamp: datetime | None = None
    deprecated_last_timestamp: datetime | None = None
    deprecated_count: int = 0
    api_version: str = API_VERSION
    kind: Literal["Event"] = "Event"


def to_core(item: Event) -> core.Event:
    """Return the event as it is kept."""
    return core.Event(
        metadata=item.metadata,
        involved_object=item.regarding,
        reason=item.reason,
        message=item.note,
        source=item.deprecated_source,
        first_timestamp=item.deprecated_first_timestamp,
        last_timestamp=item.deprecated_last_timestamp,
        count=item.deprecated_count,
        type=item.type,
        event_time=item.event_time,
        series=item.series,
        action=item.action,
        related=item.related,
        reporting_component=item.reporting_controller,
        reporting_instance=item.reporting_instance,
    )


def of_core(item: core.Event) -> Event:
    """Return a kept event in this group's words."""
    return Event(
        metadata=item.metadata,
        event_time=item.event_time,
        series=item.series,
        reporting_controller=item.reporting_component,
        reporting_instance=item.reporting_instance,
        action=item.action,
        reason=item.reason,
        regarding=item.involved_object,
        related=item.related,
        note=item.message,
        type=item.type,
        deprecated_source=item.source,
        deprecated_first_timestamp=item.first_timestamp,
        deprecated_last_timestamp=item.last_timestamp,
        deprecated_count=item.count,
    )
