"""A bounded memory of things that hold for a while. Must not live here: what they are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Expiring(Generic[K, V]):
    """Values by key, each until its time; of more than `most` the one that was put in first is forgotten.

    `monotonic` is the clock, in seconds.
    """

    def __init__(self, most: int, monotonic: Callable[[], float]) -> None:
        self._most, self._monotonic = most, monotonic
        self._kept: OrderedDict[K, tuple[V, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many are kept, expired ones among them."""
        return len(self._kept)

    def get(self, key: K) -> tuple[V] | None:
        """Return the value, in a tuple of its own since it may be None; None when there is none any more."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        value, until = kept
        if self._monotonic() >= until:
            del self._kept[key]
            return None
        return (value,)

    def put(self, key: K, value: V, seconds: float) -> None:
        """Keep a value for so long."""
        self._kept.pop(key, None)
        while len(self._kept) >= self._most:
            self._kept.popitem(last=False)
        self._kept[key] = (value, self._monotonic() + seconds)
