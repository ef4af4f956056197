"""Rosters: a deployment's devices as one rollout sees them, kept up to date one by one. Pure, but not immutable.

For a controller that hears of single devices: it tells the roster what it hears (`put`, `drop`) and of what else
changed (`turn`), and asks for the next step; the answer is that of `core.rollout.step` for the same devices.

    roster = Roster(frame)      # one a rollout: start anew when a newer one begins
    roster.put(member)          # it joined, or anything of it changed: report, record, labels, what fits it
    roster.drop(uid)            # it was deleted, or neither matches nor holds the workload any more
    roster.turn(frame)          # the rollout's status or annotations, the spec, the hold, `previous`
    step = roster.step(now)     # actions in their order, and when to look again

Lives here: what is kept of the devices. Must not live here: any rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from skerry.core import rollout
from skerry.core.books import Books
from skerry.core.counts import Counts
from skerry.core.deployment import Census
from skerry.core.row import Row
from skerry.core.steps import Frame, Step
from skerry.core.waves import Member


class Roster:
    """The devices of one rollout; see the module."""

    def __init__(self, frame: Frame, members: Iterable[Member] = ()) -> None:
        self._frame = frame
        self._rows: dict[str, Row] = {}
        self._uids: dict[str, str] = {}
        """By name: where a device is replaced by another of its name, the news of the two may come in any order."""
        self._news: dict[str, Member] = {}
        """What was put since the last look, by uid."""
        self._gone: list[Row] = []
        self._counts = Counts()
        self._books: Books | None = None
        self._joined = 0
        for member in members:
            self.put(member)

    def __len__(self) -> int:
        return len(self._uids)

    def __iter__(self) -> Iterator[Member]:
        """All devices in the order in which they joined."""
        new = (member for uid, member in self._news.items() if uid not in self._rows)
        yield from (self._news.get(uid, row.member) for uid, row in self._rows.items())
        yield from new

    def get(self, uid: str) -> Member | None:
        """Return a device as it was put last."""
        row = self._rows.get(uid)
        return self._news.get(uid, None if row is None else row.member)

    def put(self, member: Member) -> None:
        """Take in a device that joined, or of which anything changed. It takes the place of another of its name."""
        uid, name = member.uid, member.name
        holder = self._uids.get(name)
        if holder is not None and holder != uid:
            self.drop(holder)
        known = self.get(uid)
        if known is not None:
            self._counts.leave(known)
            if known.name != name:
                del self._uids[known.name]
        self._counts.enter(member)
        self._uids[name] = uid
        self._news[uid] = member

    def drop(self, uid: str) -> None:
        """Forget a device; one that is not known is no error."""
        known = self.get(uid)
        if known is None:
            return
        self._counts.leave(known)
        del self._uids[known.name]
        self._news.pop(uid, None)
        row = self._rows.pop(uid, None)
        if row is not None:
            self._gone.append(row)

    def turn(self, frame: Frame) -> None:
        """Take in what changed besides the devices."""
        self._frame = frame

    def step(self, now: datetime) -> Step:
        """Return what to do next, as `core.rollout.step`. Raises InvalidError."""
        books = self._look(now)
        found = rollout.decide(books)
        self._books = books
        return found

    def supersede(self, by: str, now: datetime) -> Step:
        """Return what ends the rollout in favour of a newer one, as `core.rollout.supersede`."""
        books = self._look(now)
        found = rollout.displace(books, by)
        self._books = books
        return found

    def census(self) -> Census:
        """Return what the selected devices serve, counted, for the deployment's status."""
        return self._counts.census()

    def refusing(self) -> list[Member]:
        """Return the devices that refuse what they are assigned, and have not been answered."""
        return self._counts.refusing()

    def _look(self, now: datetime) -> Books:
        """Bring the books up to date and take them out: what breaks off before they are back is begun anew."""
        books, self._books = self._books, None
        if books is None or now < books.now or not books.fits(self._frame):
            books = Books(self._frame, now, counts=self._counts, rows=self._rows)
            rows = list(self._rows.values())
            for row in rows:
                row.clear()
        else:
            for row in self._gone:
                books.leave(row)
            rows = [self._rows[uid] for uid in self._news if uid in self._rows]
            for row in rows:
                books.leave(row)
        self._gone.clear()
        rows += [self._join(member) for uid, member in self._news.items() if uid not in self._rows]
        for row in rows:
            row.member = self._news.get(row.member.uid, row.member)
        books.look(self._frame, now)
        for row in rows:
            books.enter(row)
        self._news.clear()
        return books

    def _join(self, member: Member) -> Row:
        self._joined += 1
        row = self._rows[member.uid] = Row(member, self._joined)
        return row
