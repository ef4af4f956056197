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

from skerry.core import deployment, refusals, rollout
from skerry.core.steps import Frame, Step, View
from skerry.core.waves import Member


class Roster:
    """The devices of one rollout; see the module."""

    def __init__(self, frame: Frame, members: Iterable[Member] = ()) -> None:
        self._frame = frame
        self._members: dict[str, Member] = {}
        for member in members:
            self.put(member)

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        """All devices in the order in which they joined."""
        return iter(self._members.values())

    def get(self, uid: str) -> Member | None:
        """Return a device as it was put last."""
        return self._members.get(uid)

    def put(self, member: Member) -> None:
        """Take in a device that joined, or of which anything changed."""
        self._members[member.uid] = member

    def drop(self, uid: str) -> None:
        """Forget a device; one that is not known is no error."""
        self._members.pop(uid, None)

    def turn(self, frame: Frame) -> None:
        """Take in what changed besides the devices."""
        self._frame = frame

    def step(self, now: datetime) -> Step:
        """Return what to do next, as `core.rollout.step`. Raises InvalidError."""
        return rollout.step(self._view(), now)

    def supersede(self, by: str, now: datetime) -> Step:
        """Return what ends the rollout in favour of a newer one, as `core.rollout.supersede`."""
        return rollout.supersede(self._view(), by, now)

    def census(self) -> deployment.Census:
        """Return what the selected devices serve, counted, for the deployment's status."""
        return deployment.count(self._members.values())

    def refusing(self) -> list[Member]:
        """Return the devices that refuse what they are assigned, and have not been answered."""
        return [member for member in self._members.values() if refusals.refused(member) is not None]

    def _view(self) -> View:
        frame = self._frame
        return View(
            rollout=frame.rollout,
            spec=frame.spec,
            generation=frame.generation,
            previous=frame.previous,
            hold=frame.hold,
            members=list(self._members.values()),
        )
