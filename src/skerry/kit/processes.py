"""Processes that do not outlive the one that started them, however that one ends.

Lives here: argument lists that make it so. Must not live here: what the processes do. Source: prctl(2).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_DIE_TOGETHER = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, int(sys.argv[1])); "
    "os.getppid() == int(sys.argv[2]) or sys.exit(1); os.execv(sys.argv[3], sys.argv[3:])"
)
"""PR_SET_PDEATHSIG, kept across exec; should the parent have ended before, nothing is started."""


def python(arguments: Sequence[str], *, interpreter: str = sys.executable, signal_number: int = 9) -> list[str]:
    """Return the command that runs an interpreter with arguments; it gets the signal when this process ends.

    Start it from the main thread: the kernel means the thread that started it.
    """
    # -P: the directory this runs in is not searched for modules
    own = [str(signal_number), str(os.getpid())]
    return [sys.executable, "-I", "-S", "-c", _DIE_TOGETHER, *own, interpreter, "-P", *arguments]
