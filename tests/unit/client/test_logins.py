"""Programs, token files and impersonation in kubeconfigs: used as kubectl uses them, and bounded."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from skerry.api.errors import InvalidError, SkerryError, UnauthorizedError, UnsupportedError
from skerry.drivers.client import logins
from skerry.drivers.client.kubeconfig import Connection, load_kubeconfig

V1 = "client.authentication.k8s.io/v1"
Load = Callable[[dict[str, Any]], Connection]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def made(user: dict[str, Any]) -> Connection:
        config = {
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        file = tmp_path / "kubeconfig"
        file.write_text(yaml.safe_dump(config))
        return load_kubeconfig(file)

    return made


def program(tmp_path: Path, code: str, **changes: Any) -> dict[str, Any]:
    """A user that logs in by a program, and the program itself: it lies beside the kubeconfig."""
    file = tmp_path / "login"
    script = f"import json, os, sys\nhere = {str(tmp_path)!r}\n{code}\n"
    file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(script)} "$@"\n')
    file.chmod(0o700)
    return {"exec": {"apiVersion": V1, "command": "./login", "interactiveMode": "Never", **changes}}


def answering(status: dict[str, Any], version: str = V1) -> str:
    answer = {"kind": "ExecCredential", "apiVersion": version, "status": status}
    return f"open(here + '/runs', 'a').write('x')\nprint(json.dumps({answer!r}))"


def sent(connection: Connection, answer: Callable[[httpx.Request], httpx.Response], **options: Any) -> httpx.Response:
    with httpx.Client(transport=httpx.MockTransport(answer), auth=connection.auth) as client:
        return client.post("https://hub/", **options)


def test_a_program_gives_a_token_for_as_long_as_it_is_good(load: Load, tmp_path: Path) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    connection = load(program(tmp_path, answering({"token": "t1", "expirationTimestamp": later})))
    assert not (tmp_path / "runs").exists()
    seen: list[str] = []

    def hub(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200)

    for _ in range(3):
        sent(connection, hub)
    assert seen == ["Bearer t1"] * 3
    assert (tmp_path / "runs").read_text() == "x"
    assert "t1" not in repr(connection)


def test_a_token_that_ends_is_asked_for_again(load: Load, tmp_path: Path) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()
    connection = load(program(tmp_path, answering({"token": "t1", "expirationTimestamp": soon})))
    for _ in range(3):
        sent(connection, lambda _: httpx.Response(200))
    assert (tmp_path / "runs").read_text() == "xxx"


def test_a_token_that_is_not_taken_is_tried_once_more(load: Load, tmp_path: Path) -> None:
    code = """
runs = len(open(here + '/runs').read()) if os.path.exists(here + '/runs') else 0
open(here + '/runs', 'a').write('x')
status = {'token': 'old' if runs == 0 else 'new'}
print(json.dumps({'kind': 'ExecCredential', 'apiVersion': 'VERSION', 'status': status}))
""".replace("VERSION", V1)
    connection = load(program(tmp_path, code))
    bodies: list[tuple[str, bytes]] = []

    def hub(request: httpx.Request) -> httpx.Response:
        bodies.append((request.headers["authorization"], request.read()))
        return httpx.Response(200 if request.headers["authorization"] == "Bearer new" else 401)

    assert sent(connection, hub, content=b"body").status_code == 200
    assert bodies == [("Bearer old", b"body"), ("Bearer new", b"body")]
    always: list[str] = []

    def refusing(request: httpx.Request) -> httpx.Response:
        always.append(request.headers["authorization"])
        return httpx.Response(401)

    assert sent(connection, refusing).status_code == 401
    assert len(always) == 1  # the program has nothing newer


def test_a_program_is_told_what_kubectl_tells_it(load: Load, tmp_path: Path) -> None:
    code = """
open(here + '/told', 'w').write(os.environ['KUBERNETES_EXEC_INFO'])
token = ','.join([os.environ['MORE'], *sys.argv[1:]])
print(json.dumps({'kind': 'ExecCredential', 'apiVersion': 'VERSION', 'status': {'token': token}}))
""".replace("VERSION", V1)
    user = program(tmp_path, code, args=["a", "b"], env=[{"name": "MORE", "value": "m"}], provideClusterInfo=True)
    assert load(user).login.token() == "m,a,b"
    told = json.loads((tmp_path / "told").read_text())
    assert told["spec"] == {"interactive": False, "cluster": {"server": "https://127.0.0.1:1"}}


@pytest.mark.parametrize(
    ("code", "say"),
    [
        ("sys.exit(3)", "ended with 3"),
        ("print('secret-half-of-it')", "no ExecCredential"),
        ("print('x' * (2 * 1024 * 1024))", "no ExecCredential"),
        (answering({}), "neither token nor certificate"),
        (answering({"clientCertificateData": "x"}), "only one of"),
        (answering({"token": "t"}, "client.authentication.k8s.io/v1beta1"), "answered in version"),
        (answering({"token": "two words"}), "cannot be a token"),
        (answering({"token": "line\nbreak"}), "cannot be a token"),
    ],
)
def test_programs_that_fail_are_named(load: Load, tmp_path: Path, code: str, say: str) -> None:
    connection = load(program(tmp_path, code))
    with pytest.raises(SkerryError, match=say) as caught:
        connection.login.token()
    assert "user u: exec" in caught.value.sentence
    assert "secret" not in str(caught.value)


def test_a_program_that_hangs_is_given_up(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "PROGRAM_SECONDS", 0.2)
    with pytest.raises(InvalidError, match="no answer within"):
        load(program(tmp_path, "import time; time.sleep(60)")).login.token()


def test_a_program_that_is_not_installed_says_how_to(load: Load) -> None:
    user = {"exec": {"apiVersion": V1, "command": "no-such-login", "installHint": "get it there"}}
    with pytest.raises(UnsupportedError, match="get it there"):
        load(user).login.token()


@pytest.mark.parametrize(
    ("changes", "say"),
    [
        ({"apiVersion": "client.authentication.k8s.io/v9"}, "apiVersion"),
        ({"command": ""}, "command: is required"),
        ({"args": "x"}, "args"),
        ({"args": [1]}, "args"),
        ({"env": ["x"]}, "env"),
        ({"env": [{"name": 5}]}, "env"),
        ({"interactiveMode": "Sometimes"}, "Sometimes"),
        ({"interactiveMode": "Always"}, "terminal"),
    ],
)
def test_what_is_wrong_with_exec_is_named(load: Load, tmp_path: Path, changes: dict[str, Any], say: str) -> None:
    with pytest.raises(InvalidError, match=say):
        load(program(tmp_path, "", **changes))


def test_a_token_file_is_read_again(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "REREAD_SECONDS", 0.0)
    file = tmp_path / "token"
    connection = load({"tokenFile": "token", "token": "from-the-kubeconfig"})
    assert connection.login.token() == "from-the-kubeconfig"  # as kubectl: the file may come later
    file.write_text("one\n")
    assert connection.login.token() == "one"
    file.write_text("two")
    assert connection.login.token() == "two"
    file.unlink()
    assert connection.login.token() == "two"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff"])
def test_a_token_file_that_holds_none_is_named(load: Load, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(InvalidError, match="token file"):
        load({"tokenFile": "token"}).login.token()


def test_a_token_file_that_could_smuggle_headers_is_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a\r\nX-Evil: 1")
    with pytest.raises(UnauthorizedError):
        load({"tokenFile": "token"}).login.token()


def test_acting_as_somebody_else_is_said_in_headers(load: Load) -> None:
    connection = load(
        {
            "token": "t",
            "as": "ada",
            "as-uid": "7",
            "as-groups": ["dev", "ops"],
            "as-user-extra": {"example.org/why": ["a", "b"]},
        }
    )
    assert connection.impersonate == (
        ("Impersonate-User", "ada"),
        ("Impersonate-Uid", "7"),
        ("Impersonate-Group", "dev"),
        ("Impersonate-Group", "ops"),
        ("Impersonate-Extra-example.org%2Fwhy", "a"),
        ("Impersonate-Extra-example.org%2Fwhy", "b"),
    )
    for user in ({"as-groups": ["x"]}, {"as": "a\nb"}, {"as": "x", "as-groups": "y"}, {"as": "x", "as-groups": [1]}):
        with pytest.raises(InvalidError):
            load(user)
