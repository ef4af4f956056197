"""Our own client logging in to a registry with a token server, as any other one does: the hub's."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.test_models_elsewhere import make_package

from skerry.api.errors import (
    IntegrityError,
    SkerryError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from skerry.api.kinds.variants import Blob
from skerry.cli.package import read_card
from skerry.core import manifest as manifests
from skerry.drivers.client.copy import copy_model
from skerry.drivers.client.credentials import Credentials
from skerry.drivers.client.registry import push_package
from skerry.drivers.client.registry_http import open_registry
from skerry.drivers.client.repository import Repository, text_content


def host_of(hub: Any) -> str:
    return str(httpx.URL(hub.url).netloc, "ascii")


def opened(hub: Any, token: str) -> httpx.Client:
    return open_registry(host_of(hub), Credentials(username="me", password=token), plain_http=True)


def test_tokens_are_fetched_for_what_is_done(hub: Any, tmp_path: Path) -> None:
    package = make_package(tmp_path / "package")
    with opened(hub, hub.make_token("pull", "push")) as client:
        pushed = push_package(client, "default/digits", package, read_card(package))
        old, new = Repository(client, "default/digits"), Repository(client, "default/copied")
        copied = copy_model(old, new, "v1", "v1", one_registry=True)
        assert (copied.index, new.sent) == (pushed.index, 0)
        assert copied.mounted > 0
        assert new.list_tags() == ["v1"]
    with opened(hub, hub.make_token("pull")) as client:
        place = Repository(client, "default/digits")
        assert place.get_manifest("v1").digest == pushed.index
        with pytest.raises(SkerryError, match=r"answers 40[13]"):
            place.push_blob(text_content("x", b"not allowed"))


def test_a_wrong_token_says_how_to_log_in(hub: Any) -> None:
    with opened(hub, "skr1.default/none.wrong") as client, pytest.raises(UnauthorizedError, match="log in"):
        Repository(client, "default/digits").list_tags()


class Hostile(http.server.BaseHTTPRequestHandler):
    """Answers every GET as the test says."""

    answer: tuple[int, dict[str, str], bytes] = (200, {}, b"")
    seen: list[str] = []

    def do_GET(self) -> None:
        status, headers, body = self.answer
        self.seen.append(self.headers.get("Authorization", ""))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def hostile(status: int, headers: dict[str, str], body: bytes) -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (Hostile,), {"answer": (status, headers, body), "seen": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", handler.seen  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join(10)


BLOB = Blob(digest=manifests.digest_of(b"0123456789"), size=10)


@pytest.mark.parametrize(
    ("body", "error"),
    [(b"0123456789more", IntegrityError), (b"9876543210", IntegrityError), (b"012", UnavailableError)],
)
def test_what_a_lying_registry_sends_gets_no_name(
    tmp_path: Path, body: bytes, error: type[SkerryError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry.drivers.client.repository._RESUMES", 1)
    with hostile(200, {}, body) as (host, _), open_registry(host, None, plain_http=True) as client:
        with pytest.raises(error):
            Repository(client, "a/b").pull_blob("blob", BLOB, tmp_path / "blob")
        assert not (tmp_path / "blob").exists()
        with pytest.raises(IntegrityError, match="instead"):
            Repository(client, "a/b").get_manifest(BLOB.digest if body != b"0123456789" else "sha256:" + "0" * 64)


def test_a_password_goes_to_no_token_server_without_https() -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://evil.example/token",service="x"'}
    credentials = Credentials(username="ada", password="secret")
    with hostile(401, challenge, b"") as (host, seen), open_registry(host, credentials, plain_http=True) as client:
        with pytest.raises(UnsupportedError, match="not HTTPS"):
            Repository(client, "a/b").get_manifest("v1")
        assert seen == [""]


def test_lists_do_not_lead_to_another_host() -> None:
    headers = {"Link": '<http://127.0.0.2:1/v2/a/b/tags/list>; rel="next"'}
    with (
        hostile(200, headers, b'{"name": "a/b", "tags": ["v1"]}') as (host, _),
        open_registry(host, None, plain_http=True) as client,
        pytest.raises(UnsupportedError, match="another host"),
    ):
        Repository(client, "a/b").list_tags()
