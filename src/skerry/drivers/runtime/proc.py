"""What Linux says about processes: a bounded reading of `/proc`, and nothing else.

Lives here: parsing of `/proc/<pid>/{stat,environ,status}` (proc(5)). Must not live here: signals, or which process is
ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_PF_KTHREAD = 0x00200000
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MAX_BYTES = 1024 * 1024
"""Of one file of /proc; an environment is smaller than ARG_MAX, usually 128 KiB for one string."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stat:
    """The fields of `/proc/<pid>/stat` that tell one process from another."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    start_time: int
    """Clock ticks since boot (field 22)."""

    @property
    def ended(self) -> bool:
        """Whether it runs no more: a zombie, or being taken down."""
        return self.state in "ZXx"


def parse_stat(raw: str) -> Stat | None:
    """Parse one line of `/proc/<pid>/stat`; None when it is not one.

    The command stands in parentheses and may itself hold spaces and parentheses: the last one ends it.
    """
    start, end = raw.find("("), raw.rfind(")")
    fields = raw[end + 1 :].split()
    if not 0 < start < end or len(fields) < 20:
        return None
    try:
        return Stat(
            pid=int(raw[:start]),
            state=fields[0],
            parent=int(fields[1]),
            group=int(fields[2]),
            session=int(fields[3]),
            start_time=int(fields[19]),
        )
    except ValueError:
        return None


def read_stat(pid: int) -> Stat | None:
    """Return the process's identity, or None when there is no such process."""
    raw = _read(pid, "stat")
    return parse_stat(raw.decode(errors="replace")) if raw else None


def read_variable(pid: int, name: str) -> str | None:
    """Return a variable of the environment the process was started with; None when it has none or hides it."""
    prefix = name.encode() + b"="
    for entry in _read(pid, "environ").split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode(errors="replace")
    return None


def is_in_transition(pid: int) -> bool:
    """Return whether it shows no environment for the moment: it is just becoming another program, or ending.

    A process that hides its environment, and a thread of the kernel, which has none, are not.
    """
    try:
        with (PROC / str(pid) / "environ").open("rb") as file:
            if file.read(1):
                return False
    except OSError:
        return False
    raw = _read(pid, "stat").decode(errors="replace")
    fields = raw[raw.rfind(")") + 1 :].split()
    return len(fields) > 6 and fields[6].isdigit() and not int(fields[6]) & _PF_KTHREAD


def read_peak_memory(pid: int) -> int:
    """Return the peak resident memory (VmHWM) in bytes; 0 when it cannot be read."""
    for line in _read(pid, "status").splitlines():
        if line.startswith(b"VmHWM:"):
            digits = line.split()[1]
            return int(digits) * 1024 if digits.isdigit() else 0
    return 0


def read_usage(pid: int, session: int) -> tuple[float, int] | None:
    """Return the CPU seconds and resident bytes of a process of that session; None for any other, or one that ended.

    Times of children that were waited for are in it. Fields 14 to 17 and 24.
    """
    raw = _read(pid, "stat").decode(errors="replace")
    fields = raw[raw.rfind(")") + 1 :].split()
    if len(fields) < 22 or fields[3] != str(session) or fields[0] in "ZXx":
        return None
    if not all(field.isdigit() for field in (*fields[11:13], fields[21])):
        return None
    ticks = sum(int(field) for field in fields[11:15] if field.isdigit())
    return ticks / _TICKS, int(fields[21]) * _PAGE_BYTES


def read_oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since boot; 0 when it does not say."""
    try:
        with (PROC / "vmstat").open("rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        return 0
    return 0


def pids() -> Iterator[int]:
    """Yield every process that can be seen."""
    with os.scandir(PROC) as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield int(entry.name)


def _read(pid: int, name: str) -> bytes:
    try:
        with (PROC / str(pid) / name).open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError:
        return b""
