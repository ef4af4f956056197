"""The aggregator's own requests, and the real kubectl through it: the hub as one more group of a cluster."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from tests.integration.aggregated.cluster import REVIEWS, Cluster
from tests.integration.aggregated.conftest import API, HubProcess
from tests.integration.aggregated.proxy import (
    AGGREGATOR,
    DISCOVERY,
    OPENAPI_AGGREGATOR,
    Connector,
    FrontProxy,
    headers_of,
)
from tests.integration.api.kubectl import KUBECTL

Kubectl = Callable[..., str]
JSON = ("Accept", "application/json")


@pytest.fixture(scope="module")
def proxy(hub: HubProcess, shared_cluster: Cluster) -> Connector:
    # what the ClusterRole system:discovery gives to everybody who has logged in
    shared_cluster.allows = lambda spec: (
        spec["user"] == "alice"
        or (
            "system:authenticated" in spec["groups"]
            and spec.get("nonResourceAttributes", {}).get("path", "").startswith(("/openapi", "/apis"))
        )
    )
    return hub.as_(shared_cluster.proxy_certificate)


@pytest.fixture(scope="module")
def front(proxy: Connector) -> Iterator[FrontProxy]:
    front = FrontProxy(proxy, "alice", ("dev",))
    try:
        yield front
    finally:
        front.close()


@pytest.fixture
def environment(front: FrontProxy, tmp_path: Path) -> dict[str, str]:
    config = tmp_path / "kubeconfig"
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": front.url}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}],
                "current-context": "x",
            }
        )
    )
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": str(config)}


@pytest.fixture
def kubectl(environment: dict[str, str]) -> Kubectl:
    if KUBECTL is None:
        pytest.skip("kubectl is not installed")

    def run(*arguments: str, text: str | None = None, code: int = 0) -> str:
        done = subprocess.run(
            [KUBECTL, *arguments], env=environment, input=text, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code, done
        return done.stdout + done.stderr

    return run


def test_the_service_is_found_available(proxy: Connector) -> None:
    code, _, found = proxy.ask("GET", API, headers_of(*AGGREGATOR))
    assert (code, found["kind"], found["groupVersion"]) == (200, "APIResourceList", "skerry.dev/v1alpha1")
    assert "devices" in {one["name"] for one in found["resources"]}


def test_discovery_lists_this_group_alone(proxy: Connector) -> None:
    said = headers_of(*AGGREGATOR)
    code, headers, found = proxy.ask("GET", "/apis", [("Accept", DISCOVERY), *said])
    assert (code, found["kind"], found["apiVersion"]) == (200, "APIGroupDiscoveryList", "apidiscovery.k8s.io/v2")
    assert headers["content-type"] == "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    assert [group["metadata"]["name"] for group in found["items"]] == ["skerry.dev"]
    _, _, legacy = proxy.ask("GET", "/apis", [JSON, *said])
    assert [group["name"] for group in legacy["groups"]] == ["skerry.dev"]
    code, _, group = proxy.ask("GET", "/apis/skerry.dev", [JSON, *said])
    assert (code, group["kind"], group["preferredVersion"]["version"]) == (200, "APIGroup", "v1alpha1")


@pytest.mark.parametrize(
    "path",
    [
        "/api",
        "/api/v1",
        "/api/v1/namespaces",
        "/api/v1/nodes",
        "/api/v1/pods",
        "/api/v1/namespaces/default/serviceaccounts",
        "/apis/rbac.authorization.k8s.io",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "/apis/authorization.k8s.io/v1",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        "/apis/authentication.k8s.io/v1/tokenreviews",
        "/apis/certificates.k8s.io/v1/certificatesigningrequests",
        "/apis/events.k8s.io/v1/events",
        "/apis/metrics.k8s.io/v1beta1/nodes",
        "/openapi/v3/api/v1",
        "/openapi/v3/apis/rbac.authorization.k8s.io/v1",
    ],
)
def test_what_is_the_clusters_is_not_served(hub: HubProcess, proxy: Connector, path: str) -> None:
    """Not to the cluster's users, and not to the hub's admin either."""
    for found in (proxy.ask("GET", path, headers_of(*AGGREGATOR)), hub.as_admin.ask("GET", path)):
        assert (found[0], found[2]["reason"]) == (404, "NotFound")
    assert hub.as_admin.ask("POST", path)[0] in (404, 405)


def test_schemas_are_polled_and_kept(proxy: Connector) -> None:
    said = [JSON, *headers_of(*OPENAPI_AGGREGATOR)]
    code, _, index = proxy.ask("GET", "/openapi/v3", said)
    assert (code, list(index["paths"])) == (200, ["apis/skerry.dev/v1alpha1"])
    url = index["paths"]["apis/skerry.dev/v1alpha1"]["serverRelativeURL"]
    code, headers, document = proxy.ask("GET", url, said)
    assert (code, document["openapi"]) == (200, "3.0.0")
    assert all(path.startswith("/apis/skerry.dev/") for path in document["paths"])
    code, _, nothing = proxy.ask("GET", url, [("If-None-Match", headers["etag"]), *said])
    assert (code, nothing) == (304, b"")


def test_the_old_schema_is_of_this_group_alone(proxy: Connector) -> None:
    said = [JSON, *headers_of(*OPENAPI_AGGREGATOR)]
    code, headers, document = proxy.ask("GET", "/openapi/v2", said)
    assert (code, document["swagger"]) == (200, "2.0")
    assert document["paths"]
    assert all(path.startswith("/apis/skerry.dev/") for path in document["paths"])
    assert proxy.ask("GET", "/openapi/v2", [("If-None-Match", headers["etag"]), *said])[0] == 304


DEPLOYMENT = {
    "apiVersion": "skerry.dev/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": "digits"},
    "spec": {"modelVersion": "digits-1", "deviceSelector": {"matchLabels": {"site": "lab"}}},
}


def test_kubectl_works_through_the_cluster(kubectl: Kubectl, shared_cluster: Cluster) -> None:
    assert "modeldeployments" in kubectl("api-resources", "--api-group=skerry.dev")
    assert "DESCRIPTION" in kubectl("explain", "modeldeployment.spec.deviceSelector")
    text = json.dumps(DEPLOYMENT)
    assert kubectl("apply", "-f", "-", text=text) == "modeldeployment.skerry.dev/digits created\n"
    assert kubectl("apply", "-f", "-", text=text) == "modeldeployment.skerry.dev/digits unchanged\n"
    assert kubectl("apply", "--server-side", "-f", "-", text=text).endswith("serverside-applied\n")
    assert "digits-1" in kubectl("get", "md", "digits")
    assert kubectl("get", "md", "digits", "-o", "jsonpath={.spec.modelVersion}") == "digits-1"
    assert "labeled" in kubectl("label", "md", "digits", "team=a")
    assert "spec.modelVersoin: is not a field" in kubectl(
        "apply", "-f", "-", text=text.replace("modelVersion", "modelVersoin"), code=1
    )
    assert kubectl("get", "--raw", f"{API}/namespaces/shop/devices").startswith("{")
    assert 'modeldeployment.skerry.dev "digits" deleted' in kubectl("delete", "md", "digits")
    users = {spec["user"] for spec in shared_cluster.asked(REVIEWS)}
    assert "alice" in users


def test_kubectl_watches_through_the_cluster(kubectl: Kubectl, environment: dict[str, str]) -> None:
    assert KUBECTL is not None
    path = f"{API}/namespaces/shop/jointokens"
    revision = json.loads(kubectl("get", "--raw", path))["metadata"]["resourceVersion"]
    command = [KUBECTL, "get", "--raw", f"{path}?watch=true&resourceVersion={revision}&timeoutSeconds=50"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        try:
            token = {"apiVersion": "skerry.dev/v1alpha1", "kind": "JoinToken", "metadata": {"name": "seen"}}
            kubectl("create", "-f", "-", text=json.dumps({**token, "spec": {"ttl": "1h", "uses": 1}}))
            assert event_of(watching.stdout.readline()) == ("ADDED", "seen")  # it comes while the watch goes on
            kubectl("delete", "jointoken", "seen")
            assert event_of(watching.stdout.readline()) == ("DELETED", "seen")
        finally:
            watching.kill()


def event_of(line: str) -> tuple[str, str]:
    event = json.loads(line)
    return event["type"], event["object"]["metadata"]["name"]


def test_kubectl_shows_what_the_cluster_forbids(front: FrontProxy, kubectl: Kubectl) -> None:
    front.user = "mallory"
    try:
        refused = kubectl("get", "devices", code=1)
        assert 'devices.skerry.dev is forbidden: User "mallory" cannot list resource "devices"' in refused
    finally:
        front.user = "alice"


METADATA = ",".join(
    f"{kind};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    for kind in ("application/vnd.kubernetes.protobuf", "application/json")
)


def test_the_clusters_controllers_can_empty_a_namespace(proxy: Connector, shared_cluster: Cluster) -> None:
    """As its namespace controller does for every resource that can be deleted; one that fails would hold it back."""
    name = "system:serviceaccount:kube-system:namespace-controller"
    allowed, shared_cluster.allows = shared_cluster.allows, lambda spec: spec["user"] == name
    said = headers_of(name, ("system:serviceaccounts", "system:serviceaccounts:kube-system"))
    try:
        _, _, found = proxy.ask("GET", API, headers_of(*AGGREGATOR))
        kinds = [
            one["name"]
            for one in found["resources"]
            if one["namespaced"] and "/" not in one["name"] and {"delete", "list"} <= set(one["verbs"])
        ]
        assert {"devices", "rollouts", "modelversions"} <= set(kinds)
        token = {"apiVersion": "skerry.dev/v1alpha1", "kind": "JoinToken", "metadata": {"name": "left"}}
        body = json.dumps({**token, "spec": {"ttl": "1h", "uses": 1}}).encode()
        path = f"{API}/namespaces/going"
        assert proxy.ask("POST", f"{path}/jointokens", [("content-type", "application/json"), *said], body)[0] == 201
        for kind in kinds:
            code, headers, listed = proxy.ask("GET", f"{path}/{kind}", [("Accept", METADATA), *said])
            assert (code, listed["kind"]) == (200, "PartialObjectMetadataList"), kind
            assert headers["content-type"].startswith("application/json")
            assert len(listed["items"]) == (kind == "jointokens")
            options = b'{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background"}'
            sent = [("content-type", "application/json"), *said]
            code, _, refused = proxy.ask("DELETE", f"{path}/{kind}", sent, options)
            assert code == 200, (kind, refused)
            assert proxy.ask("GET", f"{path}/{kind}", said)[2]["items"] == []
    finally:
        shared_cluster.allows = allowed


def test_the_discovery_that_was_not_changed_is_not_sent_again(proxy: Connector) -> None:
    said = [("Accept", DISCOVERY), *headers_of(*AGGREGATOR)]
    code, headers, _ = proxy.ask("GET", "/apis", said)
    assert code == 200
    assert headers["etag"]
    code, _, nothing = proxy.ask("GET", "/apis", [("If-None-Match", headers["etag"]), *said])
    assert (code, nothing) == (304, b"")
