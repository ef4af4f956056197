"""Attackers at the embedded broker: each danger is played from outside, over TLS, with hand-made packets."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from skerry.api.errors import InvalidError, UnavailableError
from skerry.core import access, messages
from skerry.drivers.link.broker import BrokerSettings, EmbeddedBroker
from skerry.drivers.link.mqtt import MqttDeviceLink, MqttHubLink

SECONDS = 10.0
CONNACK_OK = b"\x20\x02\x00\x00"


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("!H", len(raw)) + raw


def packet(first: int, body: bytes) -> bytes:
    length, encoded = len(body), b""
    while True:
        length, digit = divmod(length, 128)
        encoded += bytes([digit | (0x80 if length else 0)])
        if not length:
            return bytes([first]) + encoded + body


def connect(
    client_id: str, *, will: tuple[str, bytes] | None = None, keepalive: int = 60, flags: int = 0x02, level: int = 4
) -> bytes:
    payload = text(client_id)
    if will is not None:
        flags |= 0x04 | 0x08 | 0x20  # QoS 1, retained
        payload += text(will[0]) + struct.pack("!H", len(will[1])) + will[1]
    return packet(0x10, text("MQTT") + bytes([level, flags]) + struct.pack("!H", keepalive) + payload)


def publish(topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bytes:
    return packet(0x30 | qos << 1 | retain, text(topic) + (b"\x00\x07" if qos else b"") + payload)


def subscribe(*filters: str) -> bytes:
    return packet(0x82, b"\x00\x09" + b"".join(text(name) + b"\x01" for name in filters))


class Raw:
    """A TLS connection that says whatever it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hear(self, expected: bytes) -> None:
        async with asyncio.timeout(SECONDS):
            assert await self._reader.readexactly(len(expected)) == expected

    async def is_closed(self) -> bytes:
        """Wait for the end of the connection and return what was heard before it."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self._reader.read(-1)
            except OSError:
                return b""


@asynccontextmanager
async def dial(site: Any, tls: ssl.SSLContext) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("localhost", site.broker.port, ssl=tls, ssl_shutdown_timeout=1)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def attach(site: Any, uid: str, **options: Any) -> AsyncIterator[Raw]:
    """A device that connected properly, and then does what it likes."""
    async with dial(site, site.authority.device(uid)) as raw:
        await raw.say(connect(uid, **options))
        await raw.hear(CONNACK_OK)
        yield raw


def hub_of(site: Any) -> AbstractAsyncContextManager[Any]:
    return MqttHubLink(site.settings(site.authority.hub())).connect()


def device_of(site: Any, uid: str) -> MqttDeviceLink:
    return MqttDeviceLink(uid, site.settings(site.authority.device(uid)))


def report(uid: str, seq: int = 1) -> messages.Reported:
    return messages.decode(
        b'{"type":"Reported","uid":"%b","v":1,"bootId":"b","seq":%d,"sentAt":"2026-01-01T00:00:00Z",'
        b'"observedManifestVersion":0}' % (uid.encode(), seq),
        messages.Reported,
    )


async def next_of(incoming: AsyncIterator[Any], kind: type[Any], uid: str) -> Any:
    async with asyncio.timeout(SECONDS):
        async for sender, message in incoming:
            if isinstance(message, kind) and sender == uid:
                return message
    raise AssertionError


@pytest.mark.parametrize("client", ["none", "foreign", "expired"])
async def test_without_a_valid_certificate_nothing_is_answered(site: Any, client: str, tmp_path: Any) -> None:
    if client == "none":
        tls = site.authority.client(None)
    elif client == "expired":
        tls = site.authority.client(site.authority.issue("old", ["dev-a"], [access.DEVICES], days=(-2, -1)))
    else:
        foreign = type(site.authority)(tmp_path / "foreign")
        tls = site.authority.client(foreign.issue("dev-a", ["dev-a"], [access.DEVICES]))
    heard = b""
    try:
        async with dial(site, tls) as raw:
            await raw.say(connect("dev-a"))
            heard = await raw.is_closed()
    except OSError:
        pass
    assert heard == b""


def test_a_context_that_would_let_anybody_in_is_refused(server_tls: ssl.SSLContext) -> None:
    server_tls.verify_mode = ssl.CERT_OPTIONAL
    with pytest.raises(InvalidError):
        EmbeddedBroker(BrokerSettings(port=0), tls=server_tls, known=lambda *_: True)


async def test_another_devices_client_id_is_refused_and_its_owner_not_disturbed(site: Any) -> None:
    async with hub_of(site) as hub, device_of(site, "dev-a").connect(boot_id="b") as victim:
        incoming = hub.incoming()
        assert (await next_of(incoming, messages.Online, "dev-a")).online
        for clean in (0x02, 0x00):
            async with dial(site, site.authority.device("dev-b")) as raw:
                await raw.say(connect("dev-a", flags=clean))
                assert await raw.is_closed() == b"\x20\x02\x00\x02"
        await victim.send(report("dev-a"))
        assert await next_of(incoming, messages.Reported, "dev-a") == report("dev-a")
        await hub.send_command("dev-a", b"still you")
        async with asyncio.timeout(SECONDS):
            assert await anext(victim.incoming()) == ("command", b"still you")


async def test_a_session_that_is_left_open_is_not_inherited_by_another_device(site: Any) -> None:
    async with attach(site, "dev-a", flags=0x00) as raw:  # not a clean session
        await raw.say(subscribe("skerry/v1/d/dev-a/desired"))
        await raw.hear(b"\x90\x03\x00\x09\x01")
    async with dial(site, site.authority.device("dev-b")) as raw:
        await raw.say(connect("dev-a", flags=0x00))
        assert await raw.is_closed() == b"\x20\x02\x00\x02"


@pytest.mark.parametrize(
    ("common", "organisation"),
    [
        (["dev-a"], []),
        (["dev-a"], ["skerry:admins"]),
        (["dev-a"], ["skerry:devices", "skerry:hubs"]),
        (["dev-a", "dev-b"], ["skerry:devices"]),
        ([], ["skerry:devices"]),
        ([], ["skerry:hubs"]),
    ],
)
async def test_certificates_of_others_are_refused(site: Any, common: list[str], organisation: list[str]) -> None:
    async with dial(site, site.authority.client(site.authority.issue("odd", common, organisation))) as raw:
        await raw.say(connect("dev-a"))
        assert await raw.is_closed() == b"\x20\x02\x00\x05"


@pytest.mark.parametrize(
    "topic", ["skerry/v1/d/dev-b/online", "skerry/v1/d/dev-a/reported", "skerry/v1/d/dev-a/desired", "x", ""]
)
async def test_a_last_will_elsewhere_is_refused(site: Any, topic: str) -> None:
    async with dial(site, site.authority.device("dev-a")) as raw:
        await raw.say(connect("dev-a", will=(topic, b"{}")))
        assert await raw.is_closed() == b"\x20\x02\x00\x05"


@pytest.mark.parametrize(
    ("topic", "retain"),
    [
        ("skerry/v1/d/dev-b/reported", False),
        ("skerry/v1/d/dev-b/online", True),
        ("skerry/v1/d/dev-b/desired", True),
        ("skerry/v1/d/dev-a/desired", True),
        ("skerry/v1/d/dev-a/command", False),
        ("skerry/v1/d/dev-a/reported", True),
        ("skerry/v1/d/dev-a/reported/x", False),
        ("skerry/v1/d/+/reported", False),
        ("skerry/v1/d/dev-a/#", False),
        ("$SYS/broker", False),
        ("", False),
    ],
)
async def test_publishing_elsewhere_ends_the_connection_and_reaches_nobody(site: Any, topic: str, retain: bool) -> None:
    async with hub_of(site) as hub, device_of(site, "dev-b").connect(boot_id="b") as other:
        async with attach(site, "dev-a") as raw:
            await raw.say(publish(topic, b'{"forged":1}', retain=retain))
            assert await raw.is_closed() == b""
        await other.send(report("dev-b"))
        assert await next_of(hub.incoming(), messages.Reported, "dev-b") == report("dev-b")
        await hub.send_command("dev-b", b"only this")
        async with asyncio.timeout(SECONDS):
            assert await anext(other.incoming()) == ("command", b"only this")


async def test_subscribing_elsewhere_is_refused_filter_by_filter(site: Any) -> None:
    filters = [
        "skerry/v1/d/dev-b/desired",
        "skerry/v1/d/dev-a/reported",
        "skerry/v1/d/+/desired",
        "skerry/v1/d/dev-a/#",
        "#",
        "+/v1/d/dev-a/desired",
        "$SYS/#",
        "skerry/v1/d/dev-a/desired",
    ]
    async with hub_of(site) as hub, attach(site, "dev-a") as raw:
        await hub.publish_desired("dev-b", b"secret")
        await raw.say(subscribe(*filters))
        await raw.hear(b"\x90\x0a\x00\x09" + b"\x80" * 7 + b"\x01")
        await hub.publish_desired("dev-b", b"secret")
        await hub.send_command("dev-a", b"not subscribed")
        await raw.say(b"\xc0\x00")
        await raw.hear(b"\xd0\x00")


async def test_retained_messages_do_not_leak_to_who_did_not_subscribe(site: Any) -> None:
    async with hub_of(site) as hub, device_of(site, "dev-a").connect(boot_id="b") as owner:
        await hub.publish_desired("dev-a", b"secret")
        async with asyncio.timeout(SECONDS):
            await anext(owner.incoming())
        async with attach(site, "dev-b") as raw:
            await raw.say(b"\xc0\x00")
            await raw.hear(b"\xd0\x00")


async def test_strangers_are_refused_and_newcomers_are_waited_for(site: Any) -> None:
    async with dial(site, site.authority.device("dev-x")) as raw:
        await raw.say(connect("dev-x"))
        assert await raw.is_closed() == b"\x20\x02\x00\x05"
    async with dial(site, site.authority.device("dev-y")) as raw:
        await raw.say(connect("dev-y"))
        site.known.add("dev-y")
        await raw.hear(CONNACK_OK)


@pytest.mark.parametrize(
    "attack",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x10\xff\xff\xff\xff\xff",
        b"\x10\xff\xff\xff\x7f",
        packet(0x10, b"\x00\x04MQTT"),
        b"\xc0\x00",
        publish("skerry/v1/d/dev-a/reported", b"{}"),
        b"\x00" * 64,
    ],
)
async def test_whatever_is_not_connect_ends_the_connection_unanswered(site: Any, attack: bytes) -> None:
    async with dial(site, site.authority.device("dev-a")) as raw:
        await raw.say(attack)
        assert await raw.is_closed() == b""


@pytest.mark.parametrize(
    "attack",
    [
        b"\x30\xff\xff\xff\x7f",  # a packet of 256 MiB
        publish("skerry/v1/d/dev-a/reported", b"x" * (messages.MAX_MESSAGE_BYTES + 1)),
        publish("skerry/v1/d/dev-a/online", b"x" * 5000, retain=True),
        publish("skerry/v1/d/dev-a/reported", b"{}", qos=2),
        publish("skerry/v1/d/dev-a/reported", b"{}", qos=3),
        packet(0x32, b"\xff\xffshort"),
        packet(0x32, text("skerry/v1/d/dev-a/reported") + b"\x00\x00{}"),
        packet(0x80, b"\x00\x09" + text("x") + b"\x01"),
        packet(0x82, b"\x00\x09"),
        subscribe(*(["skerry/v1/d/dev-a/desired"] * 17)),
        connect("dev-a"),
        b"\xf0\x00",
        b"\x20\x02\x00\x00",
    ],
)
async def test_a_packet_that_is_none_ends_the_connection(site: Any, attack: bytes) -> None:
    async with attach(site, "dev-a") as raw:
        try:
            await raw.say(attack)
        except OSError:
            return  # closed while it was still talking
        assert await raw.is_closed() == b""


async def test_another_protocol_version_is_told_so(site: Any) -> None:
    async with dial(site, site.authority.device("dev-a")) as raw:
        await raw.say(connect("dev-a", level=5))
        assert await raw.is_closed() == b"\x20\x02\x00\x01"


class TestImpatient:
    """Bounds that are made small, to see them reached."""

    @pytest.fixture
    def broker_settings(self) -> BrokerSettings:
        return BrokerSettings(
            port=0,
            connect_timeout_seconds=0.5,
            device_buffer_bytes=64 * 1024,
            hub_buffer_bytes=8 * 1024,
            max_connections=2,
        )

    async def test_who_only_holds_the_line_is_cut_off(self, site: Any) -> None:
        async with dial(site, site.authority.device("dev-a")) as raw:
            await raw.say(b"\x10")
            assert await raw.is_closed() == b""

    async def test_a_client_that_falls_silent_is_declared_gone(self, site: Any) -> None:
        will = messages.encode(messages.Online(uid="dev-a", online=False, boot_id="b"))
        async with hub_of(site) as hub, attach(site, "dev-a", will=("skerry/v1/d/dev-a/online", will), keepalive=1):
            assert not (await next_of(hub.incoming(), messages.Online, "dev-a")).online

    async def test_subscribing_again_and_again_does_not_fill_the_memory(self, site: Any) -> None:
        async with hub_of(site) as hub, attach(site, "dev-a") as raw:
            await hub.publish_desired("dev-a", b"x" * 10_000)
            for _ in range(20):  # what is kept comes each time, and is never acknowledged
                await raw.say(subscribe(*(["skerry/v1/d/dev-a/desired"] * 16)))
            heard = await raw.is_closed()
            assert len(heard) < 10 * 10_100, "no more than the device's bound"

    async def test_a_device_that_does_not_acknowledge_is_put_out_alone(self, site: Any) -> None:
        async with hub_of(site) as hub, device_of(site, "dev-b").connect(boot_id="b") as other:
            async with attach(site, "dev-a") as raw:
                await raw.say(subscribe("skerry/v1/d/dev-a/command"))
                await raw.hear(b"\x90\x03\x00\x09\x01")
                for _ in range(5):
                    await hub.send_command("dev-a", b"x" * 16_000)
                await raw.is_closed()
            await hub.send_command("dev-b", b"y")
            async with asyncio.timeout(SECONDS):
                assert await anext(other.incoming()) == ("command", b"y")

    async def test_devices_wait_while_the_hub_is_away_and_nothing_is_lost(self, site: Any) -> None:
        async with device_of(site, "dev-a").connect(boot_id="b") as device, asyncio.TaskGroup() as group:
            sending = [group.create_task(device.send(report("dev-a", seq))) for seq in range(30)]
            done, _ = await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
            assert done
            # 8 KiB hold a handful; the others wait, without an acknowledgement, for the hub.
            assert not all(task.done() for task in sending)
            async with hub_of(site) as hub:
                incoming = hub.incoming()
                seen = [(await next_of(incoming, messages.Reported, "dev-a")).seq for _ in range(30)]
                assert sorted(seen) == list(range(30))
                await asyncio.gather(*sending)

    async def test_more_connections_than_allowed_are_refused_but_a_return_is_not(self, site: Any) -> None:
        site.known.add("dev-c")
        async with attach(site, "dev-a") as first, attach(site, "dev-b"):
            async with dial(site, site.authority.device("dev-c")) as raw:
                await raw.say(connect("dev-c"))
                assert await raw.is_closed() == b"\x20\x02\x00\x03"
            async with attach(site, "dev-a"):
                await first.is_closed()


class TestCrowded:
    """Those who hold the line without ever saying who they are: no timeout comes to the honest ones' help."""

    HELD = 12

    @pytest.fixture
    def broker_settings(self) -> BrokerSettings:
        return BrokerSettings(port=0, connect_timeout_seconds=600, max_waiting=8, max_waiting_each=2)

    @staticmethod
    async def speaks(site: Any, uid: str) -> None:
        """An honest device connects, and is heard by the hub."""
        async with hub_of(site) as hub, device_of(site, uid).connect(boot_id="b") as device:
            await device.send(report(uid))
            assert await next_of(hub.incoming(), messages.Reported, uid) == report(uid)

    async def test_who_opens_connections_and_does_not_even_shake_hands_makes_room(self, site: Any) -> None:
        async with AsyncExitStack() as stack:
            held = []
            for _ in range(self.HELD):
                reader, writer = await asyncio.open_connection("localhost", site.broker.port)
                stack.callback(writer.transport.abort)
                held.append(Raw(reader, writer))
            for raw in held[: self.HELD - 8]:  # the oldest
                assert await raw.is_closed() == b""
            assert site.broker.drops.counts["waiting"] == self.HELD - 8
            await self.speaks(site, "dev-a")

    async def test_a_certificate_holds_the_line_a_few_times_only(self, site: Any) -> None:
        async with AsyncExitStack() as stack:
            tls = site.authority.device("dev-b")
            held = [await stack.enter_async_context(dial(site, tls)) for _ in range(self.HELD)]
            for raw in held[:-2]:  # the oldest
                assert await raw.is_closed() == b""
            await self.speaks(site, "dev-a")
            await held[-1].say(connect("dev-b"))
            await held[-1].hear(CONNACK_OK)

    async def test_many_certificates_hold_the_line_no_more_often_than_all_may(self, site: Any) -> None:
        async with AsyncExitStack() as stack:
            held = []
            for number in range(self.HELD):
                tls = site.authority.device(f"dev-{number}")
                held.append(await stack.enter_async_context(dial(site, tls)))
            for raw in held[: self.HELD - 8]:
                assert await raw.is_closed() == b""
            await self.speaks(site, "dev-a")

    async def test_those_who_are_admitted_do_not_count(self, site: Any) -> None:
        names = [f"dev-{number}" for number in range(self.HELD)]
        site.known.update(names)
        async with AsyncExitStack() as stack:
            for name in names:
                await stack.enter_async_context(attach(site, name))
            await self.speaks(site, "dev-a")
            assert site.broker.drops.counts["waiting"] == 0


async def test_a_certificate_that_expires_ends_the_connection(site: Any) -> None:
    file = site.authority.issue("brief", ["dev-a"], [access.DEVICES], days=(-1, 3 / 86400))
    async with dial(site, site.authority.client(file)) as raw:
        await raw.say(connect("dev-a"))
        await raw.hear(CONNACK_OK)
        await raw.is_closed()


async def test_a_port_in_use_is_a_sentence(site: Any, server_tls: ssl.SSLContext) -> None:
    port = site.broker.port
    with pytest.raises(UnavailableError, match=f"MQTT port 127.0.0.1:{port}: cannot listen.*choose another port"):
        async with EmbeddedBroker(BrokerSettings(port=port), tls=server_tls, known=lambda *_: True):
            pass
