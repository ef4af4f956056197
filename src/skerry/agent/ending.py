"""How the agent is told to end: SIGTERM and SIGINT, from its first instructions to its last.

Python's default for SIGTERM is to die on the spot, and asyncio's handlers are there only while the loop is: a signal
while modules are imported, or while the loop is taken down, would end the agent with an error. So the handlers are set
before anything else is imported, and stay.
Lives here: taking note of signals. Must not live here: imports that take time, or what ending means (`app`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Ending:
    """Remembers which signals came, and tells whoever runs. To be used from the main thread."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._tell: Callable[[], None] | None = None

    def hold(self) -> None:
        """Take note of the signals from now on, instead of dying of them."""
        for number in NUMBERS:
            signal.signal(number, self._receive)

    def release(self) -> None:
        """Let them do again what they do to any program; those that came meanwhile do it now."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in self.received:
            os.kill(os.getpid(), number)

    def tell(self, end: Callable[[], None]) -> None:
        """Have `end` called, once, at the first signal; at once if one has come already."""
        self._tell = end
        if self.received:
            self._tell_once()

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's shape
        self.received.append(signal.Signals(number))
        self._tell_once()

    def _tell_once(self) -> None:
        end, self._tell = self._tell, None
        if end is not None:
            end()
