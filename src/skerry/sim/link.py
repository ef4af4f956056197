"""The real MQTT link, over a simulated network: messages come late or twice, connections break without a word.

One TLS context serves all devices: OpenSSL takes the certificate into a connection when that is made, so each device's
is loaded right before. Thousands of contexts would be most of the simulator's memory. Must not live here: when the
network fails (`profiles`), reconnecting (`device`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from skerry.api.errors import InvalidError, UnavailableError
from skerry.core import messages
from skerry.core.ports import DeviceConnection
from skerry.drivers.link.mqtt import MqttDeviceLink, MqttSettings
from skerry.drivers.link.topics import DeviceChannel
from skerry.sim import draws
from skerry.sim.profiles import Profile


class SharedTls:
    """One context that trusts one CA, shared by all devices."""

    def __init__(self, ca: str) -> None:
        self.context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=ca)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.lock = threading.Lock()

    def of(self, pem: Path) -> DeviceTls:
        """Return it as one device shows it: with the certificate and key of that file."""
        return DeviceTls(self, pem)


class DeviceTls:
    """What an MQTT client asks of an `ssl.SSLContext`; connections are made under one device's certificate."""

    def __init__(self, shared: SharedTls, pem: Path) -> None:
        self._shared = shared
        self._pem = pem
        self._socket: ssl.SSLSocket | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shared.context, name)

    @property
    def check_hostname(self) -> bool:
        """The hub's name is checked."""
        return self._shared.context.check_hostname

    @check_hostname.setter
    def check_hostname(self, wanted: bool) -> None:
        if not wanted:
            raise InvalidError("the hub's name is always checked", element="tls")

    @property
    def sslsocket_class(self) -> type[ssl.SSLSocket]:
        """The class of the sockets that it makes."""
        return self._shared.context.sslsocket_class

    @sslsocket_class.setter
    def sslsocket_class(self, kind: type[ssl.SSLSocket]) -> None:
        self._shared.context.sslsocket_class = kind

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """Make a TLS connection with this device's certificate. Raises OSError when its file cannot be used."""
        with self._shared.lock:
            self._shared.context.load_cert_chain(self._pem)
            self._socket = self._shared.context.wrap_socket(*arguments, **options)
        return self._socket

    def cut(self) -> None:
        """Break the connection as a network does that goes away: nobody says goodbye."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # not SSLSocket's, which changes its state


class SimulatedLink:
    """`core.ports.DeviceLink` of one simulated device."""

    def __init__(
        self, uid: str, *, host: str, port: int, tls: DeviceTls, profile: Profile, seed: int, name: str
    ) -> None:
        settings = MqttSettings(host=host, port=port, tls=cast("ssl.SSLContext", tls), connect_timeout_seconds=30.0)
        self._real = MqttDeviceLink(uid, settings)
        self._tls = tls
        self._profile = profile
        self._chance = draws.dice(seed, name, "link")
        self._network_from = 0.0
        self.breaks = 0

    def cut(self, *, outage: float = 0.0) -> None:
        """Break the connection; the network is back after so many seconds."""
        self._network_from = time.monotonic() + outage
        self.breaks += 1
        self._tls.cut()

    @asynccontextmanager
    async def connect(self, *, boot_id: str) -> AsyncIterator[SimulatedConnection]:
        """Connect, if there is a network. Raises UnavailableError."""
        if time.monotonic() < self._network_from:
            raise UnavailableError("there is no network", element="link")
        async with self._real.connect(boot_id=boot_id) as connection:
            breaks_in = draws.wait_for(self._chance, self._profile.between_disconnects)
            timer = None
            if breaks_in is not None:
                timer = asyncio.get_running_loop().call_later(breaks_in, self._break)
            try:
                yield SimulatedConnection(connection, self)
            finally:
                if timer is not None:
                    timer.cancel()

    def _break(self) -> None:
        self.cut(outage=draws.between(self._chance, self._profile.outage))

    async def travel(self) -> bool:
        """Let a message be under way; returns whether it arrives twice. Raises UnavailableError if the link breaks."""
        seconds = draws.delay(self._chance, self._profile)
        if seconds is None:
            self._break()
            raise UnavailableError("the connection was lost", element="link")
        if seconds > 0:
            await asyncio.sleep(seconds)
        return self._profile.duplicates > 0 and self._chance.random() < self._profile.duplicates


class SimulatedConnection:
    """`core.ports.DeviceConnection` over a simulated network."""

    def __init__(self, real: DeviceConnection, link: SimulatedLink) -> None:
        self._real = real
        self._link = link

    async def send(self, message: messages.Reported | messages.CommandResult | messages.Telemetry) -> None:
        """Send and wait until the broker has it, perhaps twice. Raises UnavailableError, TooLargeError."""
        twice = await self._link.travel()
        await self._real.send(message)
        if twice:
            await self._real.send(message)

    async def incoming(self) -> AsyncIterator[tuple[DeviceChannel, bytes]]:
        """Yield raw envelopes, some twice; ends by UnavailableError."""
        async for channel, raw in self._real.incoming():
            twice = await self._link.travel()
            yield channel, raw
            if twice:
                yield channel, raw
