"""What devices report, written into the real store: one that reports too much holds nobody else up."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from skerry.api.kinds.device import Device, DeviceFacts, Hardware
from skerry.api.meta import ObjectMeta
from skerry.core.messages import Reported
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
