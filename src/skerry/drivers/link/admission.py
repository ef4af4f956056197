"""How many new connections a broker takes on at a time: after an outage a whole fleet returns in the same minute.

A handshake costs the hub a signature and a verification; those already connected must not wait for thousands of them.
Whoever comes when there is no room is sent away before the handshake, which costs next to nothing, and comes back after
its own random pause. Those who were let in and have not said who they are yet are few at any time: where there are too
many, the one that has waited longest goes, for an honest client is done in a few round trips.
Lives here: the counts. Must not live here: sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass


class Admission:
    """A token bucket: `burst` at once, `rate` more every second. `monotonic` returns seconds."""

    def __init__(self, *, rate: float, burst: int, monotonic: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._monotonic = monotonic
        self._tokens = self._burst
        self._at = monotonic()

    def admit(self) -> bool:
        """Return whether one more may come in now."""
        now = self._monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


@dataclass(kw_only=True, eq=False, slots=True)
class Waiter:
    """A connection that is not admitted yet."""

    end: Callable[[str], None]
    """Called with the reason when it has to make room; it then still has to leave."""
    subject: Hashable = None
    """Whose certificate it showed; None before it has."""


class Waiting:
    """Connections between their arrival and their CONNECT: at most `in_all`, and `each` of one certificate's subject.

    Who is one too many makes the one that came first (of that subject, or of all) leave at once.
    """

    def __init__(self, *, in_all: int, each: int) -> None:
        self._in_all, self._each = in_all, each
        self._waiters: dict[Waiter, None] = {}
        self._by_subject: dict[Hashable, dict[Waiter, None]] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def enter(self, waiter: Waiter) -> None:
        """Count one that has arrived."""
        self._waiters[waiter] = None
        if len(self._waiters) > self._in_all:
            self._put_out(next(iter(self._waiters)), "too many connections wait")

    def identify(self, waiter: Waiter, subject: Hashable) -> None:
        """Count it as one of that certificate's too; one that had to leave before stays out."""
        if waiter not in self._waiters:
            return
        waiter.subject = subject
        own = self._by_subject.setdefault(subject, {})
        own[waiter] = None
        if len(own) > self._each:
            self._put_out(next(iter(own)), "too many connections of one certificate wait")

    def leave(self, waiter: Waiter) -> None:
        """Forget it: it was admitted, or it ended; leaving twice is harmless."""
        self._waiters.pop(waiter, None)
        own = self._by_subject.get(waiter.subject)
        if own is not None:
            own.pop(waiter, None)
            if not own:
                del self._by_subject[waiter.subject]

    def _put_out(self, waiter: Waiter, reason: str) -> None:
        self.leave(waiter)
        waiter.end(reason)
