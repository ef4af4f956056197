"""Control groups, version 1 and 2: where groups can be made, what is written into them, what the kernel says of them.

A server's group is `<base>/skerry-<runtime id>/<name>`, in one directory for version 2, in one for each controller for
version 1. `base` is the agent's own group, or the one above it that was delegated with it, so that whatever holds the
agent holds its servers too. Groups outlive the agent, as servers do; empty ones of ours are swept away.

Lives here: reading and writing below `/sys/fs/cgroup`. Must not live here: which way of limiting is taken (`limits`).
Source: Linux `Documentation/admin-guide/cgroup-v1`, `cgroup-v2.rst`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from skerry.core.ports import Launch

log = logging.getLogger(__name__)

PERIOD_MICROSECONDS = 100_000
MIN_QUOTA_MICROSECONDS = 1000
"""The kernel refuses less."""
MAX_READ_BYTES = 256 * 1024
REMOVE_ATTEMPTS = 100
REMOVE_PAUSE_SECONDS = 0.02
"""A group can be removed once its last process is gone for good, which may be a moment after its end."""
_PREFIX = "skerry-"
_AGENT = "skerry-agent"
"""Version 2 has no processes beside groups, so an agent that is alone in a delegated group moves into this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Directories below which groups can be made; for version 2 both are the same."""

    version: Literal[1, 2]
    memory: Path
    cpu: Path | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Kills:
    """What the kernel counted in one group."""

    killed: int = 0
    """Processes killed for want of memory, whoever wanted it."""
    own_limit: bool = False
    """The group had come to its own limit."""


class UnusableError(Exception):
    """No group can be made there; the text says why."""


# --- finding a place ----------------------------------------------------------------------------------------------


def find_v2(root: Path = Path("/")) -> Place:
    """Return where groups of version 2 can be made, tried out. Raises UnusableError."""
    mount = next((mount for mount in _mounts(root) if mount.kind == "cgroup2"), None)
    if mount is None:
        raise UnusableError("it is not mounted")
    own = mount.directory(_own_groups(root).get("", "/"))
    reasons = []
    for base in [own, *([own.parent] if own != mount.point and _is_delegated(own.parent, root) else [])]:
        try:
            if base != mount.point and not _is_delegated(base, root):
                # Root could, but systemd would end the agent, too, when a server is killed for memory (OOMPolicy=).
                raise UnusableError("systemd has not delegated it; set Delegate=yes")
            _delegate(base, may_move=base == own)
            place = Place(version=2, memory=base, cpu=base if "cpu" in _words(base / "cgroup.controllers") else None)
            _try_out(place)
        except UnusableError as error:
            reasons.append(f"{error} ({base})")
        else:
            return place
    raise UnusableError("; ".join(reasons))


def find_v1(root: Path = Path("/")) -> Place:
    """Return where groups of version 1 can be made, tried out, with or without CPU. Raises UnusableError."""
    own = _own_groups(root)
    found: dict[str, Path] = {}
    for mount in _mounts(root):
        for controller in ("memory", "cpu"):
            if mount.kind == "cgroup" and controller in mount.options and controller in own:
                found.setdefault(controller, mount.directory(own[controller]))
    if "memory" not in found:
        raise UnusableError("its memory controller is not mounted")
    place = Place(version=1, memory=found["memory"], cpu=found.get("cpu"))
    try:
        _try_out(place)
    except UnusableError:
        if place.cpu is None:
            raise
        place = Place(version=1, memory=place.memory, cpu=None)
        _try_out(place)
    return place


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mount:
    kind: str
    root: str
    point: Path
    options: frozenset[str]

    def directory(self, group: str) -> Path:
        """Return a group's directory below this mount; in a container the mount may begin at the group itself."""
        parts = [part for part in group.split("/") if part]
        above = [part for part in self.root.split("/") if part]
        if ".." in parts or parts[: len(above)] != above:
            return self.point
        return self.point.joinpath(*parts[len(above) :])


def _mounts(root: Path) -> list[_Mount]:
    mounts = []
    for line in _read(root / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        left, right = fields.split(), rest.split()
        if len(left) < 6 or len(right) < 3 or right[0] not in ("cgroup", "cgroup2"):
            continue
        options = frozenset(right[2].split(","))
        point = root / _unescaped(left[4]).lstrip("/")
        mounts.append(_Mount(kind=right[0], root=_unescaped(left[3]), point=point, options=options))
    return mounts


def _unescaped(text: str) -> str:
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def _own_groups(root: Path) -> dict[str, str]:
    """Our own group by controller; version 2's under the empty name."""
    groups = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(",") if controllers else [""]:
            if controllers or number == "0":
                groups[controller] = path
    return groups


def _is_delegated(base: Path, root: Path) -> bool:
    """Whether a group is ours to use: below systemd only what it has marked so (Delegate=)."""
    if not (root / "run/systemd/system").is_dir():
        return True
    try:
        return os.getxattr(base, "user.delegate") == b"1"
    except OSError:
        return False


def _delegate(base: Path, *, may_move: bool) -> None:
    """Have children of this group get memory and CPU controllers. Raises UnusableError."""
    offered = _words(base / "cgroup.controllers")
    if "memory" not in offered:
        raise UnusableError("the memory controller is not delegated")
    missing = [name for name in ("memory", "cpu") if name in offered - _words(base / "cgroup.subtree_control")]
    if not missing:
        return
    text = " ".join(f"+{name}" for name in missing)
    failure = _write(base / "cgroup.subtree_control", text)
    if failure is not None and failure.errno == errno.EBUSY and may_move and _pids(base) == [os.getpid()]:
        _step_aside(base)
        failure = _write(base / "cgroup.subtree_control", text)
        if failure is not None:
            _write(base / "cgroup.procs", str(os.getpid()))
    if failure is not None:
        raise UnusableError(f"controllers cannot be passed on: {failure.strerror}")


def _step_aside(base: Path) -> None:
    try:
        (base / _AGENT).mkdir(exist_ok=True)
    except OSError as error:
        raise UnusableError(f"no group can be made: {error.strerror}") from None
    failure = _write(base / _AGENT / "cgroup.procs", str(os.getpid()))
    if failure is not None:
        raise UnusableError(f"the agent cannot step aside: {failure.strerror}")


def _try_out(place: Place) -> None:
    trial = Launch(
        name="trial",
        argv=[],
        directory=Path("/"),
        environment={},
        log=Path("/"),
        memory_limit_bytes=1 << 30,
        cpu_limit_millis=1000 if place.cpu is not None else 0,
    )
    made = directories(place, f"trial{os.getpid()}", "trial")
    try:
        create(place, made, trial)
    except OSError as error:
        raise UnusableError(f"no group can be made: {error.strerror}") from None
    finally:
        remove(made, kill=False)


# --- groups -------------------------------------------------------------------------------------------------------


def directories(place: Place, runtime: str, name: str) -> list[Path]:
    """Return the directories of a server's group, memory's first."""
    bases = dict.fromkeys(base for base in (place.memory, place.cpu) if base is not None)
    return [base / f"{_PREFIX}{runtime}" / name for base in bases]


def create(place: Place, group: Sequence[Path], launch: Launch) -> None:
    """Make a server's group with its limits, anew if there is an empty one. Raises OSError."""
    for directory in group:
        try:
            _make(place, directory)
        except FileNotFoundError:  # the last other server of this runtime took their common directory with it
            _make(place, directory)
    write = _write_v2 if place.version == 2 else _write_v1
    write(group[0], group[-1] if place.cpu is not None else None, launch)


def _make(place: Place, directory: Path) -> None:
    directory.parent.mkdir(exist_ok=True)
    if place.version == 2:
        _must_write(directory.parent / "cgroup.subtree_control", "+memory" if place.cpu is None else "+memory +cpu")
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()  # its counters are those of an earlier server
    directory.mkdir()


def remove(group: Iterable[Path], *, kill: bool) -> bool:
    """Remove a group, and with `kill` whatever is still in it; return whether it is gone. Blocks for up to seconds."""
    gone = True
    for directory in group:
        for attempt in range(REMOVE_ATTEMPTS):
            try:
                directory.rmdir()
            except FileNotFoundError:
                break
            except OSError as error:
                if not kill and _pids(directory):
                    gone = False
                    break
                if error.errno != errno.EBUSY or attempt == REMOVE_ATTEMPTS - 1:
                    log.warning("cgroup.not_removed directory=%s error=%s", directory, error.strerror)
                    gone = False
                    break
                _kill(directory)
                time.sleep(REMOVE_PAUSE_SECONDS)
            else:
                break
        with contextlib.suppress(OSError):
            directory.parent.rmdir()  # the last one of its runtime
    return gone


def sweep(place: Place, runtime: str, *, keep: Iterable[str]) -> int:
    """Remove the groups of a runtime's servers that are gone, but for those named; return how many."""
    kept, removed = set(keep), 0
    for base in {place.memory, place.cpu} - {None}:
        try:
            found = [path for path in (Path(base or "") / f"{_PREFIX}{runtime}").iterdir() if path.is_dir()]
        except OSError:
            continue
        for directory in found:
            if directory.name not in kept and not _pids(directory):
                removed += remove([directory], kill=False)
    return removed


def read_kills(group: Sequence[Path]) -> Kills:
    """Return what the kernel counted; nothing when the group is gone or the kernel does not count."""
    if not group:
        return Kills()
    directory = group[0]
    events = _counters(directory / "memory.events")
    if events:
        return Kills(killed=events.get("oom_kill", 0), own_limit=events.get("oom", 0) > 0)
    killed = _counters(directory / "memory.oom_control").get("oom_kill", 0)
    return Kills(killed=killed, own_limit=killed > 0 and _came_to_limit(directory))


def _came_to_limit(directory: Path) -> bool:
    """Version 1 does not count its own out-of-memory states, and does not always count failed charges."""
    names = ("memory.failcnt", "memory.max_usage_in_bytes", "memory.limit_in_bytes")
    failed, most, limit = (int(text) if (text := _read(directory / name).strip()).isdigit() else 0 for name in names)
    return failed > 0 or 0 < limit * 9 // 10 <= most


def joining(group: Iterable[Path], argv: Sequence[str]) -> list[str]:
    """Return a command that puts itself into the group and then becomes `argv`, with the same pid.

    It is in the group before the program's first instruction: neither a fork nor the agent's death can come between.
    """
    script = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 126; shift; done; shift; exec "$@"'
    return ["/bin/sh", "-c", script, "sh", *(str(directory / "cgroup.procs") for directory in group), "--", *argv]


def weight_of(millis: int) -> int:
    """Return the version 2 weight for a CPU request, as Kubernetes does: 1 core is 39 of 10000."""
    return 1 + (shares_of(millis) - 2) * 9999 // 262142


def shares_of(millis: int) -> int:
    """Return the version 1 shares for a CPU request: 1 core is 1024."""
    return min(max(2, millis * 1024 // 1000), 262144)


def quota_of(millis: int) -> int:
    """Return the microseconds of CPU time in one period."""
    return max(MIN_QUOTA_MICROSECONDS, millis * PERIOD_MICROSECONDS // 1000)


def _write_v2(memory: Path, cpu: Path | None, launch: Launch) -> None:
    if launch.memory_limit_bytes > 0:
        _must_write(memory / "memory.max", str(launch.memory_limit_bytes))
        _write(memory / "memory.swap.max", "0")  # a limit that swapping evades is none; without swap it is not there
        _write(memory / "memory.oom.group", "1")
    if launch.memory_request_bytes > 0:
        _write(memory / "memory.low", str(launch.memory_request_bytes))
    if cpu is not None and launch.cpu_limit_millis > 0:
        _must_write(cpu / "cpu.max", f"{quota_of(launch.cpu_limit_millis)} {PERIOD_MICROSECONDS}")
    if cpu is not None and launch.cpu_request_millis > 0:
        _write(cpu / "cpu.weight", str(weight_of(launch.cpu_request_millis)))


def _write_v1(memory: Path, cpu: Path | None, launch: Launch) -> None:
    if launch.memory_limit_bytes > 0:
        _must_write(memory / "memory.limit_in_bytes", str(launch.memory_limit_bytes))
        _write(memory / "memory.memsw.limit_in_bytes", str(launch.memory_limit_bytes))  # not there without swap
    if launch.memory_request_bytes > 0:
        _write(memory / "memory.soft_limit_in_bytes", str(launch.memory_request_bytes))
    if cpu is not None and launch.cpu_limit_millis > 0:
        _must_write(cpu / "cpu.cfs_period_us", str(PERIOD_MICROSECONDS))
        _must_write(cpu / "cpu.cfs_quota_us", str(quota_of(launch.cpu_limit_millis)))
    if cpu is not None and launch.cpu_request_millis > 0:
        _write(cpu / "cpu.shares", str(shares_of(launch.cpu_request_millis)))


def _kill(directory: Path) -> None:
    if (directory / "cgroup.kill").exists() and _write(directory / "cgroup.kill", "1") is None:
        return
    for pid in _pids(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _pids(directory: Path) -> list[int]:
    return [int(word) for word in _read(directory / "cgroup.procs").split() if word.isdigit()]


def _words(path: Path) -> set[str]:
    return set(_read(path).split())


def _counters(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _must_write(path: Path, text: str) -> None:
    error = _write(path, text)
    if error is not None:
        raise error


def _write(path: Path, text: str) -> OSError | None:
    """Write into one of the kernel's files; never make one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        return error
    return None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_READ_BYTES).decode(errors="replace")
    except OSError:
        return ""
