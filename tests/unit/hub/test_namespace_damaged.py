"""Namespaces whose own object cannot be read: what is in them is nobody else's, and they go as any other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from skerry.api.errors import ConflictError, ForbiddenError, NotFoundError, UnreadableError
from skerry.api.kinds.namespace import Namespace
from skerry.api.kinds.service_account import ServiceAccount
from skerry.api.meta import ObjectMeta
from skerry.drivers.store.sqlite import open_store
from skerry.hub import namespaces
from skerry.hub.objects import Objects, key_of
from skerry.kit.clock import SystemClock

WAIT = 20.0
SHOP = "shop"
CLOCK = SystemClock()


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[Objects]:
    async with open_store(tmp_path / "hub.db") as store:
        yield Objects(store, CLOCK)


async def fill(objects: Objects, namespace: str = SHOP, **meta: list[str]) -> None:
    await objects.create(ServiceAccount(metadata=ObjectMeta(name="a", namespace=namespace, **meta)))


async def damage(objects: Objects, name: str = SHOP) -> None:
    record = await objects.store.get(key_of(Namespace, "", name))
    assert record is not None
    await objects.store.update(record.key, b"{", expected=record.revision)


async def held(objects: Objects, namespace: str = SHOP) -> list[str]:
    return [one.metadata.name for one in (await objects.list(ServiceAccount, namespace)).items]


async def test_a_damaged_namespace_is_written_anew_as_one_that_goes(objects: Objects) -> None:
    await fill(objects, finalizers=["example.com/keep"])
    before = await objects.get(Namespace, "", SHOP)
    await damage(objects)
    going = await namespaces.renew(objects, CLOCK, SHOP)
    assert going == await objects.get(Namespace, "", SHOP)
    assert going.metadata.uid not in ("", before.metadata.uid)
    assert (going.status.phase, going.metadata.deletion_grace_period_seconds) == ("Terminating", 0)
    assert going.metadata.labels == {"kubernetes.io/metadata.name": SHOP}
    left = await namespaces.delete(objects, CLOCK, going)
    assert left.metadata.uid == going.metadata.uid
    assert "serviceaccounts has 1" in left.status.conditions[0].message
    assert await held(objects) == ["a"]


async def test_the_default_namespace_is_written_anew_and_stays(objects: Objects) -> None:
    await namespaces.adopt(objects)
    await fill(objects, namespaces.DEFAULT)
    await damage(objects, namespaces.DEFAULT)
    found = await namespaces.renew(objects, CLOCK, namespaces.DEFAULT)
    assert (found.metadata.deletion_timestamp, found.status.phase) == (None, "Active")
    with pytest.raises(ForbiddenError, match="may not be deleted"):
        await namespaces.delete(objects, CLOCK, found)
    assert await held(objects, namespaces.DEFAULT) == ["a"]


async def test_only_a_namespace_that_cannot_be_read_is_written_anew(objects: Objects) -> None:
    with pytest.raises(NotFoundError):
        await namespaces.renew(objects, CLOCK, SHOP)
    await fill(objects)
    before = await objects.get(Namespace, "", SHOP)
    with pytest.raises(ConflictError):
        await namespaces.renew(objects, CLOCK, SHOP)
    assert await objects.get(Namespace, "", SHOP) == before


async def test_what_has_lost_its_namespace_gets_one_while_the_hub_runs(
    objects: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (SHOP, "zoo"):
        await fill(objects, name)
    await damage(objects, "zoo")
    finishing = asyncio.create_task(namespaces.run(objects, CLOCK, round_seconds=0.01, orphans_seconds=0.0))
    try:
        async with asyncio.timeout(WAIT):
            for _ in range(2):
                after = await objects.store.revision()
                async with objects.watch(Namespace, after=after) as changes:
                    await objects.store.delete(key_of(Namespace, "", SHOP))
                    kinds = [(await anext(changes)).type, (await anext(changes)).type]
                assert kinds == ["DELETED", "ADDED"]
    finally:
        finishing.cancel()
        with suppress(asyncio.CancelledError):
            await finishing
    assert "namespace.orphan name=shop" in caplog.text
    assert "namespace.orphan name=zoo" not in caplog.text, "it has one, which cannot be read"
    with pytest.raises(UnreadableError):
        await objects.get(Namespace, "", "zoo")
