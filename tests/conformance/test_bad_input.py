"""What is wrong with a request is answered with Kubernetes' code and reason, and never with a 500."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from tests.conformance.objects import deployment, device
from tests.conformance.program import GROUP, HubProgram

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
JSON = "application/json"


@pytest.fixture
def where(namespace: str) -> str:
    return f"{GROUP}/namespaces/{namespace}/devices"


@pytest.fixture(scope="module")
def client(hub: HubProgram) -> Iterator[httpx.Client]:
    with hub.client() as client:
        yield client


def status(answer: httpx.Response, code: int, reason: str) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["kind"], body.get("reason"), body["code"]) == (code, "Status", reason, code), body
    return body


def deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


@pytest.mark.parametrize(
    ("content", "kind", "failure"),
    [
        (b"", JSON, (400, "BadRequest")),
        (b"{", JSON, (400, "BadRequest")),
        (b"null", JSON, (400, "BadRequest")),
        (b"[]", JSON, (400, "BadRequest")),
        (b'"text"', JSON, (400, "BadRequest")),
        (b"\xff\xfe{}", JSON, (400, "BadRequest")),
        (b'{"a":NaN}', JSON, (400, "BadRequest")),
        (b'{"a":1e999}', JSON, (400, "BadRequest")),
        (b'{"a":' + b"9" * 5000 + b"}", JSON, (400, "BadRequest")),
        (b'{"a":"\\ud800"}', JSON, (400, "BadRequest")),
        (b'{"kind":"Device","kind":"Device"}', JSON, (400, "BadRequest")),
        (deep(65).encode(), JSON, (400, "BadRequest")),
        (deep(100_000).encode(), JSON, (400, "BadRequest")),
        (b"[" * 1_000_000, JSON, (400, "BadRequest")),
        (b"a: &a [*a]", "application/yaml", (400, "BadRequest")),
        (b"a: !!python/object/apply:os.system [id]", "application/yaml", (400, "BadRequest")),
        (b"x" * (3 * 1024 * 1024 + 1), JSON, (413, "RequestEntityTooLarge")),
        (b"{}", "text/plain", (415, "UnsupportedMediaType")),
        (b"{}", "application/xml; charset=utf-8", (415, "UnsupportedMediaType")),
        (b"{}", "", (422, "Invalid")),
        (b'{"apiVersion":"v1","kind":"Device"}', JSON, (422, "Invalid")),
    ],
)
def test_bodies(client: httpx.Client, where: str, content: bytes, kind: str, failure: tuple[int, str]) -> None:
    headers = {"content-type": kind} if kind else {}
    status(client.post(where, content=content, headers=headers), *failure)


@pytest.mark.parametrize(
    ("change", "element"),
    [
        ({"metadata": {}}, "metadata.name"),
        ({"metadata": {"name": "a\0b"}}, "metadata.name"),
        ({"metadata": {"name": "a" * 64}}, "metadata.name"),
        ({"metadata": {"name": "tést"}}, "metadata.name"),
        ({"metadata": {"name": "../x"}}, "metadata.name"),
        ({"metadata": {"name": 7}}, "metadata.name"),
        ({"metadata": {"name": "a", "labels": {"a b": "c"}}}, "metadata.labels"),
        ({"metadata": {"name": "a", "labels": {"a": "c" * 64}}}, "metadata.labels"),
        ({"metadata": {"name": "a", "labels": {"a": 1}}}, "metadata.labels"),
        ({"metadata": {"name": "a", "annotations": {"a": "x" * (256 * 1024 + 1)}}}, "metadata.annotations"),
        ({"metadata": {"name": "a", "finalizers": ["not one"]}}, "metadata.finalizers"),
        ({"metadata": {"name": "a", "ownerReferences": [{"name": "b"}]}}, "metadata.ownerReferences"),
        ({"metadata": []}, "metadata"),
        ({"spec": {"cordoned": "yes"}}, "spec.cordoned"),
        ({"spec": {"cordoned": True, "nothing": 1}}, "spec.nothing"),
        ({"spec": {"link": {"maxBandwidth": "12Q"}}}, "spec.link.maxBandwidth"),
        ({"spec": []}, "spec"),
        ({"nothing": 1}, "nothing"),
    ],
)
def test_objects(client: httpx.Client, where: str, change: dict[str, Any], element: str) -> None:
    body = status(client.post(where, json={**device("a"), **change}), 422, "Invalid")
    assert any(cause["field"].startswith(element) for cause in body["details"]["causes"]), body


@pytest.mark.parametrize(
    ("kind", "change", "failure"),
    [
        (MERGE, [], (400, "BadRequest")),
        (MERGE, {"metadata": {"name": "b"}}, (400, "BadRequest")),
        (MERGE, {"metadata": {"resourceVersion": "1"}}, (409, "Conflict")),
        (MERGE, {"metadata": {"resourceVersion": "x"}}, (400, "BadRequest")),
        (MERGE, {"metadata": {"uid": "another"}}, (409, "Conflict")),
        (MERGE, {"apiVersion": "v1"}, (422, "Invalid")),
        (MERGE, {"metadata": None}, (422, "Invalid")),
        (STRATEGIC, {"spec": {"$patch": "sideways"}}, (400, "BadRequest")),
        (STRATEGIC, [], (400, "BadRequest")),
        (JSON_PATCH, {}, (400, "BadRequest")),
        (JSON_PATCH, [{"op": "copy", "path": "/a"}], (400, "BadRequest")),
        (JSON_PATCH, [{"op": "test", "path": "/spec/cordoned", "value": True}], (422, "Invalid")),
        (JSON_PATCH, [{"op": "replace", "path": "", "value": 1}], (400, "BadRequest")),
        (JSON_PATCH, [{"op": "remove", "path": "/metadata"}], (422, "Invalid")),
        (JSON_PATCH, [{"op": "add", "path": "/a" * 200_000, "value": 1}], (400, "BadRequest")),
        (
            JSON_PATCH,
            [{"op": "add", "path": "/x", "value": {"a": "b"}}]
            + [{"op": "copy", "from": "/x", "path": f"/x/{number}"} for number in range(60)],
            (400, "BadRequest"),
        ),
        (JSON_PATCH, [{"op": "test", "path": "/kind", "value": "Device"}] * 10_001, (400, "BadRequest")),
        (APPLY, {"apiVersion": "skerry.dev/v1alpha1", "kind": "Device"}, (422, "Invalid")),
        ("application/json", {}, (415, "UnsupportedMediaType")),
    ],
)
def test_patches(client: httpx.Client, where: str, kind: str, change: Any, failure: tuple[int, str]) -> None:
    client.post(where, json=device("a"))
    answer = client.patch(f"{where}/a", content=json.dumps(change), headers={"content-type": kind})
    status(answer, *failure)


@pytest.mark.parametrize(
    ("parameters", "code", "reason"),
    [
        ({"limit": "9" * 30}, 400, "BadRequest"),
        ({"limit": "-1"}, 400, "BadRequest"),
        ({"continue": "%00"}, 400, "BadRequest"),
        ({"continue": "eyJ2IjoxfQ"}, 400, "BadRequest"),
        ({"continue": "A" * 5000}, 400, "BadRequest"),
        ({"labelSelector": "a in (b"}, 400, "BadRequest"),
        ({"labelSelector": "a\0=b"}, 400, "BadRequest"),
        ({"labelSelector": "=" * 4000}, 400, "BadRequest"),
        ({"fieldSelector": "spec.x=1"}, 400, "BadRequest"),
        ({"resourceVersion": "٣"}, 400, "BadRequest"),
        ({"resourceVersion": "9" * 17}, 504, "Timeout"),
        ({"watch": "1", "timeoutSeconds": "-5"}, 400, "BadRequest"),
        ({"watch": "1", "sendInitialEvents": "perhaps"}, 400, "BadRequest"),
    ],
)
def test_parameters(client: httpx.Client, where: str, parameters: dict[str, str], code: int, reason: str) -> None:
    body = status(client.get(where, params=parameters), code, reason)
    assert body["message"]


@pytest.mark.parametrize(
    "path",
    [
        "/devices/%00",
        "/devices/a%2Fb",
        "/devices/..%2f..%2fx",
        "/devices/" + quote("é"),
        "/devices/" + "a" * 3000,
        "/devices/a/nothing",
        "/nothings",
        "/devices/a/status/x",
    ],
)
def test_paths(client: httpx.Client, namespace: str, path: str) -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        answer = client.request(method, f"{GROUP}/namespaces/{namespace}{path}", json=device("a"))
        assert 400 <= answer.status_code < 500, (method, answer.text)
        assert answer.json()["kind"] == "Status"


def test_methods(client: httpx.Client, where: str) -> None:
    client.post(where, json=device("a"))
    assert client.head(f"{where}/a").status_code == 200
    assert client.head(f"{where}/b").status_code == 404
    for method in ("OPTIONS", "TRACE", "CONNECTX"):
        answer = client.request(method, f"{where}/a")
        assert answer.status_code in (400, 405), (method, answer.status_code)
    refused = client.request("PATCH", where, json={})
    status(refused, 405, "MethodNotAllowed")
    assert "GET" in refused.headers["allow"]


def test_immutable_and_stale(client: httpx.Client, where: str, namespace: str) -> None:
    stale = client.post(where, json=device("a")).json()
    fresh = client.put(f"{where}/a", json=device("a", cordoned=True)).json()
    status(client.put(f"{where}/a", json=stale), 409, "Conflict")
    options = {"preconditions": {"resourceVersion": stale["metadata"]["resourceVersion"]}}
    status(client.request("DELETE", f"{where}/a", json=options), 409, "Conflict")
    status(client.post(where, json=device("a")), 409, "AlreadyExists")
    kept = {**fresh, "metadata": {**fresh["metadata"], "uid": "mine", "generation": 99}}
    status(client.put(f"{where}/a", json=kept), 409, "Conflict")
    status(client.put(f"{where}/a", json=deployment("a")), 400, "BadRequest")
    status(client.put(f"{where}/b", json=device("a")), 400, "BadRequest")
    status(client.put(f"{where}/b", json=device("b")), 404, "NotFound")


def test_compressed_bodies_are_refused_by_name(client: httpx.Client, where: str) -> None:
    content = gzip.compress(json.dumps(device("a")).encode())
    answer = client.post(where, content=content, headers={"content-type": JSON, "content-encoding": "gzip"})
    body = status(answer, 415, "UnsupportedMediaType")
    assert "gzip" in body["message"]
    plain = client.post(where, json=device("a"), headers={"content-encoding": "identity"})
    assert plain.status_code == 201


@pytest.mark.parametrize(
    ("accept", "code"),
    [
        ("*/*", 200),
        ("application/*", 200),
        ("", 200),
        ("application/json;q=0.5, text/html", 200),
        ("application/vnd.kubernetes.protobuf, application/json", 200),
        ("application/json;as=Table;v=v1;g=meta.k8s.io", 200),
        ("application/json;as=Nothing;v=v1;g=meta.k8s.io, application/json", 200),
        ("a;b=c;;=,,;" * 50, 406),
        ("text/html", 406),
        ("application/vnd.kubernetes.protobuf", 406),
        ("application/json;as=Nothing;v=v1;g=meta.k8s.io", 406),
    ],
)
def test_what_a_client_accepts(client: httpx.Client, where: str, accept: str, code: int) -> None:
    answer = client.get(where, headers={"accept": accept})
    assert answer.status_code == code, answer.text
    if code == 406:
        status(answer, 406, "NotAcceptable")


@contextmanager
def raw(hub: HubProgram) -> Iterator[socket.socket]:
    address = urlsplit(hub.connection.server)
    with (
        socket.create_connection((address.hostname, address.port), timeout=30) as plain,
        hub.context().wrap_socket(plain, server_hostname=address.hostname) as connection,
    ):
        yield connection


@pytest.mark.parametrize(
    "request_",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /apis HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
    ],
)
def test_what_is_no_http(hub: HubProgram, client: httpx.Client, request_: bytes) -> None:
    with raw(hub) as connection:
        connection.sendall(request_)
        said = connection.recv(65536)
    assert said[:10] in (b"", b"HTTP/1.1 4") or said.startswith(b"HTTP/1.1 404"), said[:100]
    assert client.get("/healthz").text == "ok"


def test_a_client_that_does_not_read_holds_up_nobody(hub: HubProgram, client: httpx.Client, where: str) -> None:
    """It asks for megabytes on many connections and takes nothing."""
    note = {"big": "x" * 200_000}
    for number in range(10):
        made = device(f"d{number}")
        made["metadata"]["annotations"] = note
        assert client.post(where, json=made).status_code == 201
    asked = f"GET {where} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    half = f"POST {where} HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\ncontent-length: 100\r\n\r\n{{".encode()
    with raw(hub) as one, raw(hub) as two, raw(hub) as three, raw(hub) as four:
        for connection in (one, two):
            connection.sendall(asked * 3)
        three.sendall(half)
        four.sendall(b"GET / HTT")
        assert client.get(f"{where}/d1").status_code == 200
        assert client.patch(f"{where}/d1", json={}, headers={"content-type": MERGE}).status_code == 200


def test_an_oversized_object_of_small_parts(client: httpx.Client, where: str) -> None:
    """Each annotation may be there, all together may not."""
    made = device("a")
    made["metadata"]["annotations"] = {f"k{number}": "x" * 60_000 for number in range(5)}
    status(client.post(where, json=made), 422, "Invalid")
    made = deployment("a")
    made["spec"]["deviceSelector"] = {
        "matchExpressions": [{"key": f"k{n}", "operator": "In", "values": ["v" * 60] * 20} for n in range(1500)]
    }
    answer = client.post(where.replace("devices", "modeldeployments"), json=made)
    assert answer.status_code in (413, 422), answer.text[:300]


def test_long_lists_are_compressed_for_who_takes_them_so(client: httpx.Client, where: str) -> None:
    for number in range(3):
        made = device(f"d{number}")
        made["metadata"]["annotations"] = {"big": "x" * 60_000}
        assert client.post(where, json=made).status_code == 201
    plain = client.get(where, headers={"accept-encoding": "identity"})
    packed = client.get(where, headers={"accept-encoding": "br;q=1.0, gzip;q=0.5"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < len(plain.content) / 10
    assert packed.json()["items"] == plain.json()["items"]
    assert "content-encoding" not in client.get(f"{where}/d1", headers={"accept-encoding": "gzip"}).headers
