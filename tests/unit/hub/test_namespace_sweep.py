"""Namespaces that go while others of their names come, at the worst of moments: nothing is lost, in a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skerry.api.errors import ConflictError, ForbiddenError, NamespaceTerminatingError
from skerry.api.kinds.device import Device
from skerry.api.kinds.namespace import Namespace
from skerry.api.kinds.service_account import ServiceAccount
from skerry.api.meta import ObjectMeta
from skerry.core.ports import Page, Record, Store
from skerry.drivers.store.sqlite import open_store
from skerry.hub import namespaces, removal
from skerry.hub.objects import Objects, key_of, prefix_of
from skerry.hub.server.status import status_of
from skerry.kit.clock import SystemClock

WAIT = 20.0
SHOP = "shop"
CLOCK = SystemClock()
Deed = Callable[[], Awaitable[object]]


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[Objects]:
    async with open_store(tmp_path / "hub.db") as store:
        yield Objects(store, CLOCK)


class Meanwhile:
    """The store of a hub beside which another one acts, at one moment of it, right before a call: once, or `times`."""

    def __init__(self, store: Store, verb: str, key: str, deed: Deed, *, after: bool = False, times: int = 1) -> None:
        self._store, self._verb, self._key, self._after = store, verb, key, after
        self._deeds = [deed] * times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def create(self, key: str, value: bytes, **more: Any) -> Record:
        return await self._at("create", key, lambda: self._store.create(key, value, **more))

    async def update(self, key: str, value: bytes, **more: Any) -> Record:
        return await self._at("update", key, lambda: self._store.update(key, value, **more))

    async def delete(self, key: str, **more: Any) -> Record:
        return await self._at("delete", key, lambda: self._store.delete(key, **more))

    async def list(self, prefix: str, **more: Any) -> Page:
        return await self._at("list", prefix, lambda: self._store.list(prefix, **more))

    async def _at(self, verb: str, key: str, call: Callable[[], Awaitable[Any]]) -> Any:
        due = (verb, key) == (self._verb, self._key) and self._deeds
        if due and not self._after:
            await self._deeds.pop()()
        found = await call()
        if due and self._after:
            await self._deeds.pop()()
        return found

    @property
    def happened(self) -> bool:
        return not self._deeds


class Busy:
    """The store of a hub beside which somebody writes the namespace before every second deletion."""

    def __init__(self, objects: Objects) -> None:
        self._objects, self._deletions, self.written = objects, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects.store, name)

    async def delete(self, key: str, **more: Any) -> Record:
        self._deletions += 1
        if self._deletions % 2:
            self.written += 1
            await note(self._objects)
        return await self._objects.store.delete(key, **more)


async def note(objects: Objects, **meta: list[str]) -> None:
    """Somebody writes the namespace, each time something else."""

    def change(one: Namespace) -> Namespace:
        noted = {"count": str(1 + int(one.metadata.annotations.get("count", "0")))}
        return msgspec.structs.replace(one, metadata=msgspec.structs.replace(one.metadata, annotations=noted, **meta))

    await objects.update_status(Namespace, "", SHOP, change)


def account(name: str, namespace: str = SHOP, **meta: Any) -> ServiceAccount:
    return ServiceAccount(metadata=ObjectMeta(name=name, namespace=namespace, **meta))


async def held(objects: Objects, namespace: str = SHOP) -> list[str]:
    return [one.metadata.name for one in (await objects.list(ServiceAccount, namespace)).items]


async def marked(objects: Objects, name: str = SHOP) -> Namespace:
    return await removal.mark(objects, await objects.get(Namespace, "", name), CLOCK.now())


def anew(objects: Objects, *, finalizers: tuple[str, ...] = ()) -> Deed:
    """Somebody finishes the deletion, and the namespace is made again at once, with what was in it."""

    async def act() -> None:
        assert await namespaces.sweep(objects, CLOCK, await objects.get(Namespace, "", SHOP))
        await objects.create(account("a", finalizers=list(finalizers)))

    return act


async def test_the_finisher_leaves_a_namespace_alone_that_was_made_anew(objects: Objects) -> None:
    await objects.create(account("old"))
    listed = await marked(objects)
    assert await namespaces.sweep(objects, CLOCK, listed)
    await objects.create(account("precious"))
    assert await namespaces.sweep(objects, CLOCK, listed), "that one is gone"
    assert await held(objects) == ["precious"]
    assert (await objects.get(Namespace, "", SHOP)).metadata.deletion_timestamp is None


@pytest.mark.parametrize("finalizers", [(), ("example.com/keep",)])
@pytest.mark.parametrize(
    ("verb", "key", "after"),
    [
        ("list", prefix_of(ServiceAccount, SHOP), False),
        ("list", prefix_of(ServiceAccount, SHOP), True),
        ("delete", key_of(ServiceAccount, SHOP, "a"), False),
        ("delete", key_of(Namespace, "", SHOP), False),
    ],
)
async def test_whenever_a_namespace_is_made_anew_it_keeps_what_is_in_it(
    objects: Objects, verb: str, key: str, after: bool, finalizers: tuple[str, ...]
) -> None:
    await objects.create(account("a"))
    going = await marked(objects)
    store = Meanwhile(objects.store, verb, key, anew(objects, finalizers=finalizers), after=after)
    await namespaces.sweep(Objects(store, CLOCK), CLOCK, going)
    assert store.happened
    assert (await objects.get(Namespace, "", SHOP)).metadata.deletion_timestamp is None
    (kept,) = (await objects.list(ServiceAccount, SHOP)).items
    assert kept.metadata.deletion_timestamp is None


async def test_a_creation_that_looked_before_the_mark_is_refused_after_it(objects: Objects) -> None:
    await objects.create(account("a", finalizers=["example.com/keep"]))
    store = Meanwhile(objects.store, "create", key_of(ServiceAccount, SHOP, "late"), lambda: marked(objects))
    with pytest.raises(NamespaceTerminatingError, match="because it is being terminated") as caught:
        await Objects(store, CLOCK).create(account("late"))
    assert await held(objects) == ["a"]
    answer = status_of(caught.value, group="", kind="ServiceAccount", plural="serviceaccounts", name="late")
    assert (answer["code"], answer["reason"]) == (403, "Forbidden")
    assert answer["message"] == (
        'serviceaccounts "late" is forbidden: unable to create new content in namespace shop because it is being '
        "terminated"
    )
    (cause,) = answer["details"]["causes"]
    assert cause == {
        "reason": "NamespaceTerminating",
        "message": "namespace shop is being terminated",
        "field": "metadata.namespace",
    }


async def test_a_creation_that_comes_when_the_namespace_is_gone_leaves_no_orphan(objects: Objects) -> None:
    await objects.create(account("old"))

    async def delete() -> None:
        await namespaces.delete(objects, CLOCK, await objects.get(Namespace, "", SHOP))
        assert await objects.find(Namespace, "", SHOP) is None

    store = Meanwhile(objects.store, "create", key_of(ServiceAccount, SHOP, "late"), delete)
    await Objects(store, CLOCK).create(account("late"))
    assert await held(objects) == ["late"]
    assert (await objects.get(Namespace, "", SHOP)).metadata.deletion_timestamp is None, "named anew, so it is there"


async def test_only_the_namespace_that_was_meant_is_deleted(objects: Objects) -> None:
    meant = await objects.create(Namespace(metadata=ObjectMeta(name=SHOP)))
    await objects.delete(Namespace, "", SHOP)
    await objects.create(account("precious"))
    with pytest.raises(ConflictError):
        await namespaces.delete(objects, CLOCK, meant)
    assert await held(objects) == ["precious"]


async def test_a_namespace_is_not_swept_that_is_not_going(objects: Objects) -> None:
    await objects.create(account("a"))
    await namespaces.sweep(objects, CLOCK, await objects.get(Namespace, "", SHOP))
    assert await held(objects) == ["a"]


async def test_what_cannot_be_read_keeps_its_namespace_and_no_other(objects: Objects) -> None:
    await objects.create(account("a"))
    await objects.create(account("b", "zoo"))
    broken = key_of(Device, SHOP, "broken")
    await objects.store.create(broken, b"{")
    after = max([int((await marked(objects, name)).metadata.resource_version) for name in (SHOP, "zoo")])
    finishing = asyncio.create_task(namespaces.run(objects, CLOCK, round_seconds=0.01))
    try:
        async with asyncio.timeout(WAIT), objects.watch(Namespace, after=after) as changes:
            message, gone = "", set[str]()
            while SHOP not in gone:
                change = await anext(changes)
                assert change.object is not None
                message = "".join(one.message for one in change.object.status.conditions) or message
                if change.type == "DELETED":
                    gone.add(change.object.metadata.name)
                if message and gone == {"zoo"}:
                    assert "devices.skerry.dev has 1 resource instances" in message
                    assert await held(objects) == []
                    await objects.store.delete(broken)
    finally:
        finishing.cancel()
        with suppress(asyncio.CancelledError):
            await finishing


async def test_what_older_hubs_left_without_a_namespace_gets_one(objects: Objects) -> None:
    await objects.create(account("orphan"))
    await objects.store.delete(key_of(Namespace, "", SHOP))
    await namespaces.adopt(objects)
    await objects.store.delete(key_of(Namespace, "", SHOP))
    await namespaces.name_orphans(objects)
    found = await objects.get(Namespace, "", SHOP)
    assert await namespaces.delete(objects, CLOCK, found)
    assert await held(objects) == []


async def test_the_default_namespace_is_not_marked(objects: Objects) -> None:
    default = await objects.create(Namespace(metadata=ObjectMeta(name=namespaces.DEFAULT)))
    with pytest.raises(ForbiddenError):
        await namespaces.delete(objects, CLOCK, default)
    assert await objects.get(Namespace, "", namespaces.DEFAULT) == default


async def test_labels_that_change_meanwhile_keep_nothing(objects: Objects) -> None:
    await objects.create(account("a"))
    going = await marked(objects)

    store = Meanwhile(objects.store, "delete", key_of(ServiceAccount, SHOP, "a"), lambda: note(objects))
    assert await namespaces.sweep(Objects(store, CLOCK), CLOCK, going)
    assert store.happened
    assert await objects.find(Namespace, "", SHOP) is None


@pytest.mark.parametrize("finalizers", [(), ("example.com/keep",)])
async def test_a_write_to_the_namespace_costs_nothing_of_what_is_in_it(
    objects: Objects, finalizers: tuple[str, ...]
) -> None:
    for number in range(5):
        await objects.create(account(f"a{number}", finalizers=list(finalizers)))
    going = await marked(objects)
    key = key_of(ServiceAccount, SHOP, "a0")
    verb = "update" if finalizers else "delete"
    store = Meanwhile(objects.store, verb, key, lambda: note(objects))
    assert await namespaces.sweep(Objects(store, CLOCK), CLOCK, going) is not bool(finalizers)
    assert store.happened
    left = (await objects.list(ServiceAccount, SHOP)).items
    assert len(left) == (5 if finalizers else 0)
    assert all(one.metadata.deletion_timestamp is not None for one in left)


async def test_what_cannot_be_read_goes_though_the_namespace_is_written_meanwhile(objects: Objects) -> None:
    await objects.create(account("a"))
    damaged = key_of(ServiceAccount, SHOP, "broken")
    await objects.store.create(damaged, b"{")
    going = await marked(objects)
    store = Meanwhile(objects.store, "delete", damaged, lambda: note(objects))
    assert await namespaces.sweep(Objects(store, CLOCK), CLOCK, going)
    assert store.happened


async def test_a_namespace_goes_that_somebody_writes_before_each_step(objects: Objects) -> None:
    for number in range(500):
        await objects.create(account(f"a{number:03}"))
    going = await marked(objects)
    busy = Busy(objects)
    assert await namespaces.sweep(Objects(busy, CLOCK), CLOCK, going)
    assert busy.written > 500
    assert await held(objects) == []
    assert await objects.find(Namespace, "", SHOP) is None


async def test_somebody_who_never_rests_ends_in_a_later_round(objects: Objects) -> None:
    await objects.create(account("a"))
    going = await marked(objects)
    store = Meanwhile(objects.store, "delete", key_of(ServiceAccount, SHOP, "a"), lambda: note(objects), times=1000)
    with pytest.raises(ConflictError, match="is written all the time"):
        await namespaces.sweep(Objects(store, CLOCK), CLOCK, going)
    await namespaces.finish(Objects(store, CLOCK), CLOCK, going)  # a caller is not told
    assert await held(objects) == ["a"]
    assert await namespaces.sweep(objects, CLOCK, going)


async def test_an_object_that_was_given_a_finalizer_meanwhile_is_looked_at_again(objects: Objects) -> None:
    await objects.create(account("a"))
    going = await marked(objects)

    async def keep() -> None:
        def change(one: ServiceAccount) -> ServiceAccount:
            metadata = msgspec.structs.replace(one.metadata, finalizers=["example.com/keep"])
            return msgspec.structs.replace(one, metadata=metadata)

        await note(objects)
        await objects.update_status(ServiceAccount, SHOP, "a", change)

    store = Meanwhile(objects.store, "delete", key_of(ServiceAccount, SHOP, "a"), keep)
    assert not await namespaces.sweep(Objects(store, CLOCK), CLOCK, going)
    assert await held(objects) == ["a"]


async def test_a_namespace_that_was_given_a_finalizer_in_its_last_moment_stays(objects: Objects) -> None:
    going = await marked(objects, (await objects.create(Namespace(metadata=ObjectMeta(name=SHOP)))).metadata.name)

    async def keep() -> None:
        await note(objects, finalizers=["example.com/keep"])

    store = Meanwhile(objects.store, "delete", key_of(Namespace, "", SHOP), keep)
    assert not await namespaces.sweep(Objects(store, CLOCK), CLOCK, going)
    assert (await objects.get(Namespace, "", SHOP)).metadata.finalizers == ["example.com/keep"]
