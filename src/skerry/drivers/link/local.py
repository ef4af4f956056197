"""The hub's link to a broker in its own process: the same outbox, window and rules, without a socket between.

Through a socket every message of every device would be encrypted, decrypted and parsed once more, by the one event loop
that both share (docs/adr/0003-hub-beside-its-broker.md has what was measured). Must not live here: routing and what is
kept (`broker`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from skerry.api.errors import UnavailableError
from skerry.core import messages
from skerry.drivers.link import inbox, packets, topics
from skerry.drivers.link.broker import EmbeddedBroker, Seat
from skerry.drivers.link.topics import topic

_log = logging.getLogger(__name__)

_IN_A_ROW = 16
"""Messages taken before others of the event loop have their turn."""


class LocalHubLink:
    """`core.ports.HubLink` for the hub of an embedded broker."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.drops = inbox.Drops(_log)
        self._broker = broker

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[LocalHubConnection]:
        """Take the hub's place, from another one if need be. Raises UnavailableError when the broker does not run."""
        async with self._broker.seat() as seat:
            yield LocalHubConnection(self._broker, seat, self.drops)


class LocalHubConnection:
    """`core.ports.HubConnection` beside the broker."""

    def __init__(self, broker: EmbeddedBroker, seat: Seat, drops: inbox.Drops) -> None:
        self._broker = broker
        self._seat = seat
        self._drops = drops

    async def publish_desired(self, uid: str, envelope: bytes) -> None:
        """Leave the device's desired state with the broker. Raises UnavailableError, TooLargeError."""
        await self._say(topic(uid, "desired"), topics.bounded(envelope, "desired"), retain=True)

    async def forget(self, uid: str) -> None:
        """Clear what the broker keeps for a device. Raises UnavailableError."""
        await self._say(topic(uid, "desired"), b"", retain=True)
        await self._say(topic(uid, "online"), b"", retain=True)

    async def send_command(self, uid: str, envelope: bytes) -> None:
        """Send a command; lost if the device is away. Raises UnavailableError, TooLargeError."""
        await self._say(topic(uid, "command"), topics.bounded(envelope, "command"))

    async def incoming(self) -> AsyncIterator[tuple[str, messages.FromDevice]]:
        """Yield what devices said, each acknowledged when the next is asked for; ends by UnavailableError."""
        seat, taken = self._seat, 0
        while True:
            packet = await seat.next()
            parsed = topics.parse(packet.topic)
            message = None if parsed is None else inbox.accept(*parsed, packet.payload, self._drops)
            if parsed is not None and message is not None:
                yield parsed[0], message
            seat.outbox.acknowledge(packet.packet_id)
            taken += 1
            if taken % _IN_A_ROW == 0:
                await asyncio.sleep(0)

    async def _say(self, name: str, payload: bytes, *, retain: bool = False) -> None:
        if self._seat.reason:
            raise UnavailableError(self._seat.reason, element="embedded broker")
        self._broker.carry(packets.Publish(topic=name, payload=payload, retain=retain, packet_id=1))
        await asyncio.sleep(0)  # others of the event loop have their turn, the device's connection among them
