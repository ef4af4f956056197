"""What a request wants, read off its line: tables as Kubernetes' API server reads them, and no second reading."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import NotFoundError
from skerry.core.rbac import Attributes
from skerry.hub.server import attributes

OURS = "/apis/skerry.dev/v1alpha1"


def wanted(method: str, target: str) -> Attributes:
    path, _, query = target.partition("?")
    return attributes.of({"type": "http", "method": method, "path": path, "query_string": query.encode()})


def ours(verb: str, **more: str) -> Attributes:
    return Attributes(verb=verb, group="skerry.dev", version="v1alpha1", resource="devices", **more)


def core(verb: str, resource: str, **more: str) -> Attributes:
    return Attributes(verb=verb, version="v1", resource=resource, **more)


NS = f"{OURS}/namespaces/a/devices"


@pytest.mark.parametrize(
    ("method", "target", "found"),
    [
        ("GET", f"{OURS}/devices", ours("list")),
        ("GET", f"{OURS}/devices/", ours("list")),
        ("GET", NS, ours("list", namespace="a")),
        ("HEAD", NS, ours("list", namespace="a")),
        ("GET", f"{NS}?watch=true", ours("watch", namespace="a")),
        ("GET", f"{NS}?watch=1", ours("watch", namespace="a")),
        ("GET", f"{NS}?watch=yes", ours("watch", namespace="a")),
        ("GET", f"{NS}?watch=0", ours("list", namespace="a")),
        ("GET", f"{NS}?watch=false", ours("list", namespace="a")),
        ("GET", f"{NS}?watch=", ours("list", namespace="a")),
        ("GET", f"{NS}?fieldSelector=metadata.name%3Dx", ours("list", namespace="a", name="x")),
        ("GET", f"{NS}?watch=1&fieldSelector=metadata.name%3D%3Dx", ours("watch", namespace="a", name="x")),
        ("DELETE", f"{NS}?fieldSelector=metadata.name%3Dx", ours("deletecollection", namespace="a")),
        ("POST", NS, ours("create", namespace="a")),
        ("POST", f"{NS}/x", ours("create", namespace="a", name="x")),
        ("GET", f"{NS}/x", ours("get", namespace="a", name="x")),
        ("GET", f"{NS}/x?watch=1", ours("get", namespace="a", name="x")),
        ("HEAD", f"{NS}/x", ours("get", namespace="a", name="x")),
        ("PUT", f"{NS}/x", ours("update", namespace="a", name="x")),
        ("PATCH", f"{NS}/x/status", ours("patch", namespace="a", name="x", subresource="status")),
        ("DELETE", f"{NS}/x", ours("delete", namespace="a", name="x")),
        ("DELETE", NS, ours("deletecollection", namespace="a")),
        ("OPTIONS", NS, ours("options", namespace="a")),
        ("GET", "/api/v1/namespaces", core("list", "namespaces")),
        ("GET", "/api/v1/namespaces/a", core("get", "namespaces", namespace="a", name="a")),
        (
            "PUT",
            "/api/v1/namespaces/a/status",
            core("update", "namespaces", namespace="a", name="a", subresource="status"),
        ),
        ("GET", "/api/v1/namespaces/a/pods", core("list", "pods", namespace="a")),
        ("GET", "/api/v1/namespaces/a/pods/p/log", core("get", "pods", namespace="a", name="p", subresource="log")),
        (
            "GET",
            "/api/v1/namespaces/a/pods/p/exec",
            core("create", "pods", namespace="a", name="p", subresource="exec"),
        ),
        (
            "POST",
            "/api/v1/namespaces/a/pods/p/exec",
            core("create", "pods", namespace="a", name="p", subresource="exec"),
        ),
        (
            "GET",
            "/api/v1/namespaces/a/pods/p/portforward",
            core("create", "pods", namespace="a", name="p", subresource="portforward"),
        ),
        ("GET", "/api/v1/nodes/till.a", core("get", "nodes", name="till.a")),
        (
            "GET",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:discovery",
            Attributes(
                verb="get",
                group="rbac.authorization.k8s.io",
                version="v1",
                resource="clusterroles",
                name="system:discovery",
            ),
        ),
        (
            "POST",
            f"{OURS}/registry/gc",
            Attributes(verb="create", group="skerry.dev", version="v1alpha1", resource="registry", name="gc"),
        ),
        # no resources: discovery, health, anything else
        ("GET", "/api", Attributes(verb="get", path="/api")),
        ("GET", "/api/v1", Attributes(verb="get", path="/api/v1")),
        ("GET", "/api/v1/", Attributes(verb="get", path="/api/v1/")),
        ("GET", "/apis/skerry.dev", Attributes(verb="get", path="/apis/skerry.dev")),
        ("GET", OURS, Attributes(verb="get", path=OURS)),
        ("POST", "/healthz", Attributes(verb="post", path="/healthz")),
        ("GET", "/", Attributes(verb="get", path="/")),
        ("GET", "/apisx/a/b/c", Attributes(verb="get", path="/apisx/a/b/c")),
        ("GET", f"/{OURS}/devices", Attributes(verb="get", path=f"/{OURS}/devices")),
    ],
)
def test_a_request(method: str, target: str, found: Attributes) -> None:
    assert wanted(method, target) == found


@pytest.mark.parametrize(
    "path",
    [
        f"{OURS}//devices",
        f"{OURS}/namespaces//devices",
        f"{OURS}/namespaces/a//x",
        f"{OURS}/namespaces/a/../devices",
        f"{OURS}/./devices",
        f"{OURS}/devices//",
        "/apis/../v1/devices",
        "/api/v1/namespaces/a/nodes",
        "/api/v1/namespaces/a/nodes/x",
        "/apis/rbac.authorization.k8s.io/v1/namespaces/a/clusterroles",
        "/apis/rbac.authorization.k8s.io/v1/namespaces/a/clusterrolebindings/x",
        "/apis/certificates.k8s.io/v1/namespaces/a/certificatesigningrequests",
        f"{OURS}/namespaces/a\n/devices",
        f"{OURS}/namespaces/a\x00/devices",
    ],
)
def test_a_path_that_no_route_has(path: str) -> None:
    with pytest.raises(NotFoundError):
        wanted("GET", path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("metadata.name=x", "x"),
        ("metadata.name==x", "x"),
        (" metadata.name = x ", "x"),
        ("metadata.name=x,status.phase=Online", "x"),
        ("status.phase=Online,metadata.name=x,metadata.name=x", "x"),
        ("metadata.name=x,metadata.name=y", ""),
        ("metadata.name!=x", ""),
        ("metadata.name=x!=y", ""),
        ("metadata.name=", ""),
        ("metadata.namespace=x", ""),
        ("spec.metadata.name=x", ""),
        ("metadata.name=a/b", ""),
        ("metadata.name=x" + ",a=b" * 2000, ""),
        ("", ""),
    ],
)
def test_the_name_that_a_field_selector_leaves(text: str, name: str) -> None:
    query = urlencode({"fieldSelector": text})
    assert wanted("GET", f"{OURS}/devices?{query}").name == name


segments = st.lists(
    st.one_of(
        st.sampled_from(
            ["api", "apis", "v1", "skerry.dev", "v1alpha1", "namespaces", "devices", "", ".", "..", "status"]
        ),
        st.text(max_size=4),
    ),
    max_size=8,
)


@given(segments, st.sampled_from(["GET", "POST", "DELETE", "X"]))
def test_whatever_is_below_a_group_is_a_resource_or_nothing(parts: list[str], method: str) -> None:
    path = "/" + "/".join(parts)
    try:
        found = wanted(method, path.replace("?", "!"))
    except NotFoundError:
        return
    below = (len(parts) > 2 and parts[0] == "api") or (len(parts) > 3 and parts[0] == "apis")
    tidy = all(parts)
    assert found.is_resource or not (below and tidy)
