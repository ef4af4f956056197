"""A command beside a server, for somebody who is connected: pipes or a terminal, and nothing left of it afterwards.

It has the server's directory, environment, user and control group, and may gain no privileges. Between it and the
agent is a `keeper`, below which everything of it is, and which ends all of that when the command ends, when the client
leaves, and when the agent is killed. What a keeper that was killed itself has left is found by the marker
`SKERRY_SESSION`.
Lives here: fork, terminals, signals. Must not live here: who may (the agent's settings), the client's protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

from skerry.api.errors import UnavailableError
from skerry.core.ports import Execution
from skerry.drivers.runtime import cgroups, keeper, proc, spawn

log = logging.getLogger(__name__)

MARKER = "SKERRY_SESSION"
POLL_SECONDS = 0.1
"""How often a command is looked at on kernels that have no pidfd (before 5.3)."""
END_ROUNDS = 20
_TERMINAL = 'exec 0<>/proc/self/fd/0 1>&0 2>&0; exec "$@"'
"""Opened by the leader of a session, a terminal becomes the session's."""
_PLAIN = 'exec "$@"'
_KEEPER = (sys.executable, "-I", "-S", keeper.__file__)
KEEPER_SECONDS = keeper.END_SECONDS + 2.0


class Session:
    """One command that was started; `end` must be called."""

    def __init__(self, process: subprocess.Popen[bytes], marker: str) -> None:
        self.input = -1
        """Descriptor, not blocking; -1 when there is none."""
        self.output = -1
        self.errors = -1
        self.terminal = False
        self._process = process
        """The keeper, which ends as the command does, when nothing is left of it."""
        self._marker = marker

    async def wait(self) -> int:
        """Return the exit code of the command once it has ended, 128 and the signal's number where one ended it."""
        if self._process.returncode is None:
            await _ended(self._process.pid)
        code = self._process.poll()
        if code is None:
            code = await asyncio.to_thread(self._process.wait)
        return code if code >= 0 else 128 - code  # a keeper that was killed itself

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size."""
        if self.terminal and self.output >= 0:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self.output, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close_input(self) -> None:
        """Let the command read the end of its input."""
        if self.terminal:
            with contextlib.suppress(OSError):
                os.write(self.input, b"\x04")
            return
        descriptor, self.input = self.input, -1
        if descriptor >= 0:
            os.close(descriptor)

    async def kill(self) -> None:
        """End whatever runs of it."""
        await asyncio.to_thread(self._kill)

    async def end(self) -> None:
        """End what still runs, and let go of everything; takes its time, but not for ever."""
        for descriptor in {self.input, self.output, self.errors} - {-1}:
            os.close(descriptor)
        self.input = self.output = self.errors = -1
        work = asyncio.ensure_future(asyncio.to_thread(self._end))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait({work})
            raise

    def _kill(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KEEPER_SECONDS)
        end_all(self._marker)

    def _end(self) -> None:
        self._kill()
        if self._process.poll() is None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)


async def start(execution: Execution, runtime: str, group: Sequence[Path]) -> Session:
    """Start a command in a server's group. Raises UnavailableError."""
    return await spawn.in_fresh_thread(lambda: _start(execution, runtime, group))


def _start(execution: Execution, runtime: str, group: Sequence[Path]) -> Session:
    marker = f"{runtime}/{secrets.token_hex(8)}"
    environment = dict(execution.environment)
    environment.pop(MARKER, None)  # or the keeper would be taken for what it keeps
    if execution.terminal:
        environment.setdefault("TERM", "xterm")
    argv = ["/bin/sh", "-c", _TERMINAL if execution.terminal else _PLAIN, "sh", *execution.argv]
    theirs: list[int] = []
    ours: list[int] = []
    try:
        ends = _open_ends(execution, theirs, ours)
        wanted = [f"{MARKER}={marker}", str(spawn.OOM_SCORE), *map(str, ends)]
        process = subprocess.Popen(
            [*_KEEPER, *wanted, *(cgroups.joining(group, argv) if group else argv)],
            cwd=execution.directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=set(ends),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        for descriptor in (*theirs, *ours):
            os.close(descriptor)
        raise UnavailableError(f"cannot be started: {error}", element=execution.argv[0][:200]) from None
    for descriptor in set(theirs):
        os.close(descriptor)
    session = Session(process, marker)
    session.terminal = execution.terminal
    for descriptor in set(ours):
        os.set_blocking(descriptor, False)
    session.input, session.output, session.errors = (ours * 3)[:3] if execution.terminal else (*ours,)
    if execution.terminal:
        session.errors = -1
    return session


def _open_ends(execution: Execution, theirs: list[int], ours: list[int]) -> tuple[int, int, int]:
    """Open a terminal or pipes; into the lists go all descriptors, ours as (input, output, errors) or the one."""
    if execution.terminal:
        master, slave = os.openpty()
        theirs.append(slave)
        ours.append(master)
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        return slave, slave, slave
    for outward in (False, True, True):
        reader, writer = os.pipe()
        theirs.append(writer if outward else reader)
        ours.append(reader if outward else writer)
    return theirs[0], theirs[1], theirs[2]


def end_all(marker: str) -> int:
    """Kill every process whose marker begins so, and those they start meanwhile; return how many there were."""
    killed: set[int] = set()
    for _ in range(END_ROUNDS):
        found = [pid for pid in proc.pids() if (proc.read_variable(pid, MARKER) or "").startswith(marker)]
        found = [pid for pid in found if (stat := proc.read_stat(pid)) is not None and not stat.ended]
        if not found:
            break
        for pid in found:
            killed.add(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    return len(killed)


async def _ended(pid: int) -> None:
    """Wait until a child has ended; it is not collected."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        while not _has_ended(pid):  # noqa: ASYNC110 - this kernel, or a sandbox, has no event to wait for
            await asyncio.sleep(POLL_SECONDS)
        return
    try:
        await readable(descriptor)
    finally:
        os.close(descriptor)


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


async def readable(descriptor: int) -> None:
    """Wait until there is something to read, or the end."""
    await _event(descriptor, writing=False)


async def writable(descriptor: int) -> None:
    """Wait until something can be written, or nobody reads any more."""
    await _event(descriptor, writing=True)


async def _event(descriptor: int, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    happened: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not happened.done():
            happened.set_result(None)

    (loop.add_writer if writing else loop.add_reader)(descriptor, note)
    try:
        await happened
    finally:
        (loop.remove_writer if writing else loop.remove_reader)(descriptor)
