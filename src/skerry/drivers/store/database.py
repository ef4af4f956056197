"""The log in a database, synchronous: one call is one transaction. Runs in the store's threads.

Must not live here: anything of one dialect (`sqlite` and `postgresql` have it), concurrency (`logstore` has it), what a
write means (`log` has it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import sqlalchemy as sa

from skerry.api.errors import DivergedError, SkerryError, UnsupportedError
from skerry.core.ports import Change
from skerry.drivers.store import log, statements

COMPACTION_SLICE = 500  # rows removed in one transaction, so that writes wait for it only shortly
HISTORY_PAGE = 128  # rows a catching-up watcher holds at once
NOW = (1 << 63) - 1
"""Later than every revision."""

Translate = Callable[[sa.exc.DBAPIError], SkerryError]
_R = TypeVar("_R")


class Stand(NamedTuple):
    """Where a log stands, as of one moment."""

    newest: int
    """The revision given out last. Its row may be a deletion that was compacted away; it is never given out again."""
    compacted: int
    term: int
    """Of the hub that leads; 0 while none ever did."""


class Tip(NamedTuple):
    """The end of the log as somebody knows it, by which he tells that it is still the same log."""

    revision: int
    row: log.Row | None = None
    """What was written there; None where that is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class News:
    """What stands in the log after a tip that was known, in order and without a gap."""

    rows: Sequence[log.Written] = ()
    tip: Tip
    """Up to which that is everything."""
    more: bool = False
    lost: bool = False
    """Some of it is compacted away already: whoever follows has to list again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Appended:
    """What came of writes, and what others had written before them that was not known here."""

    missed: Sequence[log.Written] = ()
    outcomes: list[log.Written | log.Refusal] = field(default_factory=list)
    tip: Tip


class BehindError(Exception):
    """Too much was written by others to read it while they wait; nothing was written. Read the news first."""


class LogDatabase:
    """The log's tables behind two engines, one for this process' only writer and one for readers.

    Every method raises what `translate` makes of a database error; a failed write leaves nothing behind.
    """

    def __init__(self, writer: sa.Engine, readers: sa.Engine, translate: Translate, name: str) -> None:
        self._writer = writer
        self._readers = readers
        self._translate = translate
        self.name = name
        """What people call it."""

    def initialise(self) -> Stand:
        """Create the tables if there are none, bring older ones up to date, and say where the log stands.

        Raises UnsupportedError for a database of a later schema, or of somebody else.
        """
        return self._commit(self._initialise)

    def append(self, writes: Sequence[log.Write], tip: Tip, known: Mapping[str, log.Row]) -> Appended:
        """Carry out writes in one transaction; all that are not refused are durable then.

        Everything up to the tip is known here, and `known` are the newest rows of some of the keys as of then; the
        others are looked up. Raises BehindError, DivergedError.
        """
        return self._commit(partial(self._append, writes, tip, known))

    def stand(self) -> Stand:
        """Return where the log stands now."""
        return self._read(_stand)

    def news(self, tip: Tip) -> News:
        """Return some of what was written after a tip, whoever wrote it.

        Raises DivergedError; where readers may be led to a replica that lags, `check` knows better.
        """
        return self._read(partial(self._news, tip))

    def check(self, tip: Tip) -> None:
        """Raise DivergedError unless this is the log that has this tip, by the word of who writes it."""
        self._commit(partial(self._find, tip))

    def get(self, key: str, revision: int) -> log.Row | None:
        """Return the key's row as of a revision, deletions included."""

        def work(connection: sa.Connection) -> log.Row | None:
            row = connection.execute(statements.GET, {"name": key, "revision": revision}).first()
            return None if row is None else log.Row(*row)

        return self._read(work)

    def page(self, start: str, end: str, revision: int, limit: int) -> list[log.Row]:
        """Return living rows of a range of keys as of a revision, in key order; limit 0 means all."""
        values = {"start": start, "end": end, "revision": revision}

        def work(connection: sa.Connection) -> list[log.Row]:
            if limit:
                rows = connection.execute(statements.LIST_PAGE, values | {"limit": limit})
            else:
                rows = connection.execute(statements.LIST, values)
            return [log.Row(*row) for row in rows]

        return self._read(work)

    def count(self, start: str, end: str, revision: int, most: int) -> int:
        """Return how many keys of a range live as of a revision, counting no further than `most`."""
        values = {"start": start, "end": end, "revision": revision, "limit": most}
        return self._read(lambda connection: int(connection.execute(statements.COUNT, values).scalar_one()))

    def history(self, start: str, end: str, after: int, upto: int) -> tuple[list[Change], int]:
        """Return some changes after a revision, in order, and up to which revision these are all."""
        values = {"start": start, "end": end, "after": after, "revision": upto, "limit": HISTORY_PAGE}

        def work(connection: sa.Connection) -> tuple[list[Change], int]:
            rows = [(log.Row(*row[:-1]), row[-1]) for row in connection.execute(statements.HISTORY, values)]
            changes = [log.change_of(row, value_before) for row, value_before in rows]
            return changes, rows[-1][0].revision if len(rows) == HISTORY_PAGE else upto

        return self._read(work)

    def rows(self, after: int, upto: int, limit: int) -> list[log.Row]:
        """Return rows of the log after a revision and up to another, in order."""
        values = {"after": after, "upto": upto, "limit": limit}
        return self._read(lambda connection: [log.Row(*row) for row in connection.execute(statements.ROWS, values)])

    def size(self) -> int:
        """Return how many rows the log has."""
        return self._read(lambda connection: int(connection.execute(statements.SIZE).scalar_one()))

    def import_rows(self, work: Callable[[sa.Connection], int]) -> int:
        """Do something with a log that nobody uses yet, in one transaction; `work` may be called again."""
        return self._commit(work)

    def begin_term(self) -> int:
        """Begin the term of a new leader and return it; writes of earlier terms are refused from now on."""
        return self._commit(lambda connection: int(connection.execute(statements.BEGIN_TERM).scalar_one()))

    def set_compacted(self, revision: int) -> None:
        """Write down that history up to and including this revision may go."""
        self._commit(lambda connection: connection.execute(statements.SET_COMPACTED, {"value": revision}))

    def find_obsolete(self, before: int, cursor: int) -> list[int]:
        """Return one slice of obsolete rows' revisions after `cursor`; fewer than `COMPACTION_SLICE` are the last ones.

        It takes as long as there are rows, living ones too, and holds up no write.
        """
        values = {"before": before, "cursor": cursor, "limit": COMPACTION_SLICE}
        return self._read(lambda connection: list(connection.execute(statements.OBSOLETE, values).scalars()))

    def remove_obsolete(self, before: int, revisions: Sequence[int]) -> None:
        """Remove a slice that was found, as far as it is obsolete; that is for good, unless a backup is put back."""
        values = {"before": before, "revisions": list(revisions)}

        def work(connection: sa.Connection) -> None:
            if sure := list(connection.execute(statements.OBSOLETE_AMONG, values).scalars()):
                connection.execute(statements.REMOVE, {"revisions": sure})

        self._commit(work)

    def dispose(self) -> None:
        """Close all connections."""
        self._writer.dispose()
        self._readers.dispose()

    def _commit(self, work: Callable[[sa.Connection], _R]) -> _R:
        """Do something in a transaction of the writer's, and commit it."""
        with self._translated(), self._writer.begin() as connection:
            return work(connection)

    def _read(self, work: Callable[[sa.Connection], _R]) -> _R:
        """Do something that only reads; each statement sees the log as of one moment."""
        with self._translated(), self._readers.connect() as connection:
            return work(connection)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise self._translate(error) from error

    # --- within a transaction --------------------------------------------------------------------------------------

    def _announce(self, connection: sa.Connection, revision: int) -> None:
        """Tell other hubs, once this is committed, that there is news up to this revision."""

    def _initialise(self, connection: sa.Connection) -> Stand:
        present = set(sa.inspect(connection).get_table_names())
        wanted = set(statements.metadata.tables)
        if not present:
            statements.metadata.create_all(connection)
            numbers = {"schema": statements.SCHEMA_VERSION, "compacted": 0, "term": 0}
            connection.execute(
                statements.ADD_FACT, [{"name": name, "number": number} for name, number in numbers.items()]
            )
        elif not wanted <= present:
            raise UnsupportedError("holds other tables than this store's", element=self.name)
        else:
            self._migrate(connection)
        return _stand(connection)

    def _migrate(self, connection: sa.Connection) -> None:
        """Bring an older schema up to date. Raises UnsupportedError for one that is later, or none of ours."""
        found = {row.name: row.number for row in connection.execute(statements.READ_FACTS)}.get("schema")
        version = found
        while version is not None and version in statements.MIGRATIONS:
            for statement in statements.MIGRATIONS[version]:
                connection.execute(statement)
            version += 1
        if version != statements.SCHEMA_VERSION:
            raise UnsupportedError(
                f"has schema version {found}, this program knows {statements.SCHEMA_VERSION}",
                element=self.name,
                hint="run the version of the program that wrote it",
            )
        if version != found:
            connection.execute(statements.SET_FACT, {"fact": "schema", "value": version})

    def _append(
        self, writes: Sequence[log.Write], tip: Tip, known: Mapping[str, log.Row], connection: sa.Connection
    ) -> Appended:
        stand, found = self._find(tip, connection)
        missed: Sequence[log.Written] = ()
        if stand.newest != tip.revision:
            news = self._news(tip, connection)
            if news.lost or news.tip.revision != stand.newest:
                raise BehindError
            missed, found = news.rows, news.tip
        newest = {**known, **{one.row.key: one.row for one in missed}}
        names = sorted({key for write in writes for key in write.keys} - newest.keys())
        if names:
            rows = (log.Row(*row) for row in connection.execute(statements.NEWEST, {"names": names}))
            newest.update((row.key, row) for row in rows)
        outcomes = log.decide(writes, newest, stand.newest, stand.term)
        appended = [outcome.row for outcome in outcomes if isinstance(outcome, log.Written)]
        if appended:
            connection.execute(statements.APPEND, [row._asdict() for row in appended])
            self._announce(connection, appended[-1].revision)
            found = Tip(appended[-1].revision, appended[-1])
        return Appended(missed=missed, outcomes=outcomes, tip=found)

    def _news(self, tip: Tip, connection: sa.Connection) -> News:
        rows = [
            (log.Row(*row[:-1]), row[-1])
            for row in connection.execute(statements.NEWS, {"after": tip.revision, "limit": HISTORY_PAGE})
        ]
        # Afterwards: compaction may have taken rows away while they were read, or a backup have come in their place.
        stand, found = self._find(tip, connection)
        if stand.compacted > tip.revision:
            return News(tip=Tip(stand.newest), lost=True)
        written = [log.Written(row=row, change=log.change_of(row, before)) for row, before in rows]
        reached = Tip(written[-1].row.revision, written[-1].row) if written else found
        return News(rows=written, tip=reached, more=reached.revision < stand.newest)

    def _find(self, tip: Tip, connection: sa.Connection) -> tuple[Stand, Tip]:
        """Return where the log stands, and the tip with what was written there. Raises DivergedError."""
        newest, compacted, term, *columns = connection.execute(statements.STAND_AT, {"tip": tip.revision}).one()
        stand = Stand(newest=max(newest, compacted), compacted=compacted, term=term)
        row = None if columns[0] is None else log.Row(*columns)
        if stand.newest < tip.revision:
            raise self._diverged(f"ends at revision {stand.newest}, and revision {tip.revision} was written")
        if row is None:  # there are no gaps, so where it is not compacted away it has never been in this log
            if compacted < tip.revision:
                raise self._diverged(f"has no revision {tip.revision}, which was written")
        elif tip.row not in (None, row):
            raise self._diverged(f"has something else at revision {tip.revision} than what was written there")
        return stand, Tip(tip.revision, row or tip.row)

    def _diverged(self, cause: str) -> DivergedError:
        hint = "was a backup put in its place, or a replica that lagged behind? then restart the hubs"
        return DivergedError(cause, element=self.name, hint=hint)


def _stand(connection: sa.Connection) -> Stand:
    newest, compacted, term = connection.execute(statements.STAND).one()
    return Stand(newest=max(newest, compacted), compacted=compacted, term=term)
