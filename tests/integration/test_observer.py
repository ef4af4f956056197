"""What devices report, written into the real store: one that reports too much holds nobody else up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from skerry.api.kinds.device import Device, DeviceFacts, DeviceStatus, Hardware
from skerry.api.meta import ObjectMeta, find_condition
from skerry.core.desired import DesiredRecord
from skerry.core.messages import Online, Reported
from skerry.drivers.store.sqlite import open_store
from skerry.hub.objects import Objects
from skerry.hub.observer import Observer
from skerry.kit.clock import SystemClock


def report(uid: str, *, cpu_model: str = "cpu") -> Reported:
    facts = DeviceFacts(hostname="h", hardware=Hardware(cpu_model=cpu_model))  # made here, so not bounded by the wire
    return Reported(uid=uid, boot_id="b", seq=1, sent_at=datetime.now(UTC), observed_manifest_version=7, facts=facts)


async def test_a_report_that_fits_no_store_is_dropped_and_the_others_are_written(tmp_path: Path) -> None:
    async with open_store(tmp_path / "hub.db") as store:
        objects = Objects(store, SystemClock())
        names = [*(f"bad-{number}" for number in range(8)), "good"]
        for name in names:
            await objects.create(Device(metadata=ObjectMeta(name=name, namespace="default", uid=f"uid-{name}")))
        places = {f"uid-{name}": ("default", name) for name in names}
        observer = Observer(
            objects, SystemClock(), places.get, desired_version=lambda _: 7, last_seen_seconds=30, presence_seconds=300
        )
        for name in names[:-1]:
            observer.take(f"uid-{name}", report(f"uid-{name}", cpu_model="x" * 3_000_000))
        observer.take("uid-good", report("uid-good"))
        writers = [asyncio.create_task(observer.write()) for _ in range(4)]
        try:
            async with asyncio.timeout(20):
                while not observer.idle:  # noqa: ASYNC110 - it has no event for having nothing to do
                    await asyncio.sleep(0.01)
        finally:
            for writer in writers:
                writer.cancel()
            await asyncio.gather(*writers, return_exceptions=True)
        assert (await objects.get(Device, "default", "good")).status.observed_manifest_version == 7
        assert (await objects.get(Device, "default", "bad-0")).status.hardware.cpu_model == ""


async def test_a_device_that_cannot_be_read_ends_no_writer_and_is_written_when_it_can(tmp_path: Path) -> None:
    async with open_store(tmp_path / "hub.db") as store:
        objects = Objects(store, SystemClock())
        for name in ("odd", "good"):
            await objects.create(Device(metadata=ObjectMeta(name=name, namespace="default", uid=f"uid-{name}")))
        places = {f"uid-{name}": ("default", name) for name in ("odd", "good")}
        observer = Observer(
            objects, SystemClock(), places.get, desired_version=lambda _: 7, last_seen_seconds=0.1, presence_seconds=300
        )
        whole = await store.get("devices/default/odd")
        assert whole is not None
        broken = await store.update("devices/default/odd", b'{"spec": {"cordoned": "x"}}', expected=whole.revision)
        tasks = [asyncio.create_task(observer.write()), asyncio.create_task(observer.flush_last_seen())]
        try:
            for name in ("odd", "good"):
                observer.take(f"uid-{name}", report(f"uid-{name}"))
            await accepted(objects, "good")
            await store.update("devices/default/odd", whole.value, expected=broken.revision)
            await accepted(objects, "odd")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_desired_state_that_cannot_be_read_ends_no_writer_and_raises_no_alarm(tmp_path: Path) -> None:
    async with open_store(tmp_path / "hub.db") as store:
        objects = Objects(store, SystemClock())
        await objects.create(Device(metadata=ObjectMeta(name="till", namespace="default", uid="uid-till")))
        broken = await store.create("desired/uid-till", b'{"manifest_version": "seven"}')
        observer = Observer(
            objects,
            SystemClock(),
            {"uid-till": ("default", "till")}.get,
            desired_version=lambda _: 0,
            last_seen_seconds=0.1,
            presence_seconds=300,
        )
        writer = asyncio.create_task(observer.write())
        try:
            observer.take("uid-till", report("uid-till"))
            observer.take("uid-till", Online(uid="uid-till", boot_id="b", online=True))
            await told(objects, "till", lambda status: status.phase == "Online")
            seen = await objects.get(Device, "default", "till")
            assert seen.status.observed_manifest_version == 0
            assert find_condition(seen.status.conditions, "AwaitingReconciliation") is None
            record = DesiredRecord(uid="uid-till", namespace="default", device="till", manifest_version=7)
            await store.update("desired/uid-till", msgspec.json.encode(record), expected=broken.revision)
            observer.meet("uid-till", was_online=True)
            await accepted(objects, "till")
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)


async def accepted(objects: Objects, name: str) -> None:
    """Wait until the device's status says what it reported."""
    await told(objects, name, lambda status: status.observed_manifest_version == 7)


async def told(objects: Objects, name: str, holds: Callable[[DeviceStatus], bool]) -> None:
    """Wait until the device can be read and its status is so."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(msgspec.DecodeError):
                if holds((await objects.get(Device, "default", name)).status):
                    return
            await asyncio.sleep(0.01)
