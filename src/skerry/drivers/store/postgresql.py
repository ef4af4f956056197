"""The store for several hubs: one PostgreSQL database that all of them write, one after the other.

An advisory lock per transaction puts the writes of all hubs in one order, in which they also become visible; so nobody
ever sees a revision before an earlier one. A commit whose answer was lost is looked up by its transaction's number.

Lives here: opening, transactions, what PostgreSQL's errors mean to a user. Must not live here: statements, the store's
semantics, addresses, who leads.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from sqlalchemy.pool import QueuePool

from skerry.api.errors import IntegrityError, SkerryError, StorageFullError, UnavailableError, UnsupportedError
from skerry.drivers.store import notifications
from skerry.drivers.store.address import Address
from skerry.drivers.store.database import LogDatabase, Stand
from skerry.drivers.store.logstore import READERS, LogSettings
from skerry.drivers.store.shared import SharedLogStore

OLDEST_SERVER = 140000
"""`idle_session_timeout`, by which a leader that stands still is replaced, came with PostgreSQL 14."""

_LOG_LOCK = 1936421491  # "skes": one class of advisory locks; within it, each schema has its own
_BEGIN = (
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; "
    f"SELECT pg_advisory_xact_lock({_LOG_LOCK}, hashtext(current_schema())); "
    "SELECT pg_current_xact_id()::text"
)
_STATUS = "SELECT pg_xact_status(%s::text::xid8)"
_LATER = "22023"  # what is asked for a transaction that this server has never heard of
_LOST = ("08", "57P", "25P03", "25006", "53300")
"""States in which another connection is what helps; the module gives none to errors of its own."""
_FOLLOWER = "25006"
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class PostgresqlSettings:
    """What can be set of a shared store."""

    log: LogSettings = field(default_factory=LogSettings)
    patience_seconds: float = 5.0
    """How long a call waits for a server that is away, as during its restart; later ones do not wait any more."""
    lookup_seconds: float = 20.0
    """How long a write waits to learn whether it was committed when the connection broke just then."""
    notifications: notifications.Settings = field(default_factory=notifications.Settings)


@asynccontextmanager
async def open_store(address: Address, settings: PostgresqlSettings | None = None) -> AsyncIterator[SharedLogStore]:
    """Open the database, creating the tables if they are not there; close it in the end.

    Raises UnavailableError when it cannot be reached or entered, UnsupportedError for a server that is too old or a
    schema that is too new.
    """
    settings = settings or PostgresqlSettings()
    database, stand = await asyncio.to_thread(_open, address, settings)
    store = SharedLogStore(database, stand, settings.log)
    try:
        async with asyncio.TaskGroup() as group:
            following = group.create_task(
                notifications.follow(store, address, settings.notifications, own=database.sender), name="store-follow"
            )
            try:
                yield store
            finally:
                following.cancel()
    except BaseExceptionGroup as group:
        error = _only(group)
        raise error from error.__cause__
    finally:
        await store.close()


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what the body raised: the task beside it fails only with it."""
    return group.exceptions[0] if len(group.exceptions) == 1 else group


@contextmanager
def open_database(address: Address) -> Iterator[LogDatabase]:
    """Open the log itself, for a program that is no hub. Raises as `open_store`."""
    database, _ = _open(address, PostgresqlSettings())
    try:
        yield database
    finally:
        database.dispose()


def _open(address: Address, settings: PostgresqlSettings) -> tuple[PostgresqlDatabase, Stand]:
    database = PostgresqlDatabase(address)
    try:
        database.check_server()
        stand = database.initialise()
    except BaseException:
        database.dispose()
        raise
    database.be_patient(settings)
    return database, stand


class _LostError(Exception):
    """The connection is gone, or leads to a server that is of no use any more."""

    def __init__(self, error: UnavailableError) -> None:
        super().__init__(error.sentence)
        self.error = error


class PostgresqlDatabase(LogDatabase):
    """The log in PostgreSQL. It waits for a server that restarts, for as long as it was told to."""

    def __init__(self, address: Address) -> None:
        super().__init__(_engine(address, 1), _engine(address, READERS), self._meaning, address.shown)
        self.sender = secrets.token_hex(8)
        """By which this hub knows its own notifications."""
        self._patience = self._lookup = 0.0
        self._away_since: float | None = None
        self._closing = threading.Event()

    def be_patient(self, settings: PostgresqlSettings) -> None:
        """Wait for a server that is away from now on."""
        self._patience, self._lookup = settings.patience_seconds, settings.lookup_seconds

    def check_server(self) -> None:
        """Raise UnsupportedError for a server that is too old."""

        def version(connection: sa.Connection) -> int:
            return int(connection.exec_driver_sql("SHOW server_version_num").scalar_one())

        if (found := self._read(version)) < OLDEST_SERVER:
            raise UnsupportedError(
                f"is version {found // 10000} of PostgreSQL", element=self.name, hint="use 14 or later"
            )

    def dispose(self) -> None:
        """Close all connections; whoever waits for the server gives up."""
        self._closing.set()
        super().dispose()

    def _announce(self, connection: sa.Connection, revision: int) -> None:
        connection.exec_driver_sql(
            "SELECT pg_notify(%s, %s)", (notifications.CHANNEL, notifications.payload(revision, self.sender))
        )

    def _read(self, work: Callable[[sa.Connection], _T]) -> _T:
        return self._persist(partial(super()._read, work))

    def _commit(self, work: Callable[[sa.Connection], _T]) -> _T:
        return self._persist(partial(self._commit_once, work))

    def _persist(self, attempt: Callable[[], _T]) -> _T:
        """Do it, and again while the server is away, for as long as there is patience."""
        while True:
            try:
                result = attempt()
            except _LostError as lost:
                if not self._wait(self._patience):
                    raise lost.error from lost
            else:
                self._away_since = None
                return result

    def _commit_once(self, work: Callable[[sa.Connection], _T]) -> _T:
        prepared: list[_T] = []
        transaction = ""
        try:
            with self._translated(), self._writer.connect() as connection:
                transaction = _begin(connection)
                prepared.append(work(connection))
                connection.commit()
        except _LostError as lost:
            # Before COMMIT was sent nothing can have been committed, and it may be tried again.
            if not prepared or not self._was_committed(transaction, lost.error):
                raise
        return prepared[0]

    def _was_committed(self, transaction: str, error: UnavailableError) -> bool:
        """Return what became of a transaction of which the last word was lost."""
        while True:
            try:
                with self._translated(), self._writer.connect() as connection:
                    _begin(connection)  # the lock is free once the other one has ended, however it did
                    status = connection.exec_driver_sql(_STATUS, (transaction,)).scalar()
                    connection.rollback()
            except (_LostError, UnavailableError):  # away, or the other one has not ended yet
                if not self._wait(self._lookup):
                    raise UnavailableError(
                        f"the connection broke at a write's end; whether it is stored is not known ({error.cause})",
                        element=self.name,
                        hint="look before you try again",
                    ) from None
            except _UnknownTransactionError:
                return False
            else:
                return bool(status == "committed")

    def _wait(self, patience: float) -> bool:
        """Wait a moment for the server; return whether to go on."""
        now = time.monotonic()
        since = self._away_since or now  # other threads set it too
        self._away_since = since
        away = now - since
        return away < patience and not self._closing.wait(min(0.5, max(0.02, away)))

    def _meaning(self, error: sa.exc.DBAPIError) -> SkerryError:
        cause = error.orig
        state = getattr(cause, "sqlstate", None) or ""
        detail = " ".join(str(cause).split())[:300]
        if state == _LATER:
            raise _UnknownTransactionError from error
        if not state or state.startswith(_LOST):
            if state == _FOLLOWER:  # this server was the first one until now
                self._writer.dispose()
            hint = "check that the server runs and lets us in"
            raise _LostError(UnavailableError(f"cannot be used: {detail}", element=self.name, hint=hint)) from error
        if state.startswith("53"):
            return StorageFullError(detail, element=self.name, hint="make room on its server; nothing was changed")
        if state.startswith("XX"):
            return IntegrityError(
                f"the database is damaged: {detail}", element=self.name, hint="restore it from a backup"
            )
        return UnavailableError(f"the database failed: {detail}", element=self.name)


class _UnknownTransactionError(Exception):
    """The server has never heard of a transaction: it is another one than before."""


def _begin(connection: sa.Connection) -> str:
    """Begin a transaction that alone writes to the log, in one message, and return its number."""
    try:
        cursor: psycopg.Cursor[Any] = connection.connection.cursor()  # type: ignore[assignment]
        with cursor:
            cursor.execute(_BEGIN)
            while cursor.nextset():
                pass
            (number,) = cursor.fetchone() or ("",)
    except psycopg.Error as error:
        raise sa.exc.DBAPIError(_BEGIN, None, error) from error
    return str(number)


def _engine(address: Address, size: int) -> sa.Engine:
    # Connections commit by themselves: a read is one statement, one snapshot; a write begins its own transaction.
    return sa.create_engine(
        "postgresql+psycopg://",
        creator=address.connect,
        poolclass=QueuePool,
        pool_size=size,
        max_overflow=0,
        pool_timeout=60,
    )
