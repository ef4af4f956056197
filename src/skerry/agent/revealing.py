"""A slot's files for whoever has to open them by a path: as they lie on the disk, or in plain in memory for a while.

Lives here: that choice, and who closes what when. Must not live here: files in memory (`memory_file`), keys (`sealed`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from skerry.agent import memory_file
from skerry.agent.disk import Disk
from skerry.agent.sealed import ENCRYPTED
from skerry.api.errors import UnavailableError
from skerry.api.kinds.variants import Blob
from skerry.core.journal import Slot

log = logging.getLogger(__name__)


KEY_POLL_SECONDS = 2.0
"""How often it is looked whether a key that is away has come: a volume is mounted without telling."""


async def unlocked(disk: Disk, slot: Slot) -> None:
    """Wait until a slot that is encrypted can be opened; what is missing with it is no fault of the model's.

    Raises what `Vault.key` raises, but for UnavailableError.
    """
    told = False
    while slot.desired.protection == ENCRYPTED:
        try:
            await asyncio.to_thread(disk.vault.key)
        except UnavailableError as error:
            if not told:
                log.warning("protection.locked workload=%s error=%s", slot.desired.name, error)
                told = True
            await asyncio.sleep(KEY_POLL_SECONDS)
        else:
            return


@asynccontextmanager
async def revealed(disk: Disk, slot: Slot, golden: Blob) -> AsyncIterator[Path]:
    """Have a slot's golden samples at some path for the block.

    Raises NotFoundError and IntegrityError when they are not what was fetched, and what `Vault.key` raises.
    """
    path = disk.golden(slot)
    if slot.desired.protection != ENCRYPTED:
        yield path
        return
    await unlocked(disk, slot)
    with memory_file.created("skerry-golden") as descriptor:
        await _fill(disk, path, golden, descriptor)
        yield memory_file.path_of(descriptor)


@asynccontextmanager
async def model(disk: Disk, slot: Slot) -> AsyncIterator[tuple[Path, tuple[int, ...]]]:
    """Check a slot's files; give the path of its model, and descriptors that whoever opens it must inherit.

    Raises like `revealed`.
    """
    if slot.desired.protection != ENCRYPTED:
        await asyncio.to_thread(disk.check_slot, slot)
        yield disk.model(slot), ()
        return
    await unlocked(disk, slot)
    if slot.desired.golden is not None:
        await asyncio.to_thread(disk.sealed.verify, disk.golden(slot), slot.desired.golden)
    with memory_file.created("skerry-model") as descriptor:
        await _fill(disk, disk.model(slot), slot.desired.blob, descriptor)
        yield memory_file.path_of(descriptor), (descriptor,)


async def _fill(disk: Disk, path: Path, blob: Blob, descriptor: int) -> None:
    """Whoever is cancelled waits for the thread, which writes to the descriptor until then."""
    filling = asyncio.ensure_future(asyncio.to_thread(disk.sealed.reveal, path, blob, descriptor))
    try:
        await asyncio.shield(filling)
    except asyncio.CancelledError:
        await asyncio.wait([filling])
        if not filling.cancelled():
            filling.exception()  # seen, though nobody is left to be told
        raise
