"""Why a server ended, in a sentence.

Lives here: reading an exit status, the kernel's counters and the last words of a log. Must not live here: processes.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from skerry.drivers.runtime.cgroups import Kills

NONE = Kills()
TAIL_BYTES = 8192
LINE_CHARACTERS = 300
_NO_MEMORY = re.compile(
    r"MemoryError|bad_alloc|cannot allocate memory|out of memory|failed to allocate|not enough memory"
    r"|can't start new thread",
    re.IGNORECASE,
)


def describe(
    *,
    name: str,
    status: int | None,
    stopped: bool,
    oom_kills: int,
    memory_limit_bytes: int,
    last_line: str,
    own: Kills = NONE,
) -> str:
    """Return the sentence. `status` is negative for a signal, None when it belongs to an earlier agent's child.

    `oom_kills` were counted on the whole machine while it was waited for, `own` in the server's own group.
    """
    if stopped:
        return f"{name} was stopped"
    how = _how(status)
    if own.killed and status != 0:
        limit = f"it needed more than its memory limit of {memory_limit_bytes // (1024 * 1024)} MiB"
        return f"{name} {how}: {limit if own.own_limit and memory_limit_bytes else 'the machine ran out of memory'}"
    if status == -signal.SIGKILL and oom_kills > 0 and not memory_limit_bytes:
        return f"{name} {how}: the machine ran out of memory"
    if memory_limit_bytes > 0 and status != 0 and (_NO_MEMORY.search(last_line) or status == -signal.SIGKILL):
        how = f"{how}, most likely at its memory limit of {memory_limit_bytes // (1024 * 1024)} MiB"
    return f"{name} {how}: {last_line}" if last_line and status != 0 else f"{name} {how}"


def last_line(path: Path) -> str:
    """Return the last line of a log that is not empty, cut to a bound; "" when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ""
    printable = ("".join(c if c.isprintable() else " " for c in line).strip() for line in reversed(lines))
    return next((line[:LINE_CHARACTERS] for line in printable if line), "")


def _how(status: int | None) -> str:
    if status is None:
        return "ended; its exit status is not known, because it was started before the agent"
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
