"""A mapping in order that is changed far more often than it is read, and then only at its beginning. Pure.

What is never asked for is never sorted. Must not live here: what the keys mean.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

_LONG = 4096
"""A sorted head that is longer is not kept up to date but made anew."""

K = TypeVar("K", bound=Any)  # anything that can be compared with its like
V = TypeVar("V")


class Ranked(Generic[K, V]):
    """A mapping whose first keys can be asked for: O(log n) a change, O(k log n) for the first k."""

    __slots__ = ("_head", "_heap", "_live")

    def __init__(self) -> None:
        self._live: dict[K, V] = {}
        self._heap: list[K] | None = None
        """All keys, and some that were taken out since; None until somebody asks."""
        self._head: list[K] = []
        """The first keys in order, and some that were taken out since."""

    def __len__(self) -> int:
        return len(self._live)

    def __getitem__(self, key: K) -> V:
        return self._live[key]

    def __iter__(self) -> Iterator[V]:
        """Return the values, in no order."""
        return iter(self._live.values())

    def add(self, key: K, value: V) -> None:
        """Put a value under a key."""
        known = key in self._live
        self._live[key] = value
        if known or self._heap is None:
            return
        heapq.heappush(self._heap, key)
        if len(self._heap) > 2 * len(self._live) + _LONG:  # mostly keys that were taken out: made anew when asked for
            self._heap, self._head = None, []
            return
        head = self._head
        if head and key < head[-1]:
            if len(head) > _LONG:
                self._head = []
            elif head[bisect_left(head, key)] != key:
                insort(head, key)

    def discard(self, key: K) -> None:
        """Take a key out; one that is not there is no error."""
        self._live.pop(key, None)

    def first(self, count: int = 1) -> Sequence[K]:
        """Return the first `count` keys, fewer when there are fewer."""
        if count <= 0 or not self._live:
            return ()
        live = self._live
        head = [key for key in self._head if key in live]
        if len(head) < min(count, len(live)):
            head = self._refill(2 * count + 16)
        self._head = head[: 4 * count + 64]
        return head[:count]

    def walk(self) -> Iterator[K]:
        """Go through the keys in order; nothing may be changed meanwhile."""
        count, done = 32, 0
        while True:
            found = self.first(count)
            yield from found[done:]
            if len(found) < count:
                return
            done, count = count, 4 * count

    def _refill(self, count: int) -> list[K]:
        live = self._live
        if count * 8 >= len(live):
            self._heap = sorted(live)
            return self._heap[:]
        if self._heap is None or len(self._heap) > 2 * len(live) + _LONG:
            self._heap = list(live)
            heapq.heapify(self._heap)
        found: list[K] = []
        while len(found) < count and self._heap:
            key = heapq.heappop(self._heap)
            if key in live and (not found or key != found[-1]):
                found.append(key)
        for key in found:
            heapq.heappush(self._heap, key)
        return found
