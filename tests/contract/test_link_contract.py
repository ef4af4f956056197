"""What every carrier of the device link does alike: in memory, the embedded broker, and Mosquitto over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import aiomqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from skerry.api.errors import TooLargeError, UnavailableError
from skerry.core import messages, ports
from skerry.drivers.link import local, memory, mqtt, topics
from skerry.drivers.link.broker import BrokerSettings, EmbeddedBroker
from skerry.drivers.link.mqtt_client import MqttClient
from skerry.hub import pki
from skerry.kit.clock import SystemClock

SECONDS = 10.0
DEVICES = ("dev-a", "dev-b")
MOSQUITTO = shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")

ACL = """
user hub
topic write skerry/v1/d/+/desired
topic write skerry/v1/d/+/command
topic readwrite skerry/v1/d/+/online
topic read skerry/v1/d/+/reported
topic read skerry/v1/d/+/telemetry
pattern read skerry/v1/d/%u/desired
pattern read skerry/v1/d/%u/command
pattern write skerry/v1/d/%u/reported
pattern write skerry/v1/d/%u/telemetry
pattern write skerry/v1/d/%u/online
"""


class Carrier(Protocol):
    """A carrier under test, with the faults a network has."""

    def hub(self) -> ports.HubLink: ...
    def device(self, uid: str) -> ports.DeviceLink: ...
    async def cut(self, uid: str) -> None: ...
    async def cut_hub(self) -> None: ...
    async def stop(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.carrier = memory.MemoryCarrier()

    def hub(self) -> ports.HubLink:
        return memory.MemoryHubLink(self.carrier)

    def device(self, uid: str) -> ports.DeviceLink:
        return memory.MemoryDeviceLink(self.carrier, uid)

    async def cut(self, uid: str) -> None:
        self.carrier.cut(uid)

    async def cut_hub(self) -> None:
        self.carrier.cut_hub()

    async def stop(self) -> None:
        self.carrier.down = True


class Beside:
    """The hub in the broker's process, devices over real connections."""

    def __init__(self, over: OverMqtt, broker: EmbeddedBroker) -> None:
        self._over = over
        self._broker = broker
        self._intruders: list[asyncio.Task[None]] = []

    def hub(self) -> ports.HubLink:
        return local.LocalHubLink(self._broker)

    def device(self, uid: str) -> ports.DeviceLink:
        return self._over.device(uid)

    async def cut(self, uid: str) -> None:
        await self._over.cut(uid)

    async def cut_hub(self) -> None:
        """Another hub takes its place, and leaves it again: nothing else can part them."""

        async def intrude() -> None:
            async with self._broker.seat():
                pass

        self._intruders.append(asyncio.create_task(intrude()))
        await asyncio.sleep(0)  # it has asked for the place, and gets it when the hub has left

    async def close(self) -> None:
        await within(asyncio.gather(*self._intruders))

    async def stop(self) -> None:
        await self._over.stop()


class Wire:
    """A TCP relay in front of the broker, so that a connection can break the way networks break."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> Wire:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, far_writer}
        self._writers |= ends
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            self._writers -= ends

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        self.cut()
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


class OverMqtt:
    """Links over real connections to a broker on `port`; each through a wire of its own."""

    def __init__(self, authority: pki.Authority, directory: Path, stop: Callable[[], Awaitable[None]]) -> None:
        self._authority = authority
        self._directory = directory
        self._stop = stop
        self.wires: dict[str, Wire] = {}
        self.hub_link: mqtt.MqttHubLink | None = None

    async def open(self, port: int) -> None:
        for name in (*DEVICES, "hub"):
            self.wires[name] = await Wire(port).open()

    def settings(self, name: str) -> mqtt.MqttSettings:
        tls = (
            self._authority.hub_client_context()
            if name == "hub"
            else device_context(self._authority, self._directory, name)
        )
        return mqtt.MqttSettings(host="127.0.0.1", port=self.wires[name].port, tls=tls, connect_timeout_seconds=5)

    def hub(self) -> ports.HubLink:
        self.hub_link = mqtt.MqttHubLink(self.settings("hub"))
        return self.hub_link

    def device(self, uid: str) -> ports.DeviceLink:
        return mqtt.MqttDeviceLink(uid, self.settings(uid))

    async def cut(self, uid: str) -> None:
        self.wires[uid].cut()

    async def cut_hub(self) -> None:
        self.wires["hub"].cut()

    async def stop(self) -> None:
        await self._stop()


def device_context(authority: pki.Authority, directory: Path, uid: str) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = authority.issue_device(request.public_bytes(serialization.Encoding.PEM), uid, "default")
    file = directory / f"{uid}.pem"
    file.write_bytes(
        pem
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.create_default_context(cadata=authority.ca_pem.decode())
    context.load_cert_chain(file)
    return context


@pytest.fixture(params=["memory", "embedded", "beside", "mosquitto"])
async def carrier(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Carrier]:
    if request.param == "memory":
        yield InMemory()
        return
    authority = pki.open_authority(tmp_path / "pki", names=[], clock=SystemClock())
    async with AsyncExitStack() as stack:
        broker = None if request.param == "mosquitto" else await start_embedded(authority, stack)
        port = await start_mosquitto(authority, tmp_path, stack) if broker is None else broker.port
        carried = OverMqtt(authority, tmp_path, stack.aclose)
        await carried.open(port)
        beside = Beside(carried, broker) if request.param == "beside" and broker is not None else None
        if beside is not None:
            stack.push_async_callback(beside.close)
        try:
            yield beside or carried
        finally:
            for wire in carried.wires.values():
                await wire.close()


async def start_embedded(authority: pki.Authority, stack: AsyncExitStack) -> EmbeddedBroker:
    tls = authority.server_context(client_certificate=ssl.CERT_REQUIRED)
    broker = EmbeddedBroker(BrokerSettings(port=0), tls=tls, known=lambda uid, _: uid in DEVICES)
    return await stack.enter_async_context(broker)


async def start_mosquitto(authority: pki.Authority, directory: Path, stack: AsyncExitStack) -> int:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (directory / "acl").write_text(ACL)
    (directory / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\n"
        f"cafile {authority.ca_file}\n"
        f"certfile {authority.server_certificate_file}\n"
        f"keyfile {authority.server_key_file}\n"
        "require_certificate true\nuse_identity_as_username true\n"
        "use_username_as_clientid true\nallow_anonymous false\n"
        f"acl_file {directory / 'acl'}\n"
        "set_tcp_nodelay true\nmax_queued_messages 0\npersistence false\n" + ("user root\n" if os.getuid() == 0 else "")
    )
    process = await asyncio.create_subprocess_exec(
        MOSQUITTO, "-c", str(directory / "mosquitto.conf"), stderr=asyncio.subprocess.PIPE
    )

    async def end() -> None:
        if process.returncode is None:
            process.kill()
        await process.communicate()

    stack.push_async_callback(end)
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                assert process.returncode is None, "mosquitto ended"
                await asyncio.sleep(0.02)
                continue
            writer.close()
            await writer.wait_closed()
            return port


def raw_client(settings: mqtt.MqttSettings, client_id: str) -> MqttClient:
    return MqttClient(
        host=settings.host,
        port=settings.port,
        client_id=client_id,
        tls=settings.tls,
        will=None,
        clean_session=True,
        keepalive_seconds=60,
        connect_timeout_seconds=5,
        send_timeout_seconds=5,
    )


async def within(awaitable: Awaitable[Any]) -> Any:
    async with asyncio.timeout(SECONDS):
        return await awaitable


async def until(incoming: AsyncIterator[tuple[str, messages.FromDevice]], wanted: Callable[[Any], bool]) -> Any:
    """Return the first message from a device that is wanted, whatever comes before it."""
    async with asyncio.timeout(SECONDS):
        async for uid, message in incoming:
            if wanted(message):
                return uid, message
    raise AssertionError("the connection ended")


def reported(uid: str = "dev-a", *, seq: int = 1) -> messages.Reported:
    return messages.Reported(
        uid=uid, boot_id="boot", seq=seq, sent_at=datetime(2026, 1, 1, tzinfo=UTC), observed_manifest_version=0
    )


def is_reported(message: messages.FromDevice) -> bool:
    return isinstance(message, messages.Reported)


def is_presence(message: messages.FromDevice) -> bool:
    return isinstance(message, messages.Online)


async def test_desired_state_waits_for_a_device_that_is_away_and_the_newest_wins(carrier: Carrier) -> None:
    async with carrier.hub().connect() as hub:
        await within(hub.publish_desired("dev-a", b"old"))
        await within(hub.publish_desired("dev-a", b"new"))
        async with carrier.device("dev-a").connect(boot_id="1") as device:
            assert await within(anext(device.incoming())) == ("desired", b"new")


async def test_desired_states_and_commands_reach_a_connected_device_in_order(carrier: Carrier) -> None:
    async with carrier.hub().connect() as hub, carrier.device("dev-a").connect(boot_id="1") as device:
        incoming = device.incoming()
        for payload in (b"1", b"2", b"3"):
            await within(hub.publish_desired("dev-a", payload))
        await within(hub.send_command("dev-a", b"4"))
        received = [await within(anext(incoming)) for _ in range(4)]
        assert received == [("desired", b"1"), ("desired", b"2"), ("desired", b"3"), ("command", b"4")]


async def test_a_command_for_a_device_that_is_away_is_not_kept(carrier: Carrier) -> None:
    async with carrier.hub().connect() as hub:
        await within(hub.send_command("dev-a", b"lost"))
        async with carrier.device("dev-a").connect(boot_id="1") as device:
            await within(hub.send_command("dev-a", b"heard"))
            assert await within(anext(device.incoming())) == ("command", b"heard")


async def test_reports_and_results_reach_the_hub_under_the_devices_uid(carrier: Carrier) -> None:
    result = messages.CommandResult(uid="dev-a", id="c1", text="x" * 900_000)
    async with carrier.hub().connect() as hub, carrier.device("dev-a").connect(boot_id="1") as device:
        incoming = hub.incoming()
        await within(device.send(reported()))
        assert await until(incoming, is_reported) == ("dev-a", reported())
        await within(device.send(result))
        assert await until(incoming, lambda m: isinstance(m, messages.CommandResult)) == ("dev-a", result)


async def test_telemetry_reaches_the_hub(carrier: Carrier) -> None:
    sample = messages.Sample(at=datetime(2026, 1, 1, tzinfo=UTC), cpu=0.5, memory_bytes=7)
    told = messages.Telemetry(uid="dev-a", boot_id="b", samples=[sample] * messages.MAX_SAMPLES, dropped=3)
    async with carrier.hub().connect() as hub, carrier.device("dev-a").connect(boot_id="1") as device:
        incoming = hub.incoming()
        await within(device.send(told))
        assert await until(incoming, lambda m: isinstance(m, messages.Telemetry)) == ("dev-a", told)


async def test_presence_is_announced_at_both_ends_of_a_connection(carrier: Carrier) -> None:
    async with carrier.hub().connect() as hub:
        incoming = hub.incoming()
        async with carrier.device("dev-a").connect(boot_id="b7"):
            assert await until(incoming, is_presence) == (
                "dev-a",
                messages.Online(uid="dev-a", online=True, boot_id="b7"),
            )
        assert await until(incoming, is_presence) == ("dev-a", messages.Online(uid="dev-a", online=False, boot_id="b7"))


async def test_a_broken_connection_ends_the_reader_and_leaves_the_will(carrier: Carrier) -> None:
    async with carrier.hub().connect() as hub:
        incoming = hub.incoming()
        async with carrier.device("dev-a").connect(boot_id="b7") as device:
            await until(incoming, lambda m: is_presence(m) and m.online)
            await carrier.cut("dev-a")
            with pytest.raises(UnavailableError):
                await within(anext(device.incoming()))
            assert await until(incoming, is_presence) == (
                "dev-a",
                messages.Online(uid="dev-a", online=False, boot_id="b7"),
            )
            with pytest.raises(UnavailableError):
                await within(device.send(reported()))


async def test_a_hub_that_returns_hears_what_it_missed_and_who_is_there(carrier: Carrier) -> None:
    async with carrier.device("dev-a").connect(boot_id="1") as device:
        async with carrier.hub().connect() as hub:
            incoming = hub.incoming()
            await until(incoming, is_presence)
            await carrier.cut_hub()
            with pytest.raises(UnavailableError):
                await until(incoming, lambda _: False)
        await within(device.send(reported(seq=7)))
        async with carrier.hub().connect() as hub:
            heard: list[messages.FromDevice] = []
            incoming = hub.incoming()
            async with asyncio.timeout(SECONDS):
                while not (any(map(is_reported, heard)) and any(map(is_presence, heard))):
                    heard.append((await anext(incoming))[1])
        assert reported(seq=7) in heard
        assert messages.Online(uid="dev-a", online=True, boot_id="1") in heard


async def test_a_forgotten_device_leaves_nothing_behind(carrier: Carrier) -> None:
    async with carrier.hub().connect() as hub:
        await within(hub.publish_desired("dev-a", b"something"))
        async with carrier.device("dev-a").connect(boot_id="1"):
            pass
        incoming = hub.incoming()
        await until(incoming, lambda m: is_presence(m) and not m.online)
        await within(hub.forget("dev-a"))
        async with carrier.device("dev-b").connect(boot_id="1"):
            await until(incoming, lambda m: m.uid == "dev-b")  # so that all before it is acknowledged
    async with carrier.hub().connect() as hub, carrier.device("dev-b").connect(boot_id="2"):
        incoming = hub.incoming()
        heard: list[Any] = []
        async with asyncio.timeout(SECONDS):
            while not heard or heard[-1].boot_id != "2":
                heard.append((await anext(incoming))[1])
        assert {message.uid for message in heard} == {"dev-b"}
    async with carrier.hub().connect() as hub, carrier.device("dev-a").connect(boot_id="3") as device:
        await within(hub.send_command("dev-a", b"barrier"))
        assert await within(anext(device.incoming())) == ("command", b"barrier")


async def test_a_second_connection_of_a_device_takes_over_and_it_stays_online(carrier: Carrier) -> None:
    async with carrier.hub().connect() as hub:
        incoming = hub.incoming()
        async with carrier.device("dev-a").connect(boot_id="1") as old:
            await until(incoming, lambda m: is_presence(m) and m.boot_id == "1")
            async with carrier.device("dev-a").connect(boot_id="2") as new:
                with pytest.raises(UnavailableError):
                    await within(anext(old.incoming()))
                await until(incoming, lambda m: is_presence(m) and m.boot_id == "2" and m.online)
                await within(hub.send_command("dev-a", b"you"))
                assert await within(anext(new.incoming())) == ("command", b"you")
                await within(new.send(reported()))
                await until(incoming, lambda m: is_reported(m) or pytest.fail(f"after the takeover: {m}"))
            _, last = await until(incoming, is_presence)
            assert (last.online, last.boot_id) == (False, "2")


async def test_a_message_that_claims_to_be_from_another_device_is_dropped(carrier: Carrier) -> None:
    async with carrier.hub().connect() as hub, carrier.device("dev-a").connect(boot_id="1") as device:
        await within(device.send(reported("dev-b", seq=1)))
        await within(device.send(reported("dev-a", seq=2)))
        assert await until(hub.incoming(), is_reported) == ("dev-a", reported("dev-a", seq=2))


async def test_a_message_that_is_too_large_is_refused_by_its_sender(carrier: Carrier) -> None:
    async with carrier.hub().connect() as hub, carrier.device("dev-a").connect(boot_id="1") as device:
        with pytest.raises(TooLargeError):
            await device.send(
                messages.CommandResult(uid="dev-a", id="c", response={"x": "y" * messages.MAX_MESSAGE_BYTES})
            )
        await within(device.send(reported()))
        await until(hub.incoming(), is_reported)


async def test_a_carrier_that_is_gone_is_unavailable(carrier: Carrier) -> None:
    hub, device = carrier.hub(), carrier.device("dev-a")
    await carrier.stop()
    with pytest.raises(UnavailableError):
        async with hub.connect():
            pass
    with pytest.raises(UnavailableError):
        async with device.connect(boot_id="1"):
            pass


async def test_a_device_reads_and_writes_nothing_but_its_own(carrier: Carrier) -> None:
    if not isinstance(carrier, OverMqtt):
        pytest.skip("in memory there are no topics to trespass on")
    settings = carrier.settings("dev-b")
    async with carrier.hub().connect() as hub, carrier.device("dev-a").connect(boot_id="1") as device:
        await within(hub.publish_desired("dev-a", b"secret"))
        assert await within(anext(device.incoming())) == ("desired", b"secret")
        for attack in (topics.topic("dev-a", "desired"), "skerry/v1/d/+/desired", "#"):
            async with aiomqtt.Client(
                "127.0.0.1", settings.port, identifier="dev-b", tls_context=settings.tls
            ) as attacker:
                await attacker.subscribe([(attack, 1), (topics.topic("dev-b", "command"), 1)])
                await within(hub.send_command("dev-b", b"barrier"))
                assert (await within(anext(attacker.messages))).payload == b"barrier"
        for attack, retain in (("desired", True), ("command", False), ("online", True)):
            intruder = raw_client(settings, "dev-b")
            await intruder.open()
            with contextlib.suppress(UnavailableError):  # a broker may close the connection, or just not carry it
                await intruder.send(f"skerry/v1/d/dev-a/{attack}", b"forged", retain=retain)
            await intruder.close()
        await within(hub.send_command("dev-a", b"genuine"))
        assert await within(anext(device.incoming())) == ("command", b"genuine")
