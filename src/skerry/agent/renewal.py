"""Keeps the device's certificate young: a new one well before two thirds of its life have passed.

The exchange itself runs in a process of its own (`python -m skerry.agent renew`): what it needs of `cryptography` would
stay in the agent's memory for good, for seconds of use in months. Lives here: when, and what happens afterwards. Must
not live here: the exchange (`enroll`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import sys
from collections.abc import Callable
from datetime import datetime, timedelta

from skerry.agent import identity
from skerry.agent.disk import Disk
from skerry.agent.identity import Identity
from skerry.api.errors import SkerryError
from skerry.core.ports import Clock

log = logging.getLogger(__name__)

FIRST_SHARE = 0.5
"""Of a certificate's life, after which it may be renewed..."""
SPREAD_SHARE = 0.12
"""...and over which a fleet that enrolled in one minute is spread; their sum is below two thirds."""
CHECK_SECONDS = 6 * 3600.0
"""Asked again so often because clocks of devices jump."""
RETRY_SECONDS = 1800.0
EXCHANGE_SECONDS = 120.0


def due_at(known: Identity) -> datetime:
    """Return when this device's certificate is to be renewed."""
    spread = int.from_bytes(hashlib.sha256(known.uid.encode()).digest()[:4], "big") / 2**32
    return known.not_before + (known.not_after - known.not_before) * (FIRST_SHARE + SPREAD_SHARE * spread)


async def keep_young(disk: Disk, clock: Clock, *, renewed: Callable[[Identity], None]) -> None:
    """Renew for ever; `renewed` gets each new identity, which is on the disk by then, whoever renewed it."""
    known: Identity | None = None
    while True:
        pause = random.uniform(RETRY_SECONDS / 2, RETRY_SECONDS)  # noqa: S311 - jitter, not a secret
        try:
            found = identity.load(disk)
            if known is not None and found != known:
                log.info("certificate.renewed not_after=%s", found.not_after.isoformat())
                renewed(found)
            known = found
            wait = due_at(found) - clock.now()
            if wait > timedelta(0):
                pause = min(wait.total_seconds(), CHECK_SECONDS)
            elif await _exchange(disk) and due_at(identity.load(disk)) > clock.now():
                pause = 0.0  # else the hub gave the old one again, or this clock is off: not at once again
        except (SkerryError, OSError) as error:  # the agent goes on with what it has, and tries again
            log.warning("certificate.not_renewed error=%s", error)
        await asyncio.sleep(pause)


async def _exchange(disk: Disk) -> bool:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "skerry.agent",
        "renew",
        f"--state-dir={disk.root}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(EXCHANGE_SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        log.warning("certificate.not_renewed error=%s", f"no end within {EXCHANGE_SECONDS:g} s")
        return False
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        log.warning("certificate.not_renewed error=%s", said[-1000:].decode(errors="replace").strip())
    return process.returncode == 0
