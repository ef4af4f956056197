"""How many new connections a broker takes on at a time: after an outage a whole fleet returns in the same minute.

A handshake costs the hub a signature and a verification; those already connected must not wait for thousands of them.
Whoever comes when there is no room is sent away before the handshake, which costs next to nothing, and comes back after
its own random pause. Lives here: the count. Must not live here: sockets.
"""

from __future__ import annotations

from collections.abc import Callable


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
