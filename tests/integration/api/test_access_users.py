"""What users may do, by their roles: at once when it is granted, not when it is taken, and in Kubernetes' words."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from tests.integration.api.conftest import Hub
from tests.integration.api.people import ROLES, SKERRY, People, document, place, rule

from skerry.hub.server.call import MAX_DEVICE_BODY_BYTES

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def people(hub: Hub) -> Iterator[People]:
    made = People(hub)
    yield made
    made.close()


@pytest.fixture
def alice() -> str:
    """A name that no other test has granted anything."""
    return f"alice-{next(_numbers)}"


def devices(namespace: str, name: str = "") -> str:
    return f"{SKERRY}/namespaces/{namespace}/devices" + (f"/{name}" if name else "")


def test_nobody_may_anything_until_it_is_granted_and_then_at_once(people: People, namespace: str, alice: str) -> None:
    client = people.user(alice)
    people.hub.add_device(namespace, "till-1")
    for _ in range(20):
        assert client.get(devices(namespace)).status_code == 403
        people.grant(alice, namespace, rule(["get", "list"], ["devices"]))
        assert client.get(devices(namespace)).status_code == 200
        assert client.get(devices(namespace, "till-1")).json()["metadata"]["name"] == "till-1"
        assert people.admin.delete(place("RoleBinding", namespace) + "/granted").status_code == 200
        assert client.get(devices(namespace)).status_code == 403
        assert people.admin.delete(place("Role", namespace) + "/granted").status_code == 200


def test_a_changed_role_counts_at_once(people: People, namespace: str, alice: str) -> None:
    client = people.user(alice)
    people.grant(alice, namespace, rule(["list"], ["devices"]))
    role = place("Role", namespace) + "/granted"
    for number in range(20):
        verbs = ["watch"] if number % 2 else ["list"]
        patched = people.admin.patch(
            role,
            json={"rules": [rule(verbs, ["devices"])]},
            headers={"content-type": "application/merge-patch+json"},
        )
        assert patched.status_code == 200
        assert client.get(devices(namespace)).status_code == (403 if number % 2 else 200)


def test_rights_in_one_namespace_are_none_in_another(people: People, namespace: str, alice: str) -> None:
    client = people.user(alice)
    people.bind(alice, namespace, "ClusterRole", "cluster-admin", called="all-here")
    assert client.get(devices(namespace)).status_code == 200
    for path in (
        devices("default"),
        f"{SKERRY}/devices",
        "/api/v1/nodes",
        "/api/v1/pods",
        f"{ROLES}/clusterroles",
        f"{ROLES}/namespaces/default/roles",
        "/metrics",
    ):
        assert client.get(path).status_code == 403, path


def test_the_refusal_is_kubernetes_and_tells_the_role_that_helps(people: People, namespace: str, alice: str) -> None:
    client = people.user(alice)
    status = client.get(devices(namespace, "x")).json()
    assert status["message"] == (
        f'devices.skerry.dev "x" is forbidden: User "{alice}" cannot get resource "devices" in API group "skerry.dev" '
        f'in the namespace "{namespace}"'
    )
    assert (status["reason"], status["code"]) == ("Forbidden", 403)
    assert status["details"]["name"] == "x"
    assert (status["details"]["group"], status["details"]["kind"]) == ("skerry.dev", "devices")
    assert "skerry-viewer" in status["details"]["causes"][0]["hint"]

    def message(path: str, method: str = "GET") -> str:
        text: str = client.request(method, path).json()["message"]
        return text

    assert message(f"{SKERRY}/devices").endswith(
        "devices.skerry.dev is forbidden: "
        f'User "{alice}" cannot list resource "devices" in API group "skerry.dev" at the cluster scope'
    )
    assert 'resource "devices/log" in API group "skerry.dev"' in message(f"{devices(namespace, 'x')}/log")
    assert "pods is forbidden: " in message("/api/v1/pods")
    assert 'cannot deletecollection resource "devices"' in message(devices(namespace), "DELETE")
    assert message("/metrics") == f'forbidden: User "{alice}" cannot get path "/metrics"'


def test_everybody_who_has_logged_in_may_discover_and_ask(people: People, alice: str) -> None:
    client = people.user(alice)
    for path in ("/api", "/apis", "/apis/skerry.dev", SKERRY, "/openapi/v3", "/version", "/healthz"):
        assert client.get(path).status_code == 200, path


def test_a_user_is_read_as_an_admin_is(
    people: People, namespace: str, alice: str, deployment: Callable[..., dict[str, Any]]
) -> None:
    client = people.user(alice)
    people.bind(alice, namespace, "ClusterRole", "skerry-operator", called="operator")
    made = client.post(
        f"{SKERRY}/namespaces/{namespace}/modeldeployments",
        content=yaml.safe_dump(deployment()) + "# " + "x" * MAX_DEVICE_BODY_BYTES,
        headers={"content-type": "application/yaml"},
    )
    assert made.status_code == 201, made.text
    strict = client.post(
        f"{SKERRY}/namespaces/{namespace}/modeldeployments",
        json=deployment("other", modelVersoin="x"),
    )
    assert strict.status_code == 422
    assert "modelVersoin" in strict.text


SHIPPED = [
    ("skerry-viewer", "GET", "devices", 200),
    ("skerry-viewer", "GET", "modelversions", 200),
    ("skerry-viewer", "GET", "jointokens", 403),
    ("skerry-viewer", "GET", "registrytokens", 403),
    ("skerry-viewer", "DELETE", "devices", 403),
    ("skerry-viewer", "POST", "modeldeployments", 403),
    ("skerry-operator", "DELETE", "devices", 200),
    ("skerry-operator", "GET", "jointokens", 200),
    ("skerry-operator", "DELETE", "modelversions", 403),
    ("skerry-operator", "DELETE", "trustpolicies", 403),
    ("skerry-model-publisher", "DELETE", "modelversions", 200),
    ("skerry-model-publisher", "GET", "devices", 403),
    ("skerry-model-publisher", "DELETE", "modeldeployments", 403),
    ("skerry-admin", "DELETE", "trustpolicies", 200),
    ("view", "GET", "devices", 200),
    ("view", "DELETE", "devices", 403),
    ("edit", "DELETE", "devices", 200),
    ("edit", "DELETE", "modelversions", 200),
    ("edit", "DELETE", "trustpolicies", 403),
    ("admin", "DELETE", "trustpolicies", 200),
]


def test_the_shipped_roles(people: People, namespace: str, alice: str) -> None:
    for role in dict.fromkeys(role for role, *_ in SHIPPED):
        client = people.user(f"{alice}-{role}")
        people.bind(f"{alice}-{role}", namespace, "ClusterRole", role, called=role)
        for name, method, plural, code in SHIPPED:
            if name == role:
                answer = client.request(method, f"{SKERRY}/namespaces/{namespace}/{plural}")
                assert answer.status_code == code, (name, method, plural, answer.text)
        assert client.get(devices("default")).status_code == 403


def test_an_aggregating_role_shows_what_it_aggregates_and_follows_labels(
    people: People, namespace: str, alice: str
) -> None:
    client = people.user(alice)
    people.bind(alice, namespace, "ClusterRole", "view", called="viewing")
    tokens = f"{SKERRY}/namespaces/{namespace}/jointokens"
    assert client.get(tokens).status_code == 403
    label = {"rbac.authorization.k8s.io/aggregate-to-view": "true"}
    more = document("ClusterRole", f"more-{alice}", rules=[rule(["list"], ["jointokens"])])
    more["metadata"]["labels"] = label
    assert people.admin.post(place("ClusterRole", ""), json=more).status_code == 201
    assert client.get(tokens).status_code == 200
    assert people.admin.delete(f"{place('ClusterRole', '')}/more-{alice}").status_code == 200
    assert client.get(tokens).status_code == 403
    shown = people.admin.get(f"{place('ClusterRole', '')}/edit").json()
    assert any("modeldeployments" in one["resources"] for one in shown["rules"])


def test_readers_of_tokens_learn_no_secret(people: People, namespace: str, alice: str) -> None:
    people.grant(alice, namespace, rule(["get", "list", "watch"], ["jointokens", "registrytokens"]))
    client = people.user(alice)
    for kind, plural in (("JoinToken", "jointokens"), ("RegistryToken", "registrytokens")):
        at = f"{SKERRY}/namespaces/{namespace}/{plural}"
        made = people.admin.post(
            at, json={"apiVersion": "skerry.dev/v1alpha1", "kind": kind, "metadata": {}, "spec": {}}
        )
        assert made.status_code == 201, made.text
        token, name = made.json()["status"]["token"], made.json()["metadata"]["name"]
        secret = max(token.split("."), key=len) if kind == "RegistryToken" else token.split(".")[2]
        for answer in (client.get(at), client.get(f"{at}/{name}"), client.get(f"{at}/{name}/status")):
            assert answer.status_code in (200, 403)
            assert token not in answer.text
            assert secret not in answer.text


def test_a_role_that_cannot_be_read_is_left_out_and_the_others_count(
    people: People, namespace: str, alice: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = people.user(alice)
    people.grant(alice, namespace, rule(["list"], ["devices"]), name="good")
    people.grant(alice, namespace, rule(["list"], ["rollouts"]), name="bad")
    rollouts = f"{SKERRY}/namespaces/{namespace}/rollouts"
    assert client.get(rollouts).status_code == 200
    store = people.hub.objects.store
    key = f"roles.rbac.authorization.k8s.io/{namespace}/bad"

    async def damage() -> None:
        record = await store.get(key)
        assert record is not None
        await store.update(key, b'{"rules": [{"verbs": "*"', expected=record.revision)

    people.hub.call(damage())
    # what was written past the API arrives by the watch
    while client.get(rollouts).status_code == 200:
        pass
    assert client.get(rollouts).status_code == 403
    assert client.get(devices(namespace)).status_code == 200
    assert any("informer.unreadable" in record.message for record in caplog.records)
    people.hub.call(store.delete(key))


def names_of(answer: Any) -> list[str]:
    return sorted(item["metadata"]["name"] for item in answer.json()["items"])


def test_rules_with_names_allow_lists_of_that_name_alone(people: People, namespace: str, alice: str) -> None:
    client = people.user(alice)
    for name in ("a", "b"):
        people.hub.add_device(namespace, name)
    people.grant(alice, namespace, rule(["get", "list", "watch", "delete", "deletecollection"], ["devices"], "a"))
    everything, one = devices(namespace), {"fieldSelector": "metadata.name=a"}
    assert client.get(devices(namespace, "a")).status_code == 200
    assert client.get(devices(namespace, "b")).status_code == 403
    assert client.get(everything).status_code == 403
    assert names_of(client.get(everything, params=one)) == ["a"]
    assert names_of(client.get(everything, params={"fieldSelector": "metadata.name=a,metadata.namespace!=x"})) == ["a"]
    for selector in (
        "metadata.name=b",
        "metadata.name!=a",
        "metadata.name=",
        "status.phase=Online",
        "metadata.name=a,metadata.name=b",
        "metadata.name=a!=b",
    ):
        assert client.get(everything, params={"fieldSelector": selector}).status_code == 403, selector
    assert (
        client.get(f"{everything}?fieldSelector=metadata.name%3Da&fieldSelector=metadata.name%3Db").status_code == 403
    )
    assert client.get(f"{SKERRY}/devices", params=one).status_code == 403
    assert client.delete(everything, params=one).status_code == 403
    assert client.delete(devices(namespace, "b")).status_code == 403
    assert client.delete(devices(namespace, "a")).status_code == 200
