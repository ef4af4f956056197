"""The controllers and objects that cannot be read: the others go on, and nothing is taken for deleted."""

from __future__ import annotations

import msgspec
from tests.integration.controllers.bench import (
    MIB,
    NS,
    STRATEGY,
    Bench,
    phase,
    reason,
    running,
)

from skerry.api.kinds.device import (
    Device,
)
from skerry.api.kinds.model_deployment import ModelDeployment, ModelDeploymentSpec
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.api.meta import ObjectMeta, find_condition
from skerry.hub import objects as stored


async def test_one_bad_object_does_not_stop_the_others(bench: Bench) -> None:
    store = bench.objects.store
    await store.create("modeldeployments/default/rotten", b'{"metadata": 7}')
    await store.create("devices/default/rotten", b"not json")
    bad = msgspec.convert(
        {
            "modelVersion": "v1",
            "deviceSelector": {"matchExpressions": [{"key": "site", "operator": "In", "values": []}]},
        },
        ModelDeploymentSpec,
    )
    await bench.objects.create(ModelDeployment(metadata=ObjectMeta(name="bad", namespace=NS), spec=bad))
    async with running(bench):
        await bench.add_device("till-0")
        await bench.push("v1")
        await bench.apply(modelVersion="v1")
        await bench.until(ModelDeployment, "digits", reason("Complete"))
        invalid = await bench.until(ModelDeployment, "bad", reason("Invalid"))
        found = find_condition(invalid.status.conditions, "Progressing")
        assert found is not None
        assert "needs at least one value" in found.message


async def test_a_deployment_that_cannot_be_read_is_not_taken_for_deleted(bench: Bench) -> None:
    async with running(bench):
        await bench.add_device("till-0")
        await bench.push("v1")
        await bench.apply(modelVersion="v1")
        await bench.until(ModelDeployment, "digits", reason("Complete"))
        store, key = bench.objects.store, stored.key_of(ModelDeployment, NS, "digits")
        record = await store.get(key)
        assert record is not None
        await store.update(key, b'{"from": "another version"}', expected=record.revision)
        await bench.add_device("till-1")
        await bench.until_record("till-0", lambda record: bool(record.assignments))
        await bench.push("v2")
        await bench.until(ModelVersion, "v2", phase("Ready"))
        held = await bench.objects.get_desired("u-till-0")
        assert held is not None
        assert held.find("digits") is not None
        written = await store.get(key)
        assert written is not None
        await store.update(key, record.value, expected=written.revision)
        await bench.until_record("till-1", lambda record: bool(record.assignments))


UNTOLD = "its desired state cannot be read"


async def test_a_device_whose_desired_state_cannot_be_read_is_left_out_until_it_can(bench: Bench) -> None:
    for number in range(3):
        await bench.add_device(f"till-{number}")
    store, key = bench.objects.store, f"{stored.DESIRED_PREFIX}u-till-0"
    broken = await store.create(key, b'{"broken')
    async with running(bench, fleet=False):
        await bench.push("v1")
        await bench.apply(modelVersion="v1", strategy={"waves": [{"percent": 100}]})
        for number in (1, 2):
            await bench.obey(await bench.until_record(f"till-{number}", lambda record: bool(record.assignments)))
        done = await bench.until(Rollout, "digits-1", phase("Succeeded"))
        assert done.status.unplaced == {"till-0": UNTOLD}
        await store.delete(key, expected=broken.revision)
        await bench.obey(await bench.until_record("till-0", lambda record: bool(record.assignments)))
        await bench.until(Rollout, "digits-1", lambda item: not item.status.unplaced)


async def test_a_desired_state_that_can_no_more_be_read_holds_no_rollout_up(bench: Bench) -> None:
    async with running(bench, fleet=False):
        for number in range(3):
            await bench.add_device(f"till-{number}")
        await bench.push("v1")
        await bench.apply(modelVersion="v1", strategy={"waves": [{"percent": 100}]})
        records = [await bench.until_record(f"till-{number}", lambda r: bool(r.assignments)) for number in range(3)]
        store, key = bench.objects.store, f"{stored.DESIRED_PREFIX}u-till-0"
        whole = await store.get(key)
        assert whole is not None
        broken = await store.update(key, b'{"broken', expected=whole.revision)
        await bench.until(Rollout, "digits-1", lambda r: r.status.unplaced == {"till-0": UNTOLD})
        for record in records[1:]:
            await bench.obey(record)
        await bench.until(Rollout, "digits-1", phase("Succeeded"))
        await bench.obey(records[0])
        await store.update(key, whole.value, expected=broken.revision)
        await bench.until(ModelDeployment, "digits", lambda item: item.status.updated == 3)


async def test_nobody_is_asked_to_measure_whose_desired_state_cannot_be_read(bench: Bench) -> None:
    await bench.add_device("till-0")
    await bench.objects.store.create(f"{stored.DESIRED_PREFIX}u-till-0", b'{"broken')
    async with running(bench, fleet=False):
        await bench.push("v1")
        limits = {"maxLatency": "1s"}
        await bench.apply(modelVersion="v1", strategy=STRATEGY, placement={"benchmark": True}, constraints=limits)
        await bench.until(Rollout, "digits-1", lambda item: item.status.unplaced == {"till-0": UNTOLD})
        await bench.add_device("till-1", memory=200 * MIB)
        await bench.until_record("till-1", lambda record: bool(record.benchmarks))


async def test_a_device_that_can_no_more_be_read_stays_on_its_rollout(bench: Bench) -> None:
    async with running(bench, fleet=False):
        for number in range(2):
            await bench.add_device(f"till-{number}")
        await bench.push("v1")
        await bench.apply(modelVersion="v1", strategy={"waves": [{"percent": 100}]})
        records = [await bench.until_record(f"till-{number}", lambda r: bool(r.assignments)) for number in range(2)]
        await bench.obey(records[0])
        await bench.until(ModelDeployment, "digits", lambda item: item.status.updated == 1)
        store, key = bench.objects.store, stored.key_of(Device, NS, "till-0")
        whole = await store.get(key)
        assert whole is not None
        broken = await store.update(key, b'{"spec": {"cordoned": "x"}}', expected=whole.revision)
        unread = {"till-0": "its Device cannot be read"}
        await bench.until(Rollout, "digits-1", lambda item: item.status.unplaced == unread)
        await bench.obey(records[1])
        await bench.until(Rollout, "digits-1", phase("Succeeded"))
        await bench.until(ModelDeployment, "digits", lambda item: item.status.selected == item.status.updated == 2)
        await bench.apply(modelVersion="gone", deviceSelector={"matchLabels": {"site": "nowhere"}})
        await bench.apply(modelVersion="v1")
        await bench.until_record("till-0", lambda record: not record.assignments)
        await store.delete(key, expected=broken.revision)
        await bench.until(ModelDeployment, "digits", lambda item: item.status.selected == 0)
