"""Finalizers of what is being deleted: they can only become fewer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.integration.api.paths import Make, path, status

from skerry.api.kinds.device import Device
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.drivers.client.api import HubClient

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

APPLY = "application/apply-patch+yaml"


@pytest.fixture
def going(admin: HubClient, deployment: Make) -> str:
    """A deployment that waits for its finalizer, and where it is."""
    raw = deployment("going")
    raw["metadata"]["finalizers"] = ["example.com/hold"]
    admin.create(raw, ModelDeployment)
    where = path(admin.namespace, "modeldeployments", "going")
    assert admin.http.request("DELETE", where).json()["metadata"]["deletionTimestamp"]
    return where


def changed(admin: HubClient, where: str, way: str, finalizers: list[str]) -> httpx.Response:
    current: dict[str, Any] = admin.http.get(where).json()
    change: dict[str, Any] = {"metadata": {"finalizers": finalizers}}
    match way:
        case "put":
            return admin.http.put(
                where, json={**current, "metadata": {**current["metadata"], "finalizers": finalizers}}
            )
        case "apply":
            whole = {"apiVersion": current["apiVersion"], "kind": current["kind"], **change, "spec": current["spec"]}
            query = {"fieldManager": "me", "force": "true"}
            return admin.http.patch(where, json=whole, headers={"content-type": APPLY}, params=query)
        case _:
            return admin.http.patch(where, json=change, headers={"content-type": "application/merge-patch+json"})


@pytest.mark.parametrize("way", ["put", "merge", "apply"])
def test_no_new_ones(admin: HubClient, going: str, way: str) -> None:
    body = status(changed(admin, going, way, ["example.com/hold", "example.com/new"]), 422, "Invalid")
    (cause,) = body["details"]["causes"]
    assert (cause["field"], cause["reason"]) == ("metadata.finalizers", "FieldValueForbidden")
    assert cause["message"] == (
        "Forbidden: no new finalizers can be added if the object is being deleted, "
        'found new finalizers []string{"example.com/new"}'
    )
    assert admin.http.get(going).json()["metadata"]["finalizers"] == ["example.com/hold"]


@pytest.mark.parametrize("way", ["put", "merge"])
def test_the_last_one_lets_it_go(admin: HubClient, going: str, way: str) -> None:
    assert changed(admin, going, way, ["example.com/hold"]).status_code == 200
    assert changed(admin, going, way, []).status_code == 200
    status(admin.http.get(going), 404, "NotFound")


@pytest.mark.parametrize("of", ["metadata", "spec"])
def test_a_namespaces_finalizers_end_by_a_path_of_their_own(hub: Hub, admin: HubClient, of: str) -> None:
    where = f"/api/v1/namespaces/{admin.namespace}"
    hub.add_device(admin.namespace, "till-7")
    current = admin.http.get(where).json()
    current["metadata"]["finalizers"] = ["example.com/hold"]
    current["spec"]["finalizers"] = ["kubernetes"]
    assert admin.http.put(where, json=current).status_code == 200
    going = admin.http.request("DELETE", where).json()
    assert going["status"]["phase"] == "Terminating"
    going[of]["finalizers"] = []
    answer = admin.http.put(f"{where}/finalize", json=going)
    assert (answer.status_code, answer.json()["kind"]) == (200, "Namespace")
    if of == "spec":
        assert admin.http.get(where).json()["metadata"]["finalizers"] == ["example.com/hold"]
        assert admin.http.get(where).json()["spec"].get("finalizers", []) == []
        going = admin.http.get(where).json()
        going["metadata"]["finalizers"] = []
        admin.http.put(f"{where}/finalize", json=going)
    status(admin.http.get(where), 404, "NotFound")
    assert not admin.list(Device)
    status(admin.http.put(f"{where}/finalize", json=going), 404, "NotFound")
    status(admin.http.get(f"{where}/finalize"), 405, "MethodNotAllowed")
