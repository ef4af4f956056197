"""One device in a roster: what it is now, and where it has been entered. Pure.

Must not live here: any rule.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec

from skerry.api.kinds.pacing import UpdateWindows
from skerry.core import windows
from skerry.core.readings import Sample
from skerry.core.waves import Member, Standing

_FAR = timedelta(days=1)
"""After which a window that does not open in years is looked at again."""


class Slot(NamedTuple):
    """What all rows of a queue have in common."""

    online: bool
    mask: int
    group: str
    costs: bool
    """To take it uses up the budget of its group."""
    shut: bool
    """Its window is closed."""


class Row(msgspec.Struct, eq=False, gc=False):
    """One device; compared by identity. Nothing it refers to refers to it: the collector need not look at a million."""

    member: Member
    """As it is entered in all books."""
    serial: int
    """Its place in the order in which devices joined."""
    mask: int = 0
    """One bit for each selector of a wave that matches it."""
    rank: bytes = b""
    """Its place in the rollout's order; empty until it is free for the first time."""
    slot: Slot | None = None
    """The queue it stands in, while a wave may take it."""
    shut: bool = False
    """Its download window is closed."""
    opens: datetime | None = None
    """When that opens, while it is shut; None when that is years away."""
    turns: datetime | None = None
    """When that changes by the clock alone; None when it never does."""
    standing: Standing | None = None
    """While it is judged."""
    sample: Sample | None = None
    """The same."""

    def clear(self) -> None:
        """Forget all books."""
        self.slot = self.standing = self.sample = self.opens = self.turns = None
        self.shut = False

    def look(self, wanted: UpdateWindows, now: datetime) -> None:
        """Find out whether its download window is open, and when that changes. Raises InvalidError."""
        told = windows.desired_of(wanted, self.member.uid) if wanted.download else None
        if told is None:
            return
        opens = windows.opening(told.download, now)
        self.shut = opens is None or opens > now
        self.opens = opens if self.shut else None
        self.turns = opens or now + _FAR if self.shut else windows.open_until(told.download, now)
