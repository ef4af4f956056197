"""The cluster says who may do what and whose a token is; without its word nothing is done, and nothing is forgotten."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.integration.aggregated.certificates import Ca
from tests.integration.aggregated.cluster import REVIEWS, TOKENS, Cluster
from tests.integration.aggregated.conftest import ALICE, API, HubProcess, StartHub
from tests.integration.aggregated.proxy import AGGREGATOR, Connector, headers_of

DEVICES = f"{API}/namespaces/default/devices"
TOKEN = {"apiVersion": "skerry.dev/v1alpha1", "kind": "JoinToken", "metadata": {"generateName": "t-"}}
JSON = ("content-type", "application/json")


@pytest.fixture
def hub(start_hub: StartHub) -> HubProcess:
    return start_hub().wait_ready()


@pytest.fixture
def proxy(hub: HubProcess, cluster: Cluster) -> Connector:
    return hub.as_(cluster.proxy_certificate)


def bearer(token: str) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {token}")]


def test_every_request_is_reviewed_as_kubernetes_would_ask(proxy: Connector, cluster: Cluster) -> None:
    asked = [
        ("GET", DEVICES, {"verb": "list", "resource": "devices", "namespace": "default"}),
        ("GET", f"{DEVICES}/x", {"verb": "get", "resource": "devices", "namespace": "default", "name": "x"}),
        ("GET", f"{DEVICES}?watch=true", {"verb": "watch", "resource": "devices", "namespace": "default"}),
        ("GET", f"{API}/devices", {"verb": "list", "resource": "devices"}),
        ("POST", DEVICES, {"verb": "create", "resource": "devices", "namespace": "default"}),
        ("DELETE", DEVICES, {"verb": "deletecollection", "resource": "devices", "namespace": "default"}),
        (
            "PATCH",
            f"{DEVICES}/x/status",
            {"verb": "patch", "resource": "devices", "subresource": "status", "namespace": "default", "name": "x"},
        ),
        (
            "GET",
            f"{DEVICES}/x/log",
            {"verb": "get", "resource": "devices", "subresource": "log", "namespace": "default", "name": "x"},
        ),
    ]
    said = headers_of("alice", ("dev",), uid="42", extra={"example.com/scope": ("a", "b")})
    for method, path, wanted in asked:
        assert proxy.ask(method, path, said)[0] == 403, path
        spec = cluster.asked(REVIEWS)[-1]
        assert spec == {
            "user": "alice",
            "uid": "42",
            "groups": ["dev", "system:authenticated"],
            "extra": {"example.com/scope": ["a", "b"]},
            "resourceAttributes": {"group": "skerry.dev", "version": "v1alpha1", **wanted},
        }
    assert proxy.ask("GET", "/apis", said)[0] == 403
    assert cluster.asked(REVIEWS)[-1]["nonResourceAttributes"] == {"path": "/apis", "verb": "get"}


def test_a_decision_counts_for_a_moment_and_for_that_user_and_request_alone(proxy: Connector, cluster: Cluster) -> None:
    cluster.allows = lambda spec: spec["user"] == "alice"
    with contextlib.closing(proxy.connect()) as connection:
        for _ in range(20):
            connection.request("GET", DEVICES, headers=dict(ALICE[:1]))
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
    assert len(cluster.asked(REVIEWS)) == 1
    assert proxy.ask("GET", DEVICES, headers_of("alice", ("other",)))[0] == 200
    assert proxy.ask("GET", DEVICES, headers_of("bob"))[0] == 403
    assert proxy.ask("GET", f"{DEVICES}/x", headers_of("alice"))[0] == 404
    assert len(cluster.asked(REVIEWS)) == 4


def test_masters_are_not_asked_about(proxy: Connector, cluster: Cluster) -> None:
    assert proxy.ask("GET", DEVICES, headers_of(*AGGREGATOR))[0] == 200
    assert cluster.asked(REVIEWS) == []


def test_without_the_clusters_word_nothing_is_done_and_devices_go_on(
    hub: HubProcess, proxy: Connector, cluster: Cluster
) -> None:
    cluster.allows = lambda _: True
    cluster.wait_for_watchers()
    cluster.stop()
    code, headers, refused = proxy.ask("GET", DEVICES, ALICE)
    assert (code, refused["reason"], headers["retry-after"]) == (503, "ServiceUnavailable", "1")
    assert "the cluster cannot say whether this is allowed" in refused["message"]
    code, _, refused = hub.as_(None).ask("GET", DEVICES, bearer("some"))
    assert (code, refused["reason"]) == (503, "ServiceUnavailable")
    assert hub.as_(None).ask("GET", "/readyz")[0] == 200  # devices need it, and no restart would mend it
    body = json.dumps({**TOKEN, "spec": {"ttl": "1h", "uses": 1}}).encode()
    code, _, made = hub.as_admin.ask("POST", f"{API}/namespaces/default/jointokens", [JSON], body)
    assert code == 201
    said = [JSON, *bearer(made["status"]["token"])]
    enrolment = {
        "apiVersion": "skerry.dev/v1alpha1",
        "kind": "Enrollment",
        "metadata": {"name": "x"},
        "spec": {"csr": ""},
    }
    code, _, refused = hub.as_(None).ask(
        "POST", f"{API}/namespaces/default/enrollments", said, json.dumps(enrolment).encode()
    )
    assert code == 422, refused  # the token let it in; what it lacks is a request
    cluster.start()
    assert proxy.ask("GET", DEVICES, ALICE)[0] == 200
    cluster.wait_for_watchers()


@pytest.mark.parametrize("code", [403, 404, 429, 500])
def test_a_cluster_that_answers_something_else_gives_no_right(proxy: Connector, cluster: Cluster, code: int) -> None:
    cluster.allows = lambda _: True
    cluster.broken = code
    found, _, refused = proxy.ask("GET", DEVICES, ALICE)
    assert (found, refused["reason"]) == (503, "ServiceUnavailable")
    assert ("system:auth-delegator" in refused["message"]) == (code == 403)
    cluster.broken = 0
    assert proxy.ask("GET", DEVICES, ALICE)[0] == 200


def test_tokens_are_the_clusters_and_looked_at_once(hub: HubProcess, cluster: Cluster) -> None:
    cluster.users["good"] = {
        "username": "system:serviceaccount:ci:deployer",
        "uid": "7",
        "groups": ["system:serviceaccounts"],
    }
    cluster.users["none"] = {"username": "system:anonymous"}
    cluster.users["own"] = {"username": "skerry:device:default:x"}
    cluster.allows = lambda spec: spec["user"] == "system:serviceaccount:ci:deployer"
    for _ in range(3):
        assert hub.as_(None).ask("GET", DEVICES, bearer("good"))[0] == 200
    for wrong in ("bad", "none", "own", "x" * 20_000):
        for _ in range(2):
            code, _, refused = hub.as_(None).ask("GET", DEVICES, bearer(wrong))
            assert (code, refused["reason"]) == (401, "Unauthorized"), wrong[:10]
    tokens = [spec["token"] for spec in cluster.asked(TOKENS)]
    assert tokens == ["good", "bad", "none", "own"]  # each once, the one that is too long never
    assert cluster.asked(REVIEWS)[0]["uid"] == "7"
    assert not any(word in hub.log for word in ("good", "bad"))


def test_the_hubs_own_secrets_are_not_shown_to_the_cluster(hub: HubProcess, cluster: Cluster) -> None:
    for token in ("skj1.a.b.c", "skr1.a/b.c", "skb1.a.b"):
        assert hub.as_(None).ask("GET", DEVICES, bearer(token))[0] == 401
    assert cluster.asked(TOKENS) == []


def test_a_token_never_wins_over_the_proxys_word(proxy: Connector, cluster: Cluster) -> None:
    cluster.users["bobs"] = {"username": "bob"}
    cluster.allows = lambda spec: spec["user"] == "alice"
    assert proxy.ask("GET", DEVICES, [*ALICE, *bearer("bobs")])[0] == 200
    assert cluster.asked(TOKENS) == []


def test_the_accounts_token_may_be_replaced_at_any_time(proxy: Connector, cluster: Cluster) -> None:
    cluster.allows = lambda _: True
    assert proxy.ask("GET", DEVICES, ALICE)[0] == 200
    cluster.give_token("second")  # and the first is refused from now on
    assert proxy.ask("GET", f"{DEVICES}?limit=1", headers_of("carol"))[0] == 200


def test_a_new_proxy_ca_counts_at_once_and_the_old_one_no_more(
    hub: HubProcess, proxy: Connector, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.allows = lambda _: True
    new = Ca(tmp_path, "front-proxy-ca-2")
    certificate = new.issue("front-proxy-client", file="new")
    cluster.wait_for_watchers()
    with contextlib.closing(proxy.connect()) as kept:
        kept.request("GET", DEVICES, headers=dict(ALICE[:1]))
        assert answered(kept) == 200
        cluster.replace_config(cluster.config(cluster.proxy_ca.pem + new.pem))  # as when a CA is rotated
        hub.wait_for("delegation.config_changed")
        assert hub.as_(certificate).ask("GET", DEVICES, ALICE)[0] == 200
        kept.request("GET", DEVICES, headers=dict(ALICE[:1]))
        assert answered(kept) == 200
        cluster.replace_config(cluster.config(new.pem, "front-proxy-client", "another"))
        hub.wait_for("delegation.config_changed", times=2)
        kept.request("GET", DEVICES, headers=dict(ALICE[:1]))
        assert answered(kept) == 401
    assert proxy.ask("GET", DEVICES, ALICE)[0] == 401
    assert hub.as_(certificate).ask("GET", DEVICES, ALICE)[0] == 200
    assert hub.as_(new.issue("another")).ask("GET", DEVICES, ALICE)[0] == 200


def answered(connection: Any) -> int:
    answer = connection.getresponse()
    answer.read()
    return int(answer.status)


def test_a_config_that_would_let_everybody_in_is_refused_and_the_one_before_kept(
    hub: HubProcess, proxy: Connector, cluster: Cluster
) -> None:
    cluster.allows = lambda _: True
    cluster.wait_for_watchers()
    for number, data in enumerate(({}, cluster.config(""), cluster.config(hub.ca)), 1):
        cluster.replace_config(data)
        hub.wait_for("delegation.config_refused", times=number)
        assert proxy.ask("GET", DEVICES, ALICE)[0] == 200
        assert hub.as_(None).ask("GET", DEVICES, ALICE)[0] == 401
    assert "is the hub's own CA, so that every device could speak for everybody" in hub.log


@pytest.mark.parametrize(
    ("role", "said"),
    [
        ("extension-apiserver-authentication-reader", "the hub's service account was refused (403)"),
        ("", "has no requestheader-client-ca-file"),
    ],
)
def test_a_hub_that_cannot_know_the_proxy_does_not_start(
    start_hub: StartHub, cluster: Cluster, role: str, said: str
) -> None:
    cluster.grants.pop(role, None)
    if not role:
        cluster.data = {}
    assert said in start_hub().fail()


def test_a_hub_outside_of_a_cluster_says_so(start_hub: StartHub, cluster: Cluster, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    assert (
        "hint: let the pod have its service account's token" in start_hub("--cluster-credentials", str(nowhere)).fail()
    )
    (cluster.credentials / "ca.crt").write_text("nonsense")
    assert "is no bundle of certificates in PEM" in start_hub(name="second").fail()
    assert "go together" in start_hub("--tls-cert-file", "x", name="third").fail()


def test_a_proxy_of_its_own_needs_no_cluster(start_hub: StartHub, cluster: Cluster) -> None:
    """The hub's own roles say what the proxy's users may."""
    options = ["--requestheader-client-ca-file", str(cluster.proxy_ca.file), "--requestheader-allowed-names", "gate"]
    options += ["--requestheader-username-headers", "X-User", "--requestheader-group-headers", "X-Team"]
    hub = start_hub(*options, delegated=False).wait_ready()
    gate = hub.as_(cluster.proxy_ca.issue("gate"))
    assert gate.ask("GET", DEVICES, [("X-User", "alice"), ("X-Team", "dev")])[0] == 403
    assert gate.ask("GET", DEVICES, ALICE)[0] == 401
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "dev"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "skerry-viewer"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "dev"}],
    }
    path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    assert hub.as_admin.ask("POST", path, [JSON], json.dumps(binding).encode())[0] == 201
    assert gate.ask("GET", DEVICES, [("X-User", "alice"), ("X-Team", "dev")])[0] == 200
    assert gate.ask("GET", DEVICES, [("X-User", "alice"), ("X-Team", "ops")])[0] == 403
    assert cluster.requests == []
