"""What may be done now: fetch over this link, start something new. Operator and owner both count; the stricter wins.

    metered          true if either says so, else false if either says so, else as found
    bandwidth        the lower of both bounds
    metered bytes    the lower of both bounds

Lives here: the combination, and the sentence for whoever has to wait. Must not live here: waiting (`installer`), the
bucket that bounds the bandwidth (`drivers.registry.bandwidth`), windows' arithmetic (`core.windows`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from skerry.agent.hold import Holds
from skerry.agent.settings import NetworkSettings
from skerry.api import quantity
from skerry.api.errors import InvalidError
from skerry.api.kinds.device import LinkPolicy, Network, WaitReason
from skerry.core.messages import DesiredState, WindowDesired, WorkloadDesired
from skerry.core.ports import Clock

POLL_SECONDS = 5.0
"""How often somebody who waits asks again: a network changes without telling."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """Why something has to wait."""

    reason: WaitReason
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """How downloads may use the network, from both sides' words."""

    metered: bool
    bytes_per_second: int | None = None
    metered_bytes: int | None = None


def combine(owner: NetworkSettings, hub: LinkPolicy, found: Network) -> Link:
    """Return what holds. Raises InvalidError for an amount that cannot be read."""
    words = [word for word in (owner.metered, hub.metered) if word is not None]
    return Link(
        metered=any(words) if words else found.metered,
        bytes_per_second=_lower(owner.max_bandwidth, hub.max_bandwidth),
        metered_bytes=_lower(owner.allow_metered_downloads, hub.allow_metered_downloads),
    )


def check_link(link: Link, network: Network, *, missing: int, require_unmetered: bool) -> Wait | None:
    """Say why a download of so many bytes has to wait; None when it may go on."""
    if not link.metered or missing <= 0:
        return None
    where = f"{network.interface or 'the network'} ({network.kind}) is metered"
    if require_unmetered:
        cause = f"waits for an unmetered link: {where}, and the deployment requires one"
    elif link.metered_bytes is not None and missing > link.metered_bytes:
        allowed = quantity.human_bytes(link.metered_bytes) if link.metered_bytes else "nothing"
        cause = f"waits for an unmetered link: {where}, and may carry {allowed}"
    else:
        return None
    return Wait(reason="Link", message=f"{cause}; {quantity.human_bytes(missing)} are still to be fetched")


class Policy:
    """What this device may do now."""

    def __init__(
        self,
        owner: NetworkSettings,
        holds: Holds,
        clock: Clock,
        *,
        network: Callable[[], Network],
        limit_bandwidth: Callable[[int | None], None],
    ) -> None:
        """`network` finds the link in use now, quickly; `limit_bandwidth` gets bytes per second, or None."""
        self._owner = owner
        self._holds = holds
        self._clock = clock
        self._network = network
        self._limit_bandwidth = limit_bandwidth
        self._hub = LinkPolicy()
        self._news = asyncio.Event()
        self._limit_bandwidth(combine(owner, self._hub, Network()).bytes_per_second)

    def accept(self, desired: DesiredState) -> None:
        """Follow what the hub desires."""
        self._holds.accept(desired)
        try:
            self._limit_bandwidth(combine(self._owner, desired.link, Network()).bytes_per_second)
        except InvalidError:
            return  # cannot be, for it was checked before it was signed; the last word stays
        self._hub = desired.link
        self.changed()

    def changed(self) -> None:
        """Have whoever waits ask again."""
        self._news.set()
        self._news = asyncio.Event()

    async def until_changed(self) -> None:
        """Wait until it is worth asking again."""
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._news.wait()
        except TimeoutError:
            return

    @property
    def held(self) -> bool:
        """Whether nothing new may be started, and nothing that serves may be stopped."""
        return bool(self._holds.in_force())

    def may_fetch(self, desired: WorkloadDesired, missing: int) -> Wait | None:
        """Say why its download of so many bytes has to wait with its beginning, or its going on."""
        network = self._network()
        link = combine(self._owner, self._hub, network)
        return check_link(link, network, missing=missing, require_unmetered=desired.require_unmetered)

    def may_begin_to_fetch(self, desired: WorkloadDesired) -> Wait | None:
        """Say why its download may not begin now; one that has begun is not broken off by this."""
        wanted = desired.windows
        return None if wanted is None else self._in_window(wanted.download, desired, "download")

    def may_switch(self, desired: WorkloadDesired) -> Wait | None:
        """Say why it may not be started, or put in the place of what serves."""
        why = self._holds.why()
        if why:
            return Wait(reason="Hold", message=f"waits with the switch-over: updates are {why}")
        wanted = desired.windows
        return None if wanted is None else self._in_window(wanted.switch_over, desired, "switch-over")

    def _in_window(self, listed: list[WindowDesired], desired: WorkloadDesired, what: str) -> Wait | None:
        if not listed:
            return None
        from skerry.core import windows  # noqa: PLC0415 - time zones are for those who have windows; the agent stays small

        issued_at = None if desired.windows is None else desired.windows.issued_at
        found = windows.closed(listed, self._clock.now(), issued_at=issued_at, what=what)
        return None if found is None else Wait(reason="Window", message=found.message)


def _lower(one: str | None, other: str | None) -> int | None:
    amounts = [quantity.to_bytes(amount) for amount in (one, other) if amount is not None]
    return min(amounts, default=None)
