"""`kubectl explain`, `api-resources` and categories, for everything that there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.integration.api.kubectl import KUBECTL, Run

from skerry.api.kinds import KINDS, KindInfo
from skerry.api.kinds.pictures import PICTURES, Picture

if TYPE_CHECKING:
    from tests.integration.api.conftest import Hub

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")


@needs_kubectl
def test_every_kind_can_be_explained(kubectl: Run) -> None:
    rows = [line.split() for line in kubectl("api-resources", "--no-headers").stdout.splitlines()]
    found = {(row[0], row[-3], row[-1]) for row in rows}
    shown: list[KindInfo | Picture] = [*KINDS, *PICTURES]
    wanted = {(one.plural, one.path.split("/", 2)[2], one.kind) for one in shown}
    assert wanted <= found
    for plural, version, kind in sorted(found):
        said = kubectl("explain", plural, f"--api-version={version}").stdout
        assert f"KIND:       {kind}\n" in said
        assert "DESCRIPTION:\n    <empty>" not in said
        assert "FIELDS:" in said


@needs_kubectl
@pytest.mark.parametrize(
    ("field", "listed"),
    [("device.spec", "device"), ("device.status.hardware", "device.status"), ("namespace.spec", "namespace")],
)
def test_nothing_is_said_twice(kubectl: Run, field: str, listed: str) -> None:
    said = kubectl("explain", field).stdout.partition("DESCRIPTION:\n")[2].partition("FIELDS:")[0]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    assert lines
    assert len(lines) == len(set(lines))
    name = field.rpartition(".")[2]
    assert f"  {name}\t" in kubectl("explain", listed).stdout
    assert lines[0] in kubectl("explain", listed).stdout, "and it is said where the fields are listed"


@needs_kubectl
def test_a_field_has_words_of_its_own_and_its_types(kubectl: Run) -> None:
    said = kubectl("explain", "modeldeployment.spec.strategy.waves").stdout
    assert "Cumulative, in order" in said
    assert "How far one step of the rollout goes" in said


@needs_kubectl
def test_every_field_at_once(kubectl: Run) -> None:
    said = kubectl("explain", "device.status.hardware", "--recursive").stdout
    assert "memoryBytes\t<integer>" in said
    assert "nonResourceURLs\t<[]string>" in kubectl("explain", "clusterroles", "--recursive").stdout
    assert "does not exist" in kubectl("explain", "device.status.nothing", fails=True).stderr


@needs_kubectl
def test_short_names_and_the_category(hub: Hub, namespace: str, kubectl: Run) -> None:
    hub.add_device(namespace, "till-7")
    for word in ("dev", "mv", "md", "ro", "sa", "ns", "csr", "ev", "no", "po", "tp", "dc", "jt", "rt", "enr"):
        kubectl("get", word)
    assert "device.skerry.dev/till-7" in kubectl("get", "skerry").stdout
    assert "till-7" not in kubectl("get", "rolebindings,roles,sa").stdout


def test_documents_are_kept_by_clients(hub: Hub) -> None:
    with hub.client() as client:
        index = client.http.get("/openapi/v3").json()["paths"]
        assert {"api/v1", "apis/skerry.dev/v1alpha1", "apis/rbac.authorization.k8s.io/v1"} <= index.keys()
        for one in index.values():
            answer = client.http.get(one["serverRelativeURL"])
            assert (answer.status_code, answer.headers["cache-control"]) == (200, "public")
            again = client.http.get(one["serverRelativeURL"], headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert client.http.get("/openapi/v3/apis/none.dev/v1").status_code == 404


def test_the_older_document(hub: Hub) -> None:
    protobuf = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
    with hub.client() as client:
        answer = client.http.get("/openapi/v2")
        assert answer.json()["swagger"] == "2.0"
        again = client.http.get("/openapi/v2", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
        both = client.http.get("/openapi/v2", headers={"Accept": f"{protobuf}, application/json"})
        assert both.json()["swagger"] == "2.0"
        nothing = client.http.get("/openapi/v2", headers={"Accept": protobuf})
        assert nothing.headers["content-type"] == protobuf.replace("@", ".")
        refused = client.http.get("/openapi/v2", headers={"Accept": "text/html"})
        assert (refused.status_code, refused.json()["reason"]) == (406, "NotAcceptable")


@needs_kubectl
def test_what_is_only_answered_can_be_created_from_a_file(kubectl: Run) -> None:
    asked = "apiVersion: authorization.k8s.io/v1\nkind: SelfSubjectAccessReview\nspec:\n  resourceAttributes:\n"
    said = kubectl("create", "-f", "-", "-o", "yaml", text=f"{asked}    verb: get\n    resource: devices\n").stdout
    assert "allowed: true" in said
