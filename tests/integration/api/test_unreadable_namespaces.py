"""DELETE of a namespace that cannot be read: it goes with all that is in it, and not before."""

from __future__ import annotations

import itertools
import json

import pytest
from tests.integration.api.conftest import Hub

from skerry.api.kinds.device import Device
from skerry.api.kinds.namespace import Namespace
from skerry.drivers.client.api import HubClient
from skerry.hub.objects import key_of

PATH = "/api/v1/namespaces"


def damage(hub: Hub, name: str) -> None:
    async def act() -> None:
        record = await hub.objects.store.get(key_of(Namespace, "", name))
        assert record is not None
        await hub.objects.store.update(record.key, b'{"metadata":{"labels":7}}', expected=record.revision)

    hub.call(act())


def test_its_objects_go_with_it(hub: Hub, admin: HubClient, namespace: str) -> None:
    hub.add_device(namespace, "till")
    damage(hub, namespace)
    at = f"{PATH}/{namespace}"
    assert admin.http.request("DELETE", at, json={"preconditions": {"uid": "u"}}).status_code == 500
    assert admin.http.delete(at, params={"dryRun": "All"}).status_code == 200
    assert admin.http.get(at).status_code == 500, "nothing was tried in earnest"
    assert [one.metadata.name for one in admin.list(Device)] == ["till"]
    deleted = admin.http.delete(at)
    assert (deleted.status_code, deleted.json()["kind"], deleted.json()["metadata"]["name"]) == (
        200,
        "Namespace",
        namespace,
    )
    assert admin.http.get(at).status_code == 404
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    assert admin.http.post(PATH, json=made).status_code == 201
    assert admin.list(Device) == [], "who has the name next gets nothing of the one before"


def test_it_waits_for_finalizers(hub: Hub, admin: HubClient, namespace: str) -> None:
    hub.add_device(namespace, "till")
    admin.patch(Device, "till", {"metadata": {"finalizers": ["example.com/backup"]}})
    damage(hub, namespace)
    deleted = admin.http.delete(f"{PATH}/{namespace}").json()
    assert deleted["status"]["phase"] == "Terminating"
    assert "devices.skerry.dev has 1" in deleted["status"]["conditions"][0]["message"]
    assert admin.get(Device, "till").metadata.deletion_timestamp is not None
    admin.patch(Device, "till", {"metadata": {"finalizers": None}})
    assert admin.http.delete(f"{PATH}/{namespace}").status_code == 200
    assert admin.http.get(f"{PATH}/{namespace}").status_code == 404


def test_whoever_watches_hears_of_the_damaged_one_as_gone_and_of_a_new_one(
    hub: Hub, admin: HubClient, namespace: str
) -> None:
    hub.add_device(namespace, "till")
    admin.patch(Device, "till", {"metadata": {"finalizers": ["example.com/backup"]}})
    before = admin.get(Namespace, namespace).metadata
    params = {"watch": "1", "resourceVersion": before.resource_version, "fieldSelector": f"metadata.name={namespace}"}
    with admin.http.stream("GET", PATH, params=params) as watched:
        damage(hub, namespace)
        admin.http.delete(f"{PATH}/{namespace}")
        told = [json.loads(line) for line in itertools.islice(watched.iter_lines(), 2)]
    seen = [(one["type"], one["object"]["metadata"]["uid"]) for one in told]
    after = admin.get(Namespace, namespace).metadata
    assert seen == [("DELETED", before.uid), ("ADDED", after.uid)]
    assert before.uid != after.uid


def test_the_default_one_is_mended_and_not_deleted(hub: Hub, admin: HubClient) -> None:
    hub.add_device("default", "till")
    damage(hub, "default")
    try:
        refused = admin.http.delete(f"{PATH}/default")
        assert (refused.status_code, refused.json()["reason"]) == (403, "Forbidden")
        found = admin.http.get(f"{PATH}/default")
        assert (found.status_code, found.json()["status"]["phase"]) == (200, "Active")
        with hub.client("default") as there:
            assert [one.metadata.name for one in there.list(Device)] == ["till"]
    finally:
        admin.http.delete("/apis/skerry.dev/v1alpha1/namespaces/default/devices/till")


@pytest.mark.parametrize("again", [False, True])
def test_one_that_is_gone_already_is_not_found(hub: Hub, admin: HubClient, namespace: str, again: bool) -> None:
    if again:
        hub.add_device(namespace, "till")
        damage(hub, namespace)
        assert admin.http.delete(f"{PATH}/{namespace}").status_code == 200
    assert admin.http.delete(f"{PATH}/{namespace}").status_code == 404
