from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from skerry.api.errors import ExpiredError, NotFoundError
from skerry.api.kinds.device import Device
from skerry.api.kinds.enrollment import JoinToken, JoinTokenStatus
from skerry.api.meta import ObjectMeta
from skerry.drivers.registry.directory import DirectoryStore
from skerry.drivers.store.sqlite import open_store
from skerry.hub import housekeeping, join_tokens, pki
from skerry.hub.context import HubContext
from skerry.hub.objects import Objects
from skerry.hub.state import claim
from skerry.kit.clock import SystemClock

TIMEOUT = 20


class SetClock(SystemClock):
    offset = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.offset


async def test_old_history_goes_and_what_is_due_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SetClock()
    with claim(tmp_path / "hub") as state:
        authority = pki.open_authority(state.pki, names=(), clock=clock)
        async with open_store(state.store) as store:
            objects = Objects(store, clock)
            context = HubContext(
                objects=objects,
                artifacts=DirectoryStore(state.artifacts),
                clock=clock,
                authority=authority,
                gateway=cast("Any", None),  # not asked
                state_dir=state.path,
                hub_url="https://h:1",
                mqtt_host="h",
                mqtt_port=1,
            )
            token = JoinToken(
                metadata=ObjectMeta(name="old", namespace="default"), status=JoinTokenStatus(expires_at=clock.now())
            )
            await objects.create(token)
            created = await objects.create(Device(metadata=ObjectMeta(name="a", namespace="default")))
            first = int(created.metadata.resource_version)
            await objects.delete(Device, "default", "a")
            old = authority.admin_certificate_file.read_bytes()
            clock.offset = timedelta(days=300)
            monkeypatch.setattr(housekeeping, "DAILY_EVERY", 2)

            async def due() -> bool:
                try:
                    await objects.list(Device, revision=first)
                except ExpiredError:
                    return state.kubeconfig.exists()
                return False

            async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
                running = group.create_task(housekeeping.run(context, state, (), round_seconds=0.01))
                while not await due():  # noqa: ASYNC110 - files and the store signal nothing here
                    await asyncio.sleep(0.01)
                running.cancel()
            assert authority.admin_certificate_file.read_bytes() != old
            with pytest.raises(NotFoundError):
                await objects.get(JoinToken, "default", "old")


async def test_what_is_desired_of_devices_that_are_gone_is_removed(tmp_path: Path) -> None:
    async with open_store(tmp_path / "hub.db") as store:
        objects = Objects(store, SetClock())
        await objects.create(Device(metadata=ObjectMeta(name="a", namespace="default", uid="uid-a")))
        for uid in ("uid-a", "uid-gone"):
            await store.create(f"desired/{uid}", b"{}")
        context = cast("Any", SimpleNamespace(objects=objects))
        assert await housekeeping.forget_orphans(context) == 1
        assert [record.key for record in (await store.list("desired/")).records] == ["desired/uid-a"]
        assert await housekeeping.forget_orphans(context) == 0


UNREADABLE = b'{"spec": {"cordoned": "as a newer version says it"}}'


async def test_while_a_device_cannot_be_told_nothing_that_may_be_its_own_is_removed(tmp_path: Path) -> None:
    async with open_store(tmp_path / "hub.db") as store:
        context = cast("Any", SimpleNamespace(objects=Objects(store, SetClock()), clock=SetClock()))
        odd = await store.create("devices/default/odd", UNREADABLE)
        for uid in ("uid-odd", "uid-gone"):
            await store.create(f"desired/{uid}", b"{}")
        assert await housekeeping.forget_orphans(context) == 0
        named = b'{"metadata": {"uid": "uid-odd"}, "spec": {"cordoned": "as a newer version says it"}}'
        await store.update("devices/default/odd", named, expected=odd.revision)
        assert await housekeeping.forget_orphans(context) == 1
        assert [record.key for record in (await store.list("desired/")).records] == ["desired/uid-odd"]


async def test_a_token_that_cannot_be_read_keeps_no_other_from_going(tmp_path: Path) -> None:
    clock = SetClock()
    async with open_store(tmp_path / "hub.db") as store:
        objects = Objects(store, clock)
        context = cast("Any", SimpleNamespace(objects=objects, clock=clock))
        await store.create("jointokens/default/a", b'{"spec": {"uses": "many"}}')
        await store.create("jointokens/default/b", b'{"metadata": {"name": "\xff"}}')
        status = JoinTokenStatus(expires_at=clock.now())
        await objects.create(JoinToken(metadata=ObjectMeta(name="old", namespace="default"), status=status))
        clock.offset = timedelta(days=8)
        await join_tokens.forget_expired(context)
        left = [record.key for record in (await store.list("jointokens/")).records]
        assert left == ["jointokens/default/a", "jointokens/default/b"]


async def test_no_record_that_cannot_be_read_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = asyncio.Event()

    async def stumble(context: HubContext) -> int:
        rounds.set()
        return len(msgspec.json.decode(UNREADABLE, type=Device).metadata.name)

    monkeypatch.setattr(housekeeping, "forget_orphans", stumble)
    async with open_store(tmp_path / "hub.db") as store:
        context = cast("Any", SimpleNamespace(objects=Objects(store, SetClock()), clock=SetClock()))
        task = asyncio.create_task(housekeeping.run(context, cast("Any", None), (), round_seconds=0.01))
        async with asyncio.timeout(TIMEOUT):
            await rounds.wait()
        done, _ = await asyncio.wait({task}, timeout=0.1)
        assert not done
        task.cancel()
        await asyncio.wait({task})
