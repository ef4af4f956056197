"""Scopes and Bearer tokens: never more than was granted, never anything but the declared errors."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import InvalidError, UnauthorizedError
from skerry.core import registry_access as scopes

KEY = b"k" * 32
NAMES = st.sampled_from(["default/a", "default/b", "default/a/b", "lab/a", "default", "defaultx/a", "Default/a", "lab"])
ACTIONS = st.lists(st.sampled_from(["pull", "push", "delete", "*", "admin"]), min_size=1, max_size=4)
CLAIMS = st.builds(
    scopes.Claims,
    subject=st.text(max_size=20),
    expires=st.floats(1, 1e9),
    grants=st.dictionaries(NAMES, st.lists(st.sampled_from(scopes.ACTIONS)), max_size=3),
)


@given(
    asked=st.lists(st.tuples(NAMES, ACTIONS), max_size=6),
    namespace=st.sampled_from(["default", "lab"]),
    repositories=st.lists(NAMES, max_size=3),
    actions=st.lists(st.sampled_from(scopes.ACTIONS), max_size=3),
)
def test_nothing_is_granted_that_was_not_both_asked_for_and_allowed(
    asked: list[tuple[str, list[str]]], namespace: str, repositories: list[str], actions: list[str]
) -> None:
    texts = [f"repository:{name}:{','.join(wanted)}" for name, wanted in asked]
    granted = scopes.grant(scopes.parse_scopes(texts), namespace=namespace, repositories=repositories, actions=actions)
    expected: dict[str, set[str]] = {}
    for name, wanted in asked:
        inside = name.split("/")[0] == namespace and "/" in name
        if inside and (not repositories or name in repositories):
            both = {one for one in scopes.ACTIONS if (one in wanted or "*" in wanted) and one in actions}
            if both:
                expected.setdefault(name, set()).update(both)
    assert {name: set(what) for name, what in granted.items()} == expected
    for name, what in granted.items():
        assert scopes.parse_scopes([scopes.scope_of(name, what)]) == {name: what}


@given(texts=st.lists(st.text(max_size=80), max_size=5))
def test_any_scope_is_read_or_left_out(texts: list[str]) -> None:
    for actions in scopes.parse_scopes(texts).values():
        assert actions <= set(scopes.ACTIONS)


def test_scopes_are_bounded() -> None:
    with pytest.raises(InvalidError):
        scopes.parse_scopes(["repository:default/a:pull " * 40])
    with pytest.raises(InvalidError):
        scopes.parse_scopes([f"repository:default/{'a' * 600}:pull"])
    assert scopes.parse_scopes(["registry:catalog:* repository(plugin):default/a:pull"]) == {
        "default/a": frozenset({"pull"})
    }


@given(claims=CLAIMS)
def test_a_token_says_what_was_sealed_until_it_expires(claims: scopes.Claims) -> None:
    token = scopes.seal(claims, KEY)
    assert scopes.open_bearer(token, KEY, now=0) == claims
    with pytest.raises(UnauthorizedError):
        scopes.open_bearer(token, KEY, now=claims.expires)
    with pytest.raises(UnauthorizedError):
        scopes.open_bearer(token, b"x" * 32, now=0)


@given(claims=CLAIMS, at=st.integers(0, 400), character=st.characters(codec="utf-8"))
def test_a_changed_token_is_refused(claims: scopes.Claims, at: int, character: str) -> None:
    token = scopes.seal(claims, KEY)
    at %= len(token)
    changed = token[:at] + character + token[at + 1 :]
    if changed != token:
        with pytest.raises(UnauthorizedError):
            scopes.open_bearer(changed, KEY, now=0)


@given(
    text=st.one_of(st.text(max_size=100), st.builds("skb1.{}.{}".format, st.text(max_size=40), st.text(max_size=60)))
)
def test_any_text_is_refused_as_a_token(text: str) -> None:
    with pytest.raises(UnauthorizedError):
        scopes.open_bearer(text, KEY, now=0)


@given(body=st.binary(max_size=60))
def test_even_sealed_rubbish_is_refused(body: bytes) -> None:
    """As of another version of the hub that had the same key."""
    encoded = scopes._encode(body)
    token = f"skb1.{encoded}.{scopes._encode(scopes._mac(encoded, KEY))}"
    with suppress(UnauthorizedError):
        assert isinstance(scopes.open_bearer(token, KEY, now=0), scopes.Claims)
