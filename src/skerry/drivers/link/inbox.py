"""What a hub takes from a device's topic: decoded, and really from that device; everything else is dropped and counted.

Lives here: the checks every carrier makes before a message reaches the gateway. Must not live here: sockets, or what
the gateway does with the message.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

from skerry.api.errors import InvalidError, SkerryError
from skerry.core import messages
from skerry.drivers.link.topics import MAX_BYTES, Channel

LOG_INTERVAL_SECONDS = 10.0

_KINDS: dict[Channel, Any] = {
    "reported": messages.Reported | messages.CommandResult,
    "online": messages.Online,
    "telemetry": messages.Telemetry,
}


class Drops:
    """Counts what was dropped, by reason, and logs each reason at most once per interval."""

    def __init__(self, log: logging.Logger, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        self._log = log
        self._monotonic = monotonic
        self._logged: dict[str, float] = {}

    def add(self, reason: str, *, source: str, detail: str = "") -> None:
        """Count one; `source` (who sent it) and `detail` are cut to what a log line can bear."""
        self.counts[reason] += 1
        now = self._monotonic()
        if now - self._logged.get(reason, -LOG_INTERVAL_SECONDS) >= LOG_INTERVAL_SECONDS:
            self._logged[reason] = now
            self._log.warning(
                "link.dropped reason=%s source=%s total=%d detail=%r",
                reason,
                source[:128],
                self.counts[reason],
                detail[:200],
            )


def decode(uid: str, channel: Channel, raw: bytes) -> messages.FromDevice:
    """Return the message that device `uid` published. Raises InvalidError, UnsupportedError."""
    kind = _KINDS.get(channel)
    if kind is None or len(raw) > MAX_BYTES[channel]:
        raise InvalidError(f"nothing of {len(raw)} bytes is expected on {channel}", element="message")
    message = cast("messages.FromDevice", messages.decode(raw, kind))
    if message.uid != uid:
        raise InvalidError(f"claims to be from {message.uid[:128]}", element="message")
    return message


def accept(uid: str, channel: Channel, raw: bytes, drops: Drops) -> messages.FromDevice | None:
    """Return the message, or None when it was dropped. Never raises, whatever the bytes."""
    if not raw:
        return None  # a retained topic that was cleared
    try:
        return decode(uid, channel, raw)
    except SkerryError as error:
        drops.add(type(error).__name__.removesuffix("Error").lower(), source=uid, detail=error.sentence)
        return None
