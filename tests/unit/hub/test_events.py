from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skerry.api.kinds.device import Device, DeviceSpec, DeviceStatus, WorkloadStatus
from skerry.api.kinds.event import Event
from skerry.api.kinds.namespace import Namespace
from skerry.api.kinds.references import ObjectReference
from skerry.api.meta import ObjectMeta
from skerry.core.allowance import Rate
from skerry.drivers.store.sqlite import open_store
from skerry.hub.controllers.happenings import Happenings
from skerry.hub.event_expiry import EventExpiry
from skerry.hub.events import EventLimits, Recorder
from skerry.hub.objects import Objects
from skerry.kit.clock import SystemClock

TIMEOUT = 20.0
OFTEN = Rate(burst=10_000, seconds=0.001)


class SetClock(SystemClock):
    """Time that a test moves on."""

    offset = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.offset)

    def monotonic(self) -> float:
        return super().monotonic() + self.offset


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[Objects]:
    async with open_store(tmp_path / "hub.db") as store:
        objects = Objects(store, SetClock())
        await objects.create(Namespace(metadata=ObjectMeta(name="shop")))
        yield objects


@asynccontextmanager
async def running(*work: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110 - what is waited for signals nobody
            await asyncio.sleep(0.005)


async def settled(objects: Objects, recorder: Recorder, enough: int) -> list[Event]:
    """Wait until nothing waits to be written and there are so many events."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            found = (await objects.list(Event)).items
            if not recorder.waiting and len(found) >= enough:
                return found
            await asyncio.sleep(0.005)


def about(name: str = "till-7") -> ObjectReference:
    return ObjectReference(
        kind="Device", namespace="shop", name=name, uid=f"uid-{name}", api_version="skerry.dev/v1alpha1"
    )


async def test_events_are_written_as_kubernetes_has_them_and_repeats_are_counted(objects: Objects) -> None:
    recorder = Recorder(objects, SetClock(), instance="hub-1", limits=EventLimits(each=OFTEN))
    async with running(recorder.run()):
        recorder.normal(about(), "Online", "is connected")
        (event,) = await settled(objects, recorder, 1)
        assert (event.metadata.namespace, event.involved_object) == ("shop", about())
        assert (event.type, event.reason, event.message, event.count) == ("Normal", "Online", "is connected", 1)
        assert event.source.component == event.reporting_component == "skerry-hub"
        assert event.first_timestamp == event.last_timestamp
        for _ in range(3):
            recorder.normal(about(), "Online", "is connected")
        recorder.warning(about(), "Offline", "its link broke")
        found = {one.reason: one for one in await settled(objects, recorder, 2)}
        assert found["Online"].metadata.uid == event.metadata.uid
        assert found["Online"].count == 4
        assert found["Online"].series is not None
        assert found["Online"].series.count == 4
        assert found["Offline"].type == "Warning"
        await objects.delete(Event, "shop", event.metadata.name)
        recorder.normal(about(), "Online", "is connected")
        again = {one.reason: one for one in await settled(objects, recorder, 2)}["Online"]
        assert (again.count, again.metadata.name != event.metadata.name) == (1, True)


async def test_one_object_that_flaps_writes_seldom_and_loses_no_count(objects: Objects) -> None:
    clock = SetClock()
    recorder = Recorder(objects, clock, limits=EventLimits(each=Rate(burst=4, seconds=60.0), all=OFTEN))
    before = await objects.store.revision()
    async with running(recorder.run()):
        for _ in range(200):
            recorder.warning(about(), "Offline", "its link broke")
            recorder.normal(about(), "Online", "is connected")
            await asyncio.sleep(0)
        recorder.normal(about("till-8"), "Online", "is connected")
        await until(lambda: recorder.waiting <= 2)  # what flaps may wait for its turn, in one entry for each state
        await count_of(objects, 3)
        assert await objects.store.revision() - before <= 5
        clock.offset = 1000.0
        recorder.normal(about("till-8"), "Online", "is connected")  # anything makes it look at its clock
        found = await settled(objects, recorder, 3)
    assert sum(one.count for one in found if one.involved_object.name == "till-7") == 400


async def test_an_object_that_always_says_something_else_does_not_take_all_the_room(objects: Objects) -> None:
    recorder = Recorder(objects, SetClock(), limits=EventLimits(each=OFTEN, all=OFTEN))
    for number in range(100):
        recorder.warning(about(), "Refused", f"reason {number}")
    assert recorder.waiting <= 11
    async with running(recorder.run()):
        found = await settled(objects, recorder, 11)
    assert sum(one.count for one in found) == 100
    assert [one.message for one in found if one.count > 1] == ["reason 99"]


async def test_what_happens_to_thousands_is_told_in_a_few_writes(objects: Objects) -> None:
    clock = SetClock()
    limits = EventLimits(each=OFTEN, all=OFTEN, pending=50)
    recorder = Recorder(objects, clock, limits=limits)
    for number in range(5000):
        recorder.warning(about(f"till-{number}"), "Offline", "its link broke")
    clock.offset = limits.summary_seconds
    async with running(recorder.run()):
        found = await settled(objects, recorder, 51)
    assert len(found) == 51
    assert await objects.store.revision() <= 53
    (summary,) = [one for one in found if one.involved_object.kind == "Namespace"]
    assert (summary.reason, summary.type, summary.count) == ("Offline", "Warning", 4950)
    assert summary.message.startswith("4950 more of kind Device, for example till-50: its link broke")


async def test_all_together_are_bounded_in_the_long_run(objects: Objects) -> None:
    clock = SetClock()
    recorder = Recorder(objects, clock, limits=EventLimits(each=OFTEN, all=Rate(burst=10, seconds=1000.0)))
    async with running(recorder.run()):
        for number in range(40):
            recorder.normal(about(f"till-{number}"), "Online", "is connected")
        await until(lambda: recorder.waiting <= 30)
        assert len((await objects.list(Event)).items) == 10
        clock.offset = 3000.0
        recorder.normal(about("till-0"), "Online", "is connected")
        await until(lambda: recorder.waiting <= 28)


async def test_a_store_that_does_not_take_them_harms_nobody(objects: Objects) -> None:
    recorder = Recorder(objects, SetClock(), limits=EventLimits(each=OFTEN))
    huge = ObjectReference(kind="Device", namespace="shop", name="x" * 240, uid="u")
    async with running(recorder.run()):
        recorder.normal(huge, "Online", "is connected")
        recorder.normal(about(), "", "a reason of nothing")
        recorder.normal(ObjectReference(kind="ClusterRole", name="a:b"), "Made", "is in no namespace")
        found = await settled(objects, recorder, 3)
    assert {one.metadata.namespace for one in found} == {"shop", "default"}
    assert all(len(one.metadata.name) <= 253 for one in found)


async def test_late_news_do_not_bring_a_namespace_back(objects: Objects) -> None:
    recorder = Recorder(objects, SetClock(), limits=EventLimits(each=OFTEN))
    recorder.warning(about(), "Offline", "its link broke")
    recorder.normal(ObjectReference(kind="Device", namespace="default", name="a"), "Online", "is connected")
    await objects.delete(Namespace, "", "shop")
    async with running(recorder.run()):
        (left,) = await settled(objects, recorder, 1)
        assert left.metadata.namespace == "default"
    assert await objects.find(Namespace, "", "shop") is None


async def test_changes_in_the_store_become_events(objects: Objects) -> None:
    recorder = Recorder(objects, SetClock(), limits=EventLimits(each=OFTEN))
    await objects.create(Device(metadata=ObjectMeta(name="till-6", namespace="shop")))
    now = await objects.store.revision()
    async with running(recorder.run(), Happenings(objects.store, recorder).run(after=now)):
        device = await objects.create(Device(metadata=ObjectMeta(name="till-7", namespace="shop")))
        workload = WorkloadStatus(
            name="digits", rollout="digits-1", revision=1, variant="v", phase="Failed", message="no"
        )
        status = DeviceStatus(phase="Online", workloads=[workload])
        device = await objects.update_status(
            Device, "shop", "till-7", lambda one: msgspec.structs.replace(one, status=status)
        )
        await objects.replace(msgspec.structs.replace(device, spec=DeviceSpec(cordoned=True)))
        await objects.delete(Device, "shop", "till-7")
        found = await settled(objects, recorder, 4)
    assert {one.reason for one in found} == {"Enrolled", "Online", "WorkloadFailed", "Cordoned"}
    assert {one.involved_object.uid for one in found} == {device.metadata.uid}
    assert [one.involved_object.field_path for one in found if one.reason == "WorkloadFailed"] == [
        "status.workloads{digits}"
    ]


async def count_of(objects: Objects, left: int) -> list[Event]:
    async with asyncio.timeout(TIMEOUT):
        while True:
            found = (await objects.list(Event)).items
            if len(found) == left:
                return found
            await asyncio.sleep(0.005)


def event(number: int, **fields: Any) -> Event:
    return Event(metadata=ObjectMeta(name=f"e-{number}", namespace="shop"), involved_object=about(), **fields)


async def test_events_go_when_their_time_is_over_and_not_before(objects: Objects) -> None:
    clock = SetClock()
    early = await objects.create(event(0))
    expiry = EventExpiry(objects.store, clock, ttl=timedelta(minutes=1))
    async with running(expiry.run()):
        await objects.create(event(1, last_timestamp=clock.now() + timedelta(days=900)))
        await until(lambda: len(expiry) == 2)
        clock.offset = 50.0
        await objects.update_status(Event, "shop", "e-1", lambda one: msgspec.structs.replace(one, count=2))
        await objects.create(event(2))
        await until(lambda: len(expiry) == 3)
        assert len((await objects.list(Event)).items) == 3
        clock.offset = 70.0  # the first is over; the second was told of again meanwhile
        await objects.create(event(3))
        left = await count_of(objects, 3)
    assert early.metadata.name not in {one.metadata.name for one in left}


async def test_too_many_go_before_their_time_oldest_first(objects: Objects) -> None:
    expiry = EventExpiry(objects.store, SetClock(), most=5)
    async with running(expiry.run()):
        for number in range(12):
            await objects.create(event(number))
        left = await count_of(objects, 5)
    assert {one.metadata.name for one in left} == {f"e-{number}" for number in range(7, 12)}
