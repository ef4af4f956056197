"""The state directory: one hub at a time, private, and what this hub chose once and keeps (`hub.json`).

Lives here: the lock, the directory's layout, the record of ports. Must not live here: what the files of others contain.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec

from skerry.api.errors import IntegrityError, StorageFullError, UnavailableError
from skerry.api.meta import Struct
from skerry.kit import files

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class HubRecord(Struct, frozen=True, kw_only=True):
    """What tools may know of a hub on this machine; devices know the ports, so they stay."""

    api_port: Port
    mqtt_port: Port
    url: str
    mqtt_host: str
    kubeconfig: str
    ca_fingerprint: str
    pid: int = 0
    """0 once it has ended in good order; a hub that was killed leaves its last one, and no lock."""
    started_at: datetime | None = None


class StateDirectory:
    """Paths within one hub's state directory, and its record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pki = path / "pki"
        self.store = path / "hub.db"
        self.artifacts = path / "artifacts"
        self.kubeconfig = path / "kubeconfig"
        self._record = path / "hub.json"

    def read_record(self) -> HubRecord | None:
        """Return what the hub before this one wrote, or None on the first start. Raises IntegrityError."""
        try:
            return msgspec.json.decode(self._record.read_bytes(), type=HubRecord)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise IntegrityError(
                f"cannot be read ({error})",
                element=str(self._record),
                hint="delete it, and name the ports that the devices know with --api-port and --mqtt-port",
            ) from None

    def write_record(self, record: HubRecord) -> None:
        """Write the record. Raises StorageFullError."""
        files.write_atomic(self._record, msgspec.json.format(msgspec.json.encode(record)) + b"\n", mode=0o600)


@contextlib.contextmanager
def claim(path: Path) -> Iterator[StateDirectory]:
    """Make the directory if need be and hold it for this process, which ends with the process however it ends.

    Raises UnavailableError when another hub holds it or it cannot be used.
    """
    absolute = path.expanduser().absolute()
    with _explained(absolute):
        files.private_directory(absolute)
        descriptor = os.open(absolute / "hub.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        with _explained(absolute):
            _lock(descriptor, absolute)
        yield StateDirectory(absolute)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
        raise UnavailableError(
            f"another hub runs there{f' (process {holder})' if holder.isdigit() else ''}",
            element=f"state directory {path}",
            hint="stop that one first, or give this one a directory of its own with --state-dir",
        ) from None
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (StorageFullError if full else UnavailableError)(
            f"cannot be used ({error.strerror or error})",
            element=f"state directory {path}",
            hint="name one that this user may write to with --state-dir",
        ) from None
