"""The device link over MQTT 3.1.1 and TLS, for both ends; any broker (see docs/protocol.md for the wire contract).

Lives here: connections, subscriptions, retained messages and last wills, and the sentences for what goes wrong. Must
not live here: the decision to reconnect (the callers'), or what messages mean.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import aiomqtt

from skerry.api.errors import InvalidError, UnavailableError
from skerry.core import messages
from skerry.drivers.link import inbox, topics
from skerry.drivers.link.mqtt_client import MqttClient, explain
from skerry.drivers.link.topics import Channel, DeviceChannel, topic

_log = logging.getLogger(__name__)

_FAREWELL_SECONDS = 2.0
"""For the last `online: false`; when it does not arrive, the will says the same later."""


@dataclass(frozen=True, kw_only=True)
class MqttSettings:
    """Where the broker is and how long to wait for it."""

    host: str
    port: int = 8883
    tls: ssl.SSLContext | None = None
    """With the own certificate loaded. None is plain TCP, which only a loopback address may have."""
    keepalive_seconds: int = 60
    """The broker declares the client gone after one and a half times this."""
    connect_timeout_seconds: float = 10.0
    """For each of: TCP, TLS, MQTT."""
    send_timeout_seconds: float = 60.0
    """Until a message is acknowledged; 4 MiB on a slow mobile link take their time."""

    def __post_init__(self) -> None:
        """Refuse what cannot be an address, and plain TCP to anywhere but this machine. Raises InvalidError."""
        if not self.host or not 0 < self.port < 65536:
            raise InvalidError(f'"{self.host}:{self.port}" is no address', element="MQTT broker")
        if self.tls is None and not _is_loopback(self.host):
            raise InvalidError(
                f"plain MQTT to {self.host} is not allowed", element="tls", hint="give a certificate and the hub's CA"
            )


class MqttDeviceLink:
    """`core.ports.DeviceLink` of one device; its uid is its client id and the CN of its certificate."""

    def __init__(self, uid: str, settings: MqttSettings) -> None:
        if not topics.is_uid(uid):
            raise InvalidError(f'"{uid[:128]}" cannot be a device\'s uid', element="uid")
        self._uid = uid
        self._settings = settings

    @asynccontextmanager
    async def connect(self, *, boot_id: str) -> AsyncIterator[MqttDeviceConnection]:
        """Connect, listen, then announce the device; its absence is announced at the end, by the will if need be.

        Raises UnavailableError.
        """
        where = topic(self._uid, "online")
        present, absent = (
            messages.encode(messages.Online(uid=self._uid, online=online, boot_id=boot_id)) for online in (True, False)
        )
        will = aiomqtt.Will(where, absent, qos=1, retain=True)
        async with _session(self._settings, self._uid, will=will, clean=True) as client:
            await client.listen([(topic(self._uid, channel), 1) for channel in topics.DEVICE_CHANNELS])
            await client.send(where, present, retain=True)
            try:
                yield MqttDeviceConnection(self._uid, client)
            finally:
                if not client.lost:
                    with suppress(UnavailableError):
                        await client.send(where, absent, retain=True, timeout=_FAREWELL_SECONDS)


class MqttDeviceConnection:
    """`core.ports.DeviceConnection` on one MQTT session."""

    def __init__(self, uid: str, client: MqttClient) -> None:
        self.drops = inbox.Drops(_log)
        self._uid = uid
        self._client = client
        self._channels: dict[str, DeviceChannel] = {topic(uid, "desired"): "desired", topic(uid, "command"): "command"}

    async def send(self, message: messages.Reported | messages.CommandResult | messages.Telemetry) -> None:
        """Send and wait until the broker has it. Raises UnavailableError, TooLargeError."""
        channel: Channel = "telemetry" if isinstance(message, messages.Telemetry) else "reported"
        await self._client.send(topic(self._uid, channel), topics.bounded(messages.encode(message), channel))

    async def incoming(self) -> AsyncIterator[tuple[DeviceChannel, bytes]]:
        """Yield raw envelopes, each acknowledged when the next is asked for; ends by UnavailableError."""
        async for name, payload in self._client.received():
            channel = self._channels.get(name)
            if channel is None:
                self.drops.add("topic", source="broker", detail=name)
            elif len(payload) > topics.MAX_BYTES[channel]:
                self.drops.add("toolarge", source="broker", detail=f"{len(payload)} bytes on {name}")
            elif payload:  # empty: the hub cleared what it kept
                yield channel, payload


class MqttHubLink:
    """`core.ports.HubLink`; one hub is one client id, under which brokers keep QoS 1 messages while it is away."""

    def __init__(self, settings: MqttSettings, *, client_id: str = "hub") -> None:
        self.drops = inbox.Drops(_log)
        self._settings = settings
        self._client_id = client_id

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[MqttHubConnection]:
        """Connect and listen to all devices. Raises UnavailableError."""
        async with _session(self._settings, self._client_id, will=None, clean=False) as client:
            await client.listen(list(topics.HUB_FILTERS.items()))
            yield MqttHubConnection(client, self.drops)


class MqttHubConnection:
    """`core.ports.HubConnection` on one MQTT session."""

    def __init__(self, client: MqttClient, drops: inbox.Drops) -> None:
        self._client = client
        self._drops = drops

    async def publish_desired(self, uid: str, envelope: bytes) -> None:
        """Leave the device's desired state with the broker (retained). Raises UnavailableError, TooLargeError."""
        await self._client.send(topic(uid, "desired"), topics.bounded(envelope, "desired"), retain=True)

    async def forget(self, uid: str) -> None:
        """Clear what the broker keeps for a device. Raises UnavailableError."""
        await self._client.send(topic(uid, "desired"), b"", retain=True)
        await self._client.send(topic(uid, "online"), b"", retain=True)

    async def send_command(self, uid: str, envelope: bytes) -> None:
        """Send a command; lost if the device is away. Raises UnavailableError, TooLargeError."""
        await self._client.send(topic(uid, "command"), topics.bounded(envelope, "command"))

    async def incoming(self) -> AsyncIterator[tuple[str, messages.FromDevice]]:
        """Yield what devices said, each acknowledged when the next is asked for; ends by UnavailableError.

        The uid is the topic's: the broker lets only that device publish there. A message that claims another is
        dropped, as is everything malformed; drops are counted, and logged at a bounded rate.
        """
        async for name, payload in self._client.received():
            parsed = topics.parse(name)
            if parsed is None:
                self._drops.add("topic", source="broker", detail=name)
                continue
            uid, channel = parsed
            message = inbox.accept(uid, channel, payload, self._drops)
            if message is not None:
                yield uid, message


@asynccontextmanager
async def _session(
    settings: MqttSettings, client_id: str, *, will: aiomqtt.Will | None, clean: bool
) -> AsyncIterator[MqttClient]:
    client = MqttClient(
        host=settings.host,
        port=settings.port,
        client_id=client_id,
        tls=settings.tls,
        will=will,
        clean_session=clean,
        keepalive_seconds=settings.keepalive_seconds,
        connect_timeout_seconds=settings.connect_timeout_seconds,
        send_timeout_seconds=settings.send_timeout_seconds,
    )
    try:
        await client.open()
    except aiomqtt.MqttError as error:
        raise explain(error, client) from error
    try:
        yield client
    finally:
        await client.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
