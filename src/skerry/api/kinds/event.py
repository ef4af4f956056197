"""Event: what happened to an object, when, and how often.

Lives here: the type. Must not live here: who writes events and how long they are kept.
Source: Kubernetes API reference, Event v1.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from skerry.api.kinds.references import ObjectReference
from skerry.api.meta import ObjectMeta, Struct


class EventSource(Struct, frozen=True, kw_only=True):
    """What told of an event."""

    component: str = ""
    host: str = ""


class EventSeries(Struct, frozen=True, kw_only=True):
    """How often the same happened in a row."""

    count: int = 0
    last_observed_time: datetime | None = None


class Event(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Something that happened to an object."""

    metadata: ObjectMeta
    involved_object: ObjectReference
    """The object that this is about."""
    reason: Annotated[str, msgspec.Meta(max_length=128)] = ""
    """Why, in one word for programs, as in RolledBack."""
    message: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    """What happened, for people."""
    source: EventSource = EventSource()
    first_timestamp: datetime | None = None
    """When it happened first."""
    last_timestamp: datetime | None = None
    """When it happened last."""
    count: int = 0
    """How often it happened."""
    type: str = ""
    """Normal or Warning."""
    event_time: datetime | None = None
    """When it was first seen, to the microsecond."""
    series: EventSeries | None = None
    """How often it has happened since; without one it happened once."""
    action: Annotated[str, msgspec.Meta(max_length=128)] = ""
    """What was done to the object, or not done."""
    related: ObjectReference | None = None
    """Another object that this is about."""
    reporting_component: str = ""
    """Which controller says so, as in skerry.dev/rollout."""
    reporting_instance: Annotated[str, msgspec.Meta(max_length=128)] = ""
    """Which of its instances."""
    api_version: str = "v1"
    kind: Literal["Event"] = "Event"
