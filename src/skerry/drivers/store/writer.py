"""One turn after the other of the store's writing thread: writes go in, what came of them and all news comes out.

A turn never loses what it has read of the log: it is handed over also where the writes failed. Must not live here: SQL,
the event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skerry.api.errors import DivergedError, SkerryError
from skerry.drivers.store import log
from skerry.drivers.store.database import BehindError, LogDatabase, Tip


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
    diverged: bool = False
    """This is another log than before: nothing that is known of it holds any more."""


class LogWriter:
    """Knows up to which revision the log was followed. Belongs to the writing thread."""

    def __init__(self, database: LogDatabase, last: int) -> None:
        self._database = database
        self._tip = Tip(last)

    def take_turn(self, writes: Sequence[log.Write], known: Mapping[str, log.Row]) -> Progress:
        """Carry out writes, or none, and tell what is new. `known` are newest rows as of the last turn's end."""
        try:
            return self._write(writes, known) if writes else self._follow()
        except DivergedError as error:
            return Progress(reached=self._tip.revision, error=error, diverged=self._has_diverged())
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait for the writes
            return Progress(reached=self._tip.revision, error=error)

    def _write(self, writes: Sequence[log.Write], known: Mapping[str, log.Row]) -> Progress:
        try:
            appended = self._database.append(writes, self._tip, known)
        except BehindError:
            return self._follow(behind=True)
        own = [outcome for outcome in appended.outcomes if isinstance(outcome, log.Written)]
        self._tip = appended.tip
        return Progress(news=[*appended.missed, *own], reached=self._tip.revision, outcomes=appended.outcomes)

    def _follow(self, *, behind: bool = False) -> Progress:
        news = self._database.news(self._tip)
        self._tip = news.tip
        return Progress(news=news.rows, reached=self._tip.revision, lost=news.lost, behind=behind or news.more)

    def _has_diverged(self) -> bool:
        """Return whether it has for certain: a reader may have been led to a replica that lags behind."""
        try:
            self._database.check(self._tip)
        except DivergedError:
            return True
        except SkerryError:
            pass  # away just now; the next turn tells
        return False
