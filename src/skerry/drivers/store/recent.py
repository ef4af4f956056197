"""The newest rows, in memory: what was written a moment ago is what is asked for next.

It is filled by what stands in the log, in the log's order, and by nothing else: a row that was read by its key could be
old by the time it arrives here. Where others write too it holds what was newest when the log was last followed, which
is what a write wants to know; a read has to ask the database. Must not live here: threads, SQL.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from skerry.drivers.store.log import Row

_OVERHEAD_BYTES = 400
"""Counted for each row beside its key and value."""


class Recent:
    """Rows by key, those that were not used for longest forgotten first; at most `max_bytes`, none with 0."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._rows: OrderedDict[str, Row] = OrderedDict()

    def get(self, key: str) -> Row | None:
        """Return the key's newest row, deletions included; None when it is not remembered."""
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def known(self, keys: Iterable[str]) -> dict[str, Row]:
        """Return the rows that are remembered of these keys."""
        rows = ((key, self.get(key)) for key in keys)
        return {key: row for key, row in rows if row is not None}

    def put(self, row: Row) -> None:
        """Take in a row that was committed, in the order of the log."""
        before = self._rows.pop(row.key, None)
        self._bytes += _cost(row) - (_cost(before) if before is not None else 0)
        self._rows[row.key] = row
        while self._bytes > self._max_bytes:
            self._bytes -= _cost(self._rows.popitem(last=False)[1])


def _cost(row: Row) -> int:
    return len(row.key) + len(row.value) + _OVERHEAD_BYTES
