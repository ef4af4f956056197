"""Namespaces as objects: named, listed, labelled, watched, and deleted with all that is in them."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.integration.api.kubectl import KUBECTL, Run

from skerry.api.errors import ForbiddenError, NotFoundError
from skerry.api.kinds.device import Device
from skerry.api.kinds.namespace import Namespace
from skerry.api.meta import ObjectMeta
from skerry.core.desired import DesiredRecord
from skerry.drivers.client.api import HubClient
from skerry.hub import namespaces, removal
from skerry.hub.objects import key_of

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
PATH = "/api/v1/namespaces"


def names(admin: HubClient) -> set[str]:
    return {item.metadata.name for item in admin.list(Namespace)}


def test_a_namespace_is_there_as_soon_as_it_is_named(hub: Hub, admin: HubClient) -> None:
    assert admin.namespace not in names(admin)
    assert admin.http.get(f"{PATH}/{admin.namespace}").status_code == 404
    hub.add_device(admin.namespace, "till-7")
    found = admin.get(Namespace, admin.namespace)
    assert found.status.phase == "Active"
    assert found.metadata.labels == {"kubernetes.io/metadata.name": admin.namespace}
    assert {admin.namespace, "default"} <= names(admin)


def test_namespaces_of_older_hubs_get_their_objects(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "till-7")
    for name in (admin.namespace, "default"):
        hub.call(hub.objects.store.delete(key_of(Namespace, "", name)))
    assert not {admin.namespace, "default"} & names(admin)
    hub.call(namespaces.adopt(hub.objects))
    assert {admin.namespace, "default"} <= names(admin)


def test_deleting_takes_everything_along(hub: Hub, admin: HubClient) -> None:
    other = f"{admin.namespace}-other"
    device, kept = hub.add_device(admin.namespace, "till-7"), hub.add_device(other, "till-7")
    for one in (device, kept):
        empty = DesiredRecord(uid=one.metadata.uid, namespace=one.metadata.namespace, device="till-7")
        hub.call(hub.objects.change_desired(empty, lambda record: msgspec.structs.replace(record, manifest_version=1)))
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ci"}}
    accounts = f"{PATH}/{admin.namespace}/serviceaccounts"
    assert admin.http.post(accounts, json=account).status_code == 201
    admin.delete(Namespace, admin.namespace)
    assert admin.http.get(f"{PATH}/{admin.namespace}").status_code == 404
    assert admin.list(Device) == []
    assert admin.http.get(accounts).json()["items"] == []
    assert hub.call(hub.objects.get_desired(device.metadata.uid)) is None, "nothing is desired of a deleted device"
    assert hub.call(hub.objects.get_desired(kept.metadata.uid)) is not None
    with hub.client(other) as elsewhere:
        assert [one.metadata.name for one in elsewhere.list(Device)] == ["till-7"]


def test_the_default_namespace_stays(admin: HubClient) -> None:
    with pytest.raises(ForbiddenError, match="may not be deleted"):
        admin.delete(Namespace, "default")
    assert "default" in names(admin)
    with pytest.raises(NotFoundError):
        admin.delete(Namespace, "never-named")


def test_finalizers_keep_a_namespace_and_nothing_new_comes_into_it(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "till-7")
    admin.patch(Device, "till-7", {"metadata": {"finalizers": ["example.com/backup"]}})
    admin.delete(Namespace, admin.namespace)
    going = admin.get(Namespace, admin.namespace)
    assert going.status.phase == "Terminating"
    assert going.metadata.deletion_timestamp is not None
    assert "devices.skerry.dev has 1" in going.status.conditions[0].message
    assert admin.get(Device, "till-7").metadata.deletion_timestamp is not None
    with pytest.raises(ForbiddenError, match="because it is being terminated"):
        hub.add_device(admin.namespace, "till-8")
    admin.patch(Device, "till-7", {"metadata": {"finalizers": None}})
    assert hub.call(namespaces.sweep(hub.objects, hub.context.clock, admin.get(Namespace, admin.namespace)))
    assert admin.namespace not in names(admin)
    hub.add_device(admin.namespace, "till-8")
    assert admin.get(Namespace, admin.namespace).status.phase == "Active"


def test_a_dry_run_deletes_nothing(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "till-7")
    answer = admin.http.delete(f"{PATH}/{admin.namespace}", params={"dryRun": "All"})
    assert answer.status_code == 200
    assert admin.get(Namespace, admin.namespace).status.phase == "Active"
    assert [one.metadata.name for one in admin.list(Device)] == ["till-7"]


def test_what_is_no_namespace(admin: HubClient) -> None:
    def post(name: str) -> Any:
        raw = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        return admin.http.post(PATH, json=raw).json()

    for name in ("Upper", "a.b", "a" * 64, "", "-a"):
        assert post(name)["reason"] == "Invalid", name
    assert admin.http.delete(PATH).status_code == 405
    assert admin.http.get(f"{PATH}/{admin.namespace}/status").status_code == 404
    post(admin.namespace)
    assert admin.http.get(f"{PATH}/{admin.namespace}/status").json()["status"] == {"phase": "Active"}
    assert post(admin.namespace)["reason"] == "AlreadyExists"


def test_the_status_is_written_apart(admin: HubClient, hub: Hub) -> None:
    hub.call(hub.objects.create(Namespace(metadata=ObjectMeta(name=admin.namespace))))
    change = {"status": {"phase": "Terminating"}}
    path, merge = f"{PATH}/{admin.namespace}", {"Content-Type": "application/merge-patch+json"}
    admin.http.patch(path, json=change, headers=merge)
    assert admin.get(Namespace, admin.namespace).status.phase == "Active"


def test_what_was_interrupted_is_finished_in_the_background(hub: Hub, admin: HubClient) -> None:
    """A hub that dies right after the mark leaves just this behind."""
    hub.add_device(admin.namespace, "till-7")
    now = hub.context.clock.now()
    hub.call(hub.objects.update_status(Namespace, "", admin.namespace, lambda item: removal.marked(item, now)))
    version = admin.get(Namespace, admin.namespace).metadata.resource_version
    going_on = asyncio.run_coroutine_threadsafe(namespaces.run(hub.objects, hub.context.clock), hub.loop)
    try:
        told = admin.events(Namespace, name=admin.namespace, resource_version=version, deadline=time.monotonic() + 30)
        assert [kind for kind, _ in itertools.islice(told, 1)] == ["DELETED"]
    finally:
        going_on.cancel()
    assert admin.list(Device) == []


def test_a_damaged_object_goes_with_its_namespace(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "till-7")
    key = key_of(Device, admin.namespace, "broken")
    hub.call(hub.objects.store.create(key, b"{"))
    admin.delete(Namespace, admin.namespace)
    with pytest.raises(NotFoundError):
        admin.get(Namespace, admin.namespace)
    assert hub.call(hub.objects.store.get(key)) is None


def test_the_name_stays_among_the_labels(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "till-7")
    changed = admin.patch(Namespace, admin.namespace, {"metadata": {"labels": None}})
    assert changed.metadata.labels == {"kubernetes.io/metadata.name": admin.namespace}


@needs_kubectl
def test_kubectl(kubectl: Run, namespace: str, hub: Hub) -> None:
    name = f"{namespace}-k"
    assert kubectl("create", "ns", name).stdout == f"namespace/{name} created\n"
    assert "AlreadyExists" in kubectl("create", "namespace", name, fails=True).stderr
    header, row = kubectl("get", "ns", name).stdout.splitlines()
    assert (header.split(), row.split()[:2]) == (["NAME", "STATUS", "AGE"], [name, "Active"])
    kubectl("label", "ns", name, "site=lab")
    assert kubectl("get", "ns", "-l", f"site=lab,kubernetes.io/metadata.name={name}", "-o", "name").stdout.strip()
    assert "Active" in kubectl("describe", "ns", name).stdout
    hub.add_device(name, "till-7")
    version = json.loads(kubectl("get", "ns", name, "-o", "json").stdout)["metadata"]["resourceVersion"]
    assert "deleted" in kubectl("delete", "ns", name).stdout
    assert "NotFound" in kubectl("get", "ns", name, fails=True).stderr
    watch = f"{PATH}?watch=1&timeoutSeconds=5&resourceVersion={version}"
    with hub.client() as client, client.http.stream("GET", watch) as stream:
        kinds = []
        for line in stream.iter_lines():
            event = json.loads(line)
            kinds += [event["type"]] if event["object"]["metadata"]["name"] == name else []
            if kinds[-1:] == ["DELETED"]:
                break
    assert kinds[0] == "MODIFIED"
    text = f"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n"
    assert "created" in kubectl("apply", "-f", "-", text=text).stdout
    assert "unchanged" in kubectl("apply", "-f", "-", text=text).stdout
    kubectl("delete", "-f", "-", text=text)
