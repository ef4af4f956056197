"""Ways around roles: paths that read in two ways, other verbs for the same thing, granting more than one has."""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import BaseRoute, Match
from tests.integration.api.conftest import Hub, trusting
from tests.integration.api.people import RBAC, ROLES, SKERRY, People, document, place, rule

from skerry.api.errors import NotFoundError
from skerry.api.kinds import KINDS
from skerry.hub.server import attributes
from skerry.hub.server.app import build_app

_numbers = itertools.count(1)
SECRET = "told-to-nobody"
MERGE = {"content-type": "application/merge-patch+json"}
APPLY = {"content-type": "application/apply-patch+yaml"}


@pytest.fixture(scope="module")
def people(hub: Hub) -> Iterator[People]:
    made = People(hub)
    yield made
    made.close()


@pytest.fixture
def mallory() -> str:
    return f"mallory-{next(_numbers)}"


def raw(people: People, mallory: str, target: str, *, method: str = "GET", headers: str = "") -> int:
    """Send a request line exactly as it is; clients would tidy up its path."""
    context: ssl.SSLContext = trusting(people.hub.context.authority.ca_pem)
    file = people.hub.directory / f"{mallory}.pem"
    file.write_bytes(people.certificate(mallory))
    context.load_cert_chain(file)
    port = int(people.hub.url.rpartition(":")[2])
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as line,
    ):
        line.sendall(f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n".encode())
        while chunk := line.recv(65536):
            answer += chunk
    assert SECRET.encode() not in answer
    return int(answer.split(b" ", 2)[1])


def test_no_way_of_writing_a_path_leads_into_another_namespace(people: People, namespace: str, mallory: str) -> None:
    other = f"{namespace}-other"
    people.hub.add_device(other, "till-1", secret=SECRET)
    people.bind(mallory, namespace, "ClusterRole", "cluster-admin", called="all-here")
    own = f"{SKERRY}/namespaces/{namespace}/devices"
    assert raw(people, mallory, own) == 200
    for target in (
        f"{SKERRY}/namespaces/{other}/devices",
        f"{SKERRY}/namespaces/{other}/devices/till-1",
        f"/{SKERRY}/namespaces/{other}/devices",
        f"{SKERRY}//namespaces/{other}/devices",
        f"{SKERRY}/namespaces//{other}/devices",
        f"{SKERRY}/namespaces/{namespace}/../{other}/devices",
        f"{SKERRY}/namespaces/{namespace}/%2e%2e/{other}/devices",
        f"{SKERRY}/namespaces/{namespace}%2f..%2f{other}/devices",
        f"{SKERRY}/namespaces/{namespace}%2fdevices/../../{other}/devices",
        f"{SKERRY}/namespaces/{namespace}/devices/..%2f..%2f{other}%2fdevices",
        f"{SKERRY}/namespaces/{namespace}/devices/../../{other}/devices",
        f"{SKERRY}/namespaces/{namespace}%00/devices",
        f"{SKERRY}/namespaces/{other}/devices/",
        f"{SKERRY}/namespaces/{other}/devices//",
        f"{SKERRY}/namespaces/{other}/devices/till-1/",
        f"{SKERRY}/namespaces/{other.upper()}/devices",
        f"{SKERRY}/Namespaces/{other}/devices",
        f"{SKERRY.upper()}/namespaces/{other}/devices",
        f"/apis/skerry.dev/v1alpha1/namespaces/{other}/Devices",
        f"/./apis/skerry.dev/v1alpha1/namespaces/{other}/devices",
        f"/healthz/../apis/skerry.dev/v1alpha1/namespaces/{other}/devices",
        f"/healthz%2f..%2fapis/skerry.dev/v1alpha1/namespaces/{other}/devices",
        f"/v2/../apis/skerry.dev/v1alpha1/namespaces/{other}/devices",
        f"/apis/skerry.dev/v1alpha1/devices?namespace={namespace}",
        f"/apis/skerry.dev/v1alpha1/devices?fieldSelector=metadata.namespace%3D{namespace}",
        f"/api/v1/namespaces/{other}/pods",
        f"/api/v1/namespaces/{namespace}/nodes",
        f"https://x{SKERRY}/namespaces/{other}/devices",
        # a kind of no namespace is not to be had through one
        f"{ROLES}/namespaces/{namespace}/clusterroles",
        f"{ROLES}/namespaces/{namespace}/clusterrolebindings/cluster-admin",
        f"{ROLES}/namespaces/{namespace}/clusterroles/cluster-admin",
        f"/apis/certificates.k8s.io/v1/namespaces/{namespace}/certificatesigningrequests",
        f"/apis/skerry.dev/v1alpha1/namespaces/{namespace}/registry/gc",
    ):
        assert raw(people, mallory, target) in (400, 403, 404, 307), target
        assert raw(people, mallory, target, method="HEAD") in (400, 403, 404, 307), target


def test_a_redirect_to_the_tidy_path_is_decided_anew(people: People, namespace: str, mallory: str) -> None:
    people.hub.add_device(namespace, "till-1")
    client = people.user(mallory, follow_redirects=True)
    assert client.get(f"{SKERRY}/namespaces/{namespace}/devices/").status_code == 403


@pytest.mark.parametrize(
    "header",
    [
        "X-HTTP-Method-Override: GET",
        "X-HTTP-Method: GET",
        "X-Method-Override: GET",
        "X-Original-URL: /healthz",
        "X-Rewrite-URL: /healthz",
        "X-Forwarded-Prefix: /healthz",
        "X-Remote-User: admin\r\nX-Remote-Group: system:masters",
        "X-Remote-Group: system:masters",
        "Authorization: Basic YWRtaW46YWRtaW4=",
    ],
)
def test_no_header_changes_what_is_asked_or_who_asks(people: People, namespace: str, mallory: str, header: str) -> None:
    people.grant(mallory, namespace, rule(["get", "list"], ["devices"]))
    people.hub.add_device(namespace, "till-1")
    one = f"{SKERRY}/namespaces/{namespace}/devices/till-1"
    assert raw(people, mallory, one, method="DELETE", headers=f"{header}\r\n") == 403
    assert raw(people, mallory, f"{SKERRY}/namespaces/{namespace}/rollouts", headers=f"{header}\r\n") == 403
    assert people.admin.get(one).status_code == 200


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "Get", "SEARCH"])
def test_an_odd_method_is_no_way(people: People, namespace: str, mallory: str, method: str) -> None:
    people.grant(mallory, namespace, rule(["get", "list", "watch"], ["rollouts"]))
    assert raw(people, mallory, f"{SKERRY}/namespaces/{namespace}/devices", method=method) in (400, 403, 405)


@pytest.mark.parametrize("flag", ["watch=true", "watch=1", "watch=TRUE", "watch=false&watch=true", "watch=%74rue"])
def test_whoever_may_list_may_not_watch_by_a_parameter(people: People, namespace: str, mallory: str, flag: str) -> None:
    people.grant(mallory, namespace, rule(["get", "list"], ["devices"]))
    client = people.user(mallory)
    at = f"{SKERRY}/namespaces/{namespace}/devices"
    assert client.get(f"{at}?{flag}&timeoutSeconds=1").status_code == 403
    assert client.get(f"{at}?watch=false").status_code == 200


def test_whoever_may_watch_may_not_list(people: People, namespace: str, mallory: str) -> None:
    people.grant(mallory, namespace, rule(["watch"], ["devices"]))
    client = people.user(mallory)
    at = f"{SKERRY}/namespaces/{namespace}/devices"
    assert client.get(at).status_code == 403
    assert client.get(f"{at}?watch=true&watch=false").status_code == 403
    assert client.get(f"{at}?watch=true&timeoutSeconds=1").status_code == 200


def test_each_verb_and_each_subresource_is_a_right_of_its_own(people: People, namespace: str, mallory: str) -> None:
    people.hub.add_device(namespace, "till-1")
    people.grant(mallory, namespace, rule(["get", "list", "watch", "update"], ["devices"]))
    client = people.user(mallory)
    at = f"{SKERRY}/namespaces/{namespace}/devices"
    shown = client.get(f"{at}/till-1").json()
    assert client.put(f"{at}/till-1", json=shown).status_code == 200
    for method, path in (
        ("PATCH", f"{at}/till-1"),
        ("DELETE", f"{at}/till-1"),
        ("DELETE", at),
        ("POST", at),
        ("GET", f"{at}/till-1/status"),
        ("PUT", f"{at}/till-1/status"),
        ("PATCH", f"{at}/till-1/status"),
        ("GET", f"{at}/till-1/log"),
        ("POST", f"{at}/till-1/infer"),
        ("POST", f"{at}/till-1/reconcile"),
        ("GET", f"/api/v1/namespaces/{namespace}/pods"),
        ("GET", f"/api/v1/namespaces/{namespace}/pods/digits.till-1/log"),
        ("POST", f"{SKERRY}/registry/gc"),
    ):
        assert client.request(method, path, json={}).status_code == 403, (method, path)
    # a status sent to the object itself is not written
    forged = {**shown, "status": {**shown["status"], "phase": "Offline"}}
    assert client.put(f"{at}/till-1", json={**forged, "metadata": {"name": "till-1"}}).status_code == 200
    assert client.get(f"{at}/till-1").json()["status"]["phase"] == "Online"


def test_creating_by_an_apply_patch_takes_the_right_to_create(people: People, namespace: str, mallory: str) -> None:
    people.grant(mallory, namespace, rule(["get", "patch"], ["modeldeployments"]))
    client = people.user(mallory)
    body = {
        "apiVersion": "skerry.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "digits"},
        "spec": {"modelVersion": "m-1", "deviceSelector": {}},
    }
    at = f"{SKERRY}/namespaces/{namespace}/modeldeployments/digits?fieldManager=m"
    for query in ("", "&dryRun=All"):
        refused = client.patch(at + query, json=body, headers=APPLY)
        assert refused.status_code == 403, refused.text
        assert 'cannot create resource "modeldeployments"' in refused.json()["message"]
    assert people.admin.patch(at, json=body, headers=APPLY).status_code == 201
    assert client.patch(at, json=body, headers=APPLY).status_code == 200


ALL_WRITES = ["get", "list", "create", "update", "patch", "delete"]
EVERYTHING = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}


@pytest.fixture
def editor(people: People, namespace: str, mallory: str) -> httpx.Client:
    """Somebody who may write roles and bindings of a namespace, read its devices, and nothing else."""
    people.grant(
        mallory,
        namespace,
        rule(ALL_WRITES, ["roles", "rolebindings"], group=RBAC),
        rule(["get", "list"], ["devices"]),
        rule(["create"], ["registrytokens"]),
        rule(["get"], ["repositories"], "digits"),
    )
    return people.user(mallory)


@pytest.mark.parametrize("query", ["", "?dryRun=All"])
def test_nobody_writes_a_role_with_more_than_he_has(editor: httpx.Client, namespace: str, query: str) -> None:
    at = place("Role", namespace)
    own, more = rule(["list"], ["devices"]), rule(["delete"], ["devices"])
    assert editor.post(at, json=document("Role", "reader", rules=[own])).status_code == 201
    for rules in ([more], [own, more], [EVERYTHING], [rule(["get"], ["*"])], [rule(["get"], ["devices/log"])]):
        refused = editor.post(f"{at}{query}", json=document("Role", "more", rules=rules))
        assert refused.status_code == 403, refused.text
        assert "is attempting to grant RBAC permissions not currently held" in refused.json()["message"]
        put = editor.put(f"{at}/reader{query}", json=document("Role", "reader", rules=rules))
        assert put.status_code == 403, put.text
        assert editor.patch(f"{at}/reader{query}", json={"rules": rules}, headers=MERGE).status_code == 403
        strategic = {"content-type": "application/strategic-merge-patch+json"}
        assert editor.patch(f"{at}/reader{query}", json={"rules": rules}, headers=strategic).status_code == 403
        json_patch = [{"op": "replace", "path": "/rules", "value": rules}]
        headers = {"content-type": "application/json-patch+json"}
        assert editor.patch(f"{at}/reader{query}", json=json_patch, headers=headers).status_code == 403
        for name in ("reader", "new"):
            applied = editor.patch(
                f"{at}/{name}?fieldManager=m&force=true{query.replace('?', '&')}",
                json=document("Role", name, rules=rules),
                headers=APPLY,
            )
            assert applied.status_code == 403, applied.text
    assert editor.get(f"{at}/reader").json()["rules"] == [own]
    assert editor.get(f"{at}/more").status_code == 404


@pytest.mark.parametrize("query", ["", "?dryRun=All"])
def test_nobody_binds_a_role_of_which_he_has_not_all(
    people: People, editor: httpx.Client, namespace: str, query: str
) -> None:
    at = place("RoleBinding", namespace)

    def binding(name: str, role: str, kind: str = "ClusterRole") -> dict[str, Any]:
        subjects = [{"kind": "User", "name": "mallory", "apiGroup": RBAC}]
        return document("RoleBinding", name, roleRef={"kind": kind, "name": role, "apiGroup": RBAC}, subjects=subjects)

    people.make("Role", "reader", namespace, rules=[rule(["get"], ["devices"])])
    for role in ("cluster-admin", "skerry-admin", "view"):
        assert editor.post(f"{at}{query}", json=binding("up", role)).status_code == 403, role
        applied = editor.patch(f"{at}/up?fieldManager=m", json=binding("up", role), headers=APPLY)
        assert applied.status_code == 403, role
    assert editor.post(f"{at}{query}", json=binding("gone", "no-such-role")).status_code == 404
    assert editor.post(at, json=binding("own", "reader", "Role")).status_code == 201
    # what was bound before by an admin gets no further subjects by somebody who has less
    made = people.admin.post(at, json=binding("before", "cluster-admin"))
    assert made.status_code == 201
    more = {"subjects": [{"kind": "User", "name": "eve", "apiGroup": RBAC}]}
    assert editor.patch(f"{at}/before{query}", json=more, headers=MERGE).status_code == 403
    # and what a binding binds cannot be changed at all
    reference = {"roleRef": {"kind": "ClusterRole", "name": "cluster-admin", "apiGroup": RBAC}}
    assert editor.patch(f"{at}/own{query}", json=reference, headers=MERGE).status_code == 422
    assert people.admin.delete(f"{at}/before").status_code == 200


def test_the_verbs_bind_and_escalate_say_who_may_nevertheless(
    people: People, editor: httpx.Client, namespace: str, mallory: str
) -> None:
    roles, bindings = place("Role", namespace), place("RoleBinding", namespace)
    subjects = [{"kind": "User", "name": mallory, "apiGroup": RBAC}]
    view = {"kind": "ClusterRole", "name": "view", "apiGroup": RBAC}
    people.grant(mallory, namespace, rule(["bind"], ["clusterroles"], "view", group=RBAC), name="binds")
    assert editor.post(bindings, json=document("RoleBinding", "v", roleRef=view, subjects=subjects)).status_code == 201
    edit = {**view, "name": "edit"}
    refused = editor.post(bindings, json=document("RoleBinding", "e", roleRef=edit, subjects=subjects))
    assert refused.status_code == 403
    people.grant(mallory, namespace, rule(["escalate"], ["roles"], "mine", group=RBAC), name="escalates")
    assert editor.post(roles, json=document("Role", "mine", rules=[EVERYTHING])).status_code == 201
    assert editor.post(roles, json=document("Role", "theirs", rules=[EVERYTHING])).status_code == 403


def test_aggregation_is_no_way_up(people: People, mallory: str) -> None:
    people.grant(mallory, "", rule(ALL_WRITES, ["clusterroles"], group=RBAC), name=f"roles-{mallory}")
    client = people.user(mallory)
    at = place("ClusterRole", "")
    selectors = {"clusterRoleSelectors": [{"matchLabels": {"x": "y"}}]}
    refused = client.post(at, json=document("ClusterRole", f"agg-{mallory}", aggregationRule=selectors))
    assert refused.status_code == 403
    assert "must have cluster-admin privileges to use the aggregationRule" in refused.json()["message"]
    # nor is putting somebody's powerful role into what many have
    label = {"metadata": {"labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}}}
    assert client.patch(f"{at}/cluster-admin", json=label, headers=MERGE).status_code == 403
    assert client.patch(f"{at}/view", json={"aggregationRule": None}, headers=MERGE).status_code == 403


def test_a_registry_token_gives_no_more_than_its_maker_has(editor: httpx.Client, namespace: str) -> None:
    at = f"{SKERRY}/namespaces/{namespace}/registrytokens"

    def token(**spec: Any) -> dict[str, Any]:
        return {"apiVersion": "skerry.dev/v1alpha1", "kind": "RegistryToken", "metadata": {}, "spec": spec}

    for spec in (
        {},
        {"actions": ["pull"]},
        {"actions": ["push"], "repositories": [f"{namespace}/digits"]},
        {"actions": ["pull", "delete"], "repositories": [f"{namespace}/digits"]},
        {"actions": ["pull"], "repositories": [f"{namespace}/digits", f"{namespace}/other"]},
    ):
        for query in ("", "?dryRun=All"):
            assert editor.post(at + query, json=token(**spec)).status_code == 403, spec
    made = editor.post(at, json=token(actions=["pull"], repositories=[f"{namespace}/digits"]))
    assert made.status_code == 201, made.text


def test_a_service_account_is_no_way_up(people: People, namespace: str, mallory: str) -> None:
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    for name in ("weak", "strong", "wide"):
        made = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
        assert people.admin.post(accounts, json=made).status_code == 201
    people.grant(mallory, namespace, rule(["create", "get"], ["serviceaccounts"], group=""), name="accounts")
    client = people.user(mallory)
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}

    def ask(name: str) -> httpx.Response:
        return client.post(f"{accounts}/{name}/token", json=asked)

    assert ask("weak").status_code == 403  # whoever may make accounts may not make their tokens
    people.grant(mallory, namespace, rule(["create"], ["serviceaccounts/token"], group=""), name="tokens")
    assert ask("weak").status_code == 201
    for name, where, kind in (("strong", namespace, "RoleBinding"), ("wide", "", "ClusterRoleBinding")):
        subjects = [{"kind": "ServiceAccount", "name": name, "namespace": namespace}]
        view = {"kind": "ClusterRole", "name": "view", "apiGroup": RBAC}
        people.make(kind, f"{mallory}-{name}", where, roleRef=view, subjects=subjects)
        refused = ask(name)
        assert refused.status_code == 403, refused.text
        assert "the account may do what you may not" in refused.json()["message"]
        assert "eyJ" not in refused.text
    people.bind(mallory, namespace, "ClusterRole", "view", called="views")
    assert ask("strong").status_code == 201
    assert ask("wide").status_code == 403
    people.grant(mallory, namespace, rule(["impersonate"], ["serviceaccounts"], "wide", group=""), name="is-wide")
    assert ask("wide").status_code == 201


def test_who_may_pull_and_push_is_said_by_roles(people: People, namespace: str, mallory: str) -> None:
    client = people.user(mallory)
    own, other = f"/v2/{namespace}/digits", "/v2/default/digits"
    assert client.get("/v2/").status_code == 200
    assert client.get(f"{own}/tags/list").status_code == 403
    people.grant(mallory, namespace, rule(["get"], ["repositories"], "digits"), name="pulls")
    assert client.get(f"{own}/tags/list").status_code == 404
    assert client.post(f"{own}/blobs/uploads/").status_code == 403
    for path in (f"{other}/tags/list", f"/v2/{namespace}/other/tags/list", f"/v2/{namespace}/digits/x/tags/list"):
        assert client.get(path).status_code == 403, path
    people.grant(mallory, namespace, rule(["update"], ["repositories"]), name="pushes")
    assert client.post(f"{own}/blobs/uploads/").status_code == 202
    assert client.post(f"{other}/blobs/uploads/").status_code == 403
    blob, source = mallory.encode(), f"{namespace}-other/secret"
    digest = f"sha256:{sha256(blob).hexdigest()}"
    pushed = people.admin.post(f"/v2/{source}/blobs/uploads/?digest={digest}", content=blob)
    assert pushed.status_code == 201, pushed.text
    mount = f"{own}/blobs/uploads/?mount={digest}&from={source}"
    assert client.post(mount).status_code == 202  # an ordinary upload: what he may not read is as if it were not there
    assert client.get(f"{own}/blobs/{digest}").status_code == 404
    people.grant(mallory, f"{namespace}-other", rule(["get"], ["repositories"], "secret"), name="reads-it")
    assert client.post(mount).status_code == 201
    assert client.delete(f"{own}/manifests/v1").status_code == 403


WORDS = (
    f"api apis v1 skerry.dev v1alpha1 {RBAC} namespaces a devices clusterroles pods nodes status log exec x registry"
)
parts = st.lists(
    st.sampled_from([*WORDS.split(), "gc", "auditevents", "serviceaccounts", "token", "tunnels", "", ".."]),
    min_size=1,
    max_size=9,
)
SERVED = {(info.plural, info.namespaced) for info in KINDS}
REAL = [
    ["api", "v1"],
    ["apis", "skerry.dev", "v1alpha1"],
    ["apis", RBAC, "v1"],
    ["api", "v1", "namespaces", "a"],
    ["apis", "skerry.dev", "v1alpha1", "namespaces", "a"],
]


@pytest.fixture(scope="module")
def routes(hub: Hub) -> list[BaseRoute]:
    return build_app(hub.context).routes


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([[], *REAL]), parts, st.sampled_from(["GET", "POST", "DELETE"]))
def test_the_router_and_the_rules_read_a_path_the_same_way(
    routes: list[BaseRoute], base: list[str], rest: list[str], method: str
) -> None:
    path = "/" + "/".join([*base, *rest])
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [], "root_path": ""}
    matched = [route.matches(scope) for route in routes]
    taken = next((child["path_params"] for match, child in matched if match is Match.FULL), None)
    if taken is None or path.startswith("/v2"):
        return
    try:
        wanted = attributes.of(scope)
    except NotFoundError:
        # refused before it is routed: no route may have made a resource of it that there is
        assert (taken.get("plural"), "namespace" in taken) not in SERVED or "" in path.split("/")[1:] or ".." in path
        return
    if not wanted.is_resource:
        assert set(taken) <= {"group", "version", "path", "check"}, taken
        return
    for name in ("plural", "namespace", "name", "subresource"):
        if name in taken and wanted.resource != "namespaces":
            assert getattr(wanted, "resource" if name == "plural" else name) == taken[name], (name, taken, wanted)
    if "namespace" not in taken and "plural" in taken and wanted.resource != "namespaces":
        assert wanted.namespace == ""
