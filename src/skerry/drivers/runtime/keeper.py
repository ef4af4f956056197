"""A program of its own between the agent and one command: it starts the command, and leaves nothing of it behind.

What a command starts and abandons, also in another session and without an environment to be known by, becomes this
program's child (prctl(2), PR_SET_CHILD_SUBREAPER), so that everything of the command is found below it. It ends all of
that when the command has ended, or when its input does: the other end has the agent alone, so that this is also what
happens when the agent is killed. Run by its path and without the rest of the package, for it has to start quickly.

Usage: keeper.py MARKER OOM_SCORE IN OUT ERR [WORD ...]; the three are descriptors, and become the command's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time

_PR_SET_CHILD_SUBREAPER = 36
_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
END_SECONDS = 10.0
"""How long a SIGKILL may take to have its effect; what is in uninterruptible I/O is then left alone."""


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code, 128 and the signal's number where one ended it."""
    marker, score, *descriptors = arguments[:5]
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    _adopt()
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ends = [int(one) for one in descriptors]
    command = os.fork()
    if command == 0:
        _become(arguments[5:], ends, marker, score)
    for descriptor in set(ends):
        os.close(descriptor)
    code = None
    while code is None:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            code = _collect(command)
        if 0 in ready and not os.read(0, 1):
            break
    rest = _end_all(command)
    return code if code is not None else rest


def _adopt() -> None:
    import ctypes  # noqa: PLC0415 (as in `spawn`)

    zero = ctypes.c_ulong(0)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), zero, zero, zero)


def _become(argv: list[str], ends: list[int], marker: str, score: str) -> None:
    """Be the command: in a session of its own, with these descriptors alone, and known by the marker."""
    try:
        os.setsid()
        for number in (*_IGNORED, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):  # the last two, Python ignores
            signal.signal(number, signal.SIG_DFL)
        above = [os.dup(one) for one in ends]
        for target, source in enumerate(above):
            os.dup2(source, target)
        os.closerange(3, max([*above, *ends]) + 1)
        name, _, value = marker.partition("=")
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(score)
        os.execve(argv[0], argv, {**os.environ, name: value})  # noqa: S606 (what was asked for)
    except BaseException:  # noqa: BLE001 (nothing of this program may go on in the child)
        os._exit(126)


def _collect(command: int) -> int | None:
    """Bury the dead; return the command's exit code when it is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if not pid:
            return code
        if pid == command:
            found = os.waitstatus_to_exitcode(status)
            code = found if found >= 0 else 128 - found


def _end_all(command: int) -> int:
    """End everything below; return the command's exit code if it was still to come."""
    code, until = None, time.monotonic() + END_SECONDS
    while time.monotonic() < until:
        found = _below(os.getpid())
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped at first: who forks on is not quicker than this
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        ended = _collect(command)
        code = ended if ended is not None else code
        if not _below(os.getpid()):
            break
        time.sleep(0.001)
    return 128 + signal.SIGKILL if code is None else code


def _below(top: int) -> list[int]:
    """Return all processes below one, also those that have ended and are not buried, for they may have children."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    raw = file.read(4096)
            except OSError:
                continue
            fields = raw[raw.rfind(b")") + 1 :].split()
            children.setdefault(int(fields[1]), []).append(int(name))
    found, new = [], [top]
    while new:
        new = [child for one in new for child in children.get(one, ())]
        found += new
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
