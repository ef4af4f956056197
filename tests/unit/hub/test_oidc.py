"""Identity tokens of a real issuer over TLS: keys that turn, an issuer that is away, and whoever would forge one."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.hub import issuer as issuers
from tests.unit.hub.issuer import Issuer

from skerry.api.errors import InvalidError, UnauthorizedError, UnavailableError
from skerry.hub import pki
from skerry.hub.authentication import jws, oidc
from skerry.hub.authentication.chain import Authentication
from skerry.hub.authentication.oidc import OidcTokens
from skerry.hub.settings import HubSettings
from skerry.kit.clock import SystemClock

HUB = "https://hub.example:7443"


class Ahead(SystemClock):
    """A clock that can be put forward."""

    seconds = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return super().monotonic() + self.seconds


@pytest.fixture
def issuer(live_authority: pki.Authority) -> Iterator[Issuer]:
    with issuers.serving(live_authority) as running:
        yield running


@pytest.fixture
def clock() -> Ahead:
    return Ahead()


def opened(issuer: Issuer, authority: pki.Authority, clock: Ahead, **changes: Any) -> OidcTokens:
    settings = HubSettings(
        oidc_issuer_url=issuer.url,
        oidc_client_id=issuers.CLIENT,
        oidc_groups_claim="groups",
        oidc_groups_prefix="oidc:",
        oidc_ca_file=authority.ca_file,
        **changes,
    )
    made = oidc.open_issuer(settings, clock=clock, audience=HUB)
    assert made is not None
    return made


async def name_of(tokens: OidcTokens, token: str) -> str:
    found = await tokens.authenticate(token, (HUB,))
    assert found is not None
    return found.identity.name


async def test_a_user_is_known_by_what_the_issuer_signed(
    issuer: Issuer, live_authority: pki.Authority, clock: Ahead
) -> None:
    tokens = opened(issuer, live_authority, clock)
    found = await tokens.authenticate(issuer.token(), (HUB,))
    assert found is not None
    assert found.identity.name == f"{issuer.url}#ada"
    assert found.identity.groups == ("oidc:dev", "system:authenticated")
    for _ in range(5):
        await tokens.authenticate(issuer.token(), (HUB,))
    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]


async def test_tokens_of_others_are_not_its_own(issuer: Issuer, live_authority: pki.Authority, clock: Ahead) -> None:
    tokens = opened(issuer, live_authority, clock)
    for token in ("", "a.b.c", "skj1.x.y.z", issuer.token(iss="https://other.example")):
        assert await tokens.authenticate(token, (HUB,)) is None
    assert issuer.asked == []
    with pytest.raises(UnauthorizedError, match="somebody else"):
        await tokens.authenticate(issuer.token(), ("another",))
    with pytest.raises(UnauthorizedError, match="not one that this hub knows"):
        await Authentication(tokens=(tokens,)).review("a.b.c", (HUB,))


def forged(issuer: Issuer, header: dict[str, Any], secret: bytes | None) -> str:
    def part(value: Any) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    claims = {"iss": issuer.url, "aud": issuers.CLIENT, "sub": "root", "exp": int(time.time()) + 300}
    signed = part(header) + b"." + part(claims)
    mac = b"" if secret is None else hmac.digest(secret, signed, hashlib.sha256)
    return (signed + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


async def test_forgeries_are_refused(issuer: Issuer, live_authority: pki.Authority, clock: Ahead) -> None:
    tokens = opened(issuer, live_authority, clock, oidc_signing_algs=("RS256", "ES256"))
    issuer.add("curve", curve=ec.SECP256R1())
    assert await name_of(tokens, issuer.token(key_id="curve", algorithm="ES256"))
    impostor = Issuer(issuer.url)
    impostor.add("unknown")
    pem = issuer.public_pem()
    bad = [
        forged(issuer, {"alg": "none", "kid": "first"}, None),
        forged(issuer, {"alg": "None", "kid": "first"}, None),
        forged(issuer, {"alg": "HS256", "kid": "first"}, pem),
        forged(issuer, {"alg": "RS256", "kid": "first"}, pem),
        forged(issuer, {"alg": "RS256", "kid": "first"}, None),
        forged(issuer, {"alg": "ES256", "kid": "first"}, b"x"),
        forged(issuer, {"alg": ["RS256"], "kid": "first"}, b"x"),
        impostor.token(),
        impostor.token(key_id="unknown"),
        issuer.token(algorithm="RS384"),
        issuer.token(algorithm="PS256"),
        issuer.token(exp=int(time.time()) - 1),
        issuer.token(aud="another"),
        issuer.token(sub="system:masters", iss=issuer.url, aud=["another"]),
        jwt.encode({"iss": issuer.url}, impostor.private["first"], "RS256", headers={"jwk": {}, "kid": "first"}),
        jwt.encode({"iss": issuer.url}, impostor.private["first"], "RS256", headers={"jku": "https://x", "kid": "x"}),
    ]
    chain = Authentication(tokens=(tokens,))
    for token in bad:
        with pytest.raises(UnauthorizedError) as caught:
            await chain.review(token, (HUB,))
        assert token not in str(caught.value)
        assert token.split(".")[1] not in str(caught.value)


async def test_a_new_key_is_fetched_at_a_bounded_rate(
    issuer: Issuer, live_authority: pki.Authority, clock: Ahead
) -> None:
    tokens = opened(issuer, live_authority, clock)
    await name_of(tokens, issuer.token())
    issuer.add("second")
    for _ in range(20):
        with pytest.raises(UnauthorizedError):
            await name_of(tokens, issuer.token(key_id="second"))
    assert len(issuer.asked) == 2
    clock.seconds += oidc.RETRY_SECONDS
    answers = await asyncio.gather(*(name_of(tokens, issuer.token(key_id="second")) for _ in range(10)))
    assert len(answers) == 10
    assert len(issuer.asked) == 4
    del issuer.private["first"]
    old = Issuer(issuer.url)
    clock.seconds += oidc.FRESH_SECONDS
    with pytest.raises(UnauthorizedError):
        await name_of(tokens, old.token())


async def test_while_the_issuer_is_away_its_keys_go_on_counting_for_a_day(
    issuer: Issuer, live_authority: pki.Authority, clock: Ahead
) -> None:
    tokens = opened(issuer, live_authority, clock)
    await name_of(tokens, issuer.token())
    issuer.answer = (503, b"")
    clock.seconds = oidc.FRESH_SECONDS + 1
    asked = len(issuer.asked)
    late = int(time.time()) + 10**6
    for _ in range(20):
        assert await name_of(tokens, issuer.token(exp=late))
        with pytest.raises(UnauthorizedError):
            await name_of(tokens, Issuer(issuer.url).token(exp=late))
    assert len(issuer.asked) == asked + 1
    clock.seconds = oidc.KEPT_SECONDS + 1
    with pytest.raises(UnavailableError, match="cannot be fetched"):
        await name_of(tokens, issuer.token(exp=late))
    issuer.answer = None
    clock.seconds += oidc.RETRY_SECONDS
    assert await name_of(tokens, issuer.token(exp=late))


@pytest.mark.parametrize(
    ("answer", "changes"),
    [
        ((404, b""), {}),
        ((302, b""), {}),
        ((200, b"x"), {}),
        ((200, b"[" * 100_000), {}),
        ((200, b"{}"), {}),
        ((200, b'"' + b"x" * (oidc.MAX_DOCUMENT_BYTES + 1)), {}),
        (None, {"issuer": "https://other.example"}),
        (None, {"jwks_uri": "http://127.0.0.1/keys"}),
        (None, {"jwks_uri": "file:///etc/passwd"}),
        (None, {"jwks_uri": 5}),
    ],
)
async def test_an_issuer_that_answers_nonsense_lets_nobody_in(
    issuer: Issuer, live_authority: pki.Authority, clock: Ahead, answer: Any, changes: dict[str, Any]
) -> None:
    tokens = opened(issuer, live_authority, clock)
    issuer.answer, issuer.changes = answer, changes
    with pytest.raises(UnavailableError):
        await name_of(tokens, issuer.token())


async def test_an_issuer_whose_certificate_is_not_trusted_lets_nobody_in(
    issuer: Issuer, live_authority: pki.Authority, clock: Ahead, tmp_path: Path
) -> None:
    other = pki.open_authority(tmp_path / "other", names=(), clock=SystemClock())
    with pytest.raises(UnavailableError):
        await name_of(opened(issuer, other, clock), issuer.token())
    assert issuer.asked == []


async def test_an_algorithm_that_is_not_accepted_costs_no_question(
    issuer: Issuer, live_authority: pki.Authority, clock: Ahead
) -> None:
    tokens = opened(issuer, live_authority, clock)
    for token in (issuer.token(algorithm="RS512"), forged(issuer, {"alg": "HS256"}, b"x")):
        with pytest.raises(UnauthorizedError, match="algorithm"):
            await name_of(tokens, token)
    assert issuer.asked == []


@pytest.mark.parametrize(
    ("bits", "changes", "good"),
    [
        (2048, {}, True),
        (8192, {}, True),
        (1024, {}, False),
        (8200, {}, False),
        (2048, {"use": "enc"}, False),
        (2048, {"alg": "RS512"}, False),
        (2048, {"kty": "oct", "k": "c2VjcmV0"}, False),
        (2048, {"n": 5}, False),
    ],
)
def test_keys_that_cannot_be_used_are_left_out(bits: int, changes: dict[str, Any], *, good: bool) -> None:
    number = ((1 << bits) - 1).to_bytes(bits // 8)
    key = {"kty": "RSA", "kid": "k", "e": "AQAB", "n": base64.urlsafe_b64encode(number).decode().rstrip("="), **changes}
    raw = json.dumps({"keys": [key, 5, {}]}).encode()
    if good:
        assert list(jws.read_keys(raw, ["RS256"], element="keys")) == [("k", "RS256")]
    else:
        with pytest.raises(InvalidError, match="no key for"):
            jws.read_keys(raw, ["RS256"], element="keys")


async def test_weak_keys_are_none(issuer: Issuer, live_authority: pki.Authority, clock: Ahead) -> None:
    tokens = opened(issuer, live_authority, clock)
    issuer.add("good")
    issuer.add("weak", bits=1024)
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = issuer.token(key_id="weak")
    with pytest.raises(UnauthorizedError):
        await name_of(tokens, token)
    assert await name_of(tokens, issuer.token(key_id="good"))


@pytest.mark.parametrize(
    ("given", "say"),
    [
        ({"oidc_client_id": "x"}, "--oidc-issuer-url: is needed"),
        ({"oidc_issuer_url": "https://id.example"}, "--oidc-client-id: is needed"),
        ({"oidc_issuer_url": "http://id.example", "oidc_client_id": "x"}, "not a plain https"),
        ({"oidc_issuer_url": "https://u:p@id.example", "oidc_client_id": "x"}, "not a plain https"),
        ({"oidc_issuer_url": HUB, "oidc_client_id": "x"}, "this hub itself"),
        (
            {"oidc_issuer_url": "https://id.example", "oidc_client_id": "x", "oidc_required_claim": ("a",)},
            "--oidc-required-claim",
        ),
        (
            {"oidc_issuer_url": "https://id.example", "oidc_client_id": "x", "oidc_ca_file": Path("/nowhere")},
            "--oidc-ca-file /nowhere",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(given: dict[str, Any], say: str) -> None:
    with pytest.raises(InvalidError, match=say):
        oidc.open_issuer(HubSettings(**given), clock=SystemClock(), audience=HUB)


def test_without_an_issuer_there_is_none() -> None:
    assert oidc.open_issuer(HubSettings(), clock=SystemClock(), audience=HUB) is None
