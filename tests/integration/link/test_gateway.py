"""The gateway with a real broker, a real store and real device connections."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from skerry.api.errors import NotFoundError, TimedOutError, UnavailableError
from skerry.api.kinds.device import Device, DeviceFacts, EngineFacts, Hardware, WorkloadStatus
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Requirements
from skerry.api.meta import ObjectMeta, find_condition
from skerry.core import desired, messages, trust
from skerry.core.ports import HubLink
from skerry.drivers.link import memory
from skerry.drivers.link.broker import BrokerSettings, EmbeddedBroker
from skerry.drivers.link.local import LocalHubLink
from skerry.drivers.link.mqtt import MqttDeviceConnection, MqttDeviceLink, MqttHubLink, MqttSettings
from skerry.drivers.store.feed import FeedSettings
from skerry.drivers.store.logstore import LogSettings
from skerry.drivers.store.sqlite import SqliteSettings, open_store
from skerry.hub import reconciliation
from skerry.hub.gateway import Gateway, GatewaySettings
from skerry.hub.objects import Objects
from skerry.kit.clock import SystemClock

SECONDS = 10.0
KEY = ed25519.Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
KEY_ID = trust.key_id(PUBLIC)
SETTINGS = GatewaySettings(offline_grace_seconds=0.3, last_seen_seconds=3600, first_backoff_seconds=0.02)


@dataclass
class Hub:
    """A hub's parts, started and stopped at will on one store and one address."""

    authority: Any
    tls: ssl.SSLContext
    database: Path
    port: int = 0
    settings: GatewaySettings = SETTINGS
    store: SqliteSettings | None = None
    beside: bool = True
    """It stands beside its broker, as `run_hub` has it; else it comes by MQTT, as to any other broker."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        clock, gateways = SystemClock(), list[Gateway]()
        broker = EmbeddedBroker(
            BrokerSettings(port=self.port),
            tls=self.tls,
            known=lambda uid, namespace: any(gateway.known(uid, namespace) for gateway in gateways),
        )
        async with open_store(self.database, self.store) as store, broker:
            self.port = broker.port
            settings = MqttSettings(host="localhost", port=broker.port, tls=self.authority.hub())
            link: HubLink = LocalHubLink(broker) if self.beside else MqttHubLink(settings)
            objects = Objects(store, clock)
            gateway = Gateway(objects, link, KEY, KEY_ID, clock, settings=self.settings)
            gateways.append(gateway)
            task = asyncio.ensure_future(gateway.run())
            try:
                yield Running(self, objects, gateway, broker)
            finally:
                assert not task.done(), task.exception()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


@dataclass
class Running:
    """A hub that runs."""

    hub: Hub
    objects: Objects
    gateway: Gateway
    broker: EmbeddedBroker | None

    async def enrol(self, uid: str) -> None:
        await self.objects.create(Device(metadata=ObjectMeta(name=f"name-of-{uid}", namespace="default", uid=uid)))
        await until(lambda: self.gateway.known(uid))

    def device(self, uid: str) -> MqttDeviceLink:
        assert self.broker is not None
        tls = self.hub.authority.device(uid)
        return MqttDeviceLink(
            uid, MqttSettings(host="localhost", port=self.broker.port, tls=tls, connect_timeout_seconds=5)
        )

    async def assign(self, uid: str, name: str = "work") -> int:
        empty = desired.DesiredRecord(uid=uid, namespace="default", device=f"name-of-{uid}")
        record = await self.objects.change_desired(empty, lambda r: desired.assign(r, assignment(r, name)))
        return record.manifest_version

    async def status(self, uid: str, wanted: Callable[[Device], bool]) -> Device:
        """Wait until the stored device is as wanted, by watching it."""
        name, found = f"name-of-{uid}", None
        async with asyncio.timeout(SECONDS):
            page = await self.objects.list(Device)
            for device in page.items:
                if device.metadata.name == name and wanted(device):
                    return device
            async with self.objects.watch(Device, after=page.revision) as changes:
                async for change in changes:
                    found = change.object
                    if found is not None and found.metadata.name == name and wanted(found):
                        return found
        raise AssertionError(found)


def assignment(record: desired.DesiredRecord, name: str) -> desired.Assignment:
    version = record.manifest_version + 1
    workload = messages.WorkloadDesired(
        name=name,
        rollout=f"{name}-{version}",
        revision=version,
        model="m",
        model_version=f"m-v{version}",
        version=str(version),
        variant="fp32",
        format="onnx",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
        signature=ModelSignature(inputs=[], outputs=[]),
        repository="default/m",
        blob=Blob(digest="sha256:" + "0" * 64, size=1, media_type="application/octet-stream"),
    )
    return desired.Assignment(
        workload=workload, deployment_uid="d", wave=0, reason="test", assigned_at=datetime.now(UTC)
    )


@pytest.fixture(params=["beside", "mqtt"])
def hub(authority: Any, server_tls: ssl.SSLContext, tmp_path: Path, request: pytest.FixtureRequest) -> Hub:
    return Hub(authority, server_tls, tmp_path / "store.db", beside=request.param == "beside")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - whatever the condition is, it has no event
            await asyncio.sleep(0.005)


async def drain(connection: MqttDeviceConnection) -> None:
    async for _ in connection.incoming():
        pass


async def next_desired(connection: MqttDeviceConnection, uid: str, version: int) -> messages.DesiredState:
    """Return the desired state of that version; earlier ones may come before it, later ones not."""
    async with asyncio.timeout(SECONDS):
        async for channel, raw in connection.incoming():
            assert channel == "desired"
            state = trust.open_envelope(raw, messages.DesiredState, uid=uid, keys={KEY_ID: KEY.public_key()})
            assert state.manifest_version <= version
            if state.manifest_version == version:
                return state
    raise AssertionError


def report(uid: str = "dev-a", *, seq: int, boot: str = "b1", **fields: Any) -> messages.Reported:
    return messages.Reported(
        **{"observed_manifest_version": 0} | fields, uid=uid, boot_id=boot, seq=seq, sent_at=datetime.now(UTC)
    )


def workload(phase: Any) -> WorkloadStatus:
    return WorkloadStatus(name="work", rollout="work-1", revision=1, variant="fp32", phase=phase)


async def test_an_assignment_reaches_a_connected_device_signed_and_only_rising(hub: Hub) -> None:
    async with hub.running() as running:
        await running.enrol("dev-a")
        async with running.device("dev-a").connect(boot_id="b1") as device:
            for version in (1, 2, 3):
                assert await running.assign("dev-a") == version
                state = await next_desired(device, "dev-a", version)
                assert [w.model_version for w in state.workloads] == [f"m-v{version}"]


async def test_reports_become_the_devices_status(hub: Hub) -> None:
    facts = DeviceFacts(hardware=Hardware(arch="arm64", memory_bytes=64), engines=[EngineFacts(name="onnxruntime")])
    async with hub.running() as running:
        await running.enrol("dev-a")
        async with running.device("dev-a").connect(boot_id="b1") as device:
            await device.send(report(seq=1, facts=facts, workloads=[workload("Fetching")]))
            await device.send(report(seq=2, workloads=[workload("Running")], observed_manifest_version=4))
            stored = await running.status("dev-a", lambda d: d.status.observed_manifest_version == 4)
            assert stored.status.hardware.arch == "arm64"
            assert stored.status.boot_id == "b1"
            assert [w.phase for w in stored.status.workloads] == ["Running"]
            accepted = find_condition(stored.status.conditions, "DesiredAccepted")
            assert accepted is not None
            assert accepted.status == "True"
            assert stored.status.last_seen is not None
            await device.send(report(seq=3, refused="is older", observed_manifest_version=4))
            stored = await running.status(
                "dev-a",
                lambda d: any(c.type == "DesiredAccepted" and c.status == "False" for c in d.status.conditions),
            )
            assert [c.message for c in stored.status.conditions if c.type == "DesiredAccepted"] == ["is older"]


async def test_late_and_repeated_reports_change_nothing(hub: Hub) -> None:
    async with hub.running() as running:
        await running.enrol("dev-a")
        async with running.device("dev-a").connect(boot_id="b1") as device:
            await device.send(report(seq=5, observed_manifest_version=5))
            await running.status("dev-a", lambda d: d.status.observed_manifest_version == 5)
            await device.send(report(seq=4, observed_manifest_version=4))
            await device.send(report(seq=5, observed_manifest_version=55))
            await device.send(report(seq=0, boot="b2", observed_manifest_version=6))
            await device.send(report(seq=9, boot="b1", observed_manifest_version=9))
            await device.send(report(seq=1, boot="b2", observed_manifest_version=7))

            def is_the_last(stored: Device) -> bool:
                assert stored.status.observed_manifest_version in (5, 6, 7)
                return stored.status.observed_manifest_version == 7

            await running.status("dev-a", is_the_last)


async def test_heartbeats_that_say_nothing_new_are_not_written(hub: Hub) -> None:
    async with hub.running() as running:
        await running.enrol("dev-a")
        async with running.device("dev-a").connect(boot_id="b1") as device:
            await device.send(report(seq=1, workloads=[workload("Running")]))
            before = await running.status("dev-a", lambda d: bool(d.status.workloads) and d.status.phase == "Online")
            for seq in range(2, 30):
                await device.send(report(seq=seq, workloads=[workload("Running")]))
            await device.send(report(seq=99, workloads=[workload("Failed")]))
            after = await running.status("dev-a", lambda d: d.status.workloads[0].phase == "Failed")
            written = int(after.metadata.resource_version) - int(before.metadata.resource_version)
            assert written == 1


async def test_presence_becomes_the_phase(hub: Hub) -> None:
    async with hub.running() as running:
        await running.enrol("dev-a")
        assert not running.gateway.online("dev-a")
        async with running.device("dev-a").connect(boot_id="b1"):
            await running.status("dev-a", lambda d: d.status.phase == "Online")
            assert running.gateway.online("dev-a")
        offline = await running.status("dev-a", lambda d: d.status.phase == "Offline")
        assert not running.gateway.online("dev-a")
        assert [(c.type, c.status) for c in offline.status.conditions] == [("Connected", "False")]


async def test_commands_are_answered_refused_or_time_out(hub: Hub) -> None:
    async with hub.running() as running:
        await running.enrol("dev-a")
        await running.enrol("dev-b")
        with pytest.raises(UnavailableError, match="name-of-dev-a: is offline"):
            await running.gateway.command("dev-a", "logs", "work")
        async with (
            running.device("dev-a").connect(boot_id="b1") as device,
            running.device("dev-b").connect(boot_id="b1") as other,
            asyncio.TaskGroup() as group,
        ):
            for uid in ("dev-a", "dev-b"):
                await running.status(uid, lambda d: d.status.phase == "Online")
            group.create_task(answer_commands(device, other, count=4))
            result = await running.gateway.command("dev-a", "logs", "good", tail_lines=7)
            assert result.text == "7 lines of good"
            with pytest.raises(NotFoundError, match="name-of-dev-a: no such workload"):
                await running.gateway.command("dev-a", "logs", "absent")
            with pytest.raises(TimedOutError):
                await running.gateway.command("dev-a", "logs", "stolen", timeout_seconds=0.5)
            result = await running.gateway.command("dev-a", "infer", "good", request={"inputs": [1]})
            assert result.response == {"inputs": [1]}


async def answer_commands(device: MqttDeviceConnection, other: MqttDeviceConnection, *, count: int) -> None:
    incoming = device.incoming()
    for _ in range(count):
        _, raw = await anext(incoming)
        command = trust.open_envelope(raw, messages.Command, uid="dev-a", keys={KEY_ID: KEY.public_key()})
        trust.check_fresh(command, datetime.now(UTC))
        sender, uid, fields = device, "dev-a", dict[str, Any]()
        if command.workload == "absent":
            fields = {"error": "no such workload", "reason": "NotFound"}
        elif command.workload == "stolen":
            sender, uid, fields = other, "dev-b", {"text": "forged by another device"}
        elif command.verb == "infer":
            fields = {"response": command.request}
        else:
            fields = {"text": f"{command.tail_lines} lines of {command.workload}"}
        await sender.send(messages.CommandResult(uid=uid, id=command.id, **fields))


async def test_a_command_ends_when_its_device_goes_offline(hub: Hub) -> None:
    async with hub.running() as running:
        await running.enrol("dev-a")
        async with asyncio.TaskGroup() as group:
            async with running.device("dev-a").connect(boot_id="b1") as device:
                await running.status("dev-a", lambda d: d.status.phase == "Online")
                asked = group.create_task(expect_unavailable(running, "went offline"))
                await anext(device.incoming())
            await asked


async def expect_unavailable(running: Running, why: str) -> None:
    with pytest.raises(UnavailableError, match=why):
        await running.gateway.command("dev-a", "logs", "work", timeout_seconds=60)


async def test_a_deleted_device_is_put_out_and_leaves_nothing(hub: Hub) -> None:
    async with hub.running() as running:
        await running.enrol("dev-a")
        await running.assign("dev-a")
        async with running.device("dev-a").connect(boot_id="b1") as device:
            await next_desired(device, "dev-a", 1)
            await running.objects.delete(Device, "default", "name-of-dev-a")
            with pytest.raises(UnavailableError):
                await asyncio.wait_for(drain(device), SECONDS)
        with pytest.raises(UnavailableError, match="refused us: Not authorized"):
            async with running.device("dev-a").connect(boot_id="b2"):
                pass
        assert not running.gateway.known("dev-a")


async def test_a_restarted_hub_sends_the_newest_and_learns_who_is_gone(hub: Hub) -> None:
    async with hub.running() as running:
        for uid in ("dev-a", "dev-b"):
            await running.enrol(uid)
        async with running.device("dev-a").connect(boot_id="b1"), running.device("dev-b").connect(boot_id="b1"):
            for uid in ("dev-a", "dev-b"):
                await running.status(uid, lambda d: d.status.phase == "Online")
            await running.assign("dev-a")
            version = await running.assign("dev-a")
            # From here on the hub is gone without having seen anybody leave.
            await stop_abruptly(running)
    async with hub.running() as running, running.device("dev-a").connect(boot_id="b2") as device:
        await next_desired(device, "dev-a", version)
        gone = await running.status("dev-b", lambda d: d.status.phase == "Offline")
        assert [c.message for c in gone.status.conditions] == ["not heard of since the hub connected"]
        assert (await running.status("dev-a", lambda _: True)).status.phase == "Online"


async def test_a_device_that_cannot_be_read_does_not_keep_the_others_from_being_served(hub: Hub) -> None:
    async with hub.running() as running:
        await running.objects.store.create("devices/default/broken", b'{"from": "another version"}')
        await running.enrol("dev-a")
    async with hub.running() as running:  # which finds it in its first list
        await until(lambda: running.gateway.known("dev-a"))
        async with running.device("dev-a").connect(boot_id="b1") as device:
            await next_desired(device, "dev-a", await running.assign("dev-a"))


async def stop_abruptly(running: Running) -> None:
    running.hub.settings = SETTINGS
    task = next(t for t in asyncio.all_tasks() if t.get_name() == "gateway-link")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_broker_may_come_and_go(hub: Hub) -> None:
    hub.beside = False  # such a broker is another process
    async with hub.running() as running:
        await running.enrol("dev-a")
        version = await running.assign("dev-a")
        async with running.device("dev-a").connect(boot_id="b1") as device:
            await next_desired(device, "dev-a", version)
        assert running.broker is not None
        await running.broker.__aexit__(None, None, None)
        version = await running.assign("dev-a")
        again = EmbeddedBroker(BrokerSettings(port=hub.port), tls=hub.tls, known=running.gateway.known)
        async with again:
            running.broker = again
            async with running.device("dev-a").connect(boot_id="b2") as device:
                await next_desired(device, "dev-a", version)


async def test_many_devices_get_their_newest_whatever_is_in_flight(hub: Hub) -> None:
    uids = [f"dev-{number}" for number in range(12)]
    async with hub.running() as running:
        for uid in uids:
            await running.enrol(uid)

        async def one(uid: str) -> None:
            async with running.device(uid).connect(boot_id="b") as device, asyncio.TaskGroup() as group:
                for name in ("x", "y", "z"):
                    group.create_task(running.assign(uid, name))
                state = await next_desired(device, uid, 3)
                assert [w.name for w in state.workloads] == ["x", "y", "z"]

        await asyncio.gather(*(one(uid) for uid in uids))


async def test_a_gateway_that_falls_behind_its_watch_lists_anew(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "skerry.hub.publisher")
    uids = [f"dev-{number}" for number in range(5)]
    hub.store = SqliteSettings(log=LogSettings(feed=FeedSettings(max_changes=2)))
    async with hub.running() as running:
        for uid in uids:
            await running.enrol(uid)
        async with running.device("dev-4").connect(boot_id="b") as device:
            # Each burst is more than a watch of this store may lag behind.
            for _ in range(3):
                await asyncio.gather(*(running.assign(uid, f"w{n}") for uid in uids for n in range(8)))
                newest = await running.objects.get_desired("dev-4")
                assert newest is not None
                await next_desired(device, "dev-4", newest.manifest_version)
    assert "gateway.relist prefix=desired/" in caplog.text


async def test_presence_counts_as_being_seen(hub: Hub) -> None:
    hub.settings = GatewaySettings(last_seen_seconds=0.05, presence_seconds=0.1)
    async with hub.running() as running:
        await running.enrol("dev-a")
        async with running.device("dev-a").connect(boot_id="b"):
            first = await running.status("dev-a", lambda d: d.status.last_seen is not None)
            await running.status("dev-a", lambda d: d.status.last_seen != first.status.last_seen)


async def test_a_device_heard_of_before_its_object_is_seen_is_not_forgotten(hub: Hub) -> None:
    carrier = memory.MemoryCarrier()
    async with open_store(hub.database) as store:
        objects = Objects(store, SystemClock())
        gateway = Gateway(objects, memory.MemoryHubLink(carrier), KEY, KEY_ID, SystemClock(), settings=SETTINGS)
        running = Running(hub, objects, gateway, None)
        task = asyncio.ensure_future(gateway.run())
        async with memory.MemoryDeviceLink(carrier, "dev-a").connect(boot_id="b") as device:
            await device.send(report(seq=1, observed_manifest_version=3))
            await until(lambda: gateway._observer.online("dev-a"))
            assert not gateway.online("dev-a")
            await running.enrol("dev-a")
            await running.status(
                "dev-a", lambda d: d.status.phase == "Online" and d.status.observed_manifest_version == 3
            )
            assert gateway.online("dev-a")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_newest_sample_of_a_known_device_is_kept(hub: Hub) -> None:
    def sample(minute: int) -> messages.Sample:
        return messages.Sample(at=datetime(2026, 1, 1, 0, minute, tzinfo=UTC), cpu=0.1, memory_bytes=minute)

    async with hub.running() as running:
        await running.enrol("dev-a")
        assert running.gateway.telemetry("dev-a") is None
        async with running.device("dev-a").connect(boot_id="b") as device:
            for minutes in ([3, 4], [1, 2]):
                told = messages.Telemetry(uid="dev-a", boot_id="b", samples=[sample(m) for m in minutes])
                await device.send(told)
            await until(lambda: running.gateway.telemetry("dev-a") == sample(4))


async def test_a_device_that_knows_more_than_the_hub_awaits_reconciliation_until_its_record_is_raised(hub: Hub) -> None:
    async with hub.running() as running:
        await running.enrol("dev-a")
        assert await running.assign("dev-a") == 1
        async with running.device("dev-a").connect(boot_id="b") as device:
            await device.send(report(seq=1, observed_manifest_version=9, refused="older", refused_manifest_version=1))
            found = await running.status("dev-a", lambda d: awaiting(d) == "True")
            done = await reconciliation.reconcile(running.objects, found)
            assert (done.changed, done.manifest_version, done.workloads) == (True, 10, ["work"])
            again = await reconciliation.reconcile(running.objects, found)
            assert (again.changed, again.manifest_version) == (False, 10)
            assert [w.name for w in (await next_desired(device, "dev-a", 10)).workloads] == ["work"]
            await device.send(report(seq=2, observed_manifest_version=10))
            await running.status("dev-a", lambda d: awaiting(d) == "False")


def awaiting(device: Device) -> str:
    return next((c.status for c in device.status.conditions if c.type == "AwaitingReconciliation"), "")
