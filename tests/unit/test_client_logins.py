"""References, credentials files and challenges: what they mean, and that rubbish is refused in our own words."""

import base64
import json
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from skerry.api.errors import InvalidError, SkerryError, UnsupportedError
from skerry.core import reference as references
from skerry.drivers.client.credentials import Credentials, find_credentials
from skerry.drivers.client.registry_auth import parse_challenge
from skerry.drivers.client.registry_http import open_registry

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("digits:v1", "", "lab/digits", "v1", ""),
        ("team/digits", "", "team/digits", "", ""),
        (f"digits@{DIGEST}", "", "lab/digits", "", DIGEST),
        ("oci://registry.example.org/a/b:v1", "registry.example.org", "a/b", "v1", ""),
        (f"oci://127.0.0.1:5000/a:v1@{DIGEST}", "127.0.0.1:5000", "a", "v1", DIGEST),
        ("oci://[::1]:5000/a", "[::1]:5000", "a", "", ""),
    ],
)
def test_references_mean(text: str, host: str, repository: str, tag: str, digest: str) -> None:
    found = references.parse(text, namespace="lab")
    assert (found.host, found.repository, found.tag, found.digest) == (host, repository, tag, digest)
    assert references.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Digits:v1",
        "digits:",
        "digits:v 1",
        "digits@sha256:00",
        "../x:v1",
        "a/../b:v1",
        "oci://host",
        "oci:///a",
        "oci://user@host/a",
        "oci://host:0/a",
        "oci://host:70000/a",
        "oci://[::1/a",
        "http://host/a",
        "oci://host/a?b",
        "a" * 2000,
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        references.parse(text)


@given(st.text(max_size=60) | st.from_regex(r"(oci://)?[a-z0-9.:\[\]@/%-]{0,60}", fullmatch=True))
@example("oci://[::]/a")
def test_any_text_is_a_reference_that_reads_back_or_refused(text: str) -> None:
    try:
        found = references.parse(text)
    except InvalidError:
        return
    assert references.parse(str(found)) == found
    assert ".." not in found.repository.split("/")


def auths(**entries: str) -> str:
    return json.dumps(
        {"auths": {name: {"auth": base64.b64encode(text.encode()).decode()} for name, text in entries.items()}}
    )


def test_the_most_specific_entry_counts_and_podmans_files_before_dockers(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text(
        auths(**{"h.example": "docker:1", "https://other.example/v1/": "old:2"})
    )
    assert find_credentials("h.example", "a/b", environment) == Credentials(username="docker", password="1")
    assert find_credentials("other.example", "a/b", environment) == Credentials(username="old", password="2")
    assert find_credentials("third.example", "a/b", environment) is None
    (tmp_path / "run/containers").mkdir(parents=True)
    (tmp_path / "run/containers/auth.json").write_text(auths(**{"h.example": "all:3", "h.example/a": "a:4:5"}))
    assert find_credentials("h.example", "a/b", environment) == Credentials(username="a", password="4:5")
    assert find_credentials("h.example", "c", environment) == Credentials(username="all", password="3")
    chosen = {**environment, "REGISTRY_AUTH_FILE": str(tmp_path / "none.json")}
    assert find_credentials("h.example", "a/b", chosen) is None


def test_credential_helpers_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-mine"
    helper.write_text(
        '#!/bin/sh\nread host\n[ "$host" = h.example ] && echo "{\\"Username\\":\\"u\\",\\"Secret\\":\\"s\\"}"\n'
    )
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    file = tmp_path / "auth.json"
    environment = {"REGISTRY_AUTH_FILE": str(file)}
    file.write_text(json.dumps({"credHelpers": {"h.example": "mine"}, "credsStore": "absent"}))
    assert find_credentials("h.example", "a", environment) == Credentials(username="u", password="s")
    with pytest.raises(UnsupportedError, match="docker-credential-absent"):
        find_credentials("other.example", "a", environment)
    file.write_text(json.dumps({"credsStore": "../../bin/sh"}))
    with pytest.raises(InvalidError, match="not a helper's name"):
        find_credentials("h.example", "a", environment)


def test_passwords_are_not_shown() -> None:
    assert "secret" not in repr(Credentials(username="ada", password="secret"))


@given(st.binary(max_size=300) | st.builds(lambda text: auths(**{"h.example": text}).encode(), st.text(max_size=20)))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_credentials_file_holds_is_credentials_or_our_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "auth.json").write_bytes(raw)
    try:
        found = find_credentials("h.example", "a", {"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")})
    except SkerryError:
        return
    assert found is None or isinstance(found, Credentials)


def test_challenges_are_read() -> None:
    text = 'Bearer realm="https://auth.example/token",service="h, and \\"more\\"",scope="repository:a/b:pull,push"'
    assert parse_challenge(text) == (
        "bearer",
        {"realm": "https://auth.example/token", "service": 'h, and "more"', "scope": "repository:a/b:pull,push"},
    )
    assert parse_challenge('Basic realm="x"') == ("basic", {"realm": "x"})
    assert parse_challenge("") == ("", {})


@given(st.text(max_size=400))
def test_any_challenge_is_read_somehow(text: str) -> None:
    scheme, parameters = parse_challenge(text)
    assert scheme == scheme.lower()
    assert all(isinstance(value, str) for value in parameters.values())


def test_plain_http_is_for_this_machine() -> None:
    with pytest.raises(InvalidError, match="plain HTTP"):
        open_registry("registry.example.org", None, plain_http=True)
    open_registry("localhost:5000", None, plain_http=True).close()
