"""Runs the agent and kills it (SIGKILL) just before its n-th change of the disk or of a process.

    python power_cut.py N ARMED TRACE AGENT-ARGUMENTS...

Counting begins once the file ARMED is there; N = 0 counts only. What is counted is not a list made by hand: every
audit event of the interpreter that changes files or processes, every write and every fsync of the state directory. A
write is two points: before it, and after its first half. Each point is appended to TRACE before anything happens.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

ON_FILES = {
    *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"),
    *("os.truncate", "os.utime", "os.setxattr"),
}
ON_PROCESSES = {"os.kill", "os.killpg", "os.posix_spawn", "os.fork", "subprocess.Popen"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class PowerCut:
    """Counts points and ends the process at the one that was asked for."""

    def __init__(self, number: int, armed: str, trace: str, root: str) -> None:
        self._number = number
        self._armed = armed
        self._root = root
        self._count = 0
        self._lock = threading.RLock()
        self._inside = threading.local()
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._plain_write = os.write

    def watch(self) -> None:
        """See everything from now on."""
        os.write = self._halved(os.write)
        os.pwrite = self._halved(os.pwrite)
        os.fsync = self._seen(os.fsync)
        os.ftruncate = self._seen(os.ftruncate)
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & WRITING and self._is_ours(path):
                self._point(f"open {self._short(path)}")
        elif event in ON_PROCESSES or (event in ON_FILES and self._is_ours(arguments[0])):
            self._point(f"{event} {self._short(arguments[0])}")

    def _halved(self, write: Callable[..., int]) -> Callable[..., int]:
        def halved(descriptor: int, data: Any, *position: int) -> int:
            name = self._name(descriptor)
            if name is None:
                return write(descriptor, data, *position)
            self._point(f"write {name}")
            view = memoryview(data)
            half = len(view) // 2
            if not half:
                return write(descriptor, data, *position)
            written = write(descriptor, view[:half], *position)
            self._point(f"half-written {name}")
            return written + write(descriptor, view[written:], *(one + written for one in position))

        return halved

    def _seen(self, call: Callable[..., None]) -> Callable[..., None]:
        def seen(descriptor: int, *rest: int) -> None:
            name = self._name(descriptor)
            if name is not None:
                self._point(f"{call.__name__} {name}")
            call(descriptor, *rest)

        return seen

    def _point(self, label: str) -> None:
        if getattr(self._inside, "now", False):
            return
        self._inside.now = True
        try:
            with self._lock:
                if not os.path.exists(self._armed):
                    return
                self._count += 1
                self._plain_write(self._trace, f"{label}\n".encode())
                if self._count == self._number:
                    os.kill(os.getpid(), signal.SIGKILL)
                    threading.Event().wait()
        finally:
            self._inside.now = False

    def _name(self, descriptor: int) -> str | None:
        """The path of an open file of the agent's, relative; None for sockets, pipes, logs."""
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        return self._short(path) if path.startswith(f"{self._root}/") else None

    def _is_ours(self, path: object) -> bool:
        if isinstance(path, int):
            return self._name(path) is not None
        text = os.fsdecode(path) if isinstance(path, str | bytes) else str(path)
        return not text.startswith("/") or text == self._root or text.startswith(f"{self._root}/")

    def _short(self, path: object) -> str:
        return str(path).removeprefix(f"{self._root}/").replace(str(os.getpid()), "PID")


def main() -> int:
    """Run the agent."""
    number, armed, trace, *arguments = sys.argv[1:]
    from skerry.agent.app import main as agent

    root = os.path.realpath(arguments[arguments.index("--state-dir") + 1])
    PowerCut(int(number), armed, trace, root).watch()
    return agent(arguments)


if __name__ == "__main__":
    sys.exit(main())
