"""Pacing: how fast, and when, a rollout may disturb devices. All parts of a ModelDeployment's strategy."""

from __future__ import annotations

from typing import Annotated

import msgspec

from skerry.api.amount import Amount
from skerry.api.cron import Cron, TimeZone
from skerry.api.duration import Duration
from skerry.api.meta import Struct


class Rate(Struct, frozen=True, kw_only=True):
    """How many devices a wave takes in any minute: few at first, more with every success (as AWS IoT Jobs does)."""

    base: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    """Devices per minute at a wave's start; and as many successes in the wave make the rate grow once."""
    factor: Annotated[float, msgspec.Meta(ge=1, le=100)] = 2.0
    """What the rate is multiplied by after every `base` successes; 1 keeps it constant."""
    max_per_minute: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1000
    """Highest rate."""


class Disruption(Struct, frozen=True, kw_only=True):
    """How many devices that share a label's value may be in transition or down at a time; one of the two bounds."""

    group_by: str = ""
    """Label key, as in site; devices without the label are one group; empty: all devices are one."""
    max_unavailable: Amount | None = None
    """At most so many, or that share of the group, rounded down but at least 1."""
    min_available: Amount | None = None
    """At least so many, or that share of the group, rounded up, keep serving undisturbed."""


class Window(Struct, frozen=True, kw_only=True):
    """A time that comes again: it opens when the schedule matches, and stays open for its duration."""

    schedule: Cron
    """When it opens: minute, hour, day of month, month, day of week."""
    time_zone: TimeZone = "UTC"
    """The zone that the schedule is read in. A time that the clocks skip counts as the first minute after them."""
    duration: Duration
    """From a minute to 7 days."""
    spread: Duration = "0s"
    """Each device begins at its own time in the first so long of the window, decided by a hash of its uid."""


class UpdateWindows(Struct, frozen=True, kw_only=True):
    """When devices may be updated; no windows mean at any time. What a failed rollout returns waits for none."""

    download: Annotated[list[Window], msgspec.Meta(max_length=16)] = []
    """Outside of these nothing new is assigned, and no device begins to fetch."""
    switch_over: Annotated[list[Window], msgspec.Meta(max_length=16)] = []
    """Outside of these no device begins to put the new version in the old one's place, by its own clock."""
