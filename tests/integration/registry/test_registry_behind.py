"""Registries elsewhere that are large, slow, or lie; and credentials that change while the hub runs."""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from skerry.api.errors import (
    InvalidError,
    NotFoundError,
    TimedOutError,
    TooLargeError,
    UnavailableError,
    UnsupportedError,
)
from skerry.core import manifest as manifests
from skerry.core.reference import Reference
from skerry.drivers.client import registry_auth, repository
from skerry.drivers.client.credentials import Credentials, find_credentials
from skerry.drivers.client.registry_http import open_registry
from skerry.drivers.client.repository import Repository, text_content
from skerry.drivers.registry import elsewhere
from skerry.drivers.registry.elsewhere import ElsewhereStore, open_store

RAW = bytes(1024 * 1024)
DIGEST = manifests.digest_of(RAW)
Answer = Callable[["Registry"], None]


class Registry(http.server.BaseHTTPRequestHandler):
    """Answers as the test says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    answer: Answer

    def _go(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.rfile.read(length)
        type(self).answer(self)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _go  # noqa: N815 - the library's names

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def challenge(self, scheme: str, name: str = "") -> None:
        realm = f'{scheme} realm="http://{self.headers["Host"]}/token"'
        scope = f',scope="repository:{name}:pull"' if name else ""
        self.send(401, WWW_Authenticate=realm + scope)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    block_on_close = False

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is no fault."""


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    with Server(("127.0.0.1", 0), type("Handler", (Registry,), {"answer": answer})) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(10)


def basic(password: str) -> str:
    return Credentials(username="u", password=password).basic


def login(file: Path, host: str, password: str) -> None:
    file.write_text(json.dumps({"auths": {host: {"auth": base64.b64encode(f"u:{password}".encode()).decode()}}}))


@pytest.mark.parametrize("most", [2, 256])
def test_every_repository_gets_a_token_however_many_there_are(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(registry_auth, "MAX_TOKENS", most)
    asked: list[list[str]] = []

    def answer(call: Registry) -> None:
        url = urlsplit(call.path)
        if url.path == "/token":
            asked.append(parse_qs(url.query)["scope"])
            call.send(200, json.dumps({"token": "+".join(asked[-1]).replace(":", "_")}).encode())
            return
        name = url.path.removeprefix("/v2/").removesuffix("/tags/list")
        if f"repository_{name}_pull" not in call.headers.get("Authorization", ""):
            call.challenge("Bearer", name)
        else:
            call.send(200, b'{"tags": ["v1"]}')

    names = [f"fleet/model{number}" for number in range(20)]
    with serving(answer) as host, open_registry(host, None, plain_http=True) as client:
        for _ in range(2):
            assert all(Repository(client, name).list_tags() == ["v1"] for name in names)
    assert len(asked) == (20 if most == 256 else 40)
    assert all(len(scopes) == 1 for scopes in asked)


def test_a_token_for_a_mount_is_asked_for_both_repositories() -> None:
    asked: list[list[str]] = []

    def answer(call: Registry) -> None:
        if call.path.startswith("/token"):
            asked.append(parse_qs(urlsplit(call.path).query)["scope"])
            call.send(200, b'{"token": "t"}')
        elif "Authorization" not in call.headers:
            call.challenge("Bearer", "new")
        else:
            call.send(201)

    with serving(answer) as host, open_registry(host, None, plain_http=True) as client:
        assert Repository(client, "new").mount_blob(DIGEST, source="old")
    assert asked == [["repository:new:pull", "repository:old:pull"]]


@pytest.mark.parametrize("scheme", ["Basic", "Bearer"])
async def test_credentials_that_change_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    valid = ["one"]

    def answer(call: Registry) -> None:
        given = call.headers.get("Authorization", "")
        if call.path.startswith("/token"):
            ok = given == basic(valid[0])
            call.send(200 if ok else 401, json.dumps({"token": valid[0]}).encode())
        elif given in (basic(valid[0]) if scheme == "Basic" else "-", f"Bearer {valid[0]}"):
            call.send(200, b'{"tags": ["v1"]}')
        else:
            call.challenge(scheme, "f/default/x")

    file = tmp_path / "auth.json"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(file))
    with serving(answer) as host:
        login(file, host, "one")
        store = open_store(Reference(host=host, repository="f"), tmp_path / "spool", plain_http=True)
        try:
            assert await store.list_tags("default/x") == ["v1"]
            valid[0] = "two"
            login(file, host, "two")
            assert await store.list_tags("default/x") == ["v1"]
            valid[0] = "three"
            with pytest.raises(UnavailableError, match="does not let the hub in"):
                await store.list_tags("default/x")
            monkeypatch.setattr(registry_auth, "RENEW_SECONDS", 0.0)
            file.write_text("{")  # being written; what there was is kept
            with pytest.raises(UnavailableError, match="does not let the hub in"):
                await store.list_tags("default/x")
            login(file, host, "three")
            assert await store.list_tags("default/x") == ["v1"]
        finally:
            store.close()


def test_a_helper_is_asked_for_docker_hub_by_dockers_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-mine"
    helper.write_text('#!/bin/sh\nread name\necho "{\\"Username\\":\\"$name\\",\\"Secret\\":\\"s\\"}"\n')
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "auth.json").write_text('{"credsStore": "mine"}')
    found = find_credentials("docker.io", "library/x", {"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")})
    assert found == Credentials(username="https://index.docker.io/v1/", password="s")


def test_what_comes_encoded_is_not_decoded() -> None:
    packed = gzip.compress(json.dumps({"token": "t", "errors": [{"code": "X", "message": "decoded"}]}).encode())
    asked: list[str] = []

    def answer(call: Registry) -> None:
        asked.append(call.headers["Accept-Encoding"])
        if call.path.startswith("/token"):
            call.send(200, packed, Content_Encoding="gzip")
        elif "/bearer/" in call.path:
            call.challenge("Bearer", "bearer")
        else:
            call.send(404, packed, Content_Encoding="gzip")

    with serving(answer) as host, open_registry(host, None, plain_http=True) as client:
        with pytest.raises(NotFoundError) as refused:
            Repository(client, "a").get_manifest("v1")
        assert "decoded" not in str(refused.value)
        with pytest.raises(UnsupportedError, match="encoded"):
            Repository(client, "bearer").list_tags()
    assert set(asked) == {"identity"}


@pytest.mark.parametrize("kind", ["error", "token", "list", "refusal"])
def test_no_answer_is_read_without_an_end(kind: str) -> None:
    sent = [0]
    last = 128 * 1024 * 1024
    stopped = threading.Event()

    def answer(call: Registry) -> None:
        if kind == "token" and not call.path.startswith("/token"):
            call.challenge("Bearer", "a")
            return
        call.send_response({"error": 500, "refusal": 401}.get(kind, 200))
        call.send_header("Connection", "close")
        call.end_headers()
        try:
            while sent[0] < last:
                sent[0] += call.wfile.write(RAW)
        except OSError:
            pass
        finally:
            call.close_connection = True
            stopped.set()

    errors = {"error": "answers 500", "refusal": "answers 401"}
    with serving(answer) as host, open_registry(host, None, plain_http=True) as client:
        with pytest.raises(Exception, match=errors.get(kind, "is larger than")) as raised:
            Repository(client, "a").list_tags()
        assert stopped.wait(20)
        assert isinstance(raised.value, TooLargeError) or kind in errors
    assert sent[0] < last


@pytest.mark.parametrize("new", [False, True])
def test_lists_without_an_end_are_given_up(monkeypatch: pytest.MonkeyPatch, new: bool) -> None:
    monkeypatch.setattr(repository, "MAX_PAGES", 5)
    count = [0]

    def answer(call: Registry) -> None:
        count[0] += 1
        body = json.dumps({"tags": ["-"]} if "tags" in call.path else {"schemaVersion": 2, "manifests": []}).encode()
        if count[0] > 50:
            call.send(500)
        else:
            url = f"{call.path.partition('?')[0]}?at={count[0]}" if new else call.path
            call.send(200, body, Link=f'<{url}>; rel="next"')

    with serving(answer) as host, open_registry(host, None, plain_http=True) as client:
        with pytest.raises(InvalidError, match="has no end"):
            Repository(client, "a").list_tags()
        with pytest.raises(InvalidError, match="has no end"):
            Repository(client, "a").list_referrers(DIGEST)
    assert count[0] == (10 if new else 2)


def blob(call: Registry) -> None:
    call.send(200, RAW)


async def first_of(store: ElsewhereStore, caller: str) -> AsyncIterator[bytes]:
    pieces = store.read_blob("default/x", DIGEST, caller=caller)
    assert await anext(pieces)
    return pieces


async def close_all(reading: list[Any]) -> None:
    for pieces in reading:
        await pieces.aclose()


async def test_slow_receivers_hold_up_nobody_else(tmp_path: Path) -> None:
    with serving(blob) as host:
        store = open_store(Reference(host=host, repository="f"), tmp_path / "spool", plain_http=True)
        reading = [await first_of(store, f"device {number}") for number in range(110)]
        try:
            assert await store.stat_blob("default/y", DIGEST) == len(RAW)
            assert b"".join([piece async for piece in store.read_blob("default/x", DIGEST, caller="me")]) == RAW
        finally:
            await close_all(reading)
            store.close()


async def test_nobody_reads_more_than_a_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "CALLER_STREAMS", 2)
    monkeypatch.setattr(elsewhere, "STREAMS", 3)
    monkeypatch.setattr(elsewhere, "TURN_SECONDS", 0.1)
    with serving(blob) as host:
        store = open_store(Reference(host=host, repository="f"), tmp_path / "spool", plain_http=True)
        reading = [await first_of(store, "greedy") for _ in range(2)]
        try:
            with pytest.raises(UnavailableError, match="too many"):
                await first_of(store, "greedy")
            reading.append(await first_of(store, "other"))
            with pytest.raises(UnavailableError, match="too many"):
                await first_of(store, "third")
            await close_all(reading)
            reading = [await first_of(store, "greedy") for _ in range(2)]
        finally:
            await close_all(reading)
            store.close()


class Slow:
    """A registry whose first PUT says nothing; what it says to a second one, and whether the blob comes, is chosen."""

    def __init__(self, *, comes: bool, then: int = 416) -> None:
        self.comes = comes
        self.then = then
        self.puts = 0
        self.heads = 0
        self.over = threading.Event()

    def __call__(self, call: Registry) -> None:
        if call.command == "HEAD":
            self.heads += self.puts > 0
            call.send(200 if self.comes and self.heads >= 3 else 404)
        elif call.command == "POST":
            call.send(202, Location="/v2/a/blobs/uploads/1")
        else:
            self.puts += 1
            if self.puts == 1:
                self.over.wait(30)
            call.send(self.then, b'{"errors": [{"code": "X", "message": "its disk is full"}]}')


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(repository, "FINISH_AGAIN_SECONDS", 0.0)


def push(slow: Slow, settle_seconds: float = 30.0) -> None:
    with serving(slow) as host, open_registry(host, None, plain_http=True, idle_seconds=0.3) as client:
        try:
            place = Repository(client, "a", write_seconds=0.3, settle_seconds=settle_seconds)
            place.push_blob(text_content("model", b"0123"))
        finally:
            slow.over.set()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("then", [416, 404])
def test_an_upload_that_takes_long_is_waited_for(then: int) -> None:
    slow = Slow(comes=True, then=416)
    push(slow)
    assert slow.heads == 3
    gone = Slow(comes=True, then=then)
    gone.heads = 1  # the blob is there when it is looked for after the refusal
    push(gone)


@pytest.mark.usefixtures("quick")
def test_why_a_slow_upload_failed_is_told() -> None:
    with pytest.raises(UnavailableError, match="its disk is full"):
        push(Slow(comes=False, then=503))


@pytest.mark.usefixtures("quick")
def test_an_upload_is_not_waited_for_without_an_end() -> None:
    with pytest.raises(TimedOutError, match="did not finish it within 0 s"):
        push(Slow(comes=False), settle_seconds=0.0)


def test_what_is_written_may_take_longer_than_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    send = httpx.Client.request

    def request(self: httpx.Client, method: str, *arguments: Any, **options: Any) -> httpx.Response:
        if method == "PUT":
            limits.append(options["timeout"].read)
        return send(self, method, *arguments, **options)

    monkeypatch.setattr(httpx.Client, "request", request)
    slow = Slow(comes=False, then=201)
    slow.over.set()
    with serving(slow) as host, open_registry(host, None, plain_http=True, idle_seconds=20.0) as client:
        Repository(client, "a").push_blob(text_content("model", b"0123"))
    assert limits == [65.0]
