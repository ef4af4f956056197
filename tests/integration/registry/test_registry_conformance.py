"""The categories of the OCI Distribution Specification 1.1, one after the other, over real HTTP.

Each test follows one requirement as a client meets it: what is sent, the code that comes back, the headers that a
client goes on with. The categories are the specification's: pull, push, content discovery, content management.
"""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from skerry.core import manifest as manifests

NAME = "default/conformance"
LAYER = bytes(range(256)) * 300
CONFIG = b'{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}'
CODES = {
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
}


def digest_of(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def describe(raw: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(raw), "size": len(raw), **more}


def image(layers: tuple[bytes, ...] = (LAYER,), **more: Any) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": manifests.MANIFEST_TYPE,
        "config": describe(CONFIG, "application/vnd.oci.image.config.v1+json"),
        "layers": [describe(layer, "application/vnd.oci.image.layer.v1.tar") for layer in layers],
        **more,
    }
    return json.dumps(document).encode()


def failure(answer: httpx.Response, *allowed: tuple[int, str]) -> None:
    """The specification's body, with one of these pairs of status and code."""
    assert answer.headers["Content-Type"].startswith("application/json")
    errors = answer.json()["errors"]
    assert errors
    for error in errors:
        assert error["code"] in CODES
        assert isinstance(error["message"], str)
        assert (answer.status_code, error["code"]) in allowed, answer.text


def push_blob(client: httpx.Client, raw: bytes, name: str = NAME) -> None:
    begun = client.post(f"/v2/{name}/blobs/uploads/")
    done = client.put(
        begun.headers["Location"],
        params={"digest": digest_of(raw)},
        content=raw,
        headers={"Content-Type": "application/octet-stream"},
    )
    assert done.status_code == 201


def push_manifest(client: httpx.Client, reference: str, raw: bytes, media_type: str = manifests.MANIFEST_TYPE) -> Any:
    answer = client.put(f"/v2/{NAME}/manifests/{reference}", content=raw, headers={"Content-Type": media_type})
    assert answer.status_code == 201, answer.text
    return answer


@pytest.fixture
def client(hub: Any) -> Iterator[httpx.Client]:
    with hub.client() as client:
        yield client


@pytest.fixture
def pushed(client: httpx.Client) -> bytes:
    """An image in the repository, under the tag `one`."""
    for blob in (CONFIG, LAYER):
        push_blob(client, blob)
    push_manifest(client, "one", image())
    return image()


# --- pull ------------------------------------------------------------------------------------------------------------


def test_pull_blobs(client: httpx.Client, pushed: bytes) -> None:
    for blob in (CONFIG, LAYER):
        url = f"/v2/{NAME}/blobs/{digest_of(blob)}"
        head, got = client.head(url), client.get(url)
        assert (head.status_code, got.status_code) == (200, 200)
        assert head.headers["Content-Length"] == got.headers["Content-Length"] == str(len(blob))
        assert head.headers["Docker-Content-Digest"] == got.headers["Docker-Content-Digest"] == digest_of(blob)
        assert (head.content, got.content) == (b"", blob)
    assert client.head(f"/v2/{NAME}/blobs/{digest_of(b'none')}").status_code == 404
    failure(client.get(f"/v2/{NAME}/blobs/{digest_of(b'none')}"), (404, "BLOB_UNKNOWN"))


def test_pull_parts_of_blobs(client: httpx.Client, pushed: bytes) -> None:
    url, size = f"/v2/{NAME}/blobs/{digest_of(LAYER)}", len(LAYER)
    for asked, first, last in (
        ("bytes=0-0", 0, 0),
        ("bytes=256-511", 256, 511),
        (f"bytes={size - 1}-", size - 1, size - 1),
        (f"bytes=10-{size * 2}", 10, size - 1),
        ("bytes=-100", size - 100, size - 1),
        ("BYTES=1-2", 1, 2),
    ):
        part = client.get(url, headers={"Range": asked})
        assert part.status_code == 206
        assert part.headers["Content-Range"] == f"bytes {first}-{last}/{size}"
        assert part.content == LAYER[first : last + 1]
    for asked in (f"bytes={size}-", "bytes=-0"):
        beyond = client.get(url, headers={"Range": asked})
        assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")


def test_pull_manifests(client: httpx.Client, pushed: bytes) -> None:
    for reference in ("one", digest_of(pushed)):
        url = f"/v2/{NAME}/manifests/{reference}"
        head = client.head(url, headers={"Accept": manifests.MANIFEST_TYPE})
        got = client.get(url, headers={"Accept": manifests.MANIFEST_TYPE})
        assert got.content == pushed  # byte for byte
        for answer in (head, got):
            assert answer.status_code == 200
            assert answer.headers["Content-Type"] == manifests.MANIFEST_TYPE
            assert answer.headers["Content-Length"] == str(len(pushed))
            assert answer.headers["Docker-Content-Digest"] == digest_of(pushed)
        assert head.content == b""
    for absent in ("none", digest_of(b"none")):
        assert client.head(f"/v2/{NAME}/manifests/{absent}").status_code == 404
        failure(client.get(f"/v2/{NAME}/manifests/{absent}"), (404, "MANIFEST_UNKNOWN"))
    failure(client.get("/v2/default/nowhere/manifests/one"), (404, "MANIFEST_UNKNOWN"), (404, "NAME_UNKNOWN"))


# --- push ------------------------------------------------------------------------------------------------------------


def test_push_a_blob_by_post_and_put(client: httpx.Client) -> None:
    begun = client.post(f"/v2/{NAME}/blobs/uploads/", headers={"Content-Length": "0"})
    assert begun.status_code == 202
    done = client.put(begun.headers["Location"], params={"digest": digest_of(LAYER)}, content=LAYER)
    assert done.status_code == 201
    assert done.headers["Docker-Content-Digest"] == digest_of(LAYER)
    assert client.get(done.headers["Location"]).content == LAYER


def test_push_a_blob_by_one_post(client: httpx.Client) -> None:
    done = client.post(f"/v2/{NAME}/blobs/uploads/", params={"digest": digest_of(LAYER)}, content=LAYER)
    assert done.status_code == 201
    assert client.get(done.headers["Location"]).content == LAYER


def test_push_a_blob_in_chunks(client: httpx.Client) -> None:
    location = client.post(f"/v2/{NAME}/blobs/uploads/").headers["Location"]
    middle = len(LAYER) // 3
    early = client.patch(
        location, content=LAYER[middle:], headers={"Content-Range": f"{middle}-{len(LAYER) - 1}"}
    )  # out of order
    failure(early, (416, "BLOB_UPLOAD_INVALID"))
    first = client.patch(location, content=LAYER[:middle], headers={"Content-Range": f"0-{middle - 1}"})
    assert (first.status_code, first.headers["Range"]) == (202, f"0-{middle - 1}")
    state = client.get(first.headers["Location"])
    assert (state.status_code, state.headers["Range"]) == (204, f"0-{middle - 1}")
    retried = client.patch(state.headers["Location"], content=LAYER[:middle], headers={"Content-Range": "0-9"})
    assert retried.status_code in (400, 416)
    final = client.put(
        state.headers["Location"],
        params={"digest": digest_of(LAYER)},
        content=LAYER[middle:],
        headers={"Content-Range": f"{middle}-{len(LAYER) - 1}"},
    )
    assert final.status_code == 201
    assert client.get(final.headers["Location"]).content == LAYER


def test_push_a_blob_as_one_stream(client: httpx.Client) -> None:
    location = client.post(f"/v2/{NAME}/blobs/uploads/").headers["Location"]
    streamed = client.patch(location, content=iter([LAYER[:100], LAYER[100:]]))
    assert (streamed.status_code, streamed.headers["Range"]) == (202, f"0-{len(LAYER) - 1}")
    assert client.put(streamed.headers["Location"], params={"digest": digest_of(LAYER)}).status_code == 201


def test_cancel_an_upload(client: httpx.Client) -> None:
    location = client.post(f"/v2/{NAME}/blobs/uploads/").headers["Location"]
    assert client.delete(location).status_code == 204
    failure(client.get(location), (404, "BLOB_UPLOAD_UNKNOWN"))


def test_a_digest_that_is_another_ones_is_refused(client: httpx.Client) -> None:
    location = client.post(f"/v2/{NAME}/blobs/uploads/").headers["Location"]
    wrong = client.put(location, params={"digest": digest_of(b"other")}, content=LAYER)
    failure(wrong, (400, "DIGEST_INVALID"))
    failure(client.get(f"/v2/{NAME}/blobs/{digest_of(b'other')}"), (404, "BLOB_UNKNOWN"))
    location = client.post(f"/v2/{NAME}/blobs/uploads/").headers["Location"]
    failure(client.put(location, content=LAYER), (400, "DIGEST_INVALID"))  # there is none
    at_once = client.post(f"/v2/{NAME}/blobs/uploads/", params={"digest": "sha256:x"}, content=LAYER)
    failure(at_once, (400, "DIGEST_INVALID"))


def test_mount_a_blob(client: httpx.Client) -> None:
    push_blob(client, LAYER, "default/source")
    url, digest = f"/v2/{NAME}/blobs/uploads/", digest_of(LAYER)
    absent = client.post(url, params={"mount": digest_of(b"none"), "from": "default/source"})
    assert absent.status_code == 202
    assert client.put(absent.headers["Location"], params={"digest": digest_of(b"x")}, content=b"x").status_code == 201
    assert client.post(url, params={"mount": digest}).status_code == 202  # without `from`
    mounted = client.post(url, params={"mount": digest, "from": "default/source"})
    assert (mounted.status_code, mounted.headers["Docker-Content-Digest"]) == (201, digest)
    assert client.get(mounted.headers["Location"]).content == LAYER
    assert client.post(url, params={"mount": digest}).status_code == 201  # now it is here


def test_push_manifests(client: httpx.Client) -> None:
    for blob in (CONFIG, LAYER):
        push_blob(client, blob)
    raw = image()
    tagged, addressed = push_manifest(client, "v1.0_a-b", raw), push_manifest(client, digest_of(raw), raw)
    for answer in (tagged, addressed):
        assert answer.headers["Docker-Content-Digest"] == digest_of(raw)
        assert client.get(answer.headers["Location"]).content == raw
    empty = image(layers=())
    push_manifest(client, "no-layers", empty)
    other = image(annotations={"a": "b"})
    push_manifest(client, "v1.0_a-b", other)  # tags move
    assert client.get(f"/v2/{NAME}/manifests/v1.0_a-b").content == other
    assert client.get(f"/v2/{NAME}/manifests/{digest_of(raw)}").content == raw


def test_push_an_index_and_unknown_fields(client: httpx.Client, pushed: bytes) -> None:
    entry = describe(pushed, manifests.MANIFEST_TYPE, platform={"architecture": "arm64", "os": "linux", "x": 1})
    index = json.dumps(
        {"schemaVersion": 2, "mediaType": manifests.INDEX_TYPE, "manifests": [entry], "ours": {"a": [1]}}
    ).encode()
    push_manifest(client, "all", index, manifests.INDEX_TYPE)
    got = client.get(f"/v2/{NAME}/manifests/all")
    assert (got.content, got.headers["Content-Type"]) == (index, manifests.INDEX_TYPE)


def test_manifests_that_are_none_are_refused(client: httpx.Client, pushed: bytes) -> None:
    def refused(reference: str, raw: bytes, *allowed: tuple[int, str]) -> None:
        url = f"/v2/{NAME}/manifests/{reference}"
        failure(client.put(url, content=raw, headers={"Content-Type": manifests.MANIFEST_TYPE}), *allowed)

    refused("one", b"blablabla", (400, "MANIFEST_INVALID"))
    refused("one", image(layers=(b"absent",)), (404, "MANIFEST_BLOB_UNKNOWN"))
    refused(digest_of(b"another"), pushed, (400, "DIGEST_INVALID"))
    refused("a" * 129, pushed, (400, "MANIFEST_INVALID"))
    assert client.get(f"/v2/{NAME}/manifests/one").content == pushed


def test_a_manifest_of_four_megabytes_is_taken(client: httpx.Client, pushed: bytes) -> None:
    """The specification's least upper bound for registries."""
    bare = len(image(annotations={"pad": ""}))
    most = image(annotations={f"pad{n}": "x" * 200_000 for n in range(20)})
    assert bare < 4_000_000 < len(most) <= 4 * 1024 * 1024
    push_manifest(client, "large", most)
    assert client.get(f"/v2/{NAME}/manifests/large").content == most


# --- content discovery -----------------------------------------------------------------------------------------------


def test_discover_tags(client: httpx.Client, pushed: bytes) -> None:
    for tag in ("test3", "test1", "test2", "Test0"):
        push_manifest(client, tag, pushed)
    everything = ["Test0", "one", "test1", "test2", "test3"]
    answer = client.get(f"/v2/{NAME}/tags/list")
    assert answer.json() == {"name": NAME, "tags": everything}
    assert "Link" not in answer.headers
    assert client.head(f"/v2/{NAME}/tags/list").status_code == 200
    assert client.get(f"/v2/{NAME}/tags/list?n=0").json()["tags"] == []
    first = client.get(f"/v2/{NAME}/tags/list?n=2")
    assert first.json()["tags"] == everything[:2]
    following = client.get(first.links["next"]["url"])
    assert following.json()["tags"] == everything[2:4]
    assert client.get(f"/v2/{NAME}/tags/list?n=9&last=test1").json()["tags"] == ["test2", "test3"]
    assert client.get(f"/v2/{NAME}/tags/list?last=not-there").json()["tags"] == ["one", "test1", "test2", "test3"]
    failure(client.get("/v2/default/nowhere/tags/list"), (404, "NAME_UNKNOWN"))


def test_discover_referrers(client: httpx.Client, pushed: bytes) -> None:
    subject = describe(pushed, manifests.MANIFEST_TYPE)
    push_blob(client, b"{}")
    empty = describe(b"{}", manifests.EMPTY_TYPE)
    signature = image(
        layers=(), config=empty, artifactType="test/signature", subject=subject, annotations={"key": "value"}
    )
    by_config = image(layers=(), subject=subject)
    entry = describe(pushed, manifests.MANIFEST_TYPE)
    index = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": manifests.INDEX_TYPE,
            "artifactType": "test/index",
            "manifests": [entry],
            "subject": subject,
        }
    ).encode()
    for raw, media_type in (
        (signature, manifests.MANIFEST_TYPE),
        (by_config, manifests.MANIFEST_TYPE),
        (index, manifests.INDEX_TYPE),
    ):
        assert push_manifest(client, digest_of(raw), raw, media_type).headers["OCI-Subject"] == digest_of(pushed)
    url = f"/v2/{NAME}/referrers/{digest_of(pushed)}"
    answer = client.get(url)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, manifests.INDEX_TYPE)
    assert "OCI-Filters-Applied" not in answer.headers
    found = {entry["digest"]: entry for entry in answer.json()["manifests"]}
    assert set(found) == {digest_of(raw) for raw in (signature, by_config, index)}
    assert found[digest_of(signature)]["artifactType"] == "test/signature"
    assert found[digest_of(signature)]["annotations"] == {"key": "value"}
    assert found[digest_of(signature)]["size"] == len(signature)
    assert found[digest_of(by_config)]["artifactType"] == "application/vnd.oci.image.config.v1+json"
    assert found[digest_of(index)]["artifactType"] == "test/index"
    assert found[digest_of(index)]["mediaType"] == manifests.INDEX_TYPE
    filtered = client.get(url, params={"artifactType": "test/signature"})
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
    assert [entry["digest"] for entry in filtered.json()["manifests"]] == [digest_of(signature)]
    nothing = client.get(f"/v2/{NAME}/referrers/{digest_of(b'none')}")
    assert (nothing.status_code, nothing.json()["manifests"]) == (200, [])
    failure(client.get(f"/v2/{NAME}/referrers/sha256:x"), (400, "DIGEST_INVALID"))


def test_many_referrers_come_in_pages(client: httpx.Client, pushed: bytes) -> None:
    subject, wanted = describe(pushed, manifests.MANIFEST_TYPE), set()
    for number in range(6):
        raw = image(layers=(), subject=subject, artifactType="test/big", annotations={"n": str(number) * 250_000})
        push_manifest(client, digest_of(raw), raw)
        wanted.add(digest_of(raw))
    seen: list[str] = []
    url, pages = f"/v2/{NAME}/referrers/{digest_of(pushed)}?artifactType=test/big", 0
    while url:
        answer = client.get(url)
        assert len(answer.content) < 4 * 1024 * 1024
        assert answer.headers["OCI-Filters-Applied"] == "artifactType"
        seen += [entry["digest"] for entry in answer.json()["manifests"]]
        url, pages = answer.links.get("next", {}).get("url", ""), pages + 1
    assert pages > 1
    assert len(seen) == len(wanted)
    assert set(seen) == wanted


# --- content management ----------------------------------------------------------------------------------------------


def test_delete_tags_manifests_and_blobs(client: httpx.Client, pushed: bytes) -> None:
    push_manifest(client, "two", pushed)
    base = f"/v2/{NAME}"
    assert client.delete(f"{base}/manifests/two").status_code == 202
    failure(client.get(f"{base}/manifests/two"), (404, "MANIFEST_UNKNOWN"))
    assert client.get(f"{base}/manifests/{digest_of(pushed)}").status_code == 200
    assert client.delete(f"{base}/manifests/{digest_of(pushed)}").status_code == 202
    failure(client.get(f"{base}/manifests/{digest_of(pushed)}"), (404, "MANIFEST_UNKNOWN"))
    failure(client.get(f"{base}/manifests/one"), (404, "MANIFEST_UNKNOWN"))
    failure(client.delete(f"{base}/manifests/{digest_of(pushed)}"), (404, "MANIFEST_UNKNOWN"))
    for blob in (CONFIG, LAYER):
        assert client.delete(f"{base}/blobs/{digest_of(blob)}").status_code == 202
        failure(client.get(f"{base}/blobs/{digest_of(blob)}"), (404, "BLOB_UNKNOWN"))
        failure(client.delete(f"{base}/blobs/{digest_of(blob)}"), (404, "BLOB_UNKNOWN"))
    assert client.get(f"{base}/tags/list").json()["tags"] == []


def test_a_deleted_referrer_is_not_listed(client: httpx.Client, pushed: bytes) -> None:
    raw = image(layers=(), artifactType="test/signature", subject=describe(pushed, manifests.MANIFEST_TYPE))
    push_manifest(client, digest_of(raw), raw)
    assert client.delete(f"/v2/{NAME}/manifests/{digest_of(raw)}").status_code == 202
    assert client.get(f"/v2/{NAME}/referrers/{digest_of(pushed)}").json()["manifests"] == []


# --- all of it -------------------------------------------------------------------------------------------------------


def test_every_answer_names_the_api(hub: Any, client: httpx.Client, pushed: bytes) -> None:
    base = f"/v2/{NAME}"
    for path in ("/v2/", f"{base}/tags/list", f"{base}/manifests/one", f"{base}/blobs/{digest_of(LAYER)}", "/v2/x"):
        assert client.get(path).headers["Docker-Distribution-API-Version"] == "registry/2.0"
    with hub.client("anonymous") as nobody:
        assert nobody.get("/v2/").headers["Docker-Distribution-API-Version"] == "registry/2.0"


@pytest.mark.parametrize("name", ["A/b", "a/../b", "a//b", "-a", "a-", "a/_b", "a" * 256, "a/b%00c"])
def test_names_that_are_none_are_refused_everywhere(hub: Any, name: str) -> None:
    digest = digest_of(b"x")
    for method, path in (
        ("GET", f"blobs/{digest}"),
        ("HEAD", f"manifests/{digest}"),
        ("PUT", "manifests/x"),
        ("GET", "tags/list"),
        ("GET", f"referrers/{digest}"),
        ("POST", "blobs/uploads/"),
        ("DELETE", "manifests/x"),
    ):
        line = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=30)  # httpx would tidy it up
        line.putrequest(method, f"/v2/{name}/{path}")
        line.putheader("x-role", "admin")
        line.putheader("Content-Length", "0")
        line.endheaders()
        answer = line.getresponse()
        assert answer.status == 400, (method, path, answer.read())
        line.close()
