"""What a hub does from time to time: renew its certificates, forget old history and old tokens.

Lives here: the timers and what falls due. Must not live here: anything a user waits for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from skerry.api.errors import ConflictError, NotFoundError, SkerryError
from skerry.api.kinds import KINDS, Resource
from skerry.api.kinds.device import Device
from skerry.api.kinds.namespace import Namespace
from skerry.api.meta import Struct
from skerry.core.ports import Record
from skerry.hub import certificate_requests, join_tokens, kubeconfig, registry_tokens, removal
from skerry.hub.context import HubContext
from skerry.hub.objects import DESIRED_PREFIX, UNREADABLE, decode, prefix_of
from skerry.hub.state import StateDirectory

log = logging.getLogger(__name__)

COMPACT_SECONDS = 300.0
"""History older than this, to twice this, is forgotten; Kubernetes' API server keeps five minutes too."""
DAILY_EVERY = 288
"""Rounds between looks at certificates and tokens."""
_PAGE = 500
_MARK = b'"deletionTimestamp":"'
"""In every record that was marked, and in few others: who lacks it need not be decoded."""


async def run(
    context: HubContext, state: StateDirectory, names: Sequence[str], *, round_seconds: float = COMPACT_SECONDS
) -> None:
    """Do it, forever. What fails is logged, and tried again the next time."""
    revision = rounds = 0
    while True:
        await asyncio.sleep(round_seconds)
        rounds += 1
        try:
            revision = await _forget_history(context, revision)
            if rounds % DAILY_EVERY == 1:
                await forget_orphans(context)  # soon after each start, too: it may follow a power cut
                await finish_removals(context)
            await certificate_requests.forget_old(context)
            if rounds % DAILY_EVERY == 0:
                await join_tokens.forget_expired(context)
                await registry_tokens.forget_expired(context)
                _renew(context, state, names)  # here: TLS contexts belong to the loop's thread
        except (SkerryError, OSError, *UNREADABLE) as error:
            log.warning("housekeeping.failed cause=%s", error)


async def keep_certificates(
    context: HubContext, state: StateDirectory, names: Sequence[str], *, seconds: float = COMPACT_SECONDS * DAILY_EVERY
) -> None:
    """Renew this hub's own certificates, forever: all of several hubs do it, and one of them the rest."""
    while True:
        await asyncio.sleep(seconds)
        try:
            _renew(context, state, names)
        except (SkerryError, OSError) as error:
            log.warning("housekeeping.failed cause=%s", error)


async def _forget_history(context: HubContext, seen: int) -> int:
    """Compact what was there a round ago, and return the revision of now for the next round."""
    newest = await context.objects.store.revision()
    if seen:
        await context.objects.store.compact(seen)
    return newest


class _Meta(Struct, frozen=True, kw_only=True):
    uid: str


class _Named(Struct, frozen=True, kw_only=True):
    """A Device, as far as it says whose records are no orphans."""

    metadata: _Meta


async def forget_orphans(context: HubContext) -> int:
    """Remove what is desired of devices that do not exist any more; returns how many.

    A device may be deleted in the moment in which something is assigned to it, or a power cut may come between the two
    removals. While a device cannot be told by its uid nothing is removed, for any record might be its own.
    """
    store = context.objects.store
    records = await store.list(DESIRED_PREFIX)
    if not records.records:
        return 0
    # Devices are read afterwards, and never come into being after their records: who is missing is gone.
    known = {_uid_of(record) for record in (await store.list(prefix_of(Device))).records}
    if "" in known:
        return 0
    orphans = [r for r in records.records if r.key.removeprefix(DESIRED_PREFIX) not in known]
    for record in orphans:
        with suppress(NotFoundError, ConflictError):
            await store.delete(record.key, expected=record.revision)
            log.info("housekeeping.orphan_removed key=%s", record.key)
    return len(orphans)


async def finish_removals(context: HubContext) -> int:
    """Remove what was marked for deletion and has no finalizer any more; returns how many.

    A power cut may come between the end of the last finalizer and the removal. Namespaces have a finisher of their own.
    """
    objects, finished = context.objects, 0
    for info in KINDS:
        if not info.stored or info.storage is not None or info.type is Namespace:
            continue
        start: str | None = ""
        while start is not None:
            page = await objects.store.list(prefix_of(info.type), limit=_PAGE, start=start)
            for record in page.records:
                if _MARK in record.value:
                    finished += await _finish_removal(context, info.type, record)
            start = page.next_key
    return finished


async def _finish_removal(context: HubContext, kind: type[Resource], record: Record) -> bool:
    try:
        gone = await removal.finish(context.objects, decode(kind, record))
    except (ConflictError, *UNREADABLE) as error:
        log.warning("housekeeping.not_removed key=%s cause=%s", record.key, error)
        return False
    if gone:
        log.info("housekeeping.removal_finished key=%s", record.key)
    return gone


def _uid_of(record: Record) -> str:
    """Return a Device's uid, whether or not the rest of it can be read; empty where not even that can."""
    try:
        return msgspec.json.decode(record.value, type=_Named).metadata.uid
    except UNREADABLE as error:
        log.error("housekeeping.unreadable key=%s cause=%s", record.key, error)
        return ""


def _renew(context: HubContext, state: StateDirectory, names: Sequence[str]) -> None:
    """Renew the hub's own certificates that near their end, and the kubeconfig with them."""
    if context.authority.renew(names):
        kubeconfig.write(state.kubeconfig, context.authority, context.hub_url)
