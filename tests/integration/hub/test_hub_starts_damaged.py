"""A hub starts though what it made itself cannot be read, so that this can be deleted, and is made anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from skerry.api.errors import IntegrityError
from skerry.drivers.client.api import HubClient
from skerry.drivers.client.kubeconfig import load_kubeconfig
from skerry.drivers.store.sqlite import open_store
from skerry.hub import pki, stores
from skerry.hub.app import HubReady, run_hub
from skerry.hub.settings import HubSettings
from skerry.kit.clock import SystemClock

TIMEOUT = 60
DAMAGED = b'{"metadata":{"labels":7}}'
NAMESPACES = "namespaces.core/"
AT = {
    NAMESPACES: "/api/v1/namespaces",
    "clusterroles.rbac.authorization.k8s.io/": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "clusterrolebindings.rbac.authorization.k8s.io/": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
}
Deed = Callable[[HubClient], None]


async def start(state_dir: Path, deed: Deed = lambda _: None) -> None:
    """Start a hub, do something with it as soon as it is ready, and end it."""
    stop, ready = asyncio.Event(), asyncio.Queue[HubReady]()
    settings = HubSettings(state_dir=state_dir, api_port=0, mqtt_port=0)
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        group.create_task(run_hub(settings, stop=stop, ready=ready.put_nowait))
        with closing(HubClient(load_kubeconfig((await ready.get()).kubeconfig))) as client:
            await asyncio.to_thread(deed, client)
        stop.set()


async def keys(state_dir: Path) -> list[str]:
    async with open_store(state_dir / "hub.db") as store:
        return [record.key for record in (await store.list("")).records]


async def damage(state_dir: Path, prefix: str) -> dict[str, str]:
    """Damage what has such a key; return the paths and the names of what that was."""
    async with open_store(state_dir / "hub.db") as store:
        records = (await store.list(prefix)).records
        for record in records:
            await store.update(record.key, DAMAGED, expected=record.revision)
    split = [(key, record.key.removeprefix(key)) for record in records for key in AT if record.key.startswith(key)]
    assert len(split) == len(records), "what the hub makes is all known here"
    return {f"{AT[key]}/{name}": name for key, name in split}


@pytest.mark.parametrize("prefix", [*AT, ""])
async def test_what_a_hub_made_is_damaged_deleted_and_made_anew(tmp_path: Path, prefix: str) -> None:
    await start(tmp_path)
    before = await keys(tmp_path)
    damaged = await damage(tmp_path, prefix)
    assert damaged

    def delete(client: HubClient) -> None:
        for path in damaged:
            assert client.http.get(path).status_code == 500, path
            assert client.http.delete(path).status_code == (403 if path.endswith("/default") else 200), path

    def read(client: HubClient) -> None:
        for path, name in damaged.items():
            assert client.http.get(path).json()["metadata"]["name"] == name

    await start(tmp_path, delete)
    await start(tmp_path, read)
    assert await keys(tmp_path) == before


async def test_a_shared_store_whose_keys_cannot_be_told_is_refused_in_one_sentence(tmp_path: Path) -> None:
    authority = pki.open_authority(tmp_path / "pki", names=("127.0.0.1",), clock=SystemClock())
    async with open_store(tmp_path / "hub.db") as store:
        await stores.check_same_keys(store, authority)
        await stores.check_same_keys(store, authority)
        record = await store.get(stores.KEY)
        assert record is not None
        await store.update(stores.KEY, DAMAGED, expected=record.revision)
        with pytest.raises(IntegrityError, match="whose keys the devices know cannot be read") as caught:
            await stores.check_same_keys(store, authority)
        assert caught.value.hint
