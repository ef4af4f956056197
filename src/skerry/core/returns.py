"""Returns: the devices that have to go somewhere else than forward, kept up to date device by device. Pure.

Going forward these are those that leave, and those that run nothing and get the previous rollout until their wave
comes; going back, all that `core.rollback` has something for. Must not live here: who goes where (`core.rollback`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime

from skerry.core import rollback, steps
from skerry.core.fleet import Homecoming, Moves
from skerry.core.ranked import Ranked
from skerry.core.row import Row
from skerry.core.steps import Frame, Return, Withdraw


class Returns:
    """Rows with something due; `back`: the rollout goes back."""

    def __init__(self, frame: Frame, *, back: bool) -> None:
        self._frame, self.back = frame, back
        self._strays: dict[Row, None] = {}
        self._due: dict[Row, Return | Withdraw] = {}
        self._joining: dict[Row, None] = {}
        """In an open window."""
        self._shut: dict[Row, None] = {}
        self._opens: Ranked[tuple[datetime, int], Row] = Ranked()
        self._moved = 0
        self._away: Ranked[str, Row] = Ranked()
        self._online = 0

    def enter(self, row: Row, *, free: bool) -> None:
        """Take in a row with what it is now; `free`: a wave may take it."""
        member, frame = row.member, self._frame
        if rollback.is_stray(member, frame):
            self._strays[row] = None
        if not self.back:
            if free and rollback.joins(member, frame):
                self._join(row)
            return
        due = rollback.due(member, frame)
        if due == "join":
            self._join(row)
        elif due is not None:
            self._due[row] = due
        if rollback.is_moved(member, frame):
            self._moved += 1
            if not rollback.is_back(member, frame):
                self._away.add(member.name, row)
                self._online += member.online

    def leave(self, row: Row) -> None:
        """Take out a row, which is still what it was when it was entered."""
        self._strays.pop(row, None)
        self._due.pop(row, None)
        self._joining.pop(row, None)
        if row in self._shut:
            del self._shut[row]
            if row.opens is not None:
                self._opens.discard((row.opens, row.serial))
        if self.back and rollback.is_moved(row.member, self._frame):
            self._moved -= 1
            if not rollback.is_back(row.member, self._frame):
                self._away.discard(row.member.name)
                self._online -= row.member.online

    def _join(self, row: Row) -> None:
        if not row.shut:
            self._joining[row] = None
            return
        self._shut[row] = None
        if row.opens is not None:
            self._opens.add((row.opens, row.serial), row)

    def withdrawals(self) -> list[Withdraw]:
        """As in `core.fleet.Fleet`."""
        return [Withdraw(uid=row.member.uid) for row in in_order(self._strays)]

    def joins(self, taken: Collection[str] = ()) -> Moves:
        """As in `core.fleet.Fleet`."""
        first = self._opens.first()
        rows = in_order(row for row in self._joining if row.member.uid not in taken)
        return [rollback.join(row.member, self._frame) for row in rows], first[0][0] if first else None

    def converge(self) -> Moves:
        """As in `core.fleet.Fleet`."""
        joined, wake_at = self.joins()
        return [*self.withdrawals(), *(self._due[row] for row in in_order(self._due)), *joined], wake_at

    def homecoming(self) -> Homecoming:
        """As in `core.fleet.Fleet`."""
        names = self._away.first(steps.MAX_NAMED)
        return Homecoming(moved=self._moved, away=len(self._away), named=names, online=self._online > 0)


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Return rows in the order in which they joined."""
    return sorted(rows, key=lambda row: row.serial)
