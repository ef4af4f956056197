"""Lists over TLS against a real store: pages, selectors, tables, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.integration.api.paths import TABLE, Make, path, status

from skerry.api.kinds.device import Device
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.drivers.client.api import HubClient

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub


def test_pages_are_of_one_revision(hub: Hub, admin: HubClient) -> None:
    for number in range(7):
        hub.add_device(admin.namespace, f"d{number}", parity="even" if number % 2 == 0 else "odd")
    where, names, token, revisions = path(admin.namespace, "devices"), [], "", set()
    first = True
    while token or first:
        page = admin.http.get(where, params={"limit": "3", **({"continue": token} if token else {})}).json()
        names += [item["metadata"]["name"] for item in page["items"]]
        revisions.add(page["metadata"]["resourceVersion"])
        token = page["metadata"].get("continue", "")
        if first:
            assert page["metadata"]["remainingItemCount"] == 4
            hub.add_device(admin.namespace, "d9")
            admin.delete(Device, "d5")
            first = False
    assert names == [f"d{number}" for number in range(7)]
    assert len(revisions) == 1


def test_selectors_fill_whole_pages(hub: Hub, admin: HubClient) -> None:
    for number in range(9):
        hub.add_device(admin.namespace, f"d{number}", parity="even" if number % 2 == 0 else "odd")
    where = path(admin.namespace, "devices")
    names, token = [], "-"
    while token:
        parameters = {"limit": "2", "labelSelector": "parity in (odd)", "continue": token.strip("-")}
        page = admin.http.get(where, params={key: value for key, value in parameters.items() if value}).json()
        token = page["metadata"].get("continue", "")
        assert len(page["items"]) == 2 or not token  # the last page may be empty, as with Kubernetes
        assert "remainingItemCount" not in page["metadata"]
        names += [item["metadata"]["name"] for item in page["items"]]
    assert names == ["d1", "d3", "d5", "d7"]


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("metadata.name=d1", ["d1"]),
        ("metadata.name=nope", []),
        ("metadata.name!=d1", ["d0", "d2"]),
        ("status.phase=Online", ["d0", "d1", "d2"]),
        ("status.phase!=Online", []),
        ("metadata.name=d1,status.phase=Offline", []),
    ],
)
def test_field_selectors(hub: Hub, admin: HubClient, selector: str, found: list[str]) -> None:
    for number in range(3):
        hub.add_device(admin.namespace, f"d{number}")
    page = admin.list(Device, fields=selector)
    assert [item.metadata.name for item in page] == found


def test_a_list_can_be_of_an_earlier_revision(hub: Hub, admin: HubClient) -> None:
    before = hub.add_device(admin.namespace, "a").metadata.resource_version
    hub.add_device(admin.namespace, "b")
    where = path(admin.namespace, "devices")
    exact = admin.http.get(where, params={"resourceVersion": before, "resourceVersionMatch": "Exact"}).json()
    assert [item["metadata"]["name"] for item in exact["items"]] == ["a"]
    newer = admin.http.get(where, params={"resourceVersion": before}).json()
    assert len(newer["items"]) == 2
    future = admin.http.get(where, params={"resourceVersion": str(10**9)})
    assert "Too large resource version" in status(future, 504, "Timeout")["message"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"limit": "-1"},
        {"limit": "x"},
        {"limit": "٣"},
        {"continue": "x"},
        {"continue": "AAAA"},
        {"labelSelector": "a=b=c"},
        {"labelSelector": "x" * 5000},
        {"fieldSelector": "spec.cordoned=true"},
        {"fieldSelector": "metadata.name"},
        {"resourceVersion": "-3"},
        {"watch": "maybe"},
        {"watch": "1", "timeoutSeconds": "soon"},
        {"watch": "1", "resourceVersion": "abc"},
        {"watch": "1", "labelSelector": "a=b=c"},
    ],
)
def test_bad_parameters_are_named(admin: HubClient, parameters: dict[str, str]) -> None:
    body = status(admin.http.get(path(admin.namespace, "devices"), params=parameters), 400, "BadRequest")
    assert body["details"]["causes"][0]["field"]


def test_a_continue_token_of_another_list_is_refused(hub: Hub, admin: HubClient) -> None:
    for name in ("a", "b"):
        hub.add_device(admin.namespace, name)
    token = admin.http.get(path(admin.namespace, "devices"), params={"limit": "1"}).json()["metadata"]["continue"]
    for where in (path("other", "devices"), path(admin.namespace, "rollouts")):
        status(admin.http.get(where, params={"continue": token}), 400, "BadRequest")


def test_a_list_over_all_namespaces(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "here", mark=admin.namespace)
    hub.add_device(f"{admin.namespace}-b", "there", mark=admin.namespace)
    found = admin.list(Device, labels=f"mark={admin.namespace}", everywhere=True)
    assert sorted(device.metadata.namespace for device in found) == [admin.namespace, f"{admin.namespace}-b"]
    names = admin.http.get("/api/v1/namespaces").json()["items"]
    assert {admin.namespace, f"{admin.namespace}-b", "default"} <= {item["metadata"]["name"] for item in names}


def test_tables(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "till-7", site="lab")
    table = admin.table(Device)
    columns = [column["name"] for column in table["columnDefinitions"]]
    cells = dict(zip(columns, table["rows"][0]["cells"], strict=True))
    assert cells["Name"] == "till-7"
    assert (cells["STATUS"], cells["ARCH"], cells["MEMORY"]) == ("Online", "arm64", "72.0 MiB")
    assert cells["ENGINES"] == "onnxruntime,litert"
    assert cells["VARIANT"] == "<none>"
    assert table["rows"][0]["object"]["metadata"]["labels"] == {"site": "lab"}
    whole = admin.http.get(
        path(admin.namespace, "devices", "till-7"), headers={"accept": TABLE}, params={"includeObject": "Object"}
    ).json()
    assert whole["rows"][0]["object"]["status"]["phase"] == "Online"
    partial = {"accept": "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"}
    listed = admin.http.get(path(admin.namespace, "devices"), headers=partial).json()
    assert (listed["kind"], set(listed["items"][0])) == (
        "PartialObjectMetadataList",
        {"kind", "apiVersion", "metadata"},
    )


def test_head_answers_like_get_without_a_body(hub: Hub, admin: HubClient) -> None:
    hub.add_device(admin.namespace, "a")
    for parameters in ({}, {"watch": "true"}):
        answer = admin.http.head(path(admin.namespace, "devices"), params=parameters)
        assert (answer.status_code, answer.content) == (200, b"")


def test_a_selection_is_deleted_at_once(hub: Hub, admin: HubClient, deployment: Make) -> None:
    for name, site in (("a", "lab"), ("b", "shop"), ("c", "lab")):
        hub.add_device(admin.namespace, name, site=site)
    raw = deployment("kept")
    raw["metadata"]["finalizers"] = ["example.com/hold"]
    admin.create(raw, ModelDeployment)
    admin.create(deployment("gone"), ModelDeployment)
    devices, deployments = path(admin.namespace, "devices"), path(admin.namespace, "modeldeployments")
    tried = admin.http.request("DELETE", devices, params={"labelSelector": "site=lab", "dryRun": "All"}).json()
    assert [item["metadata"]["name"] for item in tried["items"]] == ["a", "c"]
    assert len(admin.list(Device)) == 3
    done = admin.http.request("DELETE", devices, params={"labelSelector": "site=lab"}).json()
    assert (done["kind"], [item["metadata"]["name"] for item in done["items"]]) == ("DeviceList", ["a", "c"])
    assert [device.metadata.name for device in admin.list(Device)] == ["b"]
    done = admin.http.request("DELETE", deployments).json()
    assert [item["metadata"]["name"] for item in done["items"]] == ["gone", "kept"]
    (left,) = admin.list(ModelDeployment)
    assert left.metadata.deletion_timestamp is not None, "it waits for its finalizer"
    status(admin.http.request("DELETE", devices, params={"labelSelector": "a b"}), 400, "BadRequest")
    for where in (devices, f"{devices}/b", path(admin.namespace, "rollouts")):
        status(admin.http.request("DELETE", where, params={"dryRun": "all"}), 400, "BadRequest")
        status(admin.http.request("DELETE", where, json={"dryRun": ["Server"]}), 400, "BadRequest")
    assert len(admin.list(Device)) == 1, "a word that is not known deletes nothing"
