"""The plain fleet: every question is answered by going through all devices. Pure.

This is the reference: it says what is right by being short, and tests hold `core.roster`, which controllers use, equal
to it. Slower by the number of devices; it is used where a fleet is looked at once.

Must not live here: anything clever.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from skerry.api.kinds.model_deployment import Wave
from skerry.core import gates, pace, rollback, steps, waves
from skerry.core.fleet import Homecoming, Moves, Selection
from skerry.core.pace import Admitted
from skerry.core.steps import Assign, Frame, Return, View, Withdraw
from skerry.core.waves import Member, Own, Standing


class Listing:
    """Standings as a list; see `core.fleet.Standings`."""

    def __init__(self, standings: Sequence[Standing]) -> None:
        self._all = standings

    @property
    def total(self) -> int:
        """As in `Standings`."""
        return len(self._all)

    @property
    def waiting(self) -> int:
        """As in `Standings`."""
        return sum(standing.state == "Waiting" for standing in self._all)

    @property
    def running(self) -> int:
        """As in `Standings`."""
        return sum(standing.state == "Running" for standing in self._all)

    @property
    def failed(self) -> int:
        """As in `Standings`."""
        return sum(standing.state == "Failed" for standing in self._all)

    @property
    def deadline(self) -> datetime | None:
        """As in `Standings`."""
        return steps.earliest(*(s.deadline for s in self._all if s.state == "Waiting"))

    def own(self, index: int, listed: int) -> Own:
        """As in `Standings`."""
        return waves.own_of(self._all, index, listed)

    def running_in(self, index: int) -> int:
        """As in `Standings`."""
        return sum(standing.wave == index and standing.state == "Running" for standing in self._all)

    def said(self, *, settled: bool) -> gates.Samples:
        """As in `Standings`."""
        return gates.Samples(s.sample for s in self._all if not settled or s.state != "Waiting")


class Plain:
    """A fleet as a list; see `core.fleet.Fleet`."""

    def __init__(self, view: View, now: datetime) -> None:
        self._view, self._now = view, now
        self._selected = [member for member in view.members if member.selected]
        self._on = [member for member in self._selected if waves.belongs(member, view.rollout)]
        self._free = [member for member in view.members if waves.eligible(member, view.rollout)]

    @property
    def frame(self) -> Frame:
        """As in `Fleet`."""
        return self._view

    @property
    def now(self) -> datetime:
        """As in `Fleet`."""
        return self._now

    @property
    def on(self) -> int:
        """As in `Fleet`."""
        return len(self._on)

    @property
    def free(self) -> int:
        """As in `Fleet`."""
        return len(self._free)

    @property
    def serving(self) -> int:
        """As in `Fleet`."""
        return sum(member.serves_assigned for member in self._on)

    def selection(self) -> Selection:
        """As in `Fleet`."""
        unfit = sorted((m.name, m.unfit) for m in self._selected if m.unfit)
        cordoned = sum(m.cordoned and not m.unfit for m in self._selected)
        return Selection(
            selected=len(self._selected), unfit=unfit[: waves.MAX_LISTED], unfits=len(unfit), cordoned=cordoned
        )

    def reach(self, wave: Wave, reached: int) -> int:
        """As in `Fleet`."""
        there, others = len(waves.matching(wave, self._on)), self.takes(wave)
        base = self.on + self.free
        return waves.reach_of(wave, on=self.on, base=base, there=there, others=others, reached=reached)

    def takes(self, wave: Wave) -> int:
        """As in `Fleet`."""
        return len(waves.matching(wave, self._free))

    def matches(self, wave: Wave) -> bool:
        """As in `Fleet`."""
        return bool(waves.matching(wave, [*self._on, *self._free]))

    def standings(self, index: int) -> Listing:
        """As in `Fleet`."""
        terms = waves.terms_of(self._view.spec.strategy, index)
        return Listing([terms.stand(member, self._now) for member in self._on])

    def admit(self, wave: Wave, count: int, *, successes: int) -> Admitted:
        """As in `Fleet`."""
        strategy, rollout = self._view.spec.strategy, self._view.rollout
        free = waves.matching(wave, self._free)
        if not pace.is_paced(strategy):
            return Admitted(chosen=tuple(waves.take(free, count, rollout)))
        return pace.admit(
            waves.take(free, len(free), rollout),
            count,
            strategy=strategy,
            selected=self._selected,
            on=self._on,
            successes=successes,
            now=self._now,
        )

    def late(self) -> Sequence[Member]:
        """As in `Fleet`."""
        return self._free

    def withdrawals(self) -> list[Withdraw]:
        """As in `Fleet`."""
        return [Withdraw(uid=m.uid) for m in self._view.members if rollback.is_stray(m, self._view)]

    def reschedule(self) -> list[Assign]:
        """As in `Fleet`."""
        wanted = self._view.spec.strategy.windows
        return [told for member in self._on if (told := steps.rescheduled(member, wanted)) is not None]

    def joins(self, taken: Collection[str]) -> Moves:
        """As in `Fleet`."""
        return self._join([m for m in self._free if m.uid not in taken and rollback.joins(m, self._view)])

    def converge(self) -> Moves:
        """As in `Fleet`."""
        due = [(member, rollback.due(member, self._view)) for member in self._view.members]
        moved = [action for _, action in due if isinstance(action, Return | Withdraw)]
        joined, wake_at = self._join([member for member, action in due if action == "join"])
        return [*self.withdrawals(), *moved, *joined], wake_at

    def homecoming(self) -> Homecoming:
        """As in `Fleet`."""
        moved = [member for member in self._view.members if rollback.is_moved(member, self._view)]
        away = [member for member in moved if not rollback.is_back(member, self._view)]
        names = sorted(member.name for member in away)[: steps.MAX_NAMED]
        online = any(member.online for member in away)
        return Homecoming(moved=len(moved), away=len(away), named=names, online=online)

    def _join(self, members: Sequence[Member]) -> Moves:
        wanted = self._view.spec.strategy.windows
        times = [(member, pace.opens_at(wanted, member, self._now)) for member in members]
        actions = [rollback.join(m, self._view) for m, opens in times if opens is not None and opens <= self._now]
        return actions, steps.earliest(*(opens for _, opens in times if opens is not None and opens > self._now))
