"""The `process` runtime: servers as plain Linux processes that outlive the agent and are found again.

A server runs in a session of its own, so that a signal to the agent, or its death, does not reach it. It carries the
marker `SKERRY_INSTANCE=<runtime id>/<name>` in its environment. A process is ours only if its pid, its start time
*and* its marker agree: a pid that was given to somebody else is never taken for ours, not even after a reboot. The
marker also finds a server whose start was never recorded because the agent was killed right after the fork.

Lives here: fork, signals, pidfds, records. Must not live here: what to do when a server dies (the agent decides).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import secrets
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from skerry.api.errors import AlreadyExistsError, InvalidError, UnavailableError
from skerry.core.ports import Executed, Execution, Instance, Launch, Usage
from skerry.drivers.runtime import limits, proc, sessions, spawn, verdict
from skerry.drivers.runtime.cgroups import Kills
from skerry.kit import files

log = logging.getLogger(__name__)

MARKER = "SKERRY_INSTANCE"
POLL_SECONDS = 0.25
"""How often a process is looked at on kernels that have no pidfd (before 5.3)."""
LOG_CHECK_SECONDS = 30.0
"""How often the log of a server that is waited for is held to its bound."""
KILL_SECONDS = 10.0
"""How long a SIGKILL may take to have its effect (a process in uninterruptible I/O lives on)."""
MAX_REMEMBERED = 256
"""How many ends (exit status, stopped or not) are remembered for later waiters."""
_Value = TypeVar("_Value")
_NAME = re.compile(r"[a-z0-9A-Z]([-a-zA-Z0-9._]{0,251}[a-zA-Z0-9])?")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a started server, for the agent that comes after this one."""

    name: str
    id: str
    log: str
    memory_limit_bytes: int = 0
    group: list[str] = []
    """Directories of its control group; empty when it has none."""


class ProcessRuntime:
    """Supervises servers as processes; `directory` holds its records and its identity, and belongs to it alone.

    Two runtimes with the same directory are the same runtime, one after the other.
    """

    name = "process"

    def __init__(self, directory: Path, *, way: limits.Way | None = None) -> None:
        """`way` of limiting is the best one of this machine unless given."""
        self._directory = files.private_directory(directory)
        self._id = _identity(directory / "runtime-id")
        self._way = way
        self._swept = False
        self._unwritten: dict[str, Record] = {}
        self._ended: dict[str, int] = {}
        self._kills: dict[str, Kills] = {}
        self._stopped: dict[str, bool] = {}
        self._starting: set[str] = set()

    async def start(self, launch: Launch) -> Instance:
        """Start a server; it is recorded when this returns.

        On a disk that is full or read only its output is lost, and the record lives as long as this runtime.
        Raises UnavailableError when the program cannot be started, AlreadyExistsError when one of that name runs.
        """
        if not _NAME.fullmatch(launch.name):
            raise InvalidError("is not a name for a server", element=launch.name[:100])
        taken = AlreadyExistsError("is running already", element=launch.name, hint="stop it first")
        if launch.name in self._starting:
            raise taken
        self._starting.add(launch.name)
        try:
            if any(instance.name == launch.name for instance in await self.list()):
                raise taken
            return await spawn.in_fresh_thread(lambda: self._start(launch))
        finally:
            self._starting.discard(launch.name)

    async def alive(self, instance: Instance) -> bool:
        """Whether this very server, and not a successor in its pid, still runs."""
        return self._is_ours(instance)

    async def wait(self, instance: Instance) -> str:
        """Wait for its end, also for a server of an earlier agent, and say why it ended in a sentence."""
        kills_before = proc.read_oom_kills()
        record = self._read_record(instance.name)
        while not await self._ended_within(instance, LOG_CHECK_SECONDS):
            if record is not None:
                await asyncio.to_thread(_bound_log, Path(record.log))
        return verdict.describe(
            name=instance.name,
            status=self._ended.get(instance.id),
            stopped=instance.id in self._stopped,
            oom_kills=proc.read_oom_kills() - kills_before,
            own=await asyncio.to_thread(self._drop_group, instance, kill=False),
            memory_limit_bytes=record.memory_limit_bytes if record is not None else 0,
            last_line=verdict.last_line(Path(record.log)) if record is not None else "",
        )

    async def stop(self, instance: Instance, *, grace_seconds: float) -> None:
        """SIGTERM to its process group, SIGKILL after the grace; nothing of it runs when this returns.

        Raises UnavailableError when even SIGKILL does not end it.
        """
        _remember(self._stopped, instance.id, True)
        session = self._session(instance)
        if self._is_ours(instance):
            self._signal_group(instance, signal.SIGTERM)
            if not await self._ended_within(instance, grace_seconds):
                log.warning("runtime.killed name=%s grace_seconds=%s", instance.name, grace_seconds)
                self._signal_group(instance, signal.SIGKILL)
                await self._ended_within(instance, KILL_SECONDS)
        await self._kill_rest(instance, session)
        await asyncio.to_thread(self._drop_group, instance, kill=True)
        self._drop_record(instance)

    async def peak_memory(self, instance: Instance) -> int:
        """Return the peak resident memory in bytes; 0 when it cannot be read."""
        return proc.read_peak_memory(_pid(instance)) if self._is_ours(instance) else 0

    async def list(self) -> Sequence[Instance]:
        """Return every server of this runtime that runs, recorded or not, also those of earlier agents."""
        found = await asyncio.to_thread(self._scan)
        if not self._swept:
            self._swept = True
            await asyncio.to_thread(self._sweep, {instance.name for instance in found.values()})
        return sorted(found.values(), key=lambda instance: (instance.name, instance.id))

    async def execute(self, instance: Instance, execution: Execution) -> Executed:
        """Run a command with the server's limits, where it has a group. Raises UnavailableError."""
        if not self._is_ours(instance):
            raise UnavailableError("does not run", element=instance.name)
        group = [path for path in self._group(instance) if path.is_dir()]
        return await sessions.start(execution, self._id, group)

    async def sweep(self) -> int:
        """End what an agent that was killed has left of the commands it ran; return how many processes."""
        return await asyncio.to_thread(sessions.end_all, f"{self._id}/")

    async def usage(self, instance: Instance) -> Usage | None:
        """Return what the processes of its session use; None when it does not run."""
        if not self._is_ours(instance):
            return None
        return await asyncio.to_thread(_usage, self._session(instance))

    # --- starting ---------------------------------------------------------------------------------------------------

    def _start(self, launch: Launch) -> Instance:
        """In a thread of its own: see `spawn.in_fresh_thread`."""
        environment = {**launch.environment, MARKER: f"{self._id}/{launch.name}"}
        limiter = self._limiter
        pid = spawn.spawn(launch, environment, limiter)
        stat = proc.read_stat(pid)
        if stat is None:  # cannot be: as our child it is at least a zombie
            raise UnavailableError("vanished while it was started", element=launch.name)
        instance = Instance(name=launch.name, id=f"{pid}:{stat.start_time}")
        record = Record(
            name=launch.name,
            id=instance.id,
            log=str(launch.log),
            memory_limit_bytes=launch.memory_limit_bytes,
            group=[str(path) for path in limiter.group(launch.name)] if launch.is_limited else [],
        )
        try:
            self._write_record(record)
        except BaseException:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            limits.remove(Path(path) for path in record.group)
            raise
        log.info("runtime.started name=%s id=%s", instance.name, instance.id)
        return instance

    # --- limits -----------------------------------------------------------------------------------------------------

    @property
    def _limiter(self) -> limits.Limiter:
        """Tried out when it is first needed; blocks for a moment then."""
        if self._way is None:
            self._way = limits.find()
        return limits.Limiter(self._way, self._id)

    def _group(self, instance: Instance) -> Sequence[Path]:
        record = self._read_record(instance.name)
        if record is None:  # the agent that started it was killed before it could write one
            return self._limiter.group(instance.name)
        return [Path(path) for path in record.group] if record.id == instance.id else []

    def _drop_group(self, instance: Instance, *, kill: bool) -> Kills:
        """Return what the kernel counted for a server that ended, and remove its group; asked again, still known."""
        group = self._group(instance)
        found = limits.read_kills(group)
        if found.killed:
            _remember(self._kills, instance.id, found)
        limits.remove(group, kill=kill)
        return self._kills.get(instance.id, found)

    def _sweep(self, running: Iterable[str]) -> None:
        """Remove the groups of servers that ended while no agent was there to see it, wherever that agent made them."""
        for path in self._directory.glob("*.json"):
            record = self._read_record(path.name.removesuffix(".json"))
            if record is not None and record.name not in running and record.group:
                limits.remove(Path(group) for group in record.group)
        removed = self._limiter.sweep(running)
        if removed:
            log.info("runtime.groups_swept count=%d", removed)

    # --- knowing again ----------------------------------------------------------------------------------------------

    def _is_ours(self, instance: Instance) -> bool:
        pid, start_time = _parse_id(instance)
        stat = proc.read_stat(pid)
        if stat is None or stat.start_time != start_time:
            self._reap(instance)
            return False
        if stat.ended:
            self._reap(instance)
            return False
        marker = proc.read_variable(pid, MARKER)
        return marker == f"{self._id}/{instance.name}" or (marker is None and proc.is_in_transition(pid))

    def _session(self, instance: Instance) -> int:
        """Return the session in which its processes are; 0 when there is none any more."""
        pid, start_time = _parse_id(instance)
        stat = proc.read_stat(pid)
        if stat is None:
            return pid  # a leader that is gone: what it left behind keeps its session's number from being used again
        return stat.session if stat.start_time == start_time else 0

    def _scan(self) -> Mapping[tuple[str, int], Instance]:
        """Find our processes by their marker: one for each name and session, its leader if that still runs."""
        best: dict[tuple[str, int], proc.Stat] = {}
        for pid in proc.pids():
            marker = proc.read_variable(pid, MARKER)
            if marker is None and proc.is_in_transition(pid):
                marker = self._recorded_marker(pid)
            if marker is None or not marker.startswith(f"{self._id}/"):
                continue
            stat = proc.read_stat(pid)
            if stat is None or stat.ended:
                continue
            key = (marker.removeprefix(f"{self._id}/"), stat.session)
            other = best.get(key)
            if other is None or stat.pid == stat.session or (other.pid != other.session and stat.pid < other.pid):
                best[key] = stat
        return {key: Instance(name=key[0], id=f"{stat.pid}:{stat.start_time}") for key, stat in best.items()}

    def _recorded_marker(self, pid: int) -> str | None:
        """The marker of a server that cannot show it just now, from its record."""
        stat = proc.read_stat(pid)
        if stat is None:
            return None
        for name in {*self._unwritten, *(path.name.removesuffix(".json") for path in self._directory.glob("*.json"))}:
            record = self._read_record(name)
            if record is not None and record.id == f"{pid}:{stat.start_time}":
                return f"{self._id}/{record.name}"
        return None

    def _reap(self, instance: Instance) -> None:
        """Collect the exit status of a child that ended; adopted servers are collected by init."""
        if instance.id in self._ended:
            return
        try:
            pid, status = os.waitpid(_pid(instance), os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            _remember(self._ended, instance.id, os.waitstatus_to_exitcode(status))

    # --- waiting and signalling -------------------------------------------------------------------------------------

    async def _ended_within(self, instance: Instance, seconds: float) -> bool:
        """Whether it has ended, waiting for that so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._wait_end(instance)
        except TimeoutError:
            return not self._is_ours(instance)
        return True

    async def _wait_end(self, instance: Instance) -> None:
        try:
            descriptor = os.pidfd_open(_pid(instance))
        except ProcessLookupError:
            self._reap(instance)
            return
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
                raise
            while self._is_ours(instance):  # noqa: ASYNC110 (this kernel, or a sandbox, has no event to wait for)
                await asyncio.sleep(POLL_SECONDS)
            return
        try:
            # Asked after the descriptor was opened: it stands for this very process. Not by the marker, because a
            # process on its way out has no environment any more and no exit status yet.
            stat = proc.read_stat(_pid(instance))
            if stat is not None and stat.start_time == _parse_id(instance)[1]:
                await sessions.readable(descriptor)
            self._reap(instance)
        finally:
            os.close(descriptor)

    def _signal_group(self, instance: Instance, number: signal.Signals) -> None:
        stat = proc.read_stat(_pid(instance))
        if stat is None or not self._is_ours(instance):
            return
        try:
            os.killpg(stat.group, number)
        except ProcessLookupError:
            return

    async def _kill_rest(self, instance: Instance, session: int) -> None:
        """End what the server has left behind in its session."""
        try:
            async with asyncio.timeout(KILL_SECONDS):
                while rest := (await asyncio.to_thread(self._scan)).get((instance.name, session)):
                    self._signal_group(rest, signal.SIGKILL)
                    await self._ended_within(rest, POLL_SECONDS)
        except TimeoutError:
            raise UnavailableError(
                "does not end, not even by SIGKILL", element=instance.name, hint="it may hang in I/O; see `ps`"
            ) from None

    # --- records ----------------------------------------------------------------------------------------------------

    def _record_path(self, name: str) -> Path:
        return self._directory / f"{name}.json"

    def _write_record(self, record: Record) -> None:
        # Not fsynced on purpose: after a power cut no process is left that it could speak of.
        if spawn.write_unsynced(self._record_path(record.name), msgspec.json.encode(record)):
            self._unwritten.pop(record.name, None)
        else:
            log.warning("runtime.not_recorded name=%s", record.name)
            self._unwritten[record.name] = record

    def _read_record(self, name: str) -> Record | None:
        if not _NAME.fullmatch(name):
            return None
        if name in self._unwritten:
            return self._unwritten[name]
        try:
            return msgspec.json.decode(self._record_path(name).read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _drop_record(self, instance: Instance) -> None:
        record = self._read_record(instance.name)
        if record is not None and record.id == instance.id:
            self._unwritten.pop(instance.name, None)
            with contextlib.suppress(OSError):  # a disk that became read-only; it speaks of a process that is gone
                self._record_path(instance.name).unlink(missing_ok=True)


def _identity(path: Path) -> str:
    """Return the runtime's id, made on first use."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        text = ""
    if re.fullmatch(r"[0-9a-f]{32}", text):
        return text
    text = secrets.token_hex(16)
    files.write_atomic(path, text.encode(), mode=0o600)
    return text


def _remember(ends: dict[str, _Value], key: str, value: _Value) -> None:
    ends[key] = value
    while len(ends) > MAX_REMEMBERED:
        del ends[next(iter(ends))]


def _bound_log(path: Path) -> None:
    try:
        spawn.bound_log(path)
    except OSError as error:
        log.warning("runtime.log_not_bounded log=%s error=%s", path, error)


def _parse_id(instance: Instance) -> tuple[int, int]:
    pid, _, start_time = instance.id.partition(":")
    if not (pid.isascii() and pid.isdigit() and start_time.isascii() and start_time.isdigit()) or int(pid) < 2:
        raise InvalidError("is not an id of a process: <pid>:<start time>", element=instance.id[:100])
    return int(pid), int(start_time)


def _pid(instance: Instance) -> int:
    return _parse_id(instance)[0]


def _usage(session: int) -> Usage | None:
    found = [used for pid in proc.pids() if (used := proc.read_usage(pid, session)) is not None]
    if not session or not found:
        return None
    return Usage(cpu_seconds=sum(cpu for cpu, _ in found), memory_bytes=sum(memory for _, memory in found))
