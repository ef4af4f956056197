"""Whatever is sent, and wherever in it a secret is: the audit log's files do not have it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.hub_server.test_audit_middleware import ADMIN, DEVICES, Hub, hub_in

from skerry.core import redaction
from skerry.core.redaction import LAST_APPLIED, REDACTED

MARK = "hunter2hunter2"
NAMES = ("password", "dbPassword", "Token", "x-api-key", "clientSecret", "private_key", "DB_PASSWORD", "Authorization")
CREDENTIALS = (
    f"skj1.id.{MARK}.{MARK}",
    f"skr1.shop/robot.{MARK}",
    f"skb1.{MARK}.{MARK}",
    f"eyJhbGciOiJF.eyJ{MARK}.{MARK}",
    f"https://bob:{MARK}@example.com/x",
    f"Bearer {MARK}",
    f"-----BEGIN EC PRIVATE KEY-----\n{MARK}\n-----END EC PRIVATE KEY-----",
)
"""What looks like a secret, whatever it is called."""

names = st.sampled_from(NAMES)
credentials = st.sampled_from(CREDENTIALS)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers(-5, 5) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def _deep(secret: Any) -> st.SearchStrategy[Any]:
    """Put something with a secret somewhere into a JSON value, some of it as JSON inside a string."""
    wrap: list[Callable[[Any, Any], Any]] = [
        lambda inner, other: {"spec": inner, "other": other},
        lambda inner, other: [other, inner],
        lambda inner, other: {"note": json.dumps(inner), "other": other},
        lambda inner, other: {"metadata": {"annotations": {LAST_APPLIED: json.dumps(inner)}}, "x": other},
    ]
    once = st.tuples(st.sampled_from(wrap), values)
    return st.tuples(secret, st.lists(once, max_size=3)).map(_wrapped)


def _wrapped(made: Any) -> Any:
    inner, around = made
    for wrap, other in around:
        inner = wrap(inner, other)
    return inner


_leaf = st.just(MARK) | st.lists(st.just(MARK), min_size=1, max_size=2) | st.just({"deep": [MARK, {"er": MARK}]})
bodies = _deep(
    st.builds(lambda name, leaf: {name: leaf}, names, _leaf)
    | st.builds(lambda name: {"name": name, "value": MARK}, names)
    | st.builds(lambda name: {"env": [{"name": name, "value": MARK}]}, st.text(max_size=5) | names)
    | st.builds(lambda name: {"environment": {name: MARK}}, st.text(max_size=5))
    | st.builds(lambda text: {"note": f"see {text} ok"}, credentials)
    | st.builds(lambda text: {text: 1}, credentials)
    | st.builds(
        lambda name, sign: {"text": f'{name}{sign}"{MARK}" and more'}, names, st.sampled_from(["=", ": ", " = "])
    )
    | st.builds(lambda name: {"args": ["run", f"--{name}", MARK]}, names)
    | st.builds(lambda name: {"args": ["run", f"--{name}={MARK}"]}, names)
    | st.just({"kind": "Secret", "data": {"a": MARK}, "stringData": {"b": MARK}})
)
variables = st.sampled_from(["/spec/env/0/value", "/spec/env/-", "/spec/environment/A"])
patches = st.builds(
    lambda path, value: [{"op": "add", "path": path, "value": value}],
    st.builds(lambda name, rest: f"/spec/{name}{rest}", names, st.sampled_from(["", "/0", "/a/b"])) | variables,
    st.just(MARK) | st.just({"name": "A", "value": MARK}),
) | st.just([{"op": "add", "path": "/metadata/annotations/" + LAST_APPLIED.replace("/", "~1"), "value": MARK}])


def _encoded(text: str, times: int) -> str:
    for _ in range(times):
        text = quote(text, safe="")
    return text


def _percent(name: str) -> str:
    return f"%{ord(name[0]):02x}{name[1:]}"


times = st.integers(1, 3)
queries = (
    st.builds(lambda name, odd: f"watch=0&{_percent(name) if odd else name}={MARK}", names, st.booleans())
    | st.builds(lambda text, often: f"x={_encoded(text, often)}", credentials, times)
    | st.builds(lambda text, often: f"{_encoded(text, often)}=1", credentials, times)
    | st.builds(lambda name: f"command=a&command=--{name}&command={MARK}", names)
    | st.builds(lambda name, often: f"command={_encoded(f'--{name}={MARK}', often)}", names, times)
    | st.builds(lambda often: f"command=-H&command={_encoded(f'Authorization: Basic {MARK}', often)}", times)
)


@given(
    body=bodies | patches,
    query=queries,
    seen=st.tuples(credentials, st.sampled_from(["path", "agent", "id", "impersonate", "none"])),
)
@settings(max_examples=120)
def _check(runner: asyncio.Runner, hub: Hub, body: Any, query: str, seen: tuple[str, str]) -> None:
    text, where = seen
    headers = {
        "Content-Type": "application/json-patch+json" if isinstance(body, list) else "application/merge-patch+json"
    }
    headers |= {"User-Agent": text.replace("\n", " ")} if where == "agent" else {}
    headers |= {"Audit-Id": f"skj1.{MARK}"} if where == "id" else {}
    headers |= {"Impersonate-User": text.replace("\n", " ")} if where == "impersonate" else {}
    name = quote(text, safe="") if where == "path" else "one"
    asked = hub.ask(ADMIN, "PATCH", f"{DEVICES}/{name}?{query}", content=msgspec.json.encode(body), headers=headers)
    runner.run(asked)


def test_no_secret_reaches_the_files_wherever_it_was(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        hubs = hub_in(tmp_path, reads="request")
        hub = runner.run(hubs.__aenter__())
        try:
            runner.run(hub.create("one"))
            _check(runner, hub)
            entries = hub.entries("")
        finally:
            runner.run(hubs.__aexit__(None, None, None))
    raw = b"".join(path.read_bytes() for path in (tmp_path / "audit").rglob("*.jsonl"))
    found = raw.find(MARK.encode())
    assert found < 0, raw[max(found - 400, 0) : found + 100]
    assert len(entries) > 100
    assert sum(entry.request_object is not None for entry in entries) > 30


@pytest.mark.parametrize(
    "harmless",
    [
        {"spec": {"tokenId": "t-1", "uses": 3, "automountServiceAccountToken": True}},
        {"spec": {"model": {"ref": "default/digits:v1"}, "image": "https://example.com:5000/x@sha256:00"}},
        {"args": ["--port", "8000", "-v"], "name": "LOG_LEVEL", "value": "debug"},
        {"metadata": {"annotations": {LAST_APPLIED: '{"spec":{"replicas":3}}'}}},
    ],
)
def test_what_is_no_secret_is_shown(harmless: Any) -> None:
    assert redaction.redacted(harmless) == harmless


def test_an_environment_shows_its_names() -> None:
    shown = redaction.redacted({"env": [{"name": "DB_URL", "value": "x"}, {"name": "A", "valueFrom": {"b": "c"}}]})
    assert shown == {"env": [{"name": "DB_URL", "value": REDACTED}, {"name": "A", "valueFrom": {"b": "c"}}]}


@pytest.mark.parametrize(
    "text", ['device "till-1" not found', "spec.uses: must be 1 or more", "jointokens t-1: has no uses left"]
)
def test_answers_are_told_as_they_were(text: str) -> None:
    assert redaction.text(text) == text
