"""A bound on the bandwidth of downloads: one token bucket, shared by all that are on their way.

Whoever has taken bytes waits until they are paid for; the sender is slowed down by the line itself. Lives here: the
arithmetic, safe for threads. Must not live here: sockets, sleeping.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BURST_SECONDS = 0.25
"""So much may come at once after a pause."""
MIN_PIECE_BYTES = 1024
MAX_WAIT_SECONDS = 5.0
"""At a time; then it is asked again, for the bound may have changed."""


class Bandwidth:
    """The bound; none until one is set."""

    def __init__(self, bytes_per_second: int | None = None, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._rate: float | None = None
        self._tokens = 0.0
        self._at = monotonic()
        self.limit(bytes_per_second)

    def limit(self, bytes_per_second: int | None) -> None:
        """Allow so much from now on; None: everything. What was taken before stays paid or owed in time."""
        with self._lock:
            self._refill()
            owed = min(self._tokens, 0.0) / self._rate if self._rate else 0.0
            self._rate = None if bytes_per_second is None else max(float(bytes_per_second), 1.0)
            self._tokens = 0.0 if self._rate is None else owed * self._rate

    @property
    def is_bound(self) -> bool:
        """Whether there is a bound now."""
        return self._rate is not None

    def piece(self, wanted: int) -> int:
        """Return how much to read at a time, so that no reading takes long to pay for."""
        with self._lock:
            if self._rate is None:
                return wanted
            return max(min(wanted, int(self._rate * BURST_SECONDS)), min(wanted, MIN_PIECE_BYTES))

    def take(self, count: int) -> None:
        """Note that so many bytes have come."""
        with self._lock:
            if self._rate is not None:
                self._refill()
                self._tokens -= count

    def wait(self) -> float:
        """Return the seconds to wait before reading on, at most `MAX_WAIT_SECONDS`; 0 when nothing is owed."""
        with self._lock:
            if self._rate is None:
                return 0.0
            self._refill()
            return min(max(-self._tokens / self._rate, 0.0), MAX_WAIT_SECONDS)

    def _refill(self) -> None:
        now = self._monotonic()
        if self._rate is not None:
            self._tokens = min(self._tokens + max(now - self._at, 0.0) * self._rate, self._rate * BURST_SECONDS)
        self._at = now
