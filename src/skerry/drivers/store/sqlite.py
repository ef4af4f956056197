"""The embedded store: one SQLite file in write-ahead mode, fsynced before a write returns.

Lives here: opening (file mode, lock, pragmas, check) and what SQLite's errors mean to a user. Must not live here:
statements, the store's semantics.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import QueuePool

from skerry.api.errors import IntegrityError, SkerryError, StorageFullError, UnavailableError
from skerry.drivers.store.database import LogDatabase, Stand
from skerry.drivers.store.logstore import READERS, LogSettings, LogStore

_BUSY_SECONDS = 10.0  # only somebody with a SQLite shell in the file makes us wait


@dataclass(frozen=True, kw_only=True)
class SqliteSettings:
    """What can be set of the embedded store."""

    log: LogSettings = field(default_factory=LogSettings)
    max_bytes: int = 0
    """Size the database file may reach, after which writes raise StorageFullError; 0 leaves it to the disk."""
    check_up_to_bytes: int = 256 * 1024 * 1024
    """A file up to this size is checked for damage when it is opened (about a second per gigabyte)."""


@asynccontextmanager
async def open_store(path: Path, settings: SqliteSettings | None = None) -> AsyncIterator[LogStore]:
    """Open the database, creating it if it is not there; close it in the end.

    Raises UnavailableError when another hub has it open or the file cannot be used, IntegrityError when it is damaged,
    UnsupportedError when another version wrote it, StorageFullError.
    """
    settings = settings or SqliteSettings()
    lock = _lock(path)
    try:
        database, stand = await asyncio.to_thread(_open, path, settings)
        store = LogStore(database, stand, settings.log)
        try:
            yield store
        finally:
            await store.close()
    finally:
        os.close(lock)


@contextmanager
def open_database(path: Path) -> Iterator[LogDatabase]:
    """Open the log itself, for a program that is no hub. Raises as `open_store`."""
    lock = _lock(path)
    try:
        database, _ = _open(path, SqliteSettings())
        try:
            yield database
        finally:
            database.dispose()
    finally:
        os.close(lock)


def _open(path: Path, settings: SqliteSettings) -> tuple[LogDatabase, Stand]:
    _make_private(path)

    def translate(error: sa.exc.DBAPIError) -> SkerryError:
        return _translated(error.orig, path)

    database = LogDatabase(
        _engine(path, size=1, max_bytes=settings.max_bytes),
        _engine(path, size=READERS, readonly=True),
        translate,
        str(path),
    )
    try:
        if path.stat().st_size <= settings.check_up_to_bytes:
            _check(path)
        stand = database.initialise()
    except BaseException:
        database.dispose()
        raise
    return database, stand


def _engine(path: Path, *, size: int, readonly: bool = False, max_bytes: int = 0) -> sa.Engine:
    url = sa.URL.create("sqlite", database=str(path))
    # With isolation_level None the module begins no transactions of its own: a read is one statement, one snapshot.
    engine = sa.create_engine(
        url,
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=0,
        pool_timeout=_BUSY_SECONDS,
        connect_args={"isolation_level": None, "check_same_thread": False, "timeout": _BUSY_SECONDS},
    )

    def configure(connection: sqlite3.Connection, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        if readonly:
            connection.execute("PRAGMA query_only = ON")
        if max_bytes:
            (page_size,) = connection.execute("PRAGMA page_size").fetchone()
            connection.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page_size)}")

    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    sa.event.listen(engine, "connect", configure)
    if not readonly:
        sa.event.listen(engine, "begin", begin)
    return engine


def _lock(path: Path) -> int:
    """Take the state for this process, until the descriptor is closed or the process ends, however it ends."""
    name = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _translated_os(error, path) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except OSError as error:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise _translated_os(error, path) from error
        raise UnavailableError(
            f"is in use by another hub (process {holder or 'unknown'})",
            element=str(path),
            hint="stop that one first, or give this one a state directory of its own",
        ) from None
    return descriptor


def _make_private(path: Path) -> None:
    """Make sure that only the owner can read the file, and the ones SQLite puts beside it with the same mode."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UnavailableError("is not a regular file", element=str(path))
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).chmod(0o600)
    except OSError as error:
        raise _translated_os(error, path) from error


def _check(path: Path) -> None:
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)
        try:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise _translated(error, path) from error
    if verdict != "ok":
        raise _damaged(path, str(verdict))


def _translated(error: BaseException | None, path: Path) -> SkerryError:
    # Extended codes carry the primary one in their low byte; the module sets none on errors of its own.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _no_space(path)):
        return StorageFullError(element=str(path), hint="free some space on its disk; nothing was changed")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(path, str(error))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return UnavailableError("is locked by another program", element=str(path), hint="close that program")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return UnavailableError(f"cannot be used: {error}", element=str(path), hint="check its owner and permissions")
    return UnavailableError(f"the database failed: {error}", element=str(path))


def _translated_os(error: OSError, path: Path) -> SkerryError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(element=str(path), hint="free some space on its disk")
    return UnavailableError(
        f"cannot be used: {error.strerror}", element=str(path), hint="check its owner and permissions"
    )


def _damaged(path: Path, detail: str) -> IntegrityError:
    return IntegrityError(
        f"the database is damaged: {detail[:200]}", element=str(path), hint="put a backup of it in its place"
    )


def _no_space(path: Path) -> bool:
    try:
        status = os.statvfs(path.parent)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < 1024 * 1024
