"""Update holds on this device: kept on the disk, ended by time, waited for.

Lives here: the book of leases. Must not live here: their arithmetic (`core.lease`), who may ask (`local`), what waits
for them (`installer`).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable

import msgspec

from skerry.agent.disk import Disk
from skerry.api.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    SkerryError,
    StorageFullError,
    UnavailableError,
)
from skerry.api.kinds.device import HoldStatus
from skerry.core import lease as leases
from skerry.core.journal import Moment
from skerry.core.lease import OPERATOR, Lease
from skerry.core.messages import DesiredState
from skerry.core.ports import Clock

log = logging.getLogger(__name__)

FILE = "holds.json"
MAX_LOCAL = 16
"""Holders on the device; one more is a program that forgets its own name."""
MAX_REASON = 200
NOTE_SECONDS = 300.0
"""What is left is noted so often, for devices whose clock starts anew with every boot."""
_HOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Holds:
    """All holds in force; every change is on the disk before it counts."""

    def __init__(self, disk: Disk, clock: Clock, *, boot: str, max_seconds: float, changed: Callable[[], None]) -> None:
        """`max_seconds` bounds what applications on the device may take at a time."""
        self._disk = disk
        self._clock = clock
        self._boot = boot
        self._max_seconds = max_seconds
        self._changed = changed
        self._leases: dict[str, Lease] = {}
        self._shown: list[HoldStatus] = []
        self._wake = asyncio.Event()

    def load(self) -> None:
        """Take up what an earlier agent has kept. What cannot be read is lost; the hub's own comes again."""
        try:
            kept = msgspec.json.decode(self._disk.read(FILE), type=list[Lease])
        except NotFoundError:
            return
        except (SkerryError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
            log.error("holds.unreadable error=%s", error)
            return
        now = self._now()
        self._leases = {one.holder: leases.note(one, now) for one in kept[: MAX_LOCAL + 1]}
        self._save_if_possible()

    def in_force(self) -> list[HoldStatus]:
        """Return the holds that last, the longest first. A clock that is set moves `until`, not what is left."""
        self._shown = leases.refresh(self._shown, leases.in_force(self._leases.values(), self._now()))
        return self._shown

    def why(self) -> str:
        """Return who holds updates, until when and why, or "" when nobody does."""
        lasting = self.in_force()
        if not lasting:
            return ""
        first = lasting[0]
        more = f" (and {len(lasting) - 1} more)" if len(lasting) > 1 else ""
        return f"held by {first.holder} until {first.until.isoformat()}{more}" + (
            f": {first.reason}" if first.reason else ""
        )

    def accept(self, desired: DesiredState) -> None:
        """Follow what the hub desires."""
        known = self._leases.get(OPERATOR)
        new = leases.follow_hub(known, desired.hold, issued_at=desired.issued_at, now=self._now())
        if new == known:
            return
        self._leases = {holder: one for holder, one in self._leases.items() if holder != OPERATOR}
        if new is not None:
            self._leases[OPERATOR] = new
        log.info("hold.operator reason=%s", self.why() or "released")
        self._save_if_possible()  # the desired state itself is on the disk already
        self._tell()

    def take(self, holder: str, *, seconds: float, reason: str) -> None:
        """Hold updates for somebody on the device; again for the same holder, the new time counts.

        Raises InvalidError, ConflictError when there are too many holders, StorageFullError, UnavailableError.
        """
        if not _HOLDER.fullmatch(holder) or holder == OPERATOR:
            raise InvalidError(f'"{holder[:80]}" is no name for a holder', element="holder", hint="as in till-software")
        if not 0 < seconds <= self._max_seconds:
            raise InvalidError(
                f"{seconds:g} s is not between 0 and {self._max_seconds:g} s",
                element="for",
                hint="renew the hold before it ends, or raise hold.max in agent.toml",
            )
        if len(reason) > MAX_REASON or not reason.isprintable():
            raise InvalidError(f"is not one line of at most {MAX_REASON} characters", element="reason")
        now = self._now()
        kept = {key: one for key, one in self._leases.items() if key == OPERATOR or leases.left(one, now) > 0}
        if holder not in kept and len(kept) - (OPERATOR in kept) >= MAX_LOCAL:
            raise ConflictError(f"there are {MAX_LOCAL} holders already", element=holder)
        self._save({**kept, holder: leases.take(holder, seconds=seconds, reason=reason, now=now)})
        log.info("hold.taken holder=%s seconds=%g reason=%s", holder, seconds, reason or "-")
        self._tell()

    def release(self, holder: str) -> bool:
        """End a hold that was taken on the device; return whether there was one. Raises as `take` does."""
        if holder == OPERATOR:
            raise InvalidError("is the operator's to release", element="holder", hint="see `skerry device release`")
        found = self._leases.get(holder)
        if found is None:
            return False
        self._save({key: one for key, one in self._leases.items() if key != holder})
        log.info("hold.released holder=%s", holder)
        self._tell()
        return leases.left(found, self._now()) > 0

    async def run(self) -> None:
        """Tell when holds end, and note what is left of them; for ever."""
        while True:
            self._wake.clear()
            remaining = [left for one in self._leases.values() if (left := leases.left(one, self._now())) > 0]
            pause = min([NOTE_SECONDS, *remaining]) if remaining else None
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                now = self._now()  # also at an end: one that is over stays over, whatever the clock says later
                self._leases = {holder: leases.note(one, now) for holder, one in self._leases.items()}
                self._save_if_possible()
                log.info("hold.noted left=%s", self.why() or "-")
                self._changed()

    def _tell(self) -> None:
        self._wake.set()
        self._changed()

    def _save(self, wanted: dict[str, Lease]) -> None:
        try:
            self._disk.write(FILE, msgspec.json.encode(list(wanted.values())))
        except StorageFullError:
            raise
        except OSError as error:
            raise UnavailableError(f"cannot be kept: {error.strerror}", element="hold", hint="check the disk") from None
        self._leases = wanted

    def _save_if_possible(self) -> None:
        try:
            self._save(self._leases)
        except SkerryError as error:
            log.error("holds.not_written error=%s", error)

    def _now(self) -> Moment:
        return Moment(wall=self._clock.now(), monotonic=self._clock.monotonic(), boot=self._boot)
