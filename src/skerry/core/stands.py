"""Stands: how the devices on a rollout stand, kept up to date device by device. Pure.

What changes a device's standing: what it says (`enter`, `leave`), the wave that is under way (`hold_to`) and the clock
(`look`), which makes those that wait too long fail. Must not live here: how one device stands (`core.waves`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime

from skerry.api.kinds.gates import Gates
from skerry.core import waves
from skerry.core.gates import Said
from skerry.core.ledger import Ledger
from skerry.core.ranked import Ranked
from skerry.core.readings import State
from skerry.core.row import Row
from skerry.core.waves import Own, Standing, Terms


class Stands:
    """Standings of rows, as `core.fleet.Standings`. A row is there once."""

    def __init__(self, gates: Gates, terms: Terms, now: datetime) -> None:
        self._terms, self._now = terms, now
        self._ledger = Ledger(gates)
        self._waves: defaultdict[int, dict[Row, None]] = defaultdict(dict)
        self._names: defaultdict[tuple[int, State], Ranked[str, Row]] = defaultdict(Ranked)
        self._states: Counter[State] = Counter()
        self._deadlines: Ranked[tuple[datetime, int], Row] = Ranked()
        self._creeping: dict[Row, None] = {}
        """Rows whose deadline goes on with the clock: they say that they waited longer than has passed."""

    # --- what changes -----------------------------------------------------------------------------------------------

    def enter(self, row: Row) -> None:
        """Take in a row that came onto the rollout, with what it is now."""
        standing = self._terms.stand(row.member, self._now)
        row.standing, row.sample = standing, standing.sample
        self._waves[standing.wave][row] = None
        self._names[standing.wave, standing.state].add(row.member.name, row)
        self._states[standing.state] += 1
        self._ledger.add(row.sample)
        if standing.deadline is not None and standing.state == "Waiting":
            self._deadlines.add((standing.deadline, row.serial), row)
            if self._creeps(row):
                self._creeping[row] = None

    def leave(self, row: Row) -> None:
        """Take out a row that was entered."""
        standing, sample = row.standing, row.sample
        if standing is None or sample is None:
            return
        del self._waves[standing.wave][row]
        self._names[standing.wave, standing.state].discard(standing.member.name)
        self._states[standing.state] -= 1
        self._ledger.remove(sample)
        if standing.deadline is not None:
            self._deadlines.discard((standing.deadline, row.serial))
            self._creeping.pop(row, None)
        row.standing = row.sample = None

    def hold_to(self, terms: Terms) -> None:
        """Take in that another wave is under way: those of the waves between have proven themselves, or no more."""
        low, high = sorted((self._terms.index, terms.index))
        self._terms = terms
        for wave in [wave for wave in self._waves if low <= wave < high]:
            self._again(list(self._waves[wave]))

    def look(self, now: datetime) -> None:
        """Take in that time has passed. A clock that was set back needs new stands."""
        self._now = now
        self._again(list(self._creeping))
        while (first := self._deadlines.first()) and first[0][0] <= now:
            self._again([self._deadlines[first[0]]])

    def _again(self, rows: list[Row]) -> None:
        for row in rows:
            self.leave(row)
            self.enter(row)

    def _creeps(self, row: Row) -> bool:
        report, held = row.member.current_report, row.member.assignment
        if report is None or held is None:
            return False
        return report.waited_seconds > (self._now - held.assigned_at).total_seconds()

    # --- what is asked ----------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """As in `Standings`."""
        return self._states.total()

    @property
    def waiting(self) -> int:
        """As in `Standings`."""
        return self._states["Waiting"]

    @property
    def running(self) -> int:
        """As in `Standings`."""
        return self._states["Running"]

    @property
    def failed(self) -> int:
        """As in `Standings`."""
        return self._states["Failed"]

    @property
    def deadline(self) -> datetime | None:
        """As in `Standings`."""
        first = self._deadlines.first()
        return first[0][0] if first else None

    def own(self, index: int, listed: int) -> Own:
        """As in `Standings`."""
        counts = {state: len(self._names[index, state]) for state in waves.ORDER}
        shown: list[Standing] = []
        for state in waves.ORDER:
            names = self._names[index, state]
            rows = [names[name] for name in names.first(listed - len(shown))]
            shown += [row.standing for row in rows if row.standing is not None]
        return Own(assigned=sum(counts.values()), running=counts["Running"], failed=counts["Failed"], shown=shown)

    def running_in(self, index: int) -> int:
        """As in `Standings`."""
        return len(self._names[index, "Running"])

    def said(self, *, settled: bool) -> Said:
        """As in `Standings`."""
        return self._ledger.said(settled=settled)
