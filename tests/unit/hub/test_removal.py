"""An object goes whose last finalizer goes at that very moment, and none other in its place; a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from skerry.api.errors import ConflictError, NotFoundError
from skerry.api.kinds.device import Device, DeviceStatus
from skerry.api.kinds.namespace import Namespace
from skerry.api.kinds.service_account import ServiceAccount
from skerry.api.meta import ObjectMeta
from skerry.core.desired import DesiredRecord
from skerry.drivers.store.sqlite import open_store
from skerry.hub import housekeeping, removal
from skerry.hub.objects import Objects, key_of
from skerry.kit.clock import SystemClock

CLOCK = SystemClock()
KEEP = "example.com/keep"


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[Objects]:
    async with open_store(tmp_path / "hub.db") as store:
        yield Objects(store, CLOCK)


async def make(objects: Objects, *finalizers: str) -> ServiceAccount:
    meta = ObjectMeta(name="a", namespace="shop", finalizers=list(finalizers))
    return await objects.create(ServiceAccount(metadata=meta))


async def find(objects: Objects) -> ServiceAccount | None:
    return await objects.find(ServiceAccount, "shop", "a")


async def released(objects: Objects, item: ServiceAccount) -> ServiceAccount:
    meta = msgspec.structs.replace(item.metadata, finalizers=[])
    return await objects.replace(msgspec.structs.replace(item, metadata=meta))


async def test_an_object_waits_for_its_finalizers_and_any_other_goes(objects: Objects) -> None:
    waiting = await removal.remove_or_mark(objects, await make(objects, KEEP), CLOCK.now())
    assert waiting == await find(objects)
    assert waiting is not None
    assert waiting.metadata.deletion_timestamp is not None
    assert await removal.remove_or_mark(objects, waiting, CLOCK.now()) == waiting, "marked once"
    assert await removal.remove_or_mark(objects, await released(objects, waiting), CLOCK.now()) is None
    assert await find(objects) is None


async def test_one_without_finalizers_is_never_marked(objects: Objects) -> None:
    """The last finalizer goes between the look and the mark."""
    seen = await make(objects, KEEP)
    now = await released(objects, seen)
    with pytest.raises(ConflictError):
        await removal.remove_or_mark(objects, seen, CLOCK.now())
    assert await find(objects) == now, "as it was, for whoever looks again"


async def test_another_object_of_that_name_is_neither_marked_nor_removed(objects: Objects) -> None:
    for finalizers in ((KEEP,), ()):
        seen = await make(objects, *finalizers)
        await objects.delete(ServiceAccount, "shop", "a")
        successor = await make(objects, KEEP)
        with pytest.raises(ConflictError):
            await removal.remove_or_mark(objects, seen, CLOCK.now())
        assert await find(objects) == successor
        await objects.delete(ServiceAccount, "shop", "a")
        with pytest.raises(NotFoundError):
            await removal.remove_or_mark(objects, seen, CLOCK.now())


async def test_what_was_released_goes_also_when_its_status_is_written_meanwhile(objects: Objects) -> None:
    device = Device(metadata=ObjectMeta(name="a", namespace="shop", finalizers=[KEEP]))
    waiting = await removal.mark(objects, await objects.create(device), CLOCK.now())
    empty = DesiredRecord(uid=waiting.metadata.uid, namespace="shop", device="a")
    await objects.change_desired(empty, lambda record: msgspec.structs.replace(record, manifest_version=1))
    assert not await removal.finish(objects, waiting), "it has a finalizer"
    meta = msgspec.structs.replace(waiting.metadata, finalizers=[])
    free = await objects.replace(msgspec.structs.replace(waiting, metadata=meta))
    told = DeviceStatus(phase="Offline")
    await objects.update_status(Device, "shop", "a", lambda one: msgspec.structs.replace(one, status=told))
    assert await removal.finish(objects, free)
    assert await objects.find(Device, "shop", "a") is None
    assert await objects.get_desired(free.metadata.uid) is None
    assert not await removal.finish(objects, free), "somebody else was faster"


async def test_what_came_in_its_place_is_not_finished(objects: Objects) -> None:
    free = await released(objects, await removal.mark(objects, await make(objects, KEEP), CLOCK.now()))
    await objects.delete(ServiceAccount, "shop", "a")
    successor = await make(objects)
    assert not await removal.finish(objects, free)
    assert await find(objects) == successor
    assert not await removal.finish(objects, successor), "nobody deleted it"
    assert await find(objects) == successor


async def test_a_namespace_says_that_it_goes(objects: Objects) -> None:
    made = await objects.create(Namespace(metadata=ObjectMeta(name="shop")))
    assert (await removal.mark(objects, made, CLOCK.now())).status.phase == "Terminating"


async def test_housekeeping_finishes_what_was_left_half_removed(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a power cut between the last finalizer's end and the removal leaves it, and a page further on."""
    monkeypatch.setattr(housekeeping, "_PAGE", 2)
    await released(objects, await removal.mark(objects, await make(objects, KEEP), CLOCK.now()))
    for name in ("b", "c", "d"):
        await objects.create(ServiceAccount(metadata=ObjectMeta(name=name, namespace="shop", finalizers=[KEEP])))
        await removal.mark(objects, await objects.get(ServiceAccount, "shop", name), CLOCK.now())
    meta = msgspec.structs.replace((await objects.get(ServiceAccount, "shop", "d")).metadata, finalizers=[])
    await objects.replace(ServiceAccount(metadata=meta))
    await objects.store.create(key_of(Device, "shop", "odd"), b'{"metadata":{"deletionTimestamp":"never"}}')
    context = cast("Any", SimpleNamespace(objects=objects))
    assert await housekeeping.finish_removals(context) == 2
    assert [one.metadata.name for one in (await objects.list(ServiceAccount)).items] == ["b", "c"]
    assert await housekeeping.finish_removals(context) == 0
