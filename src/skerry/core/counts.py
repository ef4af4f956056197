"""Counts: what statuses say of a deployment's selected devices, kept up to date device by device. Pure.

What does not depend on time or rollout is here; it is right at any moment. Must not live here: statuses themselves
(`core.deployment`).
"""

from __future__ import annotations

from collections import Counter

from skerry.core import deployment, refusals, steps, waves
from skerry.core.deployment import Census
from skerry.core.fleet import Selection
from skerry.core.ranked import Ranked
from skerry.core.waves import Member


class Counts:
    """Counts over devices; each is entered once, and left with what it was entered with. A name is one device's."""

    def __init__(self) -> None:
        self._selected = self._cordoned = self._ready = 0
        self._unfit: Ranked[str, str] = Ranked()
        self._idle: Ranked[str, None] = Ranked()
        self._rollouts: Counter[str] = Counter()
        self._variants: Counter[str] = Counter()
        self._refusing: dict[str, Member] = {}

    def enter(self, member: Member) -> None:
        """Count a device."""
        report = member.report
        if report is not None and report.refusal and refusals.refused(member) is not None:
            self._refusing[member.uid] = member
        if not member.selected:
            return
        self._selected += 1
        if member.unfit:
            self._unfit.add(member.name, member.unfit)
        elif member.cordoned:
            self._cordoned += 1
        running = report.running if report is not None else None
        if running is None:
            self._idle.add(member.name, None)
            return
        self._ready += 1
        self._rollouts[running.rollout] += 1
        self._variants[deployment.variant_of(running)] += 1

    def leave(self, member: Member) -> None:
        """Count a device not any more."""
        self._refusing.pop(member.uid, None)
        if not member.selected:
            return
        self._selected -= 1
        if member.unfit:
            self._unfit.discard(member.name)
        elif member.cordoned:
            self._cordoned -= 1
        running = member.report.running if member.report is not None else None
        if running is None:
            self._idle.discard(member.name)
            return
        self._ready -= 1
        _less(self._rollouts, running.rollout)
        _less(self._variants, deployment.variant_of(running))

    def selection(self) -> Selection:
        """Return the selected devices, as `core.fleet.Fleet`."""
        names = self._unfit.first(waves.MAX_LISTED)
        return Selection(
            selected=self._selected,
            unfit=[(name, self._unfit[name]) for name in names],
            unfits=len(self._unfit),
            cordoned=self._cordoned,
        )

    def census(self) -> Census:
        """Return what the selected devices serve."""
        return Census(
            selected=self._selected,
            ready=self._ready,
            rollouts=dict(self._rollouts),
            variants=dict(self._variants),
            idle=self._idle.first(steps.MAX_NAMED),
        )

    def refusing(self) -> list[Member]:
        """Return the devices that refuse what they are assigned, and have not been answered."""
        return list(self._refusing.values())


def _less(counts: Counter[str], key: str) -> None:
    """Devices choose the words that are counted: none is kept that nobody says any more."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
