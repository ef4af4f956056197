"""What kubectl has types for, it sends as protocol buffers: created with its own generators, and read back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.integration.api.kubectl import KUBECTL, Run

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

RBAC = "rbac.authorization.k8s.io"
TYPE = {"Content-Type": "application/vnd.kubernetes.protobuf"}

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")


def shown(kubectl: Run, *what: str) -> Any:
    raw = json.loads(kubectl("get", *what, "-o", "json").stdout)
    return {key: value for key, value in raw.items() if key not in ("metadata", "apiVersion", "kind")}


@needs_kubectl
def test_roles(kubectl: Run, namespace: str) -> None:
    kubectl("create", "role", "reader", "--verb=get,list", "--resource=devices,devices/log", "--resource-name=till-7")
    assert shown(kubectl, "role", "reader") == {
        "rules": [
            {
                "verbs": ["get", "list"],
                "apiGroups": ["skerry.dev"],
                "resources": ["devices", "devices/log"],
                "resourceNames": ["till-7"],
            }
        ]
    }
    kubectl("create", "clusterrole", f"{namespace}:ready", "--verb=get", "--non-resource-url=/readyz")
    rule = {"verbs": ["get"], "nonResourceURLs": ["/readyz"]}
    assert shown(kubectl, "clusterrole", f"{namespace}:ready") == {"rules": [rule]}
    kubectl("create", "clusterrole", f"{namespace}:sum", "--aggregation-rule=skerry.dev/sum=yes,a=b")
    selector = {"matchLabels": {"skerry.dev/sum": "yes", "a": "b"}}
    assert shown(kubectl, "clusterrole", f"{namespace}:sum")["aggregationRule"] == {"clusterRoleSelectors": [selector]}
    core = kubectl("create", "role", "core", "--verb=get", "--resource=pods")
    assert core.stdout == f"role.{RBAC}/core created\n"
    assert shown(kubectl, "role", "core")["rules"][0]["apiGroups"] == [""]


@needs_kubectl
def test_bindings(kubectl: Run) -> None:
    kubectl(
        "create", "rolebinding", "ops", "--clusterrole=view", "--user=alice", "--group=ops", "--serviceaccount=a:ci"
    )
    bound = shown(kubectl, "rolebinding", "ops")
    assert bound["roleRef"] == {"apiGroup": RBAC, "kind": "ClusterRole", "name": "view"}
    assert bound["subjects"] == [
        {"kind": "User", "apiGroup": RBAC, "name": "alice"},
        {"kind": "Group", "apiGroup": RBAC, "name": "ops"},
        {"kind": "ServiceAccount", "name": "ci", "namespace": "a"},
    ]


@needs_kubectl
def test_a_service_account(kubectl: Run) -> None:
    assert kubectl("create", "serviceaccount", "ci").stdout == "serviceaccount/ci created\n"
    header, row = kubectl("get", "sa").stdout.splitlines()
    assert (header.split(), row.split()[:2]) == (["NAME", "SECRETS", "AGE"], ["ci", "0"])
    assert "created (server dry run)" in kubectl("create", "sa", "other", "--dry-run=server").stdout
    assert "NotFound" in kubectl("get", "sa", "other", fails=True).stderr
    kubectl("delete", "sa", "ci")


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        (b"{}", 400, "BadRequest"),
        (b"", 400, "BadRequest"),
        (b"k8s\x00", 415, "UnsupportedMediaType"),
        (b"k8s\x00\x0a\xff", 400, "BadRequest"),
        (b"k8s\x00\x0a\x0a\x0a\x02v1\x12\x04Pods", 415, "UnsupportedMediaType"),
        (b"k8s\x00\x0a\x14\x0a\x02v1\x12\x0eServiceAccount", 422, "Invalid"),
        (b"k8s\x00\x0a\x14\x0a\x02v1\x12\x0eServiceAccount\x12\x04\x0a\x02\x0a\xff", 400, "BadRequest"),
    ],
)
def test_bodies_that_are_none(hub: Hub, namespace: str, body: bytes, code: int, reason: str) -> None:
    with hub.client(namespace) as client:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        answer: httpx.Response = client.http.post(path, content=body, headers=TYPE)
    assert (answer.status_code, answer.json()["reason"]) == (code, reason)


def test_our_own_kinds_have_no_such_form(hub: Hub, namespace: str) -> None:
    with hub.client(namespace) as client:
        path = f"/apis/skerry.dev/v1alpha1/namespaces/{namespace}/modeldeployments"
        assert client.http.post(path, content=b"k8s\x00", headers=TYPE).status_code == 415
