"""The audit log in two parts, so that what changes nothing cannot drive out what changed something.

The main part has writes and refusals, the bulk part reads: each is a chain of its own, in its own directory, with its
own bound. Of each part one user may fill a share a day. Of writes beyond it nothing is lost, they go to the bulk part;
reads and refusals beyond it are counted. Must not live here: which requests are which (`core.audit_policy`), a chain's
files (`log`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from skerry.api.audit import AuditEvent
from skerry.core.allowance import Buckets, Rate
from skerry.core.ports import Clock
from skerry.drivers import audit_files
from skerry.hub.audit.log import AuditLog, AuditSettings, Growth, open_log

log = logging.getLogger(__name__)

BULK_PART = 4
"""One of so many parts of all that is kept is for the bulk."""
FILES = 16
"""Files go as a whole: each has one of so many parts of what is kept, at most."""
USER_SHARE = 8
"""One of so many parts of a log may be filled by one user at once, and as much again in a day."""
_DAY_SECONDS = 86_400.0
_CHAIN_BYTES = 250
"""What the chain adds to an entry."""
_MOST_USERS = 10_000
_MOST_NAMES = 20
_ENCODER = msgspec.json.Encoder()


@asynccontextmanager
async def open_ranked_log(directory: Path, settings: AuditSettings, clock: Clock) -> AsyncIterator[RankedLog]:
    """Open both parts; `settings` are for both together. Raises UnavailableError, StorageFullError."""
    growth = Growth()
    bulk_bytes = settings.total_bytes // BULK_PART
    main_settings = _part(settings, settings.total_bytes - bulk_bytes)
    bulk_settings = _part(settings, bulk_bytes)
    async with (
        open_log(directory, main_settings, clock, growth=growth) as main,
        open_log(directory / audit_files.BULK, bulk_settings, clock, growth=growth) as bulk,
    ):
        yield RankedLog(main, bulk, clock, growth)


class RankedLog:
    """The log of one hub; see `open_ranked_log`."""

    def __init__(self, main: AuditLog, bulk: AuditLog, clock: Clock, growth: Growth) -> None:
        self.main, self.bulk = main, bulk
        self._clock, self._growth = clock, growth
        self._shares = {part: Buckets[str](_share(part), most=_MOST_USERS) for part in (main, bulk)}
        self._uncounted = Counter[str]()

    @property
    def directory(self) -> Path:
        """Where the main part is, with the bulk part in a directory below."""
        return self.main.directory

    @property
    def settings(self) -> AuditSettings:
        """How much is recorded; the bounds are the main part's."""
        return self.main.settings

    @property
    def grown(self) -> asyncio.Event:
        """Set when something was appended after this was asked for."""
        return self._growth.event

    def check(self) -> None:
        """Return when what is begun now can be recorded, as far as can be told. Raises StorageFullError,
        UnavailableError."""
        self.main.check()
        self.bulk.check()

    def part_for(self, event: AuditEvent, *, entries: int = 1) -> AuditLog:
        """Return where a user's write goes, which is written in any case, and take it from the user's share."""
        return self.main if self._take(self.main, event, entries) else self.bulk

    def part_for_refusal(self, event: AuditEvent) -> AuditLog | None:
        """Return where a refusal goes; None: its caller's share of both parts is used up."""
        return next((part for part in (self.main, self.bulk) if self._take(part, event, 1)), None)

    def part_for_read(self, event: AuditEvent, *, entries: int = 1) -> AuditLog | None:
        """Return where a read goes; None, and it is counted: its user's share is used up."""
        if self._take(self.bulk, event, entries):
            return self.bulk
        user = event.user.username
        if user not in self._uncounted:
            log.warning("audit.share_used_up user=%r hint=%r", user, "further reads of this user are counted only")
            user = user if len(self._uncounted) < _MOST_NAMES else ""
        self._uncounted[user] += 1
        return None

    def unrecorded_reads(self) -> Mapping[str, int]:
        """Return how many reads were only counted since this was asked last, by user; "" has those of many more."""
        counted, self._uncounted = self._uncounted, Counter[str]()
        return counted

    def _take(self, part: AuditLog, event: AuditEvent, entries: int) -> bool:
        size = (len(_ENCODER.encode(event)) + _CHAIN_BYTES) * entries
        return self._shares[part].take(event.user.username, self._clock.monotonic(), size)


def _part(settings: AuditSettings, total: int) -> AuditSettings:
    return replace(settings, total_bytes=total, file_bytes=min(settings.file_bytes, max(total // FILES, 1)))


def _share(part: AuditLog) -> Rate:
    share = max(part.settings.total_bytes // USER_SHARE, 1)
    return Rate(burst=share, seconds=_DAY_SECONDS / share)
