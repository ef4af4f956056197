"""A Device's link policy and hold reach its desired state: over the real store, also after the hub was killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from tests.integration.controllers.bench import NS, Bench, opened

from skerry.api.kinds.device import Device, DeviceSpec, LinkPolicy, UpdateHold
from skerry.api.meta import ObjectMeta
from skerry.core.desired import DesiredRecord
from skerry.hub.controllers import device
from skerry.hub.objects import DESIRED_PREFIX

HOLD = UpdateHold(until=datetime(2026, 11, 24, tzinfo=UTC), reason="open day")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with opened(tmp_path) as made:
        yield made


@asynccontextmanager
async def controller(bench: Bench) -> AsyncIterator[None]:
    task = asyncio.create_task(device.run(bench.context))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def add(bench: Bench, name: str, spec: DeviceSpec) -> None:
    await bench.objects.create(Device(metadata=ObjectMeta(name=name, namespace=NS, uid=f"u-{name}"), spec=spec))


async def change(bench: Bench, name: str, spec: DeviceSpec) -> None:
    found = await bench.objects.get(Device, NS, name)
    await bench.objects.replace(msgspec.structs.replace(found, spec=spec), expected=found.metadata.resource_version)


async def test_what_is_wanted_of_a_device_reaches_its_record_and_goes_again(bench: Bench) -> None:
    async with controller(bench):
        await add(bench, "plain", DeviceSpec())
        await add(bench, "till", DeviceSpec(hold=HOLD))
        told = await bench.until_record("till", lambda record: record.hold == HOLD)
        assert told.manifest_version == 1
        await change(bench, "till", DeviceSpec(hold=HOLD, link=LinkPolicy(metered=True, max_bandwidth="500k")))
        told = await bench.until_record("till", lambda record: record.link.metered is True)
        assert (told.manifest_version, told.hold, told.link.max_bandwidth) == (2, HOLD, "500k")
        await change(bench, "till", DeviceSpec())
        told = await bench.until_record("till", lambda record: record.hold is None)
        assert (told.manifest_version, told.link) == (3, LinkPolicy())
    assert await bench.objects.store.get(f"{DESIRED_PREFIX}u-plain") is None, "nothing to say, nothing is written"


async def test_what_was_changed_while_no_hub_ran_is_told_by_the_next_and_only_once(bench: Bench) -> None:
    await add(bench, "till", DeviceSpec(hold=HOLD))
    for _ in range(2):
        async with controller(bench):
            told = await bench.until_record("till", lambda record: record.hold == HOLD)
            assert told.manifest_version == 1


async def test_assignments_stay_as_they_are(bench: Bench) -> None:
    async with controller(bench):
        await bench.objects.change_desired(
            DesiredRecord(uid="u-till", namespace=NS, device="till"),
            lambda record: msgspec.structs.replace(record, manifest_version=7),
        )
        await add(bench, "till", DeviceSpec(hold=HOLD))
        told = await bench.until_record("till", lambda record: record.hold == HOLD)
        assert told.manifest_version == 8
