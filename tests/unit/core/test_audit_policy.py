from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.core import audit_policy as policy
from skerry.core import redaction
from skerry.core.audit_policy import Reads
from skerry.core.redaction import REDACTED

DEVICES = "/apis/skerry.dev/v1alpha1/namespaces/default/devices"
SECRET = "s3cr3t-value"


@pytest.mark.parametrize(
    ("method", "path", "what", "code", "by_reads"),
    [
        ("POST", DEVICES, "devices/", 201, (True, True)),
        ("DELETE", f"{DEVICES}/a", "devices/", 200, (True, True)),
        ("PATCH", f"{DEVICES}/a", "devices/status", 409, (True, True)),
        ("GET", f"{DEVICES}/a", "devices/", 200, (False, True)),
        ("GET", f"{DEVICES}/a", "devices/", 403, (True, True)),
        ("GET", "/healthz", "/", 200, (False, False)),
        ("GET", "/healthz", "/", 401, (True, True)),
        ("GET", f"{DEVICES}/a/log", "devices/log", 200, (True, True)),
        ("GET", "/api/v1/namespaces/d/pods/p/exec", "pods/exec", 101, (True, True)),
        ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", "subjectaccessreviews/", 201, (False, True)),
        ("POST", "/apis/authentication.k8s.io/v1/tokenreviews", "tokenreviews/", 201, (False, True)),
        ("PUT", "/v2/default/digits/manifests/v1", "/", 201, (True, True)),
        ("PUT", "/v2/default/digits/blobs/uploads/1", "/", 201, (True, True)),
        ("PATCH", "/v2/default/digits/blobs/uploads/1", "/", 202, (False, False)),
        ("POST", "/v2/default/digits/blobs/uploads/", "/", 202, (False, False)),
        ("DELETE", "/v2/default/digits/manifests/v1", "/", 202, (True, True)),
        ("GET", "/v2/default/digits/blobs/sha256:0", "/", 200, (False, True)),
        ("GET", "/v2/default/digits/blobs/sha256:0", "/", 401, (True, True)),
    ],
)
def test_what_is_recorded(method: str, path: str, what: str, code: int, by_reads: tuple[bool, bool]) -> None:
    resource, _, subresource = what.partition("/")
    levels: tuple[Reads, ...] = ("none", "metadata")
    found = tuple(
        policy.is_recorded(method=method, path=path, resource=resource, subresource=subresource, code=code, reads=reads)
        for reads in levels
    )
    assert found == by_reads


def test_secrets_are_taken_out_by_name_by_path_and_by_looks() -> None:
    value = {
        "spec": {
            "token": SECRET,
            "clientSecret": {"deep": SECRET},
            "apiKey": [SECRET],
            "tokenId": "t-1",
            "uses": 3,
            "automountServiceAccountToken": True,
        },
        "note": f"use skj1.abc.{SECRET}xx.0000 to join",
        "jwt": "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4IiwiYSI6MX0.c2lnbmF0dXJl",
    }
    shown = redaction.redacted(value)
    assert SECRET not in str(shown)
    assert "eyJ" not in str(shown)
    assert shown["spec"]["tokenId"] == "t-1"
    assert shown["spec"]["automountServiceAccountToken"] is True
    assert redaction.redacted([{"op": "replace", "path": "/status/token", "value": SECRET}])[0]["value"] == REDACTED
    assert redaction.redacted([{"op": "replace", "path": "/spec/uses", "value": 4}])[0]["value"] == 4


_JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(_JSON, st.sampled_from(["password", "Token", "x-api-key", "clientSecret", "private_key"]))
def test_no_secret_survives_wherever_it_is(value: Any, name: str) -> None:
    raw = msgspec.json.encode({"a": [value, {"b": {name: [SECRET, {name: SECRET}]}}], name: {"c": SECRET}})
    assert SECRET not in str(policy.read_body(raw))


def test_bodies_are_bounded_and_only_json_is_shown() -> None:
    assert policy.read_body(b"") is None
    assert policy.read_body(b"spec:\n  token: x") is None
    assert policy.read_body(b'{"a":1') is None
    assert policy.read_body(b"[" * 100_000) is None
    assert policy.read_body(b'"' + b"a" * policy.MAX_BODY_BYTES + b'"') is None
    deep: Any = SECRET
    for _ in range(200):
        deep = [deep]
    assert SECRET not in str(redaction.redacted(deep))
    assert not policy.shows_body("tokenreviews", "")
    assert not policy.shows_body("devices", "infer")
    assert policy.shows_body("devices", "")


def test_addresses_show_no_secrets_and_are_bounded() -> None:
    assert policy.uri("/api/v1/pods", "watch=1&labelSelector=a%3Db") == "/api/v1/pods?watch=1&labelSelector=a%3Db"
    assert SECRET not in policy.uri("/v2/token", f"service=x&token={SECRET}&access_token={SECRET}")
    assert policy.uri("/a b\n", "") == "/a%20b%0A"
    assert policy.uri("/a%2Fb\ud800", "") == "/a%252Fb%3F"  # as it was: the path is decoded once
    assert len(policy.uri("/" + "a" * 9000, "b" * 9000)) == policy.MAX_URI
    assert len(policy.agent("x" * 900)) == policy.MAX_AGENT


def test_a_patch_is_told_by_its_paths() -> None:
    merge = b'{"spec":{"cordoned":true,"link":{"metered":null}},"metadata":{"labels":{"a":"b"}}}'
    assert policy.patched_fields(merge) == "spec.cordoned,spec.link.metered,metadata.labels.a"
    json_patch = b'[{"op":"add","path":"/spec/uses","value":1},{"op":"remove","path":"/metadata/labels/a"}]'
    assert policy.patched_fields(json_patch) == "/spec/uses,/metadata/labels/a"
    many = msgspec.json.encode({f"k{n}": n for n in range(200)})
    assert policy.patched_fields(many).endswith(",...")
    assert policy.patched_fields(many).count(",") == policy.MAX_FIELDS
    assert policy.patched_fields(b"a: b") == ""


@given(st.binary(max_size=60))
def test_whatever_bytes_are_no_crash(raw: bytes) -> None:
    policy.read_body(raw)
    policy.patched_fields(raw)


class Counted(dict[str, Any]):
    """An object that counts how often it is gone through."""

    times = 0

    def items(self) -> Any:
        type(self).times += 1
        return super().items()


def test_every_value_is_gone_through_once_however_it_is_called() -> None:
    value: Any = "end"
    for _ in range(15):
        value = Counted(env=Counted(name="n", x=value))
    Counted.times = 0
    redaction.redacted(value)
    assert Counted.times <= 2 * 15 + 1


def test_of_what_strangers_say_no_more_is_looked_at_than_is_shown() -> None:
    assert policy.uri("/", "a=1&b=2&c=" + "x" * 10_000) == "/?a=1&b=2"
    assert policy.uri("/", "c=" + "x" * 10_000) == "/?..."
    assert len(policy.uri("/" + "p" * 100_000, "a=1")) == policy.MAX_URI
    token = "eyJ" + "a" * 40 + "." + "b" * 40 + "."
    assert token not in policy.agent("x" * 200 + token + "y" * 100_000)
