"""Starting one process so that it stands on its own: session, limits, log, no new privileges.

Lives here: fork and exec, and what belongs to them. Must not live here: knowing a process again (`process`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from skerry.api.errors import UnavailableError
from skerry.core.ports import Launch
from skerry.drivers.runtime.limits import Limiter, remove

log = logging.getLogger(__name__)

MAX_LOG_BYTES = 5 * 1024 * 1024
"""Beyond this a log becomes `<log>.1`, in place of the older one."""
NO_ROOM = (errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Such a disk takes nothing more, which is no reason to start nothing: what is installed is served from it."""
OOM_SCORE = 500
"""Servers die before the agent when the machine runs out of memory."""
_PR_SET_NO_NEW_PRIVS = 38
_Result = TypeVar("_Result")


class _Detached(subprocess.Popen[bytes]):
    """A process that outlives us on purpose: nobody complains when this object goes away."""

    def __del__(self, *_: Any) -> None:
        """Do nothing; the runtime collects the exit status by pid."""


async def in_fresh_thread(work: Callable[[], _Result]) -> _Result:
    """Run `work` in a thread of its own that may gain no privileges (prctl(2) PR_SET_NO_NEW_PRIVS), nor its children.

    The attribute belongs to a thread and is inherited over fork and exec, so that no code has to run between the two,
    where an interpreter with threads must not run any. A cancellation takes effect when `work` is done: what it has
    started is then recorded, and found. Raises UnavailableError when no thread can be had.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[_Result] = loop.create_future()

    def settle(result: _Result | None, error: BaseException | None) -> None:
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            _renounce_privileges()
            result = work()
        except BaseException as error:  # noqa: BLE001 (handed to the waiter)
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    try:
        threading.Thread(target=run, name="spawn").start()
    except RuntimeError as error:
        raise UnavailableError(f"nothing can be started: {error}") from error
    cancelled: asyncio.CancelledError | None = None
    while not outcome.done():
        try:
            await asyncio.shield(outcome)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        outcome.exception()  # taken note of; the caller has left
        raise cancelled
    return outcome.result()


def spawn(launch: Launch, environment: Mapping[str, str], limiter: Limiter) -> int:
    """Start the process within its limits and return its pid. Raises UnavailableError."""
    output = _open_log(launch.log)
    try:
        process = _Detached(
            limiter.prepare(launch),
            cwd=launch.directory,
            env={**limiter.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            close_fds=True,
            pass_fds=launch.descriptors,
            start_new_session=True,
        )
    except (OSError, ValueError, IndexError) as error:
        remove(limiter.group(launch.name) if launch.is_limited else [])
        culprit = getattr(error, "filename", None) or next(iter(launch.argv), launch.name)
        raise _translated(error, str(culprit)) from error
    finally:
        os.close(output)
    _limit(process.pid, launch, limiter)
    return process.pid


def _open_log(path: Path) -> int:
    """Return a descriptor of the log; of nothing, where the disk does not take one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        bound_log(path)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise _translated(error, str(path)) from error
        log.warning("runtime.log_lost log=%s error=%s", path, error)
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def bound_log(path: Path) -> None:
    """Move a log that is too long aside and go on with an empty one; whoever appends to it need not reopen it."""
    try:
        if path.stat().st_size <= MAX_LOG_BYTES:
            return
        older = path.with_name(f"{path.name}.1")
        older.unlink(missing_ok=True)  # whoever still reads it keeps it
        with path.open("rb") as source, open(older, "wb", opener=_private) as target:
            source.seek(-min(MAX_LOG_BYTES, path.stat().st_size), os.SEEK_END)
            shutil.copyfileobj(source, target)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        older.unlink(missing_ok=True)  # room is worth more than the past
    os.truncate(path, 0)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def write_unsynced(path: Path, content: bytes) -> bool:
    """Replace a file in one step; it need not survive a power cut. Return whether the disk took it.

    Raises UnavailableError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch(mode=0o600)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if error.errno in NO_ROOM:
            return False
        raise _translated(error, str(path)) from error
    return True


def _limit(pid: int, launch: Launch, limiter: Limiter) -> None:
    try:
        limiter.confine(pid, launch)
    except ProcessLookupError:
        return  # it has ended already; the waiter will say why
    except OSError as error:
        log.warning("runtime.not_limited pid=%s error=%s", pid, error)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")


def _renounce_privileges() -> None:
    import ctypes  # noqa: PLC0415 (an agent that starts nothing does without it)

    zero = ctypes.c_ulong(0)
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero)


def _translated(error: Exception, element: str) -> Exception:
    cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UnavailableError(f"cannot be started: {cause}", element=element)
