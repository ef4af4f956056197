"""What one hub does, and no other on the same store at the same time: controllers, events, housekeeping, the devices.

A hub with a store of its own does it from the beginning; of several hubs on one store the leader does. Must not live
here: how the leader is found (`leadership`), what any of the parts does.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import socket
from dataclasses import dataclass, field
from datetime import timedelta

from skerry.drivers.link.broker import EmbeddedBroker
from skerry.drivers.link.local import LocalHubLink
from skerry.hub import housekeeping, leadership, namespaces, revocation
from skerry.hub.context import HubContext
from skerry.hub.controllers import device, device_class, happenings, model_version, rollout, trust
from skerry.hub.event_expiry import EventExpiry
from skerry.hub.events import Recorder
from skerry.hub.leadership import Leader
from skerry.hub.objects import Objects
from skerry.hub.state import StateDirectory
from skerry.hub.stores import Shared

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Duties:
    """A leader's work, and what it needs."""

    context: HubContext
    broker: EmbeddedBroker
    state: StateDirectory
    names: tuple[str, ...]
    event_ttl: timedelta
    holder: str = field(default_factory=lambda: secrets.token_hex(8))
    """By which this hub knows itself among those that share its store."""

    def start(self, group: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Start all but the gateway."""
        context = self.context
        return [
            *_tell_events(group, context, self.event_ttl),
            group.create_task(model_version.run(context), name="model-versions"),
            group.create_task(rollout.run(context), name="rollouts"),
            group.create_task(device.run(context), name="devices"),
            group.create_task(device_class.run(context), name="device-classes"),
            group.create_task(trust.run(context), name="trust"),
            group.create_task(namespaces.run(context.objects, context.clock), name="namespaces"),
            group.create_task(revocation.run(context, self.broker.disconnect), name="revocation"),
            group.create_task(housekeeping.run(context, self.state, self.names), name="housekeeping"),
        ]

    def share(self, group: asyncio.TaskGroup, shared: Shared) -> list[asyncio.Task[None]]:
        """Start to campaign for them, and what every hub does. The gateway must be following the devices already."""
        context = self.context
        led = dataclasses.replace(self, context=dataclasses.replace(context, objects=_led_objects(context, shared)))

        async def lead(term: int) -> None:
            async with self.broker:
                leader = Leader(
                    holder=self.holder,
                    host=socket.gethostname()[:253],
                    url=context.hub_url,
                    term=term,
                    address=context.forwarding.address if context.forwarding else "",
                )
                await leadership.announce(shared.led, leader)
                async with asyncio.TaskGroup() as leading:
                    leading.create_task(context.gateway.serve(LocalHubLink(self.broker)), name="gateway")
                    led.start(leading)

        return [
            group.create_task(leadership.run(shared.election, shared.fence, lead), name="leadership"),
            group.create_task(leadership.follow(shared.store, self._point), name="leader"),
            group.create_task(housekeeping.keep_certificates(context, self.state, self.names), name="certificates"),
        ]

    def _point(self, leader: Leader | None) -> None:
        """Tell where devices are, when they are not here."""
        gateway = self.context.gateway
        if self.context.forwarding is not None:
            self.context.forwarding.point(leader)
        if leader is None or leader.holder == self.holder:
            gateway.elsewhere = ""
        else:
            gateway.elsewhere = leader.url if leader.url != self.context.hub_url else leader.host


def _led_objects(context: HubContext, shared: Shared) -> Objects:
    return Objects(shared.led, context.clock)


def _tell_events(group: asyncio.TaskGroup, context: HubContext, ttl: timedelta) -> list[asyncio.Task[None]]:
    """Start what makes events of what happens, and what removes them when they are old."""
    store, clock = context.objects.store, context.clock
    recorder = Recorder(context.objects, clock, instance=socket.gethostname()[:128], shed=context.shed)
    expiry = EventExpiry(store, clock, ttl=ttl, shed=context.shed)
    return [
        group.create_task(happenings.Happenings(store, recorder).run(), name="happenings"),
        group.create_task(recorder.run(), name="events"),
        group.create_task(expiry.run(), name="event-expiry"),
    ]
