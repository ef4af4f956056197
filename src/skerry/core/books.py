"""The books of a roster: every answer that a rollout asks of its devices (`core.fleet`), kept up to date by rows. Pure.

A row is entered into all books it belongs to, and taken out of them before anything of it changes. Must not live here:
which rows there are (`core.roster`), any rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from skerry.api import selector
from skerry.api.kinds.model_deployment import Wave
from skerry.api.meta import LabelSelector
from skerry.core import pace, steps, waves
from skerry.core.candidates import Candidates
from skerry.core.counts import Counts
from skerry.core.fleet import Homecoming, Moves, Selection
from skerry.core.pace import Admitted, Budget
from skerry.core.ranked import Ranked
from skerry.core.returns import Returns, in_order
from skerry.core.row import Row
from skerry.core.stands import Stands
from skerry.core.steps import Assign, Frame, Withdraw
from skerry.core.waves import Member

_GOING: frozenset[steps.Phase] = frozenset({"Pending", "Progressing", "Paused"})


class Books:
    """All books over the rows that were entered; answers as `core.fleet.Fleet` at the time of the last `look`."""

    def __init__(self, frame: Frame, now: datetime, *, counts: Counts, rows: Mapping[str, Row]) -> None:
        self._frame, self._now, self._counts = frame, now, counts
        self._rows = rows
        """All rows, kept by the roster; entered whenever something is asked."""
        strategy = frame.spec.strategy
        self._windows = strategy.windows
        self._rate, self._disruption = strategy.rate, strategy.disruption
        self._masks = _Masks(strategy.waves)
        self._candidates = Candidates(strategy, frame.rollout)
        self._budget = Budget(strategy.disruption)
        self._returns = Returns(frame, back=False)
        self._stands: Stands | None = None
        self._on: dict[Row, None] = {}
        self._on_masks: Counter[int] = Counter()
        self._serving = 0
        self._recent: dict[Row, datetime] = {}
        """When those on the rollout were assigned, if that may still count for the rate."""
        self._outdated: dict[Row, Assign] = {}
        self._turns: Ranked[tuple[datetime, int], Row] = Ranked()

    # --- what changes -----------------------------------------------------------------------------------------------

    def fits(self, frame: Frame) -> bool:
        """Return whether the books hold for this frame too, as far as rows are concerned."""
        old, new = self._frame, frame
        return (
            old.rollout.metadata.uid == new.rollout.metadata.uid
            and old.rollout.spec == new.rollout.spec
            and old.previous == new.previous
            and old.spec.strategy == new.spec.strategy
        )

    def look(self, frame: Frame, now: datetime) -> None:
        """Take in what changed besides the rows, if it `fits`, and that time has passed; it never runs backwards."""
        self._frame, self._now = frame, now
        if frame.rollout.status.phase not in _GOING:
            self._stands = None
        if self._stands is not None:
            self._stands.look(now)
        while (first := self._turns.first()) and first[0][0] <= now:
            row = self._turns[first[0]]
            self.leave(row)
            self.enter(row)

    def enter(self, row: Row) -> None:
        """Enter a row with what it is now."""
        member, frame = row.member, self._frame
        row.mask = self._masks.of(member)
        belongs = waves.belongs(member, frame.rollout)
        on, free = member.selected and belongs, not belongs and waves.is_open(member)
        if self._windows.download and member.selected and not on:
            row.look(self._windows, self._now)
            if row.turns is not None:
                self._turns.add((row.turns, row.serial), row)
        if self._disruption is not None and member.selected:
            self._budget.count(member)
        self._returns.enter(row, free=free)
        if free:
            self._candidates.enter(row)
        if not on:
            return
        self._on[row] = None
        if self._stands is not None:
            self._stands.enter(row)
        self._enter_on(row)

    def leave(self, row: Row) -> None:
        """Take a row out, which is still what it was when it was entered."""
        if self._disruption is not None and row.member.selected:
            self._budget.count(row.member, -1)
        self._returns.leave(row)
        self._candidates.leave(row)
        if row.turns is not None:
            self._turns.discard((row.turns, row.serial))
        row.shut, row.opens, row.turns = False, None, None
        if row not in self._on:
            return
        del self._on[row]
        self._on_masks[row.mask] -= 1
        self._serving -= row.member.serves_assigned
        self._recent.pop(row, None)
        self._outdated.pop(row, None)
        if self._stands is not None:
            self._stands.leave(row)

    def _enter_on(self, row: Row) -> None:
        member, held = row.member, row.member.assignment
        self._on_masks[row.mask] += 1
        self._serving += member.serves_assigned
        if self._rate is not None and held is not None and held.assigned_at > self._now - pace.MINUTE:
            self._recent[row] = held.assigned_at
        told = steps.rescheduled(member, self._windows)
        if told is not None:
            self._outdated[row] = told

    # --- what is asked ----------------------------------------------------------------------------------------------

    @property
    def frame(self) -> Frame:
        """As in `Fleet`."""
        return self._frame

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
        return len(self._candidates)

    @property
    def serving(self) -> int:
        """As in `Fleet`."""
        return self._serving

    def selection(self) -> Selection:
        """As in `Fleet`."""
        return self._counts.selection()

    def reach(self, wave: Wave, reached: int) -> int:
        """As in `Fleet`."""
        there = self._there(wave)
        base = self.on + self.free
        return waves.reach_of(wave, on=self.on, base=base, there=there, others=self.takes(wave), reached=reached)

    def takes(self, wave: Wave) -> int:
        """As in `Fleet`."""
        return self._candidates.matching(self._masks.bit(wave))

    def matches(self, wave: Wave) -> bool:
        """As in `Fleet`."""
        return self._there(wave) + self.takes(wave) > 0

    def _there(self, wave: Wave) -> int:
        bit = self._masks.bit(wave)
        return sum(count for mask, count in self._on_masks.items() if not bit or mask & bit)

    def standings(self, index: int) -> Stands:
        """As in `Fleet`."""
        strategy = self._frame.spec.strategy
        terms = waves.terms_of(strategy, index)
        if self._stands is None:
            self._stands = Stands(strategy.gates, terms, self._now)
            for row in self._on:
                self._stands.enter(row)
        else:
            self._stands.hold_to(terms)
        return self._stands

    def admit(self, wave: Wave, count: int, *, successes: int) -> Admitted:
        """As in `Fleet`."""
        for row in [row for row, at in self._recent.items() if at <= self._now - pace.MINUTE]:
            del self._recent[row]
        allowed = pace.allowance(self._rate, self._recent.values(), successes, self._now)
        bit = self._masks.bit(wave)
        return self._candidates.admit(bit, count, budget=self._budget, allowed=allowed, successes=successes)

    def late(self) -> Sequence[Member]:
        """As in `Fleet`."""
        return [row.member for row in in_order(self._candidates)]

    def withdrawals(self) -> Sequence[Withdraw]:
        """As in `Fleet`."""
        return self._returns.withdrawals()

    def reschedule(self) -> Sequence[Assign]:
        """As in `Fleet`."""
        return [self._outdated[row] for row in in_order(self._outdated)]

    def joins(self, taken: Collection[str]) -> Moves:
        """As in `Fleet`."""
        return self._going(back=False).joins(taken)

    def converge(self) -> Moves:
        """As in `Fleet`."""
        return self._going(back=True).converge()

    def homecoming(self) -> Homecoming:
        """As in `Fleet`."""
        return self._going(back=True).homecoming()

    def _going(self, *, back: bool) -> Returns:
        """The returns of that direction; where it turns, all rows are looked at once."""
        if self._returns.back != back:
            self._returns = Returns(self._frame, back=back)
            for row in self._rows.values():
                self._returns.enter(row, free=row.slot is not None)
        return self._returns


class _Masks:
    """Which selectors of waves match a device, as bits; remembered by the labels they look at."""

    def __init__(self, planned: Iterable[Wave]) -> None:
        self._selectors: list[LabelSelector] = []
        for wave in planned:
            if wave.selector is not None and wave.selector not in self._selectors:
                self._selectors.append(wave.selector)
        self._wanted = [selector.requirements(one) for one in self._selectors]
        self._keys = sorted({requirement.key for wanted in self._wanted for requirement in wanted})
        self._known: dict[tuple[str | None, ...], int] = {}

    def bit(self, wave: Wave) -> int:
        """Return the bit of a wave's selector; 0 for a wave without."""
        return 0 if wave.selector is None else 1 << self._selectors.index(wave.selector)

    def of(self, member: Member) -> int:
        """Return the bits of all selectors that match."""
        if not self._selectors:
            return 0
        values = tuple(member.labels.get(key) for key in self._keys)
        found = self._known.get(values)
        if found is None:
            found = sum(selector.matches(w, member.labels) << place for place, w in enumerate(self._wanted))
            self._known[values] = found
        return found
