"""Limits of servers: by which way this machine can hold a process to its memory and CPU; tried out once, then used.

In this order, the first that works: control groups version 2, version 1, a transient scope of systemd, and as the last
resort resource limits, which count what is reserved instead of what is used, and whole cores only.

Lives here: the choice and its reason, and what each way does to a start. Must not live here: `/sys/fs/cgroup`
(`cgroups`), processes (`process`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from skerry.api.errors import UnavailableError
from skerry.core.ports import Launch
from skerry.drivers.runtime import cgroups
from skerry.drivers.runtime.cgroups import Kills, Place, UnusableError

log = logging.getLogger(__name__)

RESERVED_BYTES = 64 * 1024 * 1024
"""RLIMIT_DATA counts what is reserved, touched or not: stacks of threads and buffers of libraries, 56 MiB of it in our
own inference server. A limit without this much on top would kill servers that stay within their memory."""
SYSTEMD_SECONDS = 10.0
"""How long the trial of a scope may take."""

WayName = Literal["cgroup2", "cgroup1", "systemd", "rlimit"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How limits are enforced here."""

    name: WayName
    memory: bool
    """A memory limit is enforced on what is really used."""
    cpu: bool
    """A CPU limit is enforced to the millicore."""
    reason: str
    """Why this way: what was tried before it and failed."""
    place: Place | None = None
    systemd: tuple[str, ...] = ()
    """The beginning of a `systemd-run` command."""


@functools.cache
def find() -> Way:
    """Return the best way there is on this machine; tried out at the first call, which blocks for a moment."""
    found = choose((("cgroup2", _try_v2), ("cgroup1", _try_v1), ("systemd", _try_systemd)))
    log.info("limits.way name=%s memory=%s cpu=%s reason=%s", found.name, found.memory, found.cpu, found.reason)
    return found


def choose(ways: Iterable[tuple[str, Callable[[], Way]]]) -> Way:
    """Return the first way that can be taken, with the reasons why those before it cannot; else resource limits."""
    reasons: list[str] = []
    for name, attempt in ways:
        try:
            way = attempt()
        except UnusableError as error:
            reasons.append(f"no {name}: {error}")
        else:
            return _because(way, reasons)
    return _because(Way(name="rlimit", memory=False, cpu=False, reason=""), reasons)


def _because(way: Way, reasons: Sequence[str]) -> Way:
    text = "; ".join(reasons)[:1000] or "it is the best there is"
    return Way(name=way.name, memory=way.memory, cpu=way.cpu, reason=text, place=way.place, systemd=way.systemd)


def _try_v2() -> Way:
    place = cgroups.find_v2()
    return Way(name="cgroup2", memory=True, cpu=place.cpu is not None, reason="", place=place)


def _try_v1() -> Way:
    place = cgroups.find_v1()
    return Way(name="cgroup1", memory=True, cpu=place.cpu is not None, reason="", place=place)


def _try_systemd() -> Way:
    program = shutil.which("systemd-run")
    if program is None or not Path("/run/systemd/system").is_dir():
        raise UnusableError("systemd does not run here")
    command = (program, *(() if os.geteuid() == 0 else ("--user",)), "--scope", "--quiet", "--collect")
    try:
        done = subprocess.run(
            [*command, "--property=MemoryMax=1G", "--", "/bin/true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SYSTEMD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnusableError(f"systemd-run failed: {error}") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise UnusableError(f"systemd-run failed: {words[-1][:200] if words else done.returncode}")
    return Way(name="systemd", memory=True, cpu=True, reason="", systemd=command)


class Limiter:
    """Applies a way to the servers of one runtime."""

    def __init__(self, way: Way, runtime: str) -> None:
        self.way = way
        self._runtime = runtime

    def group(self, name: str) -> list[Path]:
        """Return the directories that a server's group has, or would have."""
        return [] if self.way.place is None else cgroups.directories(self.way.place, self._runtime, name)

    @property
    def environment(self) -> dict[str, str]:
        """Variables that the way itself needs of ours."""
        names = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS") if self.way.systemd else ()
        return {name: os.environ[name] for name in names if name in os.environ}

    def prepare(self, launch: Launch) -> list[str]:
        """Return the command to start, limited from its first instruction on. Raises UnavailableError."""
        if not launch.is_limited or not launch.argv or self.way.name == "rlimit":
            return list(launch.argv)
        _check_program(launch)
        if self.way.systemd:
            return [*self.way.systemd, *_properties(launch), "--", *launch.argv]
        if self.way.place is None:
            raise AssertionError("the ways through groups have a place for them")
        group = self.group(launch.name)
        cgroups.remove(group, kill=True)  # whatever an earlier server of that name has left in it
        try:
            cgroups.create(self.way.place, group, launch)
        except OSError as error:
            cgroups.remove(group, kill=False)
            raise UnavailableError(
                f"its limits cannot be set: {error.strerror}",
                element=launch.name,
                hint="see the device's status.limits",
            ) from error
        return cgroups.joining(group, launch.argv)

    def confine(self, pid: int, launch: Launch) -> None:
        """Set resource limits on a process that was just started; nothing where groups do better."""
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        if self.way.name != "rlimit":
            return
        if launch.memory_limit_bytes > 0:
            reserved = launch.memory_limit_bytes + RESERVED_BYTES
            resource.prlimit(pid, resource.RLIMIT_DATA, (reserved, reserved))
        if launch.cpu_limit_millis > 0:
            allowed = sorted(os.sched_getaffinity(0))
            cores = max(1, -(-launch.cpu_limit_millis // 1000))
            first = pid % len(allowed)  # so that not all servers meet on the first core
            chosen = [allowed[(first + step) % len(allowed)] for step in range(min(cores, len(allowed)))]
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(pid, chosen)

    def sweep(self, keep: Iterable[str]) -> int:
        """Remove groups that a killed agent has left behind; return how many."""
        return 0 if self.way.place is None else cgroups.sweep(self.way.place, self._runtime, keep=keep)


def read_kills(group: Sequence[Path]) -> Kills:
    """Return what the kernel counted in a group; nothing when there is none."""
    return cgroups.read_kills(group)


def remove(group: Iterable[Path], *, kill: bool = True) -> None:
    """Remove a group; end whatever is still in it first, or leave it then."""
    cgroups.remove(group, kill=kill)


def _check_program(launch: Launch) -> None:
    """Say now what the shell in between could say only in the log."""
    path = launch.environment.get("PATH", os.defpath)
    program = launch.argv[0]
    if any("\0" in word for word in launch.argv):
        raise UnavailableError("cannot be started: embedded null byte", element=launch.name)
    if not launch.directory.is_dir():
        raise UnavailableError("cannot be started: No such file or directory", element=str(launch.directory))
    if shutil.which(program, path=path) is None:
        raise UnavailableError("cannot be started: No such file or directory", element=program)


def _properties(launch: Launch) -> list[str]:
    properties = []
    if launch.memory_limit_bytes > 0:
        properties += [f"MemoryMax={launch.memory_limit_bytes}", "MemorySwapMax=0"]
    if launch.memory_request_bytes > 0:
        properties.append(f"MemoryLow={launch.memory_request_bytes}")
    if launch.cpu_limit_millis > 0:
        properties.append(f"CPUQuota={max(1, round(launch.cpu_limit_millis / 10))}%")
    if launch.cpu_request_millis > 0:
        properties.append(f"CPUWeight={cgroups.weight_of(launch.cpu_request_millis)}")
    return [f"--property={text}" for text in properties]
