"""The disk guard: what a revision needs is known, made, and kept for it before its first byte is fetched.

    needed = what is missing of its blobs + the slot's copy of them (nothing, where files can be linked)
    room   = min(free - reserve, limit - used) - what is kept for others that are being fetched

What does not fit makes room first: blobs that nobody names, slots and half-made files that no journal names, logs that
were moved aside; and, where files cannot be linked, cached copies of what a slot has its own copy of. What is named is
never touched: the version that serves, the one before it, and what is being installed. Lives here: that order and the
promises. Must not live here: paths (`disk`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from skerry.agent.disk import Disk, Freed, kept_name
from skerry.api.errors import StorageFullError
from skerry.api.quantity import human_bytes
from skerry.core.journal import Slot
from skerry.core.messages import WorkloadDesired

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Promise:
    """Room kept for one revision; what has come already needs none any more."""

    bytes_left: int

    def came(self, count: int) -> None:
        """Note bytes that are on the disk now."""
        self.bytes_left = max(self.bytes_left - count, 0)


class Room:
    """All promises of one agent."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._promises: set[Promise] = set()

    def needed(self, desired: WorkloadDesired) -> int:
        """Return the bytes that installing it would take now; 0 when everything is there."""
        card = [] if desired.card is None else [desired.card]
        signatures, cache = self._disk.missing_bytes([*desired.signatures, *card]), self._disk.cache(desired)
        blobs = [blob for blob in (desired.blob, desired.golden) if blob is not None]
        copies = 0 if self._disk.links() else sum(cache.stored_size(blob) for blob in blobs)
        return sum(cache.lacking_bytes(blob) for blob in blobs) + copies + signatures

    @contextlib.contextmanager
    def kept(self, size: int, element: str, *, freed: Freed | None = None) -> Iterator[Promise]:
        """Keep room inside the block. Raises StorageFullError, that says what was removed in vain."""
        others = sum(promise.bytes_left for promise in self._promises)
        if size:
            self._check(size, others, element, freed)
        promise = Promise(size)
        self._promises.add(promise)
        try:
            yield promise
        finally:
            self._promises.discard(promise)

    def fits(self, size: int) -> bool:
        """Return whether room could be kept."""
        try:
            with self.kept(size, ""):
                return True
        except StorageFullError:
            return False

    def _check(self, size: int, others: int, element: str, freed: Freed | None) -> None:
        try:
            self._disk.check_room(size + others, element)
        except StorageFullError as error:
            told = [f", {human_bytes(others)} of it for others that are being fetched" if others else ""]
            if freed is not None:
                told.append(f"; {freed.sentence}" if freed.files else "; there was nothing left to remove")
            raise StorageFullError(f"{error.cause}{''.join(told)}", element=element, hint=error.hint) from None


def prune(disk: Disk, slots: Mapping[str, Sequence[Slot]], *, others: Iterable[str] = ()) -> Freed:
    """Remove what nobody names, and return what that was; blocks.

    `slots` are those that each workload names, `others` names (`disk.kept_name`) of blobs that are wanted all the same.
    """
    named = [slot for listed in slots.values() for slot in listed]
    keep = set(others)
    for desired in (slot.desired for slot in named):
        deltas = [one.blob for one in desired.deltas]  # also when they have only begun to come
        blobs = [desired.blob, *([] if desired.golden is None else [desired.golden]), *deltas]
        keep |= {kept_name(desired, blob) for blob in blobs}
    for slot in named:  # what it is judged by lies in plain, however the model does
        for signed in (slot.desired, slot.signed):
            keep |= {one.digest for one in signed.signatures} | ({signed.card.digest} if signed.card else set())
    return disk.free_slots(
        {name: [slot.serial for slot in listed] for name, listed in slots.items()}
    ) + disk.free_blobs(keep=keep)


def free(disk: Disk, slots: Mapping[str, Sequence[Slot]], *, others: Iterable[str] = ()) -> Freed:
    """Do what `prune` does and remove what can be done without, because there is no room; blocks."""
    named = [slot for listed in slots.values() for slot in listed]
    freed = prune(disk, slots, others=others) + disk.free_logs() + disk.free_copies(named)
    log.info("disk.freed files=%d bytes=%d", freed.files, freed.bytes)
    return freed
