"""One turn after the other of the store's writing thread: writes go in, what came of them and all news comes out.

A turn never loses what it has read of the log: it is handed over also where the writes failed. Must not live here: SQL,
the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skerry.drivers.store import log
from skerry.drivers.store.database import BehindError, LogDatabase


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What one turn brought."""

    news: Sequence[log.Written] = ()
    """Everything that was written since the last turn, by whomever, in order."""
    reached: int
    """The revision up to which that is everything."""
    lost: bool = False
    """There was more, and it is compacted away."""
    behind: bool = False
    """There is more to read before the writes can be carried out: nothing came of them yet."""
    outcomes: Sequence[log.Written | log.Refusal] = ()
    """One for each write, in order."""
    error: BaseException | None = None
    """Why nothing came of the writes."""


class LogWriter:
    """Knows up to which revision the log was followed. Belongs to the writing thread."""

    def __init__(self, database: LogDatabase, last: int) -> None:
        self._database = database
        self._last = last

    def take_turn(self, writes: Sequence[log.Write], known: Mapping[str, log.Row]) -> Progress:
        """Carry out writes, or none, and tell what is new. `known` are newest rows as of the last turn's end."""
        try:
            progress = self._write(writes, known) if writes else self._follow()
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait for the writes
            return Progress(reached=self._last, error=error)
        self._last = progress.reached
        return progress

    def _write(self, writes: Sequence[log.Write], known: Mapping[str, log.Row]) -> Progress:
        try:
            appended = self._database.append(writes, self._last, known)
        except BehindError:
            news = self._database.news(self._last)
            return Progress(news=news.rows, reached=news.reached, lost=news.lost, behind=True)
        own = [outcome for outcome in appended.outcomes if isinstance(outcome, log.Written)]
        news_rows = [*appended.missed, *own]
        reached = news_rows[-1].row.revision if news_rows else self._last
        return Progress(news=news_rows, reached=reached, outcomes=appended.outcomes)

    def _follow(self) -> Progress:
        news = self._database.news(self._last)
        return Progress(news=news.rows, reached=news.reached, lost=news.lost, behind=news.more)
