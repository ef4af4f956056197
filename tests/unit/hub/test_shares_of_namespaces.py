"""One namespace's flood leaves room for the others: of events, conversations and commands; and it is counted."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from tests.unit.hub.test_events import OFTEN, SetClock, objects, running, until  # noqa: F401 - a fixture
from tests.unit.hub.test_tunnels import SESSION
from tests.unit.hub.test_tunnels import Gateway as Carrier
from tests.unit.hub_server.test_audit_middleware import ADMIN, ALICE, hub_in

from skerry.api.errors import UnavailableError
from skerry.api.kinds.device import Device
from skerry.api.kinds.event import Event
from skerry.api.kinds.namespace import Namespace
from skerry.api.kinds.references import ObjectReference
from skerry.api.meta import ObjectMeta
from skerry.core.allowance import Rate
from skerry.core.shares import Shed
from skerry.drivers.link import memory
from skerry.hub import tunnels as module
from skerry.hub.event_expiry import EventExpiry
from skerry.hub.events import EventLimits, Recorder
from skerry.hub.gateway import Gateway, GatewaySettings
from skerry.hub.objects import Objects
from skerry.hub.tunnels import Tunnels

SECONDS = 20.0


def about(namespace: str, name: str) -> ObjectReference:
    return ObjectReference(kind="Device", namespace=namespace, name=name, uid=f"{namespace}-{name}")


async def events_of(objects: Objects, namespace: str) -> list[Event]:  # noqa: F811
    return [one for one in (await objects.list(Event)).items if one.metadata.namespace == namespace]


async def test_one_namespaces_flood_of_events_leaves_room_and_turns_to_others(objects: Objects) -> None:  # noqa: F811
    await objects.create(Namespace(metadata=ObjectMeta(name="evil")))
    shed, clock = Shed(), SetClock()
    limits = EventLimits(each=OFTEN, all=Rate(burst=4, seconds=1000.0), pending=100)
    recorder = Recorder(objects, clock, limits=limits, shed=shed)
    for number in range(500):
        recorder.warning(about("evil", f"d-{number}"), "Refused", "no")
    recorder.warning(about("shop", "till"), "GateFailed", "wave 1")
    recorder.warning(about("shop", "till-2"), "GateFailed", "wave 1")
    async with running(recorder.run()):
        async with asyncio.timeout(SECONDS):
            while len((await objects.list(Event)).items) < 4:  # noqa: ASYNC110 - who writes signals nobody
                await asyncio.sleep(0.005)
        assert {one.involved_object.name for one in await events_of(objects, "shop")} == {"till", "till-2"}
    assert shed.counts["events-together", "evil"] == 402
    assert ("events-together", "shop") not in shed.counts


async def test_what_is_told_all_together_has_room_for_each_namespace(objects: Objects) -> None:  # noqa: F811
    shed, clock = Shed(), SetClock()
    limits = EventLimits(each=OFTEN, all=OFTEN, pending=1, summaries=10)
    recorder = Recorder(objects, clock, limits=limits, shed=shed)
    recorder.warning(about("evil", "d"), "First", "takes the room")
    for number in range(50):
        recorder.warning(about("evil", "d"), f"Reason{number}", "no")
    recorder.warning(about("shop", "till"), "GateFailed", "wave 1")
    clock.offset = limits.summary_seconds
    async with running(recorder.run()):
        await until(lambda: not recorder.waiting)
    (told,) = await events_of(objects, "shop")
    assert (told.reason, told.count) == ("GateFailed", 1)
    assert shed.counts["events-dropped", "evil"] == 41


async def test_too_many_events_of_one_namespace_go_before_anybody_elses(objects: Objects) -> None:  # noqa: F811
    def event(namespace: str, number: int) -> Event:
        return Event(
            metadata=ObjectMeta(name=f"e-{number}", namespace=namespace), involved_object=about(namespace, "till")
        )

    shed = Shed()
    expiry = EventExpiry(objects.store, SetClock(), ttl=timedelta(hours=1), most=6, shed=shed)
    await objects.create(Namespace(metadata=ObjectMeta(name="evil")))
    for number in range(2):
        await objects.create(event("shop", number))
    async with running(expiry.run()):
        for number in range(20):
            await objects.create(event("evil", number))
        async with asyncio.timeout(SECONDS):
            while len((await objects.list(Event)).items) > 6 or len(expiry) > 6:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.005)
    assert len(await events_of(objects, "shop")) == 2
    assert {one.metadata.name for one in await events_of(objects, "evil")} == {f"e-{n}" for n in range(16, 20)}
    assert shed.counts == {("events-expired", "evil"): 16}


async def test_one_namespaces_conversations_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TUNNELS", 40)
    shed = Shed()
    tunnels, carrier = Tunnels(shed), Carrier()

    async def hold(namespace: str, number: int) -> None:
        device = Device(metadata=ObjectMeta(name="d", namespace=namespace, uid=f"{namespace}-{number}"))
        async with tunnels.open(carrier, device, "w", SESSION):  # type: ignore[arg-type]
            raise AssertionError

    tasks = [asyncio.create_task(hold("evil", number)) for number in range(60)]
    try:
        await until(lambda: sum(task.done() for task in tasks) == 40)
        assert all(isinstance(task.exception(), UnavailableError) for task in tasks if task.done())
        tasks += [asyncio.create_task(hold("shop", number)) for number in range(5)]
        await until(lambda: carrier.asked.qsize() == 25)
        assert shed.counts == {("conversations", "evil"): 40}
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_namespaces_commands_leave_room_for_others(objects: Objects) -> None:  # noqa: F811
    await objects.create(Namespace(metadata=ObjectMeta(name="evil")))
    shed, carrier = Shed(), memory.MemoryCarrier()
    key = ed25519.Ed25519PrivateKey.generate()
    gateway = Gateway(
        objects,
        memory.MemoryHubLink(carrier),
        key,
        "key",
        SetClock(),
        settings=GatewaySettings(max_commands=12),
        shed=shed,
    )
    uids = []
    for namespace in ("evil", "shop"):
        made = await objects.create(Device(metadata=ObjectMeta(name="till", namespace=namespace)))
        uids.append(made.metadata.uid)
    async with running(gateway.run()), AsyncExitStack() as stack:
        for uid in uids:
            await stack.enter_async_context(memory.MemoryDeviceLink(carrier, uid).connect(boot_id="b"))
        await until(lambda: all(gateway.online(uid) for uid in uids))

        def ask(uid: str) -> asyncio.Task[Any]:
            return asyncio.create_task(gateway.command(uid, "log", "w"))

        tasks = [ask(uids[0]) for _ in range(20)]
        await until(lambda: sum(task.done() for task in tasks) == 8)  # it has all the room, while nobody else asks
        good = [ask(uids[1]) for _ in range(8)]
        await until(lambda: sum(task.done() for task in tasks) == 14)
        await until(lambda: sum(task.done() for task in good) == 2)
        tasks += good
        assert "gave way to other namespaces" in str(tasks[11].exception())
        assert len(gateway._waiting) == 12
        assert shed.counts == {("commands", "evil"): 14, ("commands", "shop"): 2}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not gateway._waited_for


async def test_what_was_left_out_can_be_monitored_by_who_may(tmp_path: Path) -> None:
    async with hub_in(tmp_path) as hub:
        hub.context.shed.count("events-dropped", "shop", 7)
        hub.context.shed.count("events-dropped", 'a"\\b', 1)
        assert (await hub.ask(ALICE, "GET", "/metrics")).status_code == 403
        shown = await hub.ask(ADMIN, "GET", "/metrics")
        assert shown.status_code == 200
        assert shown.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert 'skerry_hub_share_exceeded_total{what="events-dropped",namespace="shop"} 7' in shown.text
        assert 'namespace="a\\"\\\\b"} 1' in shown.text
