"""What a hub says of a request that it passes on: whole and true at the other end, and worth nothing anywhere else."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import SkerryError, UnauthorizedError, UnavailableError
from skerry.core import forwarding
from skerry.core.access import Identity
from skerry.core.forwarding import LIFE, Word
from skerry.core.rbac import Attributes

KEY = b"k" * 32
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
ADMIN = Identity(role="admin", name="admin")
TARGET = "/api/v1/namespaces/default/pods/digits.till-1/log?follow=true"
_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_IDENTITIES = st.builds(
    Identity,
    role=st.sampled_from(["admin", "device", "user", "anonymous"]),
    name=_TEXT,
    namespace=_TEXT,
    uid=_TEXT,
    groups=st.lists(_TEXT, max_size=4).map(tuple),
    extra=st.dictionaries(_TEXT, st.lists(_TEXT, max_size=2).map(tuple), max_size=2),
)


def word(caller: Identity = ADMIN, acts_as: Identity | None = None) -> Word:
    return Word(
        to="leader",
        method="GET",
        target=TARGET,
        at=NOW,
        caller=forwarding.person_of(caller),
        acts_as=None if acts_as is None else forwarding.person_of(acts_as),
        source="10.0.0.9",
    )


def read(
    text: str, key: bytes = KEY, *, to: str = "leader", method: str = "GET", target: str = TARGET, now: datetime = NOW
) -> Word:
    return forwarding.unseal(text, key, to=to, method=method, target=target, now=now)


@given(_IDENTITIES, st.none() | _IDENTITIES)
def test_who_asks_arrives_as_it_left(caller: Identity, acts_as: Identity | None) -> None:
    text = forwarding.seal(word(caller, acts_as), KEY)
    assert text.isascii()
    assert text.isprintable()
    found = read(text)
    assert forwarding.identity_of(found.caller) == caller
    assert dict(forwarding.identity_of(found.caller).extra) == dict(caller.extra)
    assert (found.acts_as and forwarding.identity_of(found.acts_as)) == acts_as
    assert found.source == "10.0.0.9"


@given(st.data())
def test_a_word_that_was_changed_anywhere_is_no_hub_s(data: st.DataObject) -> None:
    text = forwarding.seal(word(), KEY)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="latin-1").filter(lambda character: character != text[at]))
    with pytest.raises(UnauthorizedError):
        read(text[:at] + other + text[at + 1 :])


@given(st.text(max_size=200))
def test_anything_at_all_is_refused_and_nothing_breaks(text: str) -> None:
    with pytest.raises(UnauthorizedError):
        read(text)
    # Sealed by somebody who has the key, and no word: a hub of another version.
    raw = base64.urlsafe_b64encode(text.encode("utf-8", "replace")).decode()
    with pytest.raises(SkerryError):
        read(f"{raw}.{forwarding._proof(raw, KEY)}")


def test_a_word_is_for_one_request_one_hub_and_one_minute() -> None:
    text = forwarding.seal(word(), KEY)
    assert read(text, now=NOW + LIFE).method == "GET"
    assert read(text, now=NOW - LIFE).method == "GET"
    moment = timedelta(seconds=1)
    for late in (NOW + LIFE + moment, NOW - LIFE - moment):
        with pytest.raises(UnauthorizedError, match="not of the last 60 s"):
            read(text, now=late)
    with pytest.raises(UnauthorizedError, match="another request"):
        read(text, method="POST")
    with pytest.raises(UnauthorizedError, match="another request"):
        read(text, target=TARGET.replace("till-1", "till-2"))
    with pytest.raises(UnavailableError, match="another hub"):
        read(text, to="somebody")
    with pytest.raises(UnauthorizedError, match="not sealed"):
        read(text, b"x" * 32)
    with pytest.raises(UnauthorizedError, match="not sealed"):
        read(forwarding.seal(msgspec.structs.replace(word(), source="x" * forwarding.MAX_LENGTH), KEY))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Attributes(verb="get", resource="pods", subresource="log", name="p", namespace="d"), True),
        (Attributes(verb="create", resource="pods", subresource="exec", name="p", namespace="d"), True),
        (Attributes(verb="create", resource="pods", subresource="portforward", name="p", namespace="d"), True),
        (Attributes(verb="get", group="skerry.dev", resource="devices", subresource="log", name="x"), True),
        (Attributes(verb="create", group="skerry.dev", resource="devices", subresource="infer", name="x"), True),
        (Attributes(verb="get", group="skerry.dev", resource="tunnels", name="t"), True),
        (Attributes(verb="list", group="metrics.k8s.io", resource="pods"), True),
        (Attributes(verb="get", group="metrics.k8s.io", resource="nodes", name="n"), True),
        (Attributes(verb="get", resource="pods", name="p", namespace="d"), False),
        (Attributes(verb="list", resource="nodes"), False),
        (Attributes(verb="get", group="skerry.dev", resource="devices", name="x"), False),
        (Attributes(verb="create", group="skerry.dev", resource="devices", subresource="reconcile", name="x"), False),
        (Attributes(verb="list", group="metrics.k8s.io"), False),
        (Attributes(verb="get", path="/healthz"), False),
    ],
)
def test_only_what_needs_the_devices_is_the_leader_s(wanted: Attributes, expected: bool) -> None:
    assert forwarding.is_for_leader(wanted) is expected
