"""What a hub does from time to time: renew its certificates, forget old history and old tokens.

Lives here: the timers and what falls due. Must not live here: anything a user waits for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from skerry.api.errors import SkerryError
from skerry.hub import join_tokens, kubeconfig
from skerry.hub.context import HubContext
from skerry.hub.state import StateDirectory

log = logging.getLogger(__name__)

COMPACT_SECONDS = 300.0
"""History older than this, to twice this, is forgotten; Kubernetes' API server keeps five minutes too."""
DAILY_EVERY = 288
"""Rounds between looks at certificates and tokens."""


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
            if rounds % DAILY_EVERY == 0:
                await join_tokens.forget_expired(context)
                _renew(context, state, names)  # here: TLS contexts belong to the loop's thread
        except (SkerryError, OSError) as error:
            log.warning("housekeeping.failed cause=%s", error)


async def _forget_history(context: HubContext, seen: int) -> int:
    """Compact what was there a round ago, and return the revision of now for the next round."""
    newest = await context.objects.store.revision()
    if seen:
        await context.objects.store.compact(seen)
    return newest


def _renew(context: HubContext, state: StateDirectory, names: Sequence[str]) -> None:
    """Renew the hub's own certificates that near their end, and the kubeconfig with them."""
    if context.authority.renew(names):
        kubeconfig.write(state.kubeconfig, context.authority, context.hub_url)
