"""Candidates: the devices that a wave may still take, in queues whose heads are all that is ever looked at. Pure.

A queue holds what is alike to a choice: the selectors that match, online or not, the group of the disruption budget
and whether taking it costs that, and whether its window is open; each in the rollout's order. Who comes next is the
first of the queues' heads, so that a choice costs by the queues and by whom it takes, and not by who waits.

Must not live here: the order (`core.waves`), the bounds (`core.pace`).
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from skerry.api.kinds.model_deployment import Strategy
from skerry.api.kinds.rollout import Rollout
from skerry.core import pace, waves
from skerry.core.pace import Admitted, Allowance, Budget, Held
from skerry.core.ranked import Ranked
from skerry.core.row import Row, Slot
from skerry.core.waves import Member


@dataclass(frozen=True, kw_only=True, slots=True)
class _Queue:
    slot: Slot
    ranks: Ranked[bytes, Row]
    opens: Ranked[tuple[datetime, int], Row]
    """When each opens; empty unless shut."""


class Candidates:
    """Rows that a wave may take."""

    def __init__(self, strategy: Strategy, rollout: Rollout) -> None:
        self._strategy, self._rollout = strategy, rollout
        self._queues: dict[Slot, _Queue] = {}
        self._masks: Counter[int] = Counter()

    def __len__(self) -> int:
        return self._masks.total()

    def __iter__(self) -> Iterator[Row]:
        """Return all, in no order."""
        return (row for queue in self._queues.values() for row in queue.ranks)

    def matching(self, bit: int) -> int:
        """Return how many a selector matches; all for 0."""
        return sum(count for mask, count in self._masks.items() if not bit or mask & bit)

    def enter(self, row: Row) -> None:
        """Take in a row that may be taken, with what it is at this moment."""
        member, disruption = row.member, self._strategy.disruption
        if not row.rank:
            row.rank = waves.rank(member.uid, self._rollout)
        if disruption is None:
            slot = Slot(member.online, row.mask, "", False, row.shut)
        else:
            group, costs = pace.group_of(disruption, member), pace.is_available(member)
            slot = Slot(member.online, row.mask, group, costs, row.shut)
        self._masks[row.mask] += 1
        queue = self._queues.get(slot)
        if queue is None:
            queue = self._queues[slot] = _Queue(slot=slot, ranks=Ranked(), opens=Ranked())
        row.slot = queue.slot  # one for all
        queue.ranks.add(row.rank, row)
        if slot.shut and row.opens is not None:
            queue.opens.add((row.opens, row.serial), row)

    def leave(self, row: Row) -> None:
        """Take out a row that was entered; `opens` is still what it was then."""
        slot = row.slot
        if slot is None:
            return
        row.slot = None
        self._masks[slot.mask] -= 1
        queue = self._queues[slot]
        queue.ranks.discard(row.rank)
        if slot.shut and row.opens is not None:
            queue.opens.discard((row.opens, row.serial))
        if not len(queue.ranks):
            del self._queues[slot]

    def admit(self, bit: int, count: int, *, budget: Budget, allowed: Allowance, successes: int) -> Admitted:
        """Return `pace.admit` for those that the selector matches."""
        if not pace.is_paced(self._strategy):
            return Admitted(chosen=tuple(row.member for row in self._first(bit, count)))
        choice = _Choice(self._wanted(bit), budget, count, allowed)
        choice.take(online=True)
        spare = count - sum(len(q.ranks) for slot, q in self._wanted(bit) if slot.online)
        away = sum(len(q.ranks) for slot, q in self._wanted(bit) if not slot.online)
        if spare >= away:
            choice.take(online=False)
        elif spare > 0:
            choice.take_first(spare)
        return pace.answer(
            choice.chosen, count, self._strategy, allowed=allowed, successes=successes, held=choice.held()
        )

    def _wanted(self, bit: int) -> list[tuple[Slot, _Queue]]:
        return [(slot, queue) for slot, queue in self._queues.items() if not bit or slot.mask & bit]

    def _first(self, bit: int, count: int) -> list[Row]:
        found: list[Row] = []
        for online in (True, False):
            if len(found) < count:
                queues = [queue for slot, queue in self._wanted(bit) if slot.online == online]
                found += merged(queues, count - len(found))
        return found


class _Choice:
    """Those taken so far, and those passed over."""

    def __init__(self, queues: Sequence[tuple[Slot, _Queue]], budget: Budget, count: int, allowed: Allowance) -> None:
        self._queues, self._budget = queues, budget
        self._most = count if allowed.number is None else min(count, allowed.number)
        self.chosen: list[Member] = []
        self._taken: Counter[str] = Counter()
        self._over: list[tuple[bytes, str]] = []
        """The first of each queue whose group's budget is used up, and the group."""
        self._overs = 0
        self._closed = 0
        self._opens: list[datetime] = []

    def take(self, *, online: bool) -> None:
        """Take those that are online, or those that are not, in their order."""
        heads: list[tuple[bytes, Slot, Iterator[bytes]]] = []
        used: Counter[Slot] = Counter()
        queues = {slot: queue for slot, queue in self._queues if slot.online == online}
        for slot, queue in queues.items():
            if slot.shut:
                self._close(queue)
                continue
            ranks = queue.ranks.walk()
            heads.append((next(ranks), slot, ranks))
        heapq.heapify(heads)
        while heads and len(self.chosen) < self._most:
            rank, slot, ranks = heapq.heappop(heads)
            if slot.costs and self._budget.left(slot.group) <= self._taken[slot.group]:
                self._over.append((rank, slot.group))
                self._overs += len(queues[slot].ranks) - used[slot]
                continue
            self.chosen.append(queues[slot].ranks[rank].member)
            used[slot] += 1
            self._taken[slot.group] += slot.costs
            following = next(ranks, None)
            if following is not None:
                heapq.heappush(heads, (following, slot, ranks))

    def take_first(self, places: int) -> None:
        """Take of the first so many devices that are offline, to whom the budget is nothing."""
        for row in merged([queue for slot, queue in self._queues if not slot.online], places):
            if len(self.chosen) == self._most:
                return
            if row.shut:
                self._closed += 1
                self._opens += [row.opens] if row.opens is not None else []
            else:
                self.chosen.append(row.member)

    def held(self) -> Held:
        """Return those passed over, if all were looked at."""
        first = min(self._over, default=(b"", ""))
        opens = min(self._opens, default=None)
        return Held(closed=self._closed, opens=opens, over=self._overs, group=first[1])

    def _close(self, queue: _Queue) -> None:
        self._closed += len(queue.ranks)
        first = queue.opens.first()
        self._opens += [first[0][0]] if first else []


def merged(queues: Sequence[_Queue], count: int) -> list[Row]:
    """Return the first rows of all queues together."""
    if len(queues) == 1:
        ranks = queues[0].ranks
        return [ranks[rank] for rank in ranks.first(count)]
    heads = heapq.merge(*(_rows(queue) for queue in queues), key=lambda row: row.rank)
    return list(itertools.islice(heads, count))


def _rows(queue: _Queue) -> Iterator[Row]:
    return (queue.ranks[rank] for rank in queue.ranks.walk())
