"""Files that never touch a disk: where an encrypted model lies in plain while a server loads it.

A memfd; where the kernel, or a sandbox, has none, an unnamed file on a file system that is seen to be a tmpfs. Without
either it is refused: plaintext is never written anywhere else. The server gets it as `/proc/self/fd/<n>`, since a model
is loaded from a path; when the last of the two closes it, it is gone.
Lives here: making such files, and what else could carry memory to a disk (dumps, swap). Must not live here: what is in
them (`sealed`).

Source: memfd_create(2), fcntl(2) (file sealing), core(5), proc_pid_coredump_filter(5), proc_swaps(5), statfs(2).
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from skerry.api.errors import UnsupportedError

log = logging.getLogger(__name__)

_TMPFS_MAGIC = 0x01021994
_MFD_NOEXEC_SEAL = 0x0008
_TMPFS_PLACES = ("/dev/shm", "/run")  # noqa: S108 - the kernel's own, and checked
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_MAX_SWAPS_BYTES = 64 * 1024


def create(name: str) -> int:
    """Return a descriptor (close-on-exec) of a new, empty file in memory. Raises UnsupportedError."""
    for make in (_memfd, _on_tmpfs):
        descriptor = make(name)
        if descriptor is not None:
            return descriptor
    raise UnsupportedError(
        "has no memfd, and no tmpfs to write to, so that an encrypted model could only be used from a disk",
        element="this kernel",
        hint=f"mount a tmpfs at {_TMPFS_PLACES[0]} that the agent may write to",
    )


def check() -> None:
    """See whether such files can be made. Raises UnsupportedError."""
    os.close(create("skerry-check"))


def freeze(descriptor: int) -> None:
    """Let nobody change it any more, where the kernel can see to that."""
    with suppress(OSError):  # a file on a tmpfs has no seals, and no name by which others could come
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)


def path_of(descriptor: int) -> Path:
    """Return the path by which this process, or a child that inherits the descriptor, opens it."""
    return Path(f"/proc/self/fd/{descriptor}")


@contextmanager
def created(name: str) -> Iterator[int]:
    """Have such a file for the block; who else has it open may keep it. Raises UnsupportedError."""
    descriptor = create(name)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def forbid_dumps() -> None:
    """Leave memory out of this process's core dumps, and of those of what it starts."""
    try:
        Path("/proc/self/coredump_filter").write_text("0", encoding="ascii")
    except OSError as error:  # a kernel without core dumps
        log.info("protection.dump_filter_not_set error=%s", error)


def swaps(path: Path = Path("/proc/swaps")) -> list[str]:
    """Return where the kernel may write memory to a disk: swap that is not in memory itself."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_SWAPS_BYTES).decode(errors="replace")
    except OSError:
        return []
    places: Sequence[str] = [line.split()[0] for line in text.splitlines()[1:] if line.split()]
    return [place for place in places if not place.startswith("/dev/zram")]


def _memfd(name: str) -> int | None:
    make = getattr(os, "memfd_create", None)
    if make is None:  # another C library
        return None
    for flags in (os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_NOEXEC_SEAL):
        try:
            return int(make(name, flags))
        except OSError as error:  # no such call, or a sandbox; or a kernel that wants it not to be executable
            log.debug("protection.no_memfd error=%s", error)
    return None


def _on_tmpfs(name: str) -> int | None:  # noqa: ARG001 - it has none
    for place in _TMPFS_PLACES:
        try:
            descriptor = os.open(place, os.O_RDWR | os.O_TMPFILE | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            continue
        if is_tmpfs(descriptor):
            return descriptor
        os.close(descriptor)
    return None


def is_tmpfs(descriptor: int) -> bool:
    """Return whether an open file lies on a tmpfs, by the kernel's word."""
    import ctypes  # noqa: PLC0415 (an agent that needs none of this does without)

    found = (ctypes.c_long * 64)()  # a struct statfs is smaller everywhere, and begins with its type
    if ctypes.CDLL(None).fstatfs(descriptor, ctypes.byref(found)) != 0:
        return False
    return bool(found[0] & 0xFFFFFFFF == _TMPFS_MAGIC)
