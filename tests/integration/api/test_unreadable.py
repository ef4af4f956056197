"""Objects that cannot be read, damaged or of another program: they keep nobody from the others, and can be deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.integration.api.conftest import Hub
from tests.integration.api.people import RBAC, ROLES, SKERRY, People

from skerry.api.kinds.device import Device
from skerry.api.kinds.enrollment import JoinToken
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.rbac import RoleBinding
from skerry.drivers.client.api import HubClient
from skerry.hub.objects import key_of

DAMAGED = [
    b"{",
    b"\xff\xfe",
    b"[]",
    b'{"metadata":{"name":"damaged"},"spec":7,"subjects":7,"status":{"phase":"NoSuch"}}',
]


@pytest.fixture
def people(hub: Hub) -> Iterator[People]:
    people = People(hub)
    yield people
    people.close()


def damage(hub: Hub, kind: type[Any], namespace: str, value: bytes = DAMAGED[0], name: str = "damaged") -> None:
    hub.call(hub.objects.store.create(key_of(kind, namespace, name), value))


def names(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text[:500]
    body = answer.json()
    return [(one.get("object") or one)["metadata"]["name"] for one in body.get("items", body.get("rows"))]


@pytest.mark.parametrize("value", DAMAGED)
def test_one_that_cannot_be_read_is_left_out_named_and_deleted(
    value: bytes, hub: Hub, admin: HubClient, namespace: str
) -> None:
    at = f"{SKERRY}/namespaces/{namespace}/devices"
    hub.add_device(namespace, "a")
    damage(hub, Device, namespace, value)
    hub.add_device(namespace, "z")
    table = {"accept": "application/json;as=Table;g=meta.k8s.io;v=v1"}
    for headers in ({}, table):
        listed = admin.http.get(at, headers=headers)
        assert names(listed) == ["a", "z"]
        said = f'299 - "devices.skerry.dev \\"damaged\\" in the namespace {namespace} is left out: '
        assert listed.headers["warning"].startswith(said), listed.headers
    first = admin.http.get(at, params={"limit": "1"})
    assert names(first) == ["a"]
    assert names(admin.http.get(at, params={"continue": first.json()["metadata"]["continue"]})) == ["z"]
    only = admin.http.get(at, params={"fieldSelector": "metadata.name=damaged"})
    assert (names(only), "is left out" in only.headers["warning"]) == ([], True)
    assert "warning" not in admin.http.get(at, params={"fieldSelector": "metadata.name=a"}).headers
    everywhere = admin.http.get(f"{SKERRY}/devices", params={"fieldSelector": "metadata.name=a"})
    assert "warning" not in everywhere.headers, "who may see one by its name alone hears of no other"
    nodes = admin.http.get("/api/v1/nodes")
    assert (nodes.status_code, "is left out" in nodes.headers["warning"]) == (200, True)
    assert "warning" not in admin.http.get("/api/v1/nodes", params={"fieldSelector": "metadata.name=a"}).headers

    found = admin.http.get(f"{at}/damaged")
    assert (found.status_code, found.json()["reason"]) == (500, "StorageReadError")
    assert found.json()["message"].startswith(
        f'devices.skerry.dev "damaged": what is stored of it in the namespace "{namespace}" cannot be read: '
    )
    assert found.json()["details"]["name"] == "damaged"
    merge = {"content-type": "application/merge-patch+json"}
    patched = admin.http.patch(f"{at}/damaged", json={"metadata": {"labels": {"a": "b"}}}, headers=merge)
    assert patched.status_code == 500, "what it was is not known, so nothing is written over it"

    body = {"preconditions": {"uid": "u"}}
    assert admin.http.request("DELETE", f"{at}/damaged", json=body).status_code == 500
    assert admin.http.delete(f"{at}/damaged", params={"dryRun": "All"}).status_code == 200
    assert admin.http.get(f"{at}/damaged").status_code == 500
    gone = admin.http.delete(f"{at}/damaged")
    assert (gone.status_code, gone.json()["status"]) == (200, "Success")
    assert admin.http.get(f"{at}/damaged").status_code == 404
    assert admin.http.delete(f"{at}/damaged").status_code == 404


def test_a_watch_goes_on_without_it(hub: Hub, admin: HubClient, namespace: str) -> None:
    at = f"{SKERRY}/namespaces/{namespace}/devices"
    version = int(hub.add_device(namespace, "a").metadata.resource_version)
    damage(hub, Device, namespace)
    with admin.http.stream("GET", at, params={"watch": "1"}) as watched:
        lines = watched.iter_lines()
        assert '"name":"a"' in next(lines)
        damage(hub, Device, namespace, name="later")
        assert admin.http.delete(f"{at}/later").status_code == 200
        hub.call(hub.objects.store.update(key_of(Device, namespace, "a"), b"{", expected=version))
        ended = json.loads(next(lines))
        assert (ended["type"], ended["object"]["metadata"]["name"]) == ("DELETED", "a"), "it is in no list any more"
        assert int(ended["object"]["metadata"]["resourceVersion"]) > version
        assert admin.http.delete(f"{at}/a").status_code == 200
        hub.add_device(namespace, "z")
        assert '"name":"z"' in next(lines), "it was gone already"


def test_a_collection_is_deleted_with_what_cannot_be_read_only_as_a_whole(
    hub: Hub, admin: HubClient, namespace: str
) -> None:
    at = f"{SKERRY}/namespaces/{namespace}/devices"
    hub.add_device(namespace, "a", site="lab")
    hub.add_device(namespace, "b")
    damage(hub, Device, namespace)
    some = admin.http.delete(at, params={"labelSelector": "site=lab"})
    assert (names(some), "is left out" in some.headers["warning"]) == (["a"], True)
    tried = admin.http.delete(at, params={"dryRun": "All"})
    assert names(tried) == ["b"]
    assert admin.http.get(f"{at}/damaged").status_code == 500
    rest = admin.http.delete(at)
    assert (names(rest), "warning" in rest.headers) == (["b"], False)
    assert admin.http.get(f"{at}/damaged").status_code == 404


def test_a_namespace_goes_with_what_cannot_be_read_in_it(hub: Hub, admin: HubClient, namespace: str) -> None:
    hub.add_device(namespace, "a")
    damage(hub, ModelDeployment, namespace)
    damage(hub, Device, namespace)
    admin.http.delete(f"/api/v1/namespaces/{namespace}")
    assert admin.http.get(f"/api/v1/namespaces/{namespace}").status_code == 404
    assert hub.call(hub.objects.store.get(key_of(Device, namespace, "damaged"))) is None


def test_a_join_token_that_cannot_be_read_is_none(hub: Hub, admin: HubClient, namespace: str) -> None:
    made = {"apiVersion": "skerry.dev/v1alpha1", "kind": "JoinToken", "metadata": {"name": "t"}}
    text = admin.http.post(f"{SKERRY}/namespaces/{namespace}/jointokens", json=made).json()["status"]["token"]
    key = key_of(JoinToken, namespace, "t")
    hub.call(hub.objects.store.delete(key))
    damage(hub, JoinToken, namespace, name="t")
    asked = {"apiVersion": "skerry.dev/v1alpha1", "kind": "Enrollment", "metadata": {}}
    asked["spec"] = {"csr": "x", "deviceName": "till"}  # type: ignore[assignment]
    with hub.stranger(headers={"Authorization": f"Bearer {text}"}) as client:
        assert client.post(f"{SKERRY}/namespaces/default/enrollments", json=asked).status_code == 401


def test_a_binding_that_cannot_be_read_gives_nothing_and_can_be_deleted(
    people: People, hub: Hub, namespace: str
) -> None:
    people.bind("ellen", namespace, "ClusterRole", "skerry-viewer", called="readable")
    at = f"{ROLES}/namespaces/{namespace}/rolebindings"
    damage(hub, RoleBinding, namespace)
    ellen = people.user("ellen")
    assert ellen.get(f"{SKERRY}/namespaces/{namespace}/devices").status_code == 200
    assert names(people.admin.get(at)) == ["readable"]
    assert people.admin.get(f"{at}/damaged").json()["message"].startswith(f'rolebindings.{RBAC} "damaged"')
    assert ellen.delete(f"{at}/damaged").status_code == 403
    assert people.admin.delete(f"{at}/damaged").status_code == 200


def test_a_long_list_says_what_it_left_out_as_far_as_it_is_known_when_it_begins(
    hub: Hub, admin: HubClient, namespace: str
) -> None:
    async def fill() -> None:
        record = await hub.objects.store.get(key_of(Device, namespace, "d"))
        assert record is not None
        for number in range(600):
            name = f"d-{number:04d}"
            value = record.value.replace(b'"name":"d"', b'"name":"%s"' % name.encode())
            await hub.objects.store.create(key_of(Device, namespace, name), value)

    hub.add_device(namespace, "d")
    hub.call(fill())
    damage(hub, Device, namespace, name="d-0000x")
    damage(hub, Device, namespace, name="d-0599x")
    listed = admin.http.get(f"{SKERRY}/namespaces/{namespace}/devices")
    assert len(names(listed)) == 601
    assert "d-0000x" in listed.headers["warning"]
