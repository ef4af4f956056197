"""Kinds of other groups, and kinds in no namespace, with the real kubectl."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.integration.api.kubectl import KUBECTL, Run

from skerry.api import codec
from skerry.api.errors import InvalidError
from skerry.api.kinds.rbac import ClusterRole, Role

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")

RBAC = "rbac.authorization.k8s.io/v1"


def cluster_role(name: str, *verbs: str) -> dict[str, Any]:
    return {
        "apiVersion": RBAC,
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": [{"apiGroups": ["skerry.dev"], "resources": ["devices"], "verbs": list(verbs)}],
    }


def role(name: str, *verbs: str) -> dict[str, Any]:
    return {**cluster_role(name, *verbs), "kind": "Role"}


def test_what_there_is(kubectl: Run) -> None:
    lines = {line.split()[0]: line.split()[1:] for line in kubectl("api-resources").stdout.splitlines()[1:]}
    assert lines["roles"] == [RBAC, "true", "Role"]
    assert lines["clusterroles"] == [RBAC, "false", "ClusterRole"]
    assert lines["serviceaccounts"] == ["sa", "v1", "true", "ServiceAccount"]
    assert lines["certificatesigningrequests"] == [
        "csr",
        "certificates.k8s.io/v1",
        "false",
        "CertificateSigningRequest",
    ]
    assert {RBAC, "v1", "skerry.dev/v1alpha1"} <= set(kubectl("api-versions").stdout.split())


def test_a_role_lives(kubectl: Run, namespace: str) -> None:
    made = kubectl("create", "-f", "-", text=codec.to_yaml(role("reader", "get", "list")))
    assert made.stdout == "role.rbac.authorization.k8s.io/reader created\n"
    assert kubectl("get", "roles").stdout.splitlines()[0].split() == ["NAME", "CREATED", "AT"]
    shown = json.loads(kubectl("get", "role", "reader", "-o", "json").stdout)
    assert shown["rules"] == [{"verbs": ["get", "list"], "apiGroups": ["skerry.dev"], "resources": ["devices"]}]
    assert shown["metadata"]["namespace"] == namespace
    assert not {"spec", "status"} & shown.keys()
    assert "generation" not in shown["metadata"], "Kubernetes counts no generations of roles"
    kubectl(
        "patch",
        "role",
        "reader",
        "--type=merge",
        "-p",
        '{"rules":[{"apiGroups":["*"],"resources":["*"],"verbs":["get"]}]}',
    )
    assert '"resources":["*"]' in kubectl("get", "role", "reader", "-o", "jsonpath={.rules}").stdout
    assert "devices" not in kubectl("describe", "role", "reader").stdout
    kubectl("delete", "role", "reader")
    assert "NotFound" in kubectl("get", "role", "reader", fails=True).stderr


def test_a_cluster_role_lives(hub: Hub, kubectl: Run, namespace: str) -> None:
    name = f"system:{namespace}:reader"
    text = codec.to_yaml(cluster_role(name, "get"))
    assert kubectl("get", "clusterroles", "-o", "name").stdout.count(name) == 0
    assert "serverside-applied" in kubectl("apply", "--server-side", "-f", "-", text=text).stdout
    role = json.loads(kubectl("get", "clusterrole", name, "-o", "json", "--show-managed-fields").stdout)
    assert "namespace" not in role["metadata"]
    assert role["metadata"]["managedFields"][0]["apiVersion"] == RBAC
    changed = codec.to_yaml(cluster_role(name, "get", "watch"))
    conflict = kubectl("apply", "--server-side", "--field-manager=other", "-f", "-", text=changed, fails=True)
    assert f"using {RBAC}" in conflict.stderr
    kubectl("label", "clusterrole", name, "site=lab")
    assert kubectl("get", "clusterroles", "-l", "site=lab", "-o", "name").stdout.strip().endswith(name)
    kubectl("delete", "clusterrole", name)
    with hub.client(namespace) as client:
        for path in (
            f"/apis/{RBAC}/namespaces/{namespace}/clusterroles",
            f"/apis/{RBAC}/roles/x",
            "/apis/none.dev/v1/x",
        ):
            assert client.http.get(path).status_code == 404, path
        assert client.http.post(f"/apis/{RBAC}/roles", json={}).status_code == 405


def test_a_binding_is_bound_for_good(kubectl: Run, namespace: str) -> None:
    binding = {
        "apiVersion": RBAC,
        "kind": "RoleBinding",
        "metadata": {"name": "ops"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "alice"},
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "ops"},
            {"kind": "ServiceAccount", "namespace": "a", "name": "ci"},
        ],
    }
    kubectl("create", "-f", "-", text=codec.to_yaml(binding))
    header, row = kubectl("get", "rolebindings", "-o", "wide").stdout.splitlines()
    assert header.split() == ["NAME", "ROLE", "AGE", "USERS", "GROUPS", "SERVICEACCOUNTS"]
    assert [row.split()[i] for i in (0, 1, 3, 4, 5)] == ["ops", "ClusterRole/view", "alice", "ops", "a/ci"]
    change = '{"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"admin"}}'
    refused = kubectl("patch", "rolebinding", "ops", "--type=merge", "-p", change, fails=True).stderr
    assert "roleRef.name" in refused
    assert "immutable" in refused


def test_two_scopes_do_not_meet_in_the_store(hub: Hub, namespace: str, kubectl: Run) -> None:
    """A cluster role may be named as a namespace is, and as a store key of one would begin."""
    for name in (namespace, f"{namespace}:reader"):
        kubectl("create", "-f", "-", text=codec.to_yaml(cluster_role(name, "get")))
    kubectl("create", "-f", "-", text=codec.to_yaml(role("reader", "get")))
    with hub.client(namespace) as client:
        listed = client.http.get(f"/apis/{RBAC}/clusterroles").json()["items"]
        assert [item["kind"] for item in listed if namespace in item["metadata"]["name"]] == ["ClusterRole"] * 2
        assert [i["kind"] for i in client.http.get(f"/apis/{RBAC}/namespaces/{namespace}/roles").json()["items"]] == [
            "Role"
        ]


def test_our_own_client(hub: Hub, namespace: str) -> None:
    name = f"{namespace}:#a?b&c"
    with hub.client(namespace) as client:
        assert client.apply(cluster_role(name, "get")) == "created"
        assert client.apply(cluster_role(name, "get")) == "unchanged"
        assert client.apply(cluster_role(name, "list")) == "configured"
        assert client.get(ClusterRole, name).rules[0].verbs == ["list"]
        assert client.table(ClusterRole, name=name)["rows"][0]["cells"][0] == name
        assert client.apply(role("reader", "get")) == "created"
        assert [item.metadata.name for item in client.list(Role)] == ["reader"]
        client.delete(ClusterRole, name)
        for wrong in ("a/b", "..", "a%2fb", "a b", ""):
            with pytest.raises(InvalidError):
                client.get(ClusterRole, wrong)


def test_kubectl_explains_and_validates(kubectl: Run) -> None:
    assert "FIELDS" in kubectl("explain", "clusterrole.rules").stdout
    wrong = codec.to_yaml({**cluster_role("x", "get"), "rulez": []})
    assert "rulez: is not a field" in kubectl("create", "-f", "-", text=wrong, fails=True).stderr


def test_a_watch_of_cluster_roles(kubectl: Run, hub: Hub, namespace: str) -> None:
    with hub.client(namespace) as client:
        version = client.http.get(f"/apis/{RBAC}/clusterroles").json()["metadata"]["resourceVersion"]
        kubectl("create", "-f", "-", text=codec.to_yaml(cluster_role(f"{namespace}-a", "get")))
        with client.http.stream("GET", f"/apis/{RBAC}/clusterroles?watch=1&resourceVersion={version}") as stream:
            event = json.loads(next(stream.iter_lines()))
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", f"{namespace}-a")


def test_an_event_in_both_its_groups_words(kubectl: Run, hub: Hub, namespace: str) -> None:
    told = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "till-7.1"},
        "eventTime": "2026-01-31T12:00:00.123456Z",
        "reportingController": "example.com/door",
        "reportingInstance": "door-1",
        "action": "Opened",
        "reason": "DoorOpened",
        "regarding": {
            "apiVersion": "skerry.dev/v1alpha1",
            "kind": "Device",
            "name": "till-7",
            "namespace": namespace,
        },
        "note": "the door is open",
        "type": "Warning",
    }
    kubectl("create", "-f", "-", text=codec.to_yaml(told))
    kept = json.loads(kubectl("get", "events", "-o", "json").stdout)["items"][0]
    assert (kept["apiVersion"], kept["involvedObject"]["name"], kept["message"]) == ("v1", "till-7", "the door is open")
    assert kept["reportingComponent"] == "example.com/door"
    shown = json.loads(kubectl("get", "events.events.k8s.io", "till-7.1", "-o", "json").stdout)
    assert {key: shown[key] for key in told if key != "metadata"} == {k: v for k, v in told.items() if k != "metadata"}
    for word in ("events", "events.events.k8s.io"):
        header, row = kubectl("get", word).stdout.splitlines()
        assert header.split() == ["LAST", "SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"]
        assert row.split()[1:4] == ["Warning", "DoorOpened", "device/till-7"]
        assert "the door is open" in row
    assert "DoorOpened" in kubectl("events", "--for", "device/till-7").stdout
    chosen = kubectl("get", "events.v1.events.k8s.io", "--field-selector", "regarding.name=till-7", "-o", "name").stdout
    assert chosen == "event.events.k8s.io/till-7.1\n"
    wrong = {**told, "regarding": {"kind": "Device", "name": "x", "namespace": "other"}}
    assert "regarding.namespace" in kubectl("create", "-f", "-", text=codec.to_yaml(wrong), fails=True).stderr
    with hub.client(namespace) as client:
        path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
        version = client.http.get(path).json()["metadata"]["resourceVersion"]
        kubectl("delete", "event", "till-7.1")
        with client.http.stream("GET", f"{path}?watch=1&resourceVersion={version}") as stream:
            event = json.loads(next(stream.iter_lines()))
    assert (event["type"], event["object"]["note"]) == ("DELETED", "the door is open")
