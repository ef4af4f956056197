"""The official Python client and lightkube: list, watch, apply, patch, and what GitOps and Helm do with them."""

from __future__ import annotations

import contextlib
import json
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conformance.objects import API_VERSION, deployment, device
from tests.conformance.program import HubProgram

with warnings.catch_warnings():  # what they import is not ours to mend
    warnings.simplefilter("ignore")
    pytest.importorskip("kubernetes", reason="the client `kubernetes` is not installed (extra dev)")
    import kubernetes.dynamic
    import kubernetes.dynamic.exceptions
    import kubernetes.watch

    pytest.importorskip("lightkube", reason="the client `lightkube` is not installed (extra dev)")
    import lightkube.codecs
    import lightkube.generic_resource
    from lightkube.core.exceptions import ApiError
    from lightkube.types import CascadeType, PatchType

MANAGER = "app.kubernetes.io/managed-by"


# --- kubernetes: the dynamic client -------------------------------------------------------------------------------


@pytest.fixture
def dynamic(hub: HubProgram, tmp_path: Any) -> Iterator[Any]:
    configuration = kubernetes.client.Configuration()
    kubernetes.config.load_kube_config(str(hub.kubeconfig), client_configuration=configuration)
    with kubernetes.client.ApiClient(configuration) as api:
        yield kubernetes.dynamic.DynamicClient(api, cache_file=str(tmp_path / "discovery.json"))
        api.rest_client.pool_manager.clear()


def test_dynamic_discovery_and_crud(dynamic: Any, namespace: str) -> None:
    devices = dynamic.resources.get(api_version=API_VERSION, kind="Device")
    assert (devices.name, devices.namespaced) == ("devices", True)
    made = devices.create(namespace=namespace, body=device("a", tier="edge"))
    assert made.metadata.generation == 1
    devices.create(namespace=namespace, body=device("b", tier="core"))
    listed = devices.get(namespace=namespace, label_selector="tier=edge")
    assert [item.metadata.name for item in listed.items] == ["a"]
    assert listed.kind == "DeviceList"
    change = {"metadata": {"name": "a"}, "spec": {"cordoned": True}}
    changed = devices.patch(namespace=namespace, body=change, content_type="application/merge-patch+json")
    assert changed.spec.cordoned is True
    changed = devices.patch(namespace=namespace, body={"metadata": {"name": "a", "labels": {"tier": None}}})
    assert changed.metadata.labels is None, "its own default is a strategic merge patch"
    operations = [{"op": "replace", "path": "/spec/cordoned", "value": False}]
    changed = devices.patch(name="a", namespace=namespace, body=operations, content_type="application/json-patch+json")
    assert changed.spec.cordoned is False
    stale = made.to_dict()
    with pytest.raises(kubernetes.dynamic.exceptions.ConflictError):
        devices.replace(namespace=namespace, body=stale)
    with pytest.raises(kubernetes.dynamic.exceptions.NotFoundError):
        devices.get(name="nobody", namespace=namespace)
    with pytest.raises(kubernetes.dynamic.exceptions.UnprocessibleEntityError) as caught:
        devices.create(namespace=namespace, body=device("Not A Name"))
    assert "metadata.name" in str(caught.value.body)
    devices.delete(name="a", namespace=namespace)
    devices.delete(namespace=namespace, label_selector="tier=core")
    assert devices.get(namespace=namespace).items == []


def test_dynamic_watch_and_apply(dynamic: Any, namespace: str) -> None:
    deployments = dynamic.resources.get(api_version=API_VERSION, kind="ModelDeployment")
    start = deployments.get(namespace=namespace).metadata.resourceVersion
    applied = deployments.server_side_apply(namespace=namespace, body=deployment("a"), field_manager="one")
    assert applied.metadata.managedFields[0].manager == "one"
    with pytest.raises(kubernetes.dynamic.exceptions.ConflictError) as caught:
        deployments.server_side_apply(
            namespace=namespace, body=deployment("a", modelVersion="digits-2"), field_manager="two"
        )
    assert "FieldManagerConflict" in str(caught.value.body)
    deployments.server_side_apply(
        namespace=namespace, body=deployment("a", modelVersion="digits-2"), field_manager="two", force_conflicts=True
    )
    deployments.delete(name="a", namespace=namespace)
    seen = []
    for event in deployments.watch(namespace=namespace, resource_version=start, timeout=20):
        seen.append(event["type"])
        if event["type"] == "DELETED":
            break
    assert seen[0] == "ADDED"
    assert set(seen[1:-1]) == {"MODIFIED"}, "the hub writes its status, too"


def test_a_watch_of_the_official_client_begins_again_after_410(hub: HubProgram, dynamic: Any, namespace: str) -> None:
    """`watch.Watch` goes on by itself from what it saw, and tells of a revision that is no more."""
    custom = kubernetes.client.CustomObjectsApi(dynamic.client)
    group, version = API_VERSION.split("/")
    custom.create_namespaced_custom_object(group, version, namespace, "devices", device("a"))
    watch = kubernetes.watch.Watch()
    names = []
    for event in watch.stream(
        custom.list_namespaced_custom_object, group, version, namespace, "devices", timeout_seconds=10
    ):
        names.append((event["type"], event["object"]["metadata"]["name"]))
        if len(names) == 1:
            custom.create_namespaced_custom_object(group, version, namespace, "devices", device("b"))
        else:
            watch.stop()
    assert names == [("ADDED", "a"), ("ADDED", "b")]
    with pytest.raises(kubernetes.client.ApiException) as caught:
        for _ in watch.stream(
            custom.list_namespaced_custom_object,
            group,
            version,
            namespace,
            "devices",
            resource_version="99999999",
            timeout_seconds=10,
        ):
            pass
    assert caught.value.status == 410


def test_nodes_pods_and_namespaces_by_the_typed_client(dynamic: Any, namespace: str) -> None:
    devices = dynamic.resources.get(api_version=API_VERSION, kind="Device")
    devices.create(namespace=namespace, body=device("till"))
    core: Any = kubernetes.client.CoreV1Api(dynamic.client)
    assert f"till.{namespace}" in [node.metadata.name for node in core.list_node().items]
    assert core.list_namespaced_pod(namespace).items == []
    assert namespace in [item.metadata.name for item in core.list_namespace().items]
    assert kubernetes.client.VersionApi(dynamic.client).get_code().major == "1"


# --- lightkube ----------------------------------------------------------------------------------------------------


@pytest.fixture
def light(hub: HubProgram, namespace: str) -> Iterator[Any]:
    config = lightkube.KubeConfig.from_file(str(hub.kubeconfig))
    client = lightkube.Client(config=config, namespace=namespace, field_manager="skerry-tests")
    try:
        yield client
    finally:
        with contextlib.suppress(AttributeError):
            client._client._client.close()


@pytest.fixture(scope="module")
def kinds() -> tuple[Any, Any]:
    make = lightkube.generic_resource.create_namespaced_resource
    group, version = API_VERSION.split("/")
    return (
        make(group, version, "Device", "devices"),
        make(group, version, "ModelDeployment", "modeldeployments"),
    )


def test_lightkube_crud_and_patches(light: Any, kinds: tuple[Any, Any]) -> None:
    device_kind, _ = kinds
    light.create(device_kind.from_dict(device("a", tier="edge")))
    light.create(device_kind.from_dict(device("b", tier="core")))
    assert [item.metadata.name for item in light.list(device_kind, labels={"tier": "edge"})] == ["a"]
    assert [item.metadata.name for item in light.list(device_kind, chunk_size=1)] == ["a", "b"]
    light.patch(device_kind, "a", {"spec": {"cordoned": True}}, patch_type=PatchType.MERGE)
    operations = [{"op": "add", "path": "/metadata/labels/zone", "value": "z"}]
    changed = light.patch(device_kind, "a", operations, patch_type=PatchType.JSON)
    assert changed.metadata.labels == {"tier": "edge", "zone": "z"}
    assert light.patch(device_kind, "a", {"spec": {"cordoned": False}}).spec == {"cordoned": False, "link": {}}
    got = light.get(device_kind, "a")
    got.spec["cordoned"] = True
    assert light.replace(got).spec["cordoned"] is True
    with pytest.raises(ApiError) as caught:
        light.replace(got)  # it has the revision from before
    assert caught.value.status.reason == "Conflict"
    light.delete(device_kind, "a", cascade=CascadeType.FOREGROUND)
    light.deletecollection(device_kind)
    assert list(light.list(device_kind)) == []


def test_lightkube_watches_and_waits(light: Any, kinds: tuple[Any, Any]) -> None:
    device_kind, _ = kinds
    light.create(device_kind.from_dict(device("a")))

    def change() -> None:
        condition = {
            "type": "Ready",
            "status": "True",
            "reason": "Connected",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        light.patch(device_kind.Status, "a", {"status": {"conditions": [condition]}}, patch_type=PatchType.MERGE)

    later = threading.Timer(0.3, change)
    later.start()
    ready = light.wait(device_kind, "a", for_conditions=["Ready"])
    later.join()
    assert ready.status["conditions"][0]["reason"] == "Connected"
    for kind, found in light.watch(device_kind, server_timeout=10):
        assert (kind, found.metadata.name) == ("ADDED", "a")
        break


def test_a_set_is_applied_owned_and_pruned_as_gitops_does(light: Any, kinds: tuple[Any, Any], hub: HubProgram) -> None:
    """Apply a set with owner labels, find drift, put it right, take away what left the set."""
    _, deployment_kind = kinds
    owned = {MANAGER: "gitops", "instance": "shop"}

    def sync(*wanted: dict[str, Any]) -> None:
        names = {item["metadata"]["name"] for item in wanted}
        for item in wanted:
            light.apply(deployment_kind.from_dict(item), field_manager="gitops", force=True)
        for live in light.list(deployment_kind, labels=owned):
            if live.metadata.name not in names:
                light.delete(deployment_kind, live.metadata.name)

    sync(deployment("a", labels=owned), deployment("b", labels=owned))
    before = {item.metadata.name: item.metadata.generation for item in light.list(deployment_kind)}
    sync(deployment("a", labels=owned), deployment("b", labels=owned))
    assert {item.metadata.name: item.metadata.generation for item in light.list(deployment_kind)} == before
    light.patch(deployment_kind, "a", {"spec": {"modelVersion": "drifted"}}, patch_type=PatchType.MERGE)
    sync(deployment("a", labels=owned))
    (left,) = light.list(deployment_kind)
    assert (left.metadata.name, left.spec["modelVersion"]) == ("a", "digits-1")
    with pytest.raises(ApiError) as caught:
        light.apply(deployment_kind.from_dict(deployment("a", modelVersion="mine")), field_manager="somebody")
    told: Any = caught.value.status.details
    assert told.causes[0].field == ".spec.modelVersion"


def test_a_release_is_upgraded_and_rolled_back_as_helm_does(light: Any, kinds: tuple[Any, Any]) -> None:
    """Three-way merges on the client's side, sent as merge patches; what others set in between stays."""
    _, deployment_kind = kinds
    first = deployment("a", labels={MANAGER: "Helm"}, serving={"threads": 2})
    light.create(deployment_kind.from_dict(first))
    light.patch(deployment_kind, "a", {"metadata": {"labels": {"team": "shop"}}}, patch_type=PatchType.MERGE)
    upgrade = {"spec": {"modelVersion": "digits-2", "serving": {"threads": None}}}
    light.patch(deployment_kind, "a", upgrade, patch_type=PatchType.MERGE)
    after = light.get(deployment_kind, "a")
    assert (after.spec["modelVersion"], after.spec["serving"]["threads"]) == ("digits-2", 1)
    light.patch(deployment_kind, "a", {"spec": first["spec"]}, patch_type=PatchType.MERGE)
    after = light.get(deployment_kind, "a")
    assert (after.spec["modelVersion"], after.spec["serving"]["threads"]) == ("digits-1", 2)
    assert after.metadata.labels == {MANAGER: "Helm", "team": "shop"}


def test_metadata_alone_and_tables_over_a_watch(hub: HubProgram, namespace: str) -> None:
    """What metadata informers and dashboards ask for."""
    where = f"/apis/{API_VERSION}/namespaces/{namespace}/devices"
    forms = {
        "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json": "PartialObjectMetadata",
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json": "Table",
    }
    with hub.client() as client:
        client.post(where, json=device("a", tier="edge"))
        for accept, kind in forms.items():
            parameters = {
                "watch": "1",
                "timeoutSeconds": "10",
                "allowWatchBookmarks": "true",
                "sendInitialEvents": "true",
            }
            parameters["resourceVersionMatch"] = "NotOlderThan"
            with client.stream("GET", where, params=parameters, headers={"accept": accept}) as answer:
                lines = answer.iter_lines()
                added, mark = json.loads(next(lines)), json.loads(next(lines))
            assert (added["type"], added["object"]["kind"]) == ("ADDED", kind)
            shown = added["object"] if kind != "Table" else added["object"]["rows"][0]["object"]
            assert shown["metadata"]["labels"] == {"tier": "edge"}
            assert "spec" not in shown
            assert (mark["type"], mark["object"]["kind"]) == ("BOOKMARK", kind)
