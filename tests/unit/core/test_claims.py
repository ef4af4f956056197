"""What tokens say, and when it counts."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import ForbiddenError, InvalidError, UnauthorizedError
from skerry.core import access, claims
from skerry.core.access import Identity
from skerry.core.claims import OidcRules

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HUB = "https://hub.example:7443"
RULES = OidcRules(
    issuer="https://id.example", client_id="skerry", groups_claim="groups", groups_prefix="oidc:", required={"org": "x"}
)


def account(**changes: Any) -> bytes:
    made = claims.service_account_claims(
        issuer=HUB,
        namespace="shop",
        name="ci",
        uid="u1",
        audiences=(HUB, "other"),
        now=NOW,
        life=timedelta(hours=1),
        token_id="t1",
    )
    return json.dumps({**json.loads(made), **changes}).encode()


def read(payload: bytes, *, audiences: tuple[str, ...] = (HUB,), now: datetime = NOW) -> claims.ServiceAccountToken:
    return claims.read_service_account(payload, issuer=HUB, audiences=audiences, now=now)


def oidc(**changes: Any) -> bytes:
    good = {
        "iss": "https://id.example",
        "aud": "skerry",
        "sub": "ada",
        "exp": NOW.timestamp() + 60,
        "org": "x",
        "groups": ["dev"],
    }
    return json.dumps({key: value for key, value in {**good, **changes}.items() if value is not None}).encode()


def test_an_account_s_token_names_it_as_kubernetes_does() -> None:
    identity = read(account()).identity
    assert identity == access.service_account("shop", "ci", "u1", {claims.CREDENTIAL_ID: ("JTI=t1",)})
    assert (identity.role, identity.username) == ("user", "system:serviceaccount:shop:ci")
    assert identity.groups == ("system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated")


@pytest.mark.parametrize(
    ("seconds", "good"), [(-61, False), (-60, True), (0, True), (3599, True), (3600, False), (10**6, False)]
)
def test_an_account_s_token_has_its_time(seconds: int, *, good: bool) -> None:
    now = NOW + timedelta(seconds=seconds)
    if good:
        read(account(), now=now)
    else:
        with pytest.raises(UnauthorizedError):
            read(account(), now=now)


def test_a_token_is_for_its_audiences_alone() -> None:
    assert read(account(), audiences=("nobody", "other")).audiences == ("other",)
    with pytest.raises(UnauthorizedError, match="somebody else"):
        read(account(), audiences=("nobody",))


@pytest.mark.parametrize(
    "changes",
    [
        {"sub": "system:serviceaccount:shop:root"},
        {"iss": "https://id.example"},
        {"exp": "never"},
        {"aud": HUB},
        {"kubernetes.io": {"namespace": "other", "serviceaccount": {"name": "ci", "uid": "u1"}}},
        {"kubernetes.io": {}},
    ],
)
def test_claims_that_do_not_belong_together_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnauthorizedError):
        read(account(**changes))


def test_lives_and_audiences_are_bounded() -> None:
    assert claims.choose_life(None) == timedelta(hours=1)
    assert claims.choose_life(600) == timedelta(minutes=10)
    assert claims.choose_life(10**30) == claims.MAX_LIFE
    for seconds in (599, 0, -1):
        with pytest.raises(InvalidError, match="10 minutes"):
            claims.choose_life(seconds)
    assert claims.check_audiences((), default=HUB) == (HUB,)
    assert claims.check_audiences(("a", "a", "b"), default=HUB) == ("a", "b")
    for audiences in (["a"] * 33, [""], ["a\nb"]):
        with pytest.raises(InvalidError):
            claims.check_audiences(audiences, default=HUB)


def test_an_issuer_s_user_has_prefixed_names() -> None:
    assert claims.read_oidc(oidc(), RULES, now=NOW) == Identity(
        role="user", name="https://id.example#ada", groups=("oidc:dev",)
    )


@pytest.mark.parametrize(
    ("claim", "prefix", "value", "name"),
    [
        ("sub", "", "ada", "https://id.example#ada"),
        ("sub", "-", "ada", "ada"),
        ("sub", "o:", "ada", "o:ada"),
        ("email", "", "ada@x", "ada@x"),
        ("email", "o:", "ada@x", "o:ada@x"),
    ],
)
def test_names_are_prefixed_as_kubernetes_prefixes_them(claim: str, prefix: str, value: str, name: str) -> None:
    rules = OidcRules(issuer=RULES.issuer, client_id="skerry", username_claim=claim, username_prefix=prefix)
    assert claims.read_oidc(oidc(**{claim: value}), rules, now=NOW).name == name


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example"},
        {"aud": "another"},
        {"aud": ["another"]},
        {"aud": 5},
        {"exp": NOW.timestamp()},
        {"exp": None},
        {"exp": "1e9"},
        {"exp": True},
        {"nbf": NOW.timestamp() + 61},
        {"sub": None},
        {"sub": ""},
        {"sub": 5},
        {"sub": "a\nb"},
        {"org": "y"},
        {"org": None},
        {"groups": {"a": 1}},
        {"groups": [1]},
        {"groups": [f"g{n}" for n in range(access.MAX_GROUPS + 1)]},
    ],
)
def test_identity_tokens_that_do_not_count(changes: dict[str, Any]) -> None:
    with pytest.raises(UnauthorizedError):
        claims.read_oidc(oidc(**changes), RULES, now=NOW)


@pytest.mark.parametrize(
    ("verified", "good"), [({}, True), ({"email_verified": True}, True), ({"email_verified": False}, False)]
)
def test_an_address_that_is_not_verified_is_nobody_s(verified: dict[str, Any], *, good: bool) -> None:
    rules = OidcRules(issuer=RULES.issuer, client_id="skerry", username_claim="email")
    payload = oidc(email="ada@x", **verified)
    if good:
        assert claims.read_oidc(payload, rules, now=NOW).name == "ada@x"
    else:
        with pytest.raises(UnauthorizedError, match="not verified"):
            claims.read_oidc(payload, rules, now=NOW)


@pytest.mark.parametrize(
    ("name", "is_group"),
    [
        ("system:masters", True),
        ("System:Masters", True),
        ("skerry:admins", True),
        ("system:node:x", True),
        ("skerry-hub", False),
        ("admin", False),
        ("Admin", False),
    ],
)
def test_no_issuer_reaches_reserved_names(name: str, *, is_group: bool) -> None:
    """Two names are the hub's own as users, and mean nothing as groups, where many have one that is called so."""
    rules = OidcRules(
        issuer=RULES.issuer, client_id="skerry", username_prefix="-", groups_claim="groups", groups_prefix=""
    )
    with pytest.raises(UnauthorizedError):
        claims.read_oidc(oidc(sub=name), rules, now=NOW)
    kept = () if is_group else (name,)
    found = claims.read_oidc(oidc(groups=[name, "dev"]), rules, now=NOW)
    assert found.groups == (*kept, "dev", "system:authenticated")
    if is_group:
        with pytest.raises(ForbiddenError):
            access.check_user("ada", [name], element="subject")
    else:
        access.check_user("ada", [name], element="subject")
    with pytest.raises(ForbiddenError):
        access.check_user(name, [], element="subject")


def test_groups_may_be_one_text() -> None:
    assert "oidc:dev" in claims.read_oidc(oidc(groups="dev"), RULES, now=NOW).groups


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "groups", "org", "kubernetes.io"])
                | st.text(max_size=4),
                inner,
                max_size=6,
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_payload_is_judged(payload: bytes) -> None:
    for judge in (lambda: read(payload), lambda: claims.read_oidc(payload, RULES, now=NOW)):
        with pytest.raises(UnauthorizedError):
            judge()


def test_required_claims_are_parsed() -> None:
    assert claims.parse_required(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    for texts in (["a"], ["=b"], ["a=b", "a=c"]):
        with pytest.raises(InvalidError):
            claims.parse_required(texts)


def test_identities_have_their_role_s_groups() -> None:
    assert Identity(role="admin", name="a").groups == ("skerry:admins", "system:masters", "system:authenticated")
    assert Identity(role="user", name="a", groups=("g", "g")).groups == ("g", "system:authenticated")
    assert access.ANONYMOUS.groups == ("system:unauthenticated",)
    assert access.ANONYMOUS.username == "system:anonymous"
    assert Identity(role="device", name="d1", namespace="lab").username == "skerry:device:lab:d1"
    assert hash(Identity(role="user", name="a", extra={"k": ("v",)})) is not None
