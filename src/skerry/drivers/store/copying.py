"""From one store to another, whatever each is made of: every row with its revision, so that nobody notices.

Must not live here: opening stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import sqlalchemy as sa

from skerry.api.errors import ConflictError, IntegrityError
from skerry.drivers.store import log, statements
from skerry.drivers.store.database import LogDatabase, Stand

PAGE = 500


def copy(source: LogDatabase, target: LogDatabase, *, said: Callable[[int], None] = lambda _: None) -> Stand:
    """Copy everything in one transaction of the target's, which is empty before and as before when that fails.

    `said` is told how many rows were copied so far. Return where both stand. Raises ConflictError when the target is
    not empty, or when the source was compacted meanwhile.
    """
    if target.stand().newest:
        raise ConflictError("is not empty", element=target.name, hint="copy into a store that nobody has used")
    before = source.stand()

    def work(connection: sa.Connection) -> int:
        copied = 0
        for rows in _pages(source, before.newest):
            connection.execute(statements.APPEND, [row._asdict() for row in rows])
            copied += len(rows)
            said(copied)
        for fact, value in (("compacted", before.compacted), ("term", before.term)):
            connection.execute(statements.SET_FACT, {"fact": fact, "value": value})
        return copied

    copied = target.import_rows(work)
    if source.stand().compacted != before.compacted:
        raise ConflictError("was compacted meanwhile", element=source.name, hint="stop the hubs that use it")
    if target.stand() != before or target.size() != copied:
        raise IntegrityError("does not have what was copied", element=target.name)
    return before


def _pages(source: LogDatabase, upto: int) -> Iterator[list[log.Row]]:
    after = 0
    while rows := source.rows(after, upto, PAGE):
        yield rows
        after = rows[-1].revision
