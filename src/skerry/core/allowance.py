"""Allowances: how often something may happen, for each of many and for all together. Pure: the caller brings the time.

Lives here: token buckets, in bounded number. Must not live here: what it is that happens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """So many at once, and one more every so many seconds."""

    burst: int
    seconds: float
    """Between two, in the long run."""


class Bucket:
    """One allowance."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate, self._left, self._at = rate, float(rate.burst), now

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Return whether so much more may happen at `now` (monotonic seconds), and count it if so."""
        self._fill(now)
        if self._left < amount:
            return False
        self._left -= amount
        return True

    def wait(self, now: float) -> float:
        """Return the seconds until it may happen again; 0 when it may now."""
        self._fill(now)
        return max(1.0 - self._left, 0.0) * self._rate.seconds

    def _fill(self, now: float) -> None:
        gained = max(now - self._at, 0.0) / self._rate.seconds
        self._left, self._at = min(self._left + gained, float(self._rate.burst)), max(now, self._at)


class Buckets(Generic[K]):
    """An allowance of the same rate for each key. Of too many keys, the one used longest ago is forgotten.

    What is forgotten begins anew with a full allowance: the bound on all is somebody else's to keep.
    """

    def __init__(self, rate: Rate, *, most: int) -> None:
        self._rate, self._most = rate, most
        self._buckets: OrderedDict[K, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: K, now: float, amount: float = 1.0) -> bool:
        """Return whether so much more may happen for this key, and count it if so."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._most:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = Bucket(self._rate, now)
        self._buckets.move_to_end(key)
        return bucket.take(now, amount)
