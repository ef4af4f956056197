"""The OCI distribution API, over real HTTP on a real directory."""

import hashlib
import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from skerry.core import manifest as manifests


class Hub(Protocol):
    url: str
    root: Path

    def client(self, role: str = "admin") -> httpx.Client: ...


@pytest.fixture
def client(hub: Hub) -> Iterator[httpx.Client]:
    with hub.client() as client:
        yield client


def digest_of(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def push_blob(client: httpx.Client, raw: bytes, repository: str = "default/digits") -> str:
    answer = client.post(f"/v2/{repository}/blobs/uploads/", params={"digest": digest_of(raw)}, content=raw)
    assert answer.status_code == 201, answer.text
    return digest_of(raw)


def document(client: httpx.Client, **changes: Any) -> bytes:
    config, layer = b"{}", b"layer"
    for blob in (config, layer):
        push_blob(client, blob)
    fields = {
        "schemaVersion": 2,
        "mediaType": manifests.MANIFEST_TYPE,
        "config": {"mediaType": manifests.EMPTY_TYPE, "digest": digest_of(config), "size": len(config)},
        "layers": [{"mediaType": "application/x", "digest": digest_of(layer), "size": len(layer)}],
    }
    return json.dumps(fields | changes).encode()


def put_manifest(
    client: httpx.Client, reference: str, raw: bytes, media_type: str = manifests.MANIFEST_TYPE
) -> httpx.Response:
    return client.put(f"/v2/default/digits/manifests/{reference}", content=raw, headers={"Content-Type": media_type})


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refused(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, (answer.status_code, answer.text)
    (error,) = answer.json()["errors"]
    assert error["code"] == code
    assert isinstance(error["message"], str)
    return error["message"]


def test_the_version_is_told(client: httpx.Client) -> None:
    for path in ("/v2/", "/v2"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Docker-Distribution-API-Version"]) == (200, "registry/2.0")


# --- who may do what -------------------------------------------------------------------------------------------------


def test_nobody_gets_401_and_a_device_403_where_it_may_not(hub: Hub) -> None:
    blob = digest_of(b"x")
    paths = [
        ("GET", "/v2/"),
        ("GET", "/v2/nothing/here"),
        ("GET", f"/v2/default/digits/blobs/{blob}"),
        ("PUT", "/v2/default/digits/manifests/1"),
        ("POST", "/v2/default/digits/blobs/uploads/"),
        ("PATCH", "/v2/default/digits/manifests/1"),
    ]
    with hub.client("anonymous") as nobody:
        for method, path in paths:
            answer = nobody.request(method, path)
            refused(answer, 401, "UNAUTHORIZED")
            assert "WWW-Authenticate" in answer.headers
    with hub.client() as admin, hub.client("device") as device:
        for repository in ("default/digits", "lab/digits"):
            push_blob(admin, b"x", repository)
        refused(device.get(f"/v2/default/digits/blobs/{blob}"), 403, "DENIED")  # it is not deployed to it
        refused(device.get(f"/v2/lab/digits/blobs/{blob}"), 403, "DENIED")
        refused(device.get("/v2/lab/digits/tags/list"), 403, "DENIED")
        for method, path in (
            ("POST", "/v2/default/digits/blobs/uploads/"),
            ("PUT", "/v2/default/digits/manifests/1"),
            ("DELETE", f"/v2/default/digits/blobs/{blob}"),
            ("DELETE", "/v2/default/digits/manifests/1"),
            ("PATCH", f"/v2/default/digits/blobs/uploads/{'0' * 32}"),
        ):
            refused(device.request(method, path), 403, "DENIED")


# --- blobs -----------------------------------------------------------------------------------------------------------


def test_a_blob_comes_back_byte_for_byte(client: httpx.Client) -> None:
    raw = bytes(range(256)) * 10_000
    digest = push_blob(client, raw)
    answer = client.get(f"/v2/default/digits/blobs/{digest}")
    assert answer.status_code == 200
    assert answer.content == raw
    assert answer.headers["Docker-Content-Digest"] == digest
    assert answer.headers["Content-Length"] == str(len(raw))
    head = client.head(f"/v2/default/digits/blobs/{digest}")
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(len(raw)), b"")
    empty = push_blob(client, b"")
    assert client.get(f"/v2/default/digits/blobs/{empty}").content == b""


def test_an_absent_blob_is_404(client: httpx.Client) -> None:
    digest = push_blob(client, b"x", "default/other")
    refused(client.get(f"/v2/default/digits/blobs/{digest}"), 404, "BLOB_UNKNOWN")
    assert client.head(f"/v2/default/digits/blobs/{digest}").status_code == 404


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=2-5", 2, 5),
        ("bytes=7-", 7, 9),
        ("bytes=7-100", 7, 9),
        ("bytes=-3", 7, 9),
        ("bytes=-100", 0, 9),
    ],
)
def test_a_part_of_a_blob_is_206(client: httpx.Client, asked: str, first: int, last: int) -> None:
    digest = push_blob(client, b"0123456789")
    answer = client.get(f"/v2/default/digits/blobs/{digest}", headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == b"0123456789"[first : last + 1]
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/10"
    head = client.head(f"/v2/default/digits/blobs/{digest}", headers={"Range": asked})
    assert (head.status_code, head.headers["Content-Length"]) == (206, str(last + 1 - first))


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=10-20", "bytes=999999999999999999-", "bytes=-0"])
def test_a_part_that_is_not_there_is_416(client: httpx.Client, asked: str) -> None:
    digest = push_blob(client, b"0123456789")
    answer = client.get(f"/v2/default/digits/blobs/{digest}", headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == "bytes */10"


@pytest.mark.parametrize("asked", ["bytes=5-2", "bytes=-", "bytes=0-1,3-4", "lines=1-2", "bytes=a-b", "rubbish"])
def test_a_range_that_is_none_is_ignored(client: httpx.Client, asked: str) -> None:
    digest = push_blob(client, b"0123456789")
    answer = client.get(f"/v2/default/digits/blobs/{digest}", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, b"0123456789")


def test_if_range_of_something_else_gives_everything(client: httpx.Client) -> None:
    digest = push_blob(client, b"0123456789")
    url = f"/v2/default/digits/blobs/{digest}"
    assert client.get(url, headers={"Range": "bytes=2-", "If-Range": '"other"'}).status_code == 200
    assert client.get(url, headers={"Range": "bytes=2-", "If-Range": f'"{digest}"'}).status_code == 206


# --- uploads ---------------------------------------------------------------------------------------------------------


def test_an_upload_in_chunks_can_be_asked_for_and_resumed(client: httpx.Client) -> None:
    raw = b"0123456789" * 1000
    begun = client.post("/v2/default/digits/blobs/uploads/")
    assert (begun.status_code, begun.headers["Range"]) == (202, "0-0")
    url = begun.headers["Location"]
    first = client.patch(url, content=raw[:4000], headers={"Content-Range": "0-3999"})
    assert (first.status_code, first.headers["Range"]) == (202, "0-3999")
    for wrong in ("0-999", "5000-5999"):
        answer = client.patch(first.headers["Location"], content=b"x" * 1000, headers={"Content-Range": wrong})
        refused(answer, 416, "BLOB_UPLOAD_INVALID")
        assert answer.headers["Range"] == "0-3999"
    status = client.get(url)
    assert (status.status_code, status.headers["Range"]) == (204, "0-3999")
    second = client.patch(url, content=raw[4000:7000], headers={"Content-Range": "4000-6999"})
    assert second.headers["Range"] == "0-6999"
    done = client.put(
        url, params={"digest": digest_of(raw)}, content=raw[7000:], headers={"Content-Range": "7000-9999"}
    )
    assert done.status_code == 201
    assert client.get(done.headers["Location"]).content == raw
    refused(client.get(url), 404, "BLOB_UPLOAD_UNKNOWN")


def test_an_upload_of_unknown_length_streams_in(client: httpx.Client) -> None:
    pieces = [bytes([n]) * 70_000 for n in range(40)]
    begun = client.post("/v2/default/digits/blobs/uploads/")
    answer = client.patch(begun.headers["Location"], content=iter(pieces))
    assert answer.headers["Range"] == f"0-{70_000 * 40 - 1}"
    raw = b"".join(pieces)
    assert client.put(answer.headers["Location"], params={"digest": digest_of(raw)}).status_code == 201


def test_what_arrived_before_the_line_broke_is_kept(hub: Hub, client: httpx.Client) -> None:
    raw = bytes(range(256)) * 20_000

    def arrived() -> int:
        return int(client.get(url).headers["Range"].partition("-")[2]) + 1

    url = client.post("/v2/default/digits/blobs/uploads/").headers["Location"]
    address = httpx.URL(hub.url)
    with socket.create_connection((address.host, address.port or 0), timeout=10) as line:
        head = f"PATCH {url} HTTP/1.1\r\nHost: x\r\nx-role: admin\r\nContent-Length: {len(raw)}\r\n\r\n"
        line.sendall(head.encode() + raw[:3_000_000])
        wait_until(lambda: arrived() >= 1024 * 1024)
        refused(client.patch(url, content=b"x"), 416, "BLOB_UPLOAD_INVALID")  # one at a time

    def resumed() -> bool:  # refused until the hub has noticed that the other one is gone
        size = arrived()
        return client.patch(url, content=raw[size:], headers={"Content-Range": f"{size}-{len(raw) - 1}"}).is_success

    wait_until(resumed)
    assert client.put(url, params={"digest": digest_of(raw)}).status_code == 201
    assert client.get(f"/v2/default/digits/blobs/{digest_of(raw)}").content == raw


def test_a_wrong_digest_leaves_nothing_behind(hub: Hub, client: httpx.Client) -> None:
    url = client.post("/v2/default/digits/blobs/uploads/").headers["Location"]
    answer = client.put(url, params={"digest": digest_of(b"other")}, content=b"content")
    assert digest_of(b"content") in refused(answer, 400, "DIGEST_INVALID")
    refused(client.get(url), 404, "BLOB_UPLOAD_UNKNOWN")
    answer = client.post("/v2/default/digits/blobs/uploads/", params={"digest": digest_of(b"x")}, content=b"y")
    refused(answer, 400, "DIGEST_INVALID")
    assert [path for path in hub.root.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("digest", ["", "sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:" + "A" * 64])
def test_a_digest_that_is_none_is_refused(client: httpx.Client, digest: str) -> None:
    url = client.post("/v2/default/digits/blobs/uploads/").headers["Location"]
    refused(client.put(url, params={"digest": digest}, content=b""), 400, "DIGEST_INVALID")


@pytest.mark.parametrize("text", ["0", "5-2", "bytes 0-1000000000000000000000/*", "a-b"])
def test_a_content_range_that_is_none_is_refused(client: httpx.Client, text: str) -> None:
    url = client.post("/v2/default/digits/blobs/uploads/").headers["Location"]
    refused(client.patch(url, content=b"x", headers={"Content-Range": text}), 416, "BLOB_UPLOAD_INVALID")


def test_a_chunk_shorter_than_announced_is_refused(client: httpx.Client) -> None:
    url = client.post("/v2/default/digits/blobs/uploads/").headers["Location"]
    refused(client.patch(url, content=b"abc", headers={"Content-Range": "0-9"}), 400, "SIZE_INVALID")


def test_an_upload_can_be_cancelled_and_belongs_to_its_repository(client: httpx.Client) -> None:
    url = client.post("/v2/default/digits/blobs/uploads/").headers["Location"]
    refused(client.get(url.replace("digits", "other")), 404, "BLOB_UPLOAD_UNKNOWN")
    assert client.delete(url).status_code == 204
    for method in ("GET", "PATCH", "DELETE"):
        refused(client.request(method, url), 404, "BLOB_UPLOAD_UNKNOWN")
    refused(client.get("/v2/default/digits/blobs/uploads/no-such"), 404, "BLOB_UPLOAD_UNKNOWN")


def test_a_blob_is_mounted_from_another_repository(client: httpx.Client) -> None:
    digest = push_blob(client, b"shared", "default/one")
    mounted = client.post("/v2/default/two/blobs/uploads/", params={"mount": digest, "from": "default/one"})
    assert (mounted.status_code, mounted.headers["Docker-Content-Digest"]) == (201, digest)
    assert client.get(mounted.headers["Location"]).content == b"shared"
    for params in (
        {"mount": digest_of(b"absent"), "from": "default/one"},
        {"mount": "x", "from": "y"},
        {"mount": digest},
    ):
        assert client.post("/v2/default/three/blobs/uploads/", params=params).status_code == 202


def test_sizes_are_bounded(tight_hub: Hub) -> None:
    with tight_hub.client() as client:
        push_blob(client, b"x" * 1000)
        answer = client.post(
            "/v2/default/digits/blobs/uploads/", params={"digest": digest_of(b"y" * 1001)}, content=b"y" * 1001
        )
        assert "larger than a blob may be" in refused(answer, 413, "SIZE_INVALID")
        answer = put_manifest(client, "1", b" " * 2001)
        assert "larger than a manifest may be" in refused(answer, 413, "SIZE_INVALID")
        for _ in range(3):
            assert client.post("/v2/default/digits/blobs/uploads/").status_code == 202
        refused(client.post("/v2/default/digits/blobs/uploads/"), 503, "UNAVAILABLE")


def test_a_sender_that_falls_silent_is_given_up(tight_hub: Hub) -> None:
    with tight_hub.client() as client:
        url = client.post("/v2/default/digits/blobs/uploads/").headers["Location"]
    address = httpx.URL(tight_hub.url)
    with socket.create_connection((address.host, address.port or 0), timeout=20) as line:
        line.sendall(f"PATCH {url} HTTP/1.1\r\nHost: x\r\nx-role: admin\r\nContent-Length: 100\r\n\r\nabc".encode())
        assert line.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_a_full_disk_is_said_and_leaves_nothing(full_hub: Hub) -> None:
    with full_hub.client() as client:
        answer = client.post("/v2/default/digits/blobs/uploads/", params={"digest": digest_of(b"x")}, content=b"x")
        assert "free some space" in refused(answer, 507, "STORAGE_FULL")
    assert [path for path in full_hub.root.rglob("*") if path.is_file()] == []


# --- manifests -------------------------------------------------------------------------------------------------------


def test_a_manifest_comes_back_by_tag_and_by_digest(client: httpx.Client) -> None:
    raw = document(client)
    answer = put_manifest(client, "1.0", raw)
    assert (answer.status_code, answer.headers["Docker-Content-Digest"]) == (201, digest_of(raw))
    assert "OCI-Subject" not in answer.headers
    for reference in ("1.0", digest_of(raw)):
        got = client.get(f"/v2/default/digits/manifests/{reference}")
        assert (got.content, got.headers["Content-Type"]) == (raw, manifests.MANIFEST_TYPE)
        assert got.headers["Docker-Content-Digest"] == digest_of(raw)
        head = client.head(f"/v2/default/digits/manifests/{reference}")
        assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(raw)))
    assert client.get(answer.headers["Location"]).content == raw
    refused(client.get("/v2/default/digits/manifests/2.0"), 404, "MANIFEST_UNKNOWN")
    refused(client.get(f"/v2/default/other/manifests/{digest_of(raw)}"), 404, "MANIFEST_UNKNOWN")


def test_a_manifest_whose_parts_are_missing_is_refused(client: httpx.Client) -> None:
    raw = document(client, layers=[{"mediaType": "x", "digest": digest_of(b"absent"), "size": 6}])
    assert digest_of(b"absent") in refused(put_manifest(client, "1", raw), 404, "MANIFEST_BLOB_UNKNOWN")
    index = json.dumps(
        {
            "schemaVersion": 2,
            "manifests": [{"mediaType": manifests.MANIFEST_TYPE, "digest": digest_of(raw), "size": len(raw)}],
        }
    ).encode()
    refused(put_manifest(client, "1", index, manifests.INDEX_TYPE), 404, "MANIFEST_BLOB_UNKNOWN")
    refused(client.get("/v2/default/digits/manifests/1"), 404, "MANIFEST_UNKNOWN")


def test_a_manifest_that_is_wrong_is_refused(client: httpx.Client) -> None:
    raw = document(client)
    refused(put_manifest(client, "1", b"no json"), 400, "MANIFEST_INVALID")
    refused(put_manifest(client, "1", raw, "text/plain"), 400, "MANIFEST_INVALID")
    refused(put_manifest(client, "1", raw, manifests.INDEX_TYPE), 400, "MANIFEST_INVALID")
    refused(put_manifest(client, digest_of(b"other"), raw), 400, "DIGEST_INVALID")
    refused(put_manifest(client, ".bad", raw), 400, "MANIFEST_INVALID")
    refused(put_manifest(client, "t" * 129, raw), 400, "MANIFEST_INVALID")


def test_tags_are_listed_in_pages(client: httpx.Client) -> None:
    refused(client.get("/v2/default/digits/tags/list"), 404, "NAME_UNKNOWN")
    raw = document(client)
    assert client.get("/v2/default/digits/tags/list").json() == {"name": "default/digits", "tags": []}
    for tag in ("c", "a", "b", "B"):
        put_manifest(client, tag, raw)
    assert client.get("/v2/default/digits/tags/list").json()["tags"] == ["B", "a", "b", "c"]
    seen: list[str] = []
    url = "/v2/default/digits/tags/list?n=3"
    while url:
        answer = client.get(url)
        seen += answer.json()["tags"]
        url = answer.links.get("next", {}).get("url", "")
    assert seen == ["B", "a", "b", "c"]
    assert client.get("/v2/default/digits/tags/list?n=0").json()["tags"] == []
    assert client.get("/v2/default/digits/tags/list?last=a").json()["tags"] == ["b", "c"]
    for wrong in ("x", "-1", "1e9", "9" * 30):
        refused(client.get(f"/v2/default/digits/tags/list?n={wrong}"), 400, "PAGINATION_NUMBER_INVALID")


def test_referrers_are_found_by_their_subject(client: httpx.Client) -> None:
    subject = document(client)
    described = {"mediaType": manifests.MANIFEST_TYPE, "digest": digest_of(subject), "size": len(subject)}
    signature = document(client, subject=described, artifactType="example/signature", annotations={"by": "ada"})
    untyped = document(client, subject=described)
    answer = put_manifest(client, digest_of(signature), signature)  # before its subject, which is allowed
    assert answer.headers["OCI-Subject"] == digest_of(subject)
    put_manifest(client, "1", subject)
    put_manifest(client, digest_of(untyped), untyped)
    answer = client.get(f"/v2/default/digits/referrers/{digest_of(subject)}")
    assert answer.headers["Content-Type"] == manifests.INDEX_TYPE
    assert "OCI-Filters-Applied" not in answer.headers
    found = {entry["digest"]: entry for entry in answer.json()["manifests"]}
    assert found == {
        digest_of(signature): {
            "mediaType": manifests.MANIFEST_TYPE,
            "digest": digest_of(signature),
            "size": len(signature),
            "artifactType": "example/signature",
            "annotations": {"by": "ada"},
        },
        digest_of(untyped): {
            "mediaType": manifests.MANIFEST_TYPE,
            "digest": digest_of(untyped),
            "size": len(untyped),
            "artifactType": manifests.EMPTY_TYPE,
        },
    }
    answer = client.get(
        f"/v2/default/digits/referrers/{digest_of(subject)}", params={"artifactType": "example/signature"}
    )
    assert answer.headers["OCI-Filters-Applied"] == "artifactType"
    assert [entry["digest"] for entry in answer.json()["manifests"]] == [digest_of(signature)]
    nothing = client.get(f"/v2/default/digits/referrers/{digest_of(b'unknown')}")
    assert (nothing.status_code, nothing.json()["manifests"]) == (200, [])
    refused(client.get("/v2/default/digits/referrers/latest"), 400, "DIGEST_INVALID")


def test_things_can_be_deleted(client: httpx.Client) -> None:
    raw = document(client)
    for tag in ("1", "2"):
        put_manifest(client, tag, raw)
    assert client.delete("/v2/default/digits/manifests/1").status_code == 202
    assert client.get("/v2/default/digits/tags/list").json()["tags"] == ["2"]
    assert client.delete(f"/v2/default/digits/manifests/{digest_of(raw)}").status_code == 202
    assert client.get("/v2/default/digits/tags/list").json()["tags"] == []
    refused(client.get("/v2/default/digits/manifests/2"), 404, "MANIFEST_UNKNOWN")
    refused(client.delete("/v2/default/digits/manifests/2"), 404, "MANIFEST_UNKNOWN")
    assert client.delete(f"/v2/default/digits/blobs/{digest_of(b'layer')}").status_code == 202
    refused(client.get(f"/v2/default/digits/blobs/{digest_of(b'layer')}"), 404, "BLOB_UNKNOWN")


@pytest.mark.parametrize(
    "name",
    ["../../etc", "Default/digits", "a//b", "a/../b", "_blobs", "a/_blobs", "a" * 256, "a%2F..%2Fb", "a%20b", "%C3%A4"],
)
def test_a_name_that_is_none_is_refused(hub: Hub, name: str) -> None:
    # httpx would tidy the path up before sending it.
    line = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=30)
    line.putrequest("POST", f"/v2/{name}/blobs/uploads/")
    line.putheader("x-role", "admin")
    line.endheaders()
    answer = line.getresponse()
    assert answer.status == 400
    assert json.loads(answer.read())["errors"][0]["code"] == "NAME_INVALID"
    line.close()


def test_what_is_not_there_and_what_is_not_done_is_said_in_json(client: httpx.Client) -> None:
    refused(client.get("/v2/default/digits"), 404, "UNSUPPORTED")
    answer = client.post("/v2/default/digits/tags/list")
    refused(answer, 405, "UNSUPPORTED")
    assert answer.headers["Allow"] == "GET, HEAD"


def test_a_repository_may_be_named_like_a_part_of_the_api(client: httpx.Client) -> None:
    digest = push_blob(client, b"x", "default/blobs/uploads")
    assert client.get(f"/v2/default/blobs/uploads/blobs/{digest}").content == b"x"


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_pushes_lists_and_pulls(open_hub: Hub, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "blobs" / "sha256").mkdir(parents=True)

    def add(raw: bytes) -> str:
        (source / "blobs" / "sha256" / hashlib.sha256(raw).hexdigest()).write_bytes(raw)
        return digest_of(raw)

    layer = b"weights" * 100_000
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}).encode()
    fields = {
        "schemaVersion": 2,
        "mediaType": manifests.MANIFEST_TYPE,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": add(config),
            "size": len(config),
        },
        "layers": [{"mediaType": manifests.MODEL_WEIGHT_TYPE, "digest": add(layer), "size": len(layer)}],
    }
    raw = json.dumps(fields).encode()
    entry = {"mediaType": manifests.MANIFEST_TYPE, "digest": add(raw), "size": len(raw)}
    (source / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (source / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    image = f"docker://{open_hub.url.removeprefix('http://')}/default/digits:1.0"
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def skopeo(*arguments: str) -> str:
        done = subprocess.run(
            ["skopeo", "--policy", str(policy), *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    skopeo("copy", "--dest-tls-verify=false", f"oci:{source}", image)
    assert json.loads(skopeo("inspect", "--tls-verify=false", "--raw", image)) == fields
    assert json.loads(skopeo("list-tags", "--tls-verify=false", image.removesuffix(":1.0")))["Tags"] == ["1.0"]
    skopeo("copy", "--src-tls-verify=false", image, f"dir:{target}")
    assert (target / hashlib.sha256(layer).hexdigest()).read_bytes() == layer
