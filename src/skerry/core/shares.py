"""How something bounded is shared by many, so that none of them keeps the others out. Pure.

Two ways: what waits in a queue can give way, and the owner of most gives way first (`FairQueue`); what is going on
cannot, so that nobody may take all of what is left (`has_room`). Must not live here: what is shared, and who shares it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

N = TypeVar("N", bound=Hashable)
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")

_MOST_NAMES = 1000
OTHERS = ""
"""The name under which those are counted that are too many to be named."""


def has_room(held: int, total: int, most: int) -> bool:
    """Return whether an owner who has `held` of the `total` that are taken may take one more of `most`.

    Nobody may have more than is left for all others: one alone gets half, two at the same time a third each, and of
    many who come one after the other each gets half of what those before left. Source: Choudhury and Hahne, "Dynamic
    queue length thresholds for shared-memory packet switches", 1998, with a factor of one.
    """
    return held < most - total


class Shed:
    """How often something was refused or left out for one owner's share, by what it was and whose."""

    def __init__(self) -> None:
        self._counts = Counter[tuple[str, str]]()

    def count(self, what: str, owner: str, number: int = 1) -> None:
        """Count so many more."""
        key = (what, owner)
        if key not in self._counts and len(self._counts) >= _MOST_NAMES:
            key = (what, OTHERS)
        self._counts[key] += number

    @property
    def counts(self) -> Mapping[tuple[str, str], int]:
        """What was counted until now, by what it was and whose."""
        return self._counts


class FairQueue(Generic[N, K, V]):
    """What waits for its turn, of each owner; when there is no room, the owner of most loses its newest."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._owners: dict[N, OrderedDict[K, V]] = {}

    def __len__(self) -> int:
        return self._size

    def get(self, owner: N, key: K) -> V | None:
        """Return what waits under a key."""
        mine = self._owners.get(owner)
        return None if mine is None else mine.get(key)

    def put(self, owner: N, key: K, value: V) -> tuple[N, K, V] | None:
        """Take in something new; returns what has to go for it, which is the new one where its owner has most."""
        gone = None
        if self._size >= self._most:
            greedy = max(self._owners, key=lambda one: len(self._owners[one]), default=owner)
            if len(self._owners.get(greedy, ())) <= len(self._owners.get(owner, ())) + 1:
                return owner, key, value
            last = next(reversed(self._owners[greedy]))
            gone = greedy, last, self.pop(greedy, last)
        self._owners.setdefault(owner, OrderedDict())[key] = value
        self._size += 1
        return gone

    def pop(self, owner: N, key: K) -> V:
        """Take something out."""
        mine = self._owners[owner]
        value = mine.pop(key)
        self._size -= 1
        if not mine:
            del self._owners[owner]
        return value

    def items(self) -> dict[N, list[tuple[K, V]]]:
        """Return what waits now, by owner, oldest first."""
        return {owner: list(mine.items()) for owner, mine in self._owners.items()}


def in_turn(queues: Mapping[N, Iterable[T]], first: Iterable[N]) -> Iterator[tuple[N, T]]:
    """Yield one of each owner's, then another one of each; the owners in `first` begin, in that order."""
    left = {owner: iter(queues[owner]) for owner in dict.fromkeys([*first, *queues]) if owner in queues}
    while left:
        for owner in list(left):
            for item in left[owner]:
                yield owner, item
                break
            else:
                del left[owner]
