"""What somebody who may push, or may not even that, tries at the registry; and that it stays small while it streams."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skerry.core import manifest as manifests
from skerry.drivers.registry.uploads import UploadSettings

REPOSITORY = "default/digits"
MIB = 1024 * 1024


def digest_of(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


@pytest.fixture
def client(hub: Any) -> Iterator[httpx.Client]:
    with hub.client() as client:
        yield client


def say(hub: Any, text: str, *, close: bool = False) -> bytes:
    """Send bytes as they are, and return all that comes back until the hub closes."""
    address = httpx.URL(hub.url)
    with socket.create_connection((address.host, address.port or 0), timeout=20) as line:
        line.sendall(text.encode("latin-1"))
        if close:
            line.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := line.recv(65536):
            answer += piece
    return answer


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def files(hub: Any) -> list[Path]:
    return [path for path in hub.root.rglob("*") if path.is_file()]


# --- lengths ---------------------------------------------------------------------------------------------------------


def test_a_body_shorter_than_its_length_leaves_nothing(hub: Any) -> None:
    digest = digest_of(b"abc")
    head = f"POST /v2/{REPOSITORY}/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: x\r\nx-role: admin\r\n"
    say(hub, f"{head}Content-Length: 100\r\n\r\nabc", close=True)
    until(lambda: files(hub) == [])


def test_a_body_longer_than_its_length_is_not_part_of_the_blob(hub: Any, client: httpx.Client) -> None:
    digest = digest_of(b"abc")
    head = f"POST /v2/{REPOSITORY}/blobs/uploads/?digest={digest} HTTP/1.1\r\nHost: x\r\nx-role: admin\r\n"
    answers = say(hub, f"{head}Content-Length: 3\r\n\r\nabcdefgh\r\n\r\n")
    assert b"HTTP/1.1 400 " in answers  # what follows is no request
    assert client.get(f"/v2/{REPOSITORY}/blobs/{digest_of(b'abcdefgh')}").status_code == 404
    assert {path.stat().st_size for path in (hub.root / "blobs").rglob("*") if path.is_file()} <= {3}


@pytest.mark.parametrize("lie", ["-1", "1e3", "18446744073709551616", "+3", "0x3", "3, 4", "three"])
def test_a_length_that_is_none_is_refused(hub: Any, lie: str) -> None:
    head = f"POST /v2/{REPOSITORY}/blobs/uploads/?digest={digest_of(b'abc')} HTTP/1.1\r\nHost: x\r\nx-role: admin\r\n"
    answer = say(hub, f"{head}Content-Length: {lie}\r\n\r\nabc", close=True)
    assert answer.startswith(b"HTTP/1.1 400 ") or answer == b""
    until(lambda: files(hub) == [])


def test_a_chunk_that_contradicts_its_range_is_not_taken(client: httpx.Client) -> None:
    url = client.post(f"/v2/{REPOSITORY}/blobs/uploads/").headers["Location"]
    for method in ("PATCH", "PUT"):
        answer = client.request(
            method, url, content=b"abc", headers={"Content-Range": "0-9"}, params={"digest": digest_of(b"abc")}
        )
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "SIZE_INVALID")
    assert client.patch(url, content=b"abc", headers={"Content-Range": "0-2"}).headers["Range"] == "0-2"


# --- names -----------------------------------------------------------------------------------------------------------

CLIMBING = [
    "../../x",
    "..%2f..%2fx",
    "%2e%2e%2fx",
    "....//x",
    "/etc/passwd",
    "x%00y",
    ".",
    "..",
    "a\\..\\b",
    "%ff",
    "~",
]


@pytest.mark.parametrize("climbing", CLIMBING)
def test_nothing_climbs_out(hub: Any, climbing: str) -> None:
    (hub.root.parent / "x").write_bytes(b"secret")
    before = {
        path: path.read_bytes() for path in hub.root.parent.rglob("*") if path.is_file() and "hub.db" not in path.name
    }
    for method, path in (
        ("GET", f"blobs/{climbing}"),
        ("GET", f"blobs/sha256:{climbing}"),
        ("DELETE", f"blobs/sha256:{climbing}"),
        ("GET", f"manifests/{climbing}"),
        ("PUT", f"manifests/{climbing}"),
        ("GET", f"referrers/sha256:{climbing}"),
        ("GET", f"blobs/uploads/{climbing}"),
        ("PUT", f"blobs/uploads/{climbing}?digest={climbing}"),
        ("POST", f"blobs/uploads/?mount={climbing}&from=../.."),
    ):
        head = f"{method} /v2/{REPOSITORY}/{path} HTTP/1.1\r\nHost: x\r\nx-role: admin\r\nConnection: close\r\n"
        answer = say(hub, f"{head}Content-Length: 0\r\n\r\n")
        assert b"secret" not in answer
        assert answer.split(b" ", 2)[1] in {b"400", b"404", b"405", b"202"}, answer
    say(hub, f"POST /v2/{climbing}/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nx-role: admin\r\nConnection: close\r\n\r\n")
    after = {path: path.read_bytes() for path in before}
    assert after == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.text(st.characters(codec="latin-1", exclude_characters="\r\n \x00"), min_size=1, max_size=60),
    reference=st.text(st.characters(codec="latin-1", exclude_characters="\r\n \x00"), min_size=1, max_size=60),
    method=st.sampled_from(["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"]),
    place=st.sampled_from(["blobs", "manifests", "referrers", "blobs/uploads", "tags"]),
)
def test_any_name_and_reference_get_an_answer(hub: Any, name: str, reference: str, method: str, place: str) -> None:
    head = f"{method} /v2/{name}/{place}/{reference} HTTP/1.1\r\nHost: x\r\nx-role: admin\r\nConnection: close\r\n"
    answer = say(hub, f"{head}Content-Length: 0\r\n\r\n")
    status = int(answer.split(b" ", 2)[1]) if answer else 400
    assert status < 500, answer


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.one_of(
        st.builds("bytes={}-{}".format, st.integers(0, 20) | st.just(""), st.integers(0, 20) | st.just("")),
        st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=40),
    )
)
def test_any_range_gives_a_part_or_all_of_it(open_hub: Any, asked: str) -> None:
    raw = b"0123456789"
    with httpx.Client(base_url=open_hub.url, timeout=30) as client:
        client.post(f"/v2/{REPOSITORY}/blobs/uploads/", params={"digest": digest_of(raw)}, content=raw)
        answer = client.get(f"/v2/{REPOSITORY}/blobs/{digest_of(raw)}", headers={"Range": asked.strip() or "x"})
    if answer.status_code == 206:
        span, _, size = answer.headers["Content-Range"].removeprefix("bytes ").partition("/")
        first, last = map(int, span.split("-"))
        assert (size, answer.content) == ("10", raw[first : last + 1])
    elif answer.status_code == 200:
        assert answer.content == raw
    else:
        assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */10")


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":' * 100_000,
        b"[" * 1_000_000,
        b'{"schemaVersion": 2, "config": {"mediaType": "x", "digest": "sha256:../../x", "size": 1}, "layers": []}',
        b'{"schemaVersion": 2, "config": {"mediaType": "x", "digest": "md5:00", "size": 1}, "layers": []}',
        b'{"schemaVersion": 2, "config": null, "layers": []}',
        b'{"schemaVersion": 1, "name": "x", "tag": "y", "fsLayers": []}',
        b'{"schemaVersion": 2, "layers": ' + b"[" * 50 + b"]" * 50 + b"}",
        b"\xff\xfe{}",
        b"",
    ],
    ids=["deep", "deep array", "climbing", "md5", "null", "schema 1", "nested", "no UTF-8", "empty"],
)
def test_documents_that_are_none_are_refused(client: httpx.Client, raw: bytes) -> None:
    for media_type in (manifests.MANIFEST_TYPE, manifests.INDEX_TYPE):
        answer = client.put(f"/v2/{REPOSITORY}/manifests/x", content=raw, headers={"Content-Type": media_type})
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "MANIFEST_INVALID")


def test_documents_that_are_too_large_or_have_too_many_parts_are_refused(client: httpx.Client) -> None:
    url, headers = f"/v2/{REPOSITORY}/manifests/x", {"Content-Type": manifests.MANIFEST_TYPE}
    client.post(f"/v2/{REPOSITORY}/blobs/uploads/", params={"digest": digest_of(b"{}")}, content=b"{}")
    part = {"mediaType": manifests.EMPTY_TYPE, "digest": digest_of(b"{}"), "size": 2}
    document = {"schemaVersion": 2, "config": part, "layers": [part] * (manifests.MAX_ENTRIES + 1)}
    assert client.put(url, content=json.dumps(document), headers=headers).status_code == 400
    assert client.put(url, content=b" " * (4 * MIB + 1), headers=headers).status_code == 413
    assert client.put(url, content=iter([b" " * MIB] * 5), headers=headers).status_code == 413
    subject = {"mediaType": manifests.MANIFEST_TYPE, "digest": digest_of(b"x"), "size": 1}
    document = {
        "schemaVersion": 2,
        "config": part,
        "layers": [],
        "subject": subject,
        "annotations": {"a": "x" * 250_000},
    }
    assert client.put(url, content=json.dumps(document), headers=headers).status_code == 201
    document["annotations"] = {"a": "x" * 250_000, "b": "x" * 50_000}
    assert client.put(url, content=json.dumps(document), headers=headers).status_code == 413


def test_what_refers_to_one_thing_is_bounded(client: httpx.Client) -> None:
    client.post(f"/v2/{REPOSITORY}/blobs/uploads/", params={"digest": digest_of(b"{}")}, content=b"{}")
    part = {"mediaType": manifests.EMPTY_TYPE, "digest": digest_of(b"{}"), "size": 2}
    subject = {"mediaType": manifests.MANIFEST_TYPE, "digest": digest_of(b"x"), "size": 1}
    statuses = []
    for number in range(258):
        document = {
            "schemaVersion": 2,
            "config": part,
            "layers": [],
            "subject": subject,
            "annotations": {"n": f"{number}"},
        }
        headers = {"Content-Type": manifests.MANIFEST_TYPE}
        raw = json.dumps(document).encode()
        statuses.append(
            client.put(f"/v2/{REPOSITORY}/manifests/{digest_of(raw)}", content=raw, headers=headers).status_code
        )
    assert statuses == [201] * 256 + [413] * 2


# --- many, and slow --------------------------------------------------------------------------------------------------


def test_open_uploads_are_bounded_and_a_cancelled_one_makes_room(tight_hub: Any) -> None:
    with tight_hub.client() as client:
        url = f"/v2/{REPOSITORY}/blobs/uploads/"
        begun = [client.post(url) for _ in range(100)]
        assert [answer.status_code for answer in begun] == [202] * 3 + [503] * 97
        assert len(list((tight_hub.root / "uploads").iterdir())) == 3
        assert client.delete(begun[0].headers["Location"]).status_code == 204
        assert client.post(url).status_code == 202


def test_one_namespace_cannot_keep_the_others_from_uploading(serving_hub: Any, tmp_path: Path) -> None:
    limits = UploadSettings(max_uploads=10, max_namespace_uploads=2)

    def statuses(client: httpx.Client, namespace: str) -> list[int]:
        return [client.post(f"/v2/{namespace}/digits/blobs/uploads/").status_code for _ in range(3)]

    with serving_hub(tmp_path / "artifacts", uploads=limits) as hub, hub.client() as client:
        assert statuses(client, "greedy") == [202, 202, 503]
        assert statuses(client, "default") == [202, 202, 503]
    with serving_hub(tmp_path / "artifacts", uploads=limits) as hub, hub.client() as client:  # started anew
        assert statuses(client, "greedy") == [503, 503, 503]
        assert statuses(client, "lab") == [202, 202, 503]


def test_a_realm_is_never_what_somebody_put_into_a_header(hub: Any) -> None:
    for evil in ('evil",error="x', "evil/path", "a b", "user@evil"):
        answer = say(hub, f"GET /v2/ HTTP/1.1\r\nHost: {evil}\r\nConnection: close\r\n\r\n")
        assert b"401" in answer.split(b"\r\n", 1)[0]
        assert b'realm="https://hub.example/v2/token"' in answer


def peak(reset: bool = False) -> int:
    """Bytes of memory that this process has had at most since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def test_memory_stays_flat_while_a_large_blob_goes_in_and_out(hub: Any, client: httpx.Client) -> None:
    pieces, piece = 192, bytes(range(256)) * 4096
    digest = hashlib.sha256()
    for _ in range(pieces):
        digest.update(piece)
    name = f"sha256:{digest.hexdigest()}"
    push_small(client)
    try:
        before = peak(reset=True)
    except OSError:
        pytest.skip("the system keeps no peak of a process's memory that can be reset")
    url = client.post(f"/v2/{REPOSITORY}/blobs/uploads/").headers["Location"]
    assert client.patch(url, content=(piece for _ in range(pieces))).status_code == 202
    assert client.put(url, params={"digest": name}).status_code == 201
    taken = hashlib.sha256()
    with client.stream("GET", f"/v2/{REPOSITORY}/blobs/{name}") as answer:
        for part in answer.iter_bytes(MIB):
            taken.update(part)
    assert taken.hexdigest() == digest.hexdigest()
    assert peak() - before < 48 * MIB, f"{(peak() - before) / MIB:.0f} MiB for a blob of {pieces} MiB"


def push_small(client: httpx.Client) -> None:
    """Have everything loaded and every buffer made."""
    raw = b"x" * (3 * MIB)
    client.post(f"/v2/{REPOSITORY}/blobs/uploads/", params={"digest": digest_of(raw)}, content=raw)
    assert client.get(f"/v2/{REPOSITORY}/blobs/{digest_of(raw)}").content == raw
