"""Interpreters that are started before there is work for them, so that their imports cost nobody time.

The program imports what it will need and then reads one line from standard input: its job. Importing NumPy, ONNX and
ONNX Runtime takes longer than most jobs on a small model. Lives here: starting such processes, handing them out, ending
those that nobody took. Must not live here: what they run.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from skerry.kit import processes

STOP_SECONDS = 5.0


class Standby:
    """Processes that wait for their job; as a context manager it leaves none behind."""

    def __init__(self, *, own_groups: bool = False) -> None:
        """`own_groups`: each process leads a process group, with which it is to be stopped."""
        self._group = 0 if own_groups else None
        self._waiting: list[tuple[Sequence[str], subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End those that nobody took."""
        self.close()

    @property
    def pids(self) -> list[int]:
        """Those that wait."""
        return [process.pid for _, process in self._waiting]

    def start(self, arguments: Sequence[str], *, ahead: Sequence[str] = ()) -> None:
        """Start an interpreter; `ahead` are more arguments, for what it shall do before its job comes.

        From the main thread (`processes.python`).
        """
        self._waiting.append((list(arguments), self._spawn([*arguments, *ahead])))

    def take(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        """Return a process with these arguments, one that waits if there is one; it is the caller's from now on.

        Its streams are pipes; `give` it its job.
        """
        for entry in [entry for entry in self._waiting if entry[0] == list(arguments)]:
            self._waiting.remove(entry)
            if entry[1].poll() is None:
                return entry[1]
            _close(entry[1])
        return self._spawn(arguments)

    def close(self) -> None:
        """End all that wait."""
        while self._waiting:
            _, process = self._waiting.pop()
            process.kill()
            process.wait(STOP_SECONDS)
            _close(process)

    def _spawn(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            processes.python(arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=self._group,
        )


def give(process: subprocess.Popen[bytes], line: bytes) -> None:
    """Write a process its job; one that has ended is told by its exit code, not here."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(line + b"\n")
    with suppress(BrokenPipeError):
        process.stdin.close()


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
