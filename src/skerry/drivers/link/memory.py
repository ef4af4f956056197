"""The device link without a network: one carrier in memory joins devices and hub, with retained messages and wills.

Lives here: what tests and the simulator run on instead of a broker. Must not live here: shortcuts that a broker does
not have; messages travel as bytes, and are checked like any others.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, Literal, TypeVar

from skerry.api.errors import UnavailableError
from skerry.core import messages
from skerry.drivers.link import inbox
from skerry.drivers.link.topics import Channel

MAX_WAITING = 65_536
"""Messages kept for a hub that is away, or for one slow connection."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class MemoryCarrier:
    """What a broker is to MQTT: hand it to the links of one hub and its devices."""

    def __init__(self) -> None:
        self.down = False
        """Set it, and nobody can connect."""
        self.drops = inbox.Drops(_log)
        self.desired: dict[str, bytes] = {}
        self.online: dict[str, bytes] = {}
        self.devices: dict[str, _DeviceEnd] = {}
        self.hub: _HubEnd | None = None
        self._waiting: deque[tuple[str, Channel, bytes]] = deque(maxlen=MAX_WAITING)

    def cut(self, uid: str) -> None:
        """Break a device's connection without a goodbye; its last will is delivered."""
        device = self.devices.pop(uid, None)
        if device is not None:
            device.feed.fail()
            self.announce(uid, device.will)

    def cut_hub(self) -> None:
        """Break the hub's connection."""
        if self.hub is not None:
            self.hub.feed.fail()
            self._waiting.extend(self.hub.feed.items)
            self.hub = None

    def attach_device(self, device: _DeviceEnd) -> None:
        """Take a device's new connection for its only one, and hand it what is kept."""
        self.cut(device.uid)
        self.devices[device.uid] = device
        if device.uid in self.desired:
            device.feed.put(("desired", self.desired[device.uid]))

    def attach_hub(self, hub: _HubEnd) -> None:
        """Take the hub's new connection for its only one, and hand it what waited and who is there."""
        self.cut_hub()
        self.hub = hub
        for item in self._waiting:
            hub.feed.put(item)
        self._waiting.clear()
        for uid, raw in self.online.items():
            hub.feed.put((uid, "online", raw))

    def detach(self, device: _DeviceEnd) -> None:
        """End a device's connection, if it still is the device's."""
        if self.devices.get(device.uid) is device:
            del self.devices[device.uid]
            self.announce(device.uid, device.will)

    def announce(self, uid: str, raw: bytes) -> None:
        """Keep and carry a device's presence."""
        self.online[uid] = raw
        self.to_hub(uid, "online", raw)

    def to_hub(self, uid: str, channel: Channel, raw: bytes) -> None:
        """Carry a device's message, or let it wait for the hub."""
        if self.hub is None:
            self._waiting.append((uid, channel, raw))
        else:
            self.hub.feed.put((uid, channel, raw))


class MemoryDeviceLink:
    """`core.ports.DeviceLink` of one device."""

    def __init__(self, carrier: MemoryCarrier, uid: str) -> None:
        self._carrier = carrier
        self._uid = uid

    @asynccontextmanager
    async def connect(self, *, boot_id: str) -> AsyncIterator[_DeviceEnd]:
        """Connect, announce the device, and announce its absence at the end. Raises UnavailableError."""
        _refuse_when_down(self._carrier)
        device = _DeviceEnd(self._carrier, self._uid, boot_id)
        self._carrier.attach_device(device)
        self._carrier.announce(self._uid, _presence(self._uid, boot_id, online=True))
        try:
            yield device
        finally:
            self._carrier.detach(device)
            device.feed.fail()


class MemoryHubLink:
    """`core.ports.HubLink`."""

    def __init__(self, carrier: MemoryCarrier) -> None:
        self._carrier = carrier

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[_HubEnd]:
        """Connect. Raises UnavailableError."""
        _refuse_when_down(self._carrier)
        hub = _HubEnd(self._carrier)
        self._carrier.attach_hub(hub)
        try:
            yield hub
        finally:
            if self._carrier.hub is hub:
                self._carrier.cut_hub()


class _Feed(Generic[_T]):
    """Items for one reader, until the connection ends."""

    def __init__(self) -> None:
        self.items: deque[_T] = deque()
        self.lost = False
        self._changed = asyncio.Event()

    def put(self, item: _T) -> None:
        if len(self.items) >= MAX_WAITING:
            self.fail()
        if not self.lost:
            self.items.append(item)
            self._changed.set()

    def fail(self) -> None:
        self.lost = True
        self._changed.set()

    async def get(self) -> _T:
        while not self.items:
            if self.lost:
                raise UnavailableError("the connection was lost", element="link in memory")
            self._changed.clear()
            await self._changed.wait()
        return self.items.popleft()


class _DeviceEnd:
    """`core.ports.DeviceConnection`."""

    def __init__(self, carrier: MemoryCarrier, uid: str, boot_id: str) -> None:
        self.uid = uid
        self.will = _presence(uid, boot_id, online=False)
        self.feed: _Feed[tuple[Literal["desired", "command"], bytes]] = _Feed()
        self._carrier = carrier

    async def send(self, message: messages.Reported | messages.CommandResult | messages.Telemetry) -> None:
        """Hand the message to the carrier. Raises UnavailableError, TooLargeError."""
        raw = messages.encode(message)
        channel: Channel = "telemetry" if isinstance(message, messages.Telemetry) else "reported"
        if self.feed.lost:
            raise UnavailableError("the connection was lost", element="link in memory")
        self._carrier.to_hub(self.uid, channel, raw)

    async def incoming(self) -> AsyncIterator[tuple[Literal["desired", "command"], bytes]]:
        """Yield raw envelopes; ends by UnavailableError."""
        while True:
            yield await self.feed.get()


class _HubEnd:
    """`core.ports.HubConnection`."""

    def __init__(self, carrier: MemoryCarrier) -> None:
        self.feed: _Feed[tuple[str, Channel, bytes]] = _Feed()
        self._carrier = carrier

    async def publish_desired(self, uid: str, envelope: bytes) -> None:
        """Keep the envelope for the device and hand it over if it is there. Raises UnavailableError."""
        self._check()
        self._carrier.desired[uid] = envelope
        self._to_device(uid, "desired", envelope)

    async def forget(self, uid: str) -> None:
        """Drop what is kept for a device. Raises UnavailableError."""
        self._check()
        self._carrier.desired.pop(uid, None)
        self._carrier.online.pop(uid, None)

    async def send_command(self, uid: str, envelope: bytes) -> None:
        """Hand a command to the device if it is there. Raises UnavailableError."""
        self._check()
        self._to_device(uid, "command", envelope)

    async def incoming(self) -> AsyncIterator[tuple[str, messages.FromDevice]]:
        """Yield what devices said; ends by UnavailableError."""
        while True:
            uid, channel, raw = await self.feed.get()
            message = inbox.accept(uid, channel, raw, self._carrier.drops)
            if message is not None:
                yield uid, message

    def _to_device(self, uid: str, channel: Literal["desired", "command"], raw: bytes) -> None:
        device = self._carrier.devices.get(uid)
        if device is not None:
            device.feed.put((channel, raw))

    def _check(self) -> None:
        if self.feed.lost:
            raise UnavailableError("the connection was lost", element="link in memory")


def _presence(uid: str, boot_id: str, *, online: bool) -> bytes:
    return messages.encode(messages.Online(uid=uid, online=online, boot_id=boot_id))


def _refuse_when_down(carrier: MemoryCarrier) -> None:
    if carrier.down:
        raise UnavailableError("refuses connections", element="link in memory")
