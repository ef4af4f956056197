"""Fleets: all that a rollout asks of its devices at one moment. Nobody who decides goes through devices himself.

Two answer: `core.plain`, which goes through all of them each time and is the reference, and `core.roster`, which keeps
what is asked for and is told of single devices. Tests hold the second equal to the first.

Lives here: the questions. Must not live here: answers, or what follows from them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias

from skerry.api.kinds.model_deployment import Wave
from skerry.core.gates import Said
from skerry.core.pace import Admitted
from skerry.core.steps import Assign, Frame, Return, Withdraw
from skerry.core.waves import Member, Own

Moves: TypeAlias = tuple[Sequence[Return | Withdraw], datetime | None]
"""Actions in their order, and when a window lets more devices join."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The devices that match the selector, counted."""

    selected: int
    unfit: Sequence[tuple[str, str]]
    """Name and reason of the first of those that nothing fits, by name; at most `waves.MAX_LISTED`."""
    unfits: int
    """How many there are."""
    cordoned: int
    """Cordoned ones that something fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Homecoming:
    """How far the way back is."""

    moved: int
    """Devices that the failed rollout touched."""
    away: int
    """Those of them that have not said that they are back."""
    named: Sequence[str]
    """The first few of these by name."""
    online: bool
    """One of these is online."""


class Standings(Protocol):
    """How the devices on the rollout stand, while one wave is under way."""

    @property
    def total(self) -> int:
        """All of them."""
        ...

    @property
    def waiting(self) -> int:
        """Those that are Waiting."""
        ...

    @property
    def running(self) -> int:
        """Those that are Running."""
        ...

    @property
    def failed(self) -> int:
        """Those that have Failed."""
        ...

    @property
    def deadline(self) -> datetime | None:
        """When the first of those that wait counts as failed; None when none ever does."""
        ...

    def own(self, index: int, listed: int) -> Own:
        """Return a wave's own devices, counted, with the first `listed` of them, failures first."""
        ...

    def running_in(self, index: int) -> int:
        """Return how many of a wave's own devices are Running."""
        ...

    def said(self, *, settled: bool) -> Said:
        """Return what they said to the gates; when settled, without those that are Waiting."""
        ...


class Fleet(Protocol):
    """A deployment's devices at one moment, as one rollout sees them."""

    @property
    def frame(self) -> Frame:
        """What else is known."""
        ...

    @property
    def now(self) -> datetime:
        """The moment."""
        ...

    @property
    def on(self) -> int:
        """Devices on the rollout that are selected."""
        ...

    @property
    def free(self) -> int:
        """Devices that a wave may still take."""
        ...

    @property
    def serving(self) -> int:
        """Those of `on` that serve what they are assigned."""
        ...

    def selection(self) -> Selection:
        """Return the selected devices, counted."""
        ...

    def reach(self, wave: Wave, reached: int) -> int:
        """Return `waves.reach_of` for this wave. Raises InvalidError."""
        ...

    def takes(self, wave: Wave) -> int:
        """Return how many free devices the wave's selector matches; all without one. Raises InvalidError."""
        ...

    def matches(self, wave: Wave) -> bool:
        """Return whether the selector matches any device, on the rollout or free. Raises InvalidError."""
        ...

    def standings(self, index: int) -> Standings:
        """Return how the devices on the rollout stand while that wave is under way. Raises InvalidError."""
        ...

    def admit(self, wave: Wave, count: int, *, successes: int) -> Admitted:
        """Return whom that wave may take now, `count` at most, as `core.pace` allows. Raises InvalidError."""
        ...

    def late(self) -> Sequence[Member]:
        """Return all free devices, in the order in which they joined."""
        ...

    def withdrawals(self) -> Sequence[Withdraw]:
        """Return whom `rollback.is_stray` sends away."""
        ...

    def reschedule(self) -> Sequence[Assign]:
        """Return whom to tell of other windows, as `rescheduled` says. Raises InvalidError."""
        ...

    def joins(self, taken: Collection[str]) -> Moves:
        """Return which free devices, but for those just taken, get the previous rollout. Raises InvalidError."""
        ...

    def converge(self) -> Moves:
        """Return how everybody gets to the previous rollout, withdrawals first. Raises InvalidError."""
        ...

    def homecoming(self) -> Homecoming:
        """Return how far the way back is."""
        ...
