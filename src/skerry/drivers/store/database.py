"""The log in a database, synchronous: one call is one transaction. Runs in the store's threads.

Must not live here: anything of one dialect (`sqlite` has it), concurrency (`logstore` has it), what a write means
(`log` has it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import sqlalchemy as sa

from skerry.api.errors import SkerryError, UnsupportedError
from skerry.core.ports import Change
from skerry.drivers.store import log, statements

COMPACTION_SLICE = 500  # rows removed in one transaction, so that writes wait for it only shortly
HISTORY_PAGE = 128  # rows a catching-up watcher holds at once

Translate = Callable[[sa.exc.DBAPIError], SkerryError]


class LogDatabase:
    """The log's tables behind two engines, one for the only writer and one for readers.

    Every method raises what `translate` makes of a database error; a failed write leaves nothing behind.
    """

    def __init__(self, writer: sa.Engine, readers: sa.Engine, translate: Translate) -> None:
        self._writer = writer
        self._readers = readers
        self._translate = translate

    def initialise(self) -> tuple[int, int]:
        """Create the tables if there are none. Return the newest and the compacted revision.

        Raises UnsupportedError for a database of a later schema, or of somebody else.
        """
        with self._transaction() as connection:
            present = set(sa.inspect(connection).get_table_names())
            wanted = set(statements.metadata.tables)
            if not present:
                statements.metadata.create_all(connection)
                connection.execute(
                    statements.ADD_FACT,
                    [{"name": "schema", "number": statements.SCHEMA_VERSION}, {"name": "compacted", "number": 0}],
                )
            elif not wanted <= present:
                raise UnsupportedError("holds other tables than this store's", element=self._name)
            numbers = {row.name: row.number for row in connection.execute(statements.READ_FACTS)}
            if numbers.get("schema") != statements.SCHEMA_VERSION:
                raise UnsupportedError(
                    f"has schema version {numbers.get('schema')}, this program knows {statements.SCHEMA_VERSION}",
                    element=self._name,
                    hint="run the version of the program that wrote it",
                )
            compacted = numbers.get("compacted", 0)
            newest: int | None = connection.execute(statements.LAST_REVISION).scalar()
            # The newest row may be a deletion that was compacted away; its revision is never given out again.
            return max(newest or 0, compacted), compacted

    def append(
        self, writes: Sequence[log.Write], last: int, known: Mapping[str, log.Row]
    ) -> list[log.Written | log.Refusal]:
        """Carry out writes in one transaction on top of revision `last`; all that are not refused are durable then.

        `known` are the newest rows of some of the keys; the others are looked up.
        """
        with self._transaction() as connection:
            newest, names = dict(known), sorted({write.key for write in writes} - known.keys())
            if names:
                rows = (log.Row(*row) for row in connection.execute(statements.NEWEST, {"names": names}))
                newest.update((row.key, row) for row in rows)
            outcomes = log.decide(writes, newest, last)
            appended = [outcome.row._asdict() for outcome in outcomes if isinstance(outcome, log.Written)]
            if appended:
                connection.execute(statements.APPEND, appended)
        return outcomes

    def last_revision(self) -> int:
        """Return the revision of the newest row, 0 when there is none."""
        with self._reading() as connection:
            return connection.execute(statements.LAST_REVISION).scalar() or 0

    def get(self, key: str, revision: int) -> log.Row | None:
        """Return the key's row as of a revision, deletions included."""
        with self._reading() as connection:
            row = connection.execute(statements.GET, {"name": key, "revision": revision}).first()
        return None if row is None else log.Row(*row)

    def page(self, start: str, end: str, revision: int, limit: int) -> list[log.Row]:
        """Return living rows of a range of keys as of a revision, in key order; limit 0 means all."""
        values = {"start": start, "end": end, "revision": revision}
        with self._reading() as connection:
            if limit:
                rows = connection.execute(statements.LIST_PAGE, values | {"limit": limit})
            else:
                rows = connection.execute(statements.LIST, values)
            return [log.Row(*row) for row in rows]

    def count(self, start: str, end: str, revision: int) -> int:
        """Return how many keys of a range live as of a revision."""
        with self._reading() as connection:
            return connection.execute(statements.COUNT, {"start": start, "end": end, "revision": revision}).scalar_one()

    def history(self, start: str, end: str, after: int, upto: int) -> tuple[list[Change], int]:
        """Return some changes after a revision, in order, and up to which revision these are all."""
        values = {"start": start, "end": end, "after": after, "revision": upto, "limit": HISTORY_PAGE}
        with self._reading() as connection:
            rows = [(log.Row(*row[:-1]), row[-1]) for row in connection.execute(statements.HISTORY, values)]
        changes = [log.change_of(row, value_before) for row, value_before in rows]
        return changes, rows[-1][0].revision if len(rows) == HISTORY_PAGE else upto

    def set_compacted(self, revision: int) -> None:
        """Write down that history up to and including this revision may go."""
        with self._transaction() as connection:
            connection.execute(statements.SET_COMPACTED, {"value": revision})

    def remove_obsolete(self, before: int, cursor: int) -> int | None:
        """Remove one slice of obsolete rows after `cursor`; return where to go on, None when done."""
        with self._transaction() as connection:
            found = connection.execute(
                statements.OBSOLETE, {"before": before, "cursor": cursor, "limit": COMPACTION_SLICE}
            )
            revisions = list(found.scalars())
            if revisions:
                connection.execute(statements.REMOVE, {"revisions": revisions})
        return revisions[-1] if len(revisions) == COMPACTION_SLICE else None

    def dispose(self) -> None:
        """Close all connections."""
        self._writer.dispose()
        self._readers.dispose()

    @property
    def _name(self) -> str:
        return str(self._writer.url.database)

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self._translated(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._translated(), self._readers.connect() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise self._translate(error) from error
