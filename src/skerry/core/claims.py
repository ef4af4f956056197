"""What signed tokens say and when it counts: service accounts' tokens and an issuer's identity tokens. Pure.

Lives here: making and judging claims; the caller has checked the signature and brings the time. Must not live here:
keys, signatures, or whether the account still exists (`hub.authentication`). Sources: RFC 7519; Kubernetes, "Managing
Service Accounts" and "OpenID Connect Tokens"; OpenID Connect Core 1.0, section 3.1.3.7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from skerry.api.errors import InvalidError, UnauthorizedError
from skerry.core import access
from skerry.core.access import Identity

MIN_LIFE = timedelta(minutes=10)
DEFAULT_LIFE = timedelta(hours=1)
MAX_LIFE = timedelta(days=90)
"""Longer ones are made shorter, as Kubernetes does."""
LEEWAY = timedelta(seconds=60)
"""How far the maker's clock may be ahead; a token's end is its end by our own clock."""
MAX_AUDIENCES = 32
CREDENTIAL_ID = "authentication.kubernetes.io/credential-id"

_ELEMENT = "bearer token"
_HINT = "make a new one, or log in again"


class _Bound(msgspec.Struct):
    name: str
    uid: str


class _Kubernetes(msgspec.Struct):
    namespace: str
    serviceaccount: _Bound


class _ServiceAccountClaims(msgspec.Struct, rename={"kubernetes": "kubernetes.io"}):
    iss: str
    sub: str
    aud: list[str]
    exp: int
    iat: int
    nbf: int
    jti: str
    kubernetes: _Kubernetes


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceAccountToken:
    """What a token says whose signature holds and whose time is now; whether the account still exists is to be seen."""

    namespace: str
    name: str
    uid: str
    audiences: tuple[str, ...]
    """Those of the audiences asked for that it is meant for."""
    token_id: str

    @property
    def identity(self) -> Identity:
        """Whom it names."""
        extra = {CREDENTIAL_ID: (f"JTI={self.token_id}",)}
        return access.service_account(self.namespace, self.name, self.uid, extra)


@dataclass(frozen=True, kw_only=True)
class OidcRules:
    """What is taken of an issuer's identity tokens. Source: the `--oidc-*` flags of Kubernetes' API server."""

    issuer: str
    client_id: str
    username_claim: str = "sub"
    username_prefix: str = ""
    """Empty: `<issuer>#`, unless the claim is `email`; `-`: none."""
    groups_claim: str = ""
    """Empty: no groups."""
    groups_prefix: str = ""
    required: Mapping[str, str] = field(default_factory=dict)


def choose_life(seconds: int | None) -> timedelta:
    """Return how long a token is to be good. Raises InvalidError for less than ten minutes."""
    if seconds is None:
        return DEFAULT_LIFE
    if seconds < MIN_LIFE.total_seconds():
        raise InvalidError(
            f"{seconds} is less than 10 minutes", element="spec.expirationSeconds", hint="600 seconds or more"
        )
    return min(timedelta(seconds=min(seconds, 2**32)), MAX_LIFE)


def check_audiences(audiences: Sequence[str], *, default: str) -> tuple[str, ...]:
    """Return whom a token is for; the hub's API where nothing is named. Raises InvalidError."""
    if len(audiences) > MAX_AUDIENCES or not all(access.is_name(audience) for audience in audiences):
        raise InvalidError(f"not 1 to {MAX_AUDIENCES} printable names", element="spec.audiences")
    return tuple(dict.fromkeys(audiences)) or (default,)


def service_account_claims(
    *,
    issuer: str,
    namespace: str,
    name: str,
    uid: str,
    audiences: Sequence[str],
    now: datetime,
    life: timedelta,
    token_id: str,
) -> bytes:
    """Return the claims of a service account's token, as JSON."""
    seconds = int(now.timestamp())
    return msgspec.json.encode(
        _ServiceAccountClaims(
            iss=issuer,
            sub=f"system:serviceaccount:{namespace}:{name}",
            aud=list(audiences),
            exp=seconds + int(life.total_seconds()),
            iat=seconds,
            nbf=seconds,
            jti=token_id,
            kubernetes=_Kubernetes(namespace=namespace, serviceaccount=_Bound(name=name, uid=uid)),
        )
    )


def read_service_account(
    payload: bytes, *, issuer: str, audiences: Sequence[str], now: datetime
) -> ServiceAccountToken:
    """Judge the claims of a token whose signature holds. Raises UnauthorizedError."""
    try:
        claims = msgspec.json.decode(payload, type=_ServiceAccountClaims)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _refused("its claims cannot be read") from None
    account = claims.kubernetes.serviceaccount
    if claims.sub != f"system:serviceaccount:{claims.kubernetes.namespace}:{account.name}" or claims.iss != issuer:
        raise _refused("its claims cannot be read")
    _check_times(now, end=claims.exp, begin=max(claims.nbf, claims.iat))
    meant = tuple(audience for audience in audiences if audience in claims.aud)
    if not meant:
        raise _refused("is for somebody else")
    return ServiceAccountToken(
        namespace=claims.kubernetes.namespace,
        name=account.name,
        uid=account.uid,
        audiences=meant,
        token_id=claims.jti,
    )


def read_oidc(payload: bytes, rules: OidcRules, *, now: datetime) -> Identity:
    """Return whom an identity token names whose signature holds. Raises UnauthorizedError.

    Reserved groups are left out; a reserved user name is refused.
    """
    try:
        claims = msgspec.json.decode(payload, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _refused("its claims cannot be read") from None
    if claims.get("iss") != rules.issuer:
        raise _refused("is of another issuer")
    if rules.client_id not in _texts(claims.get("aud"), "aud"):
        raise _refused("is for another client")
    _check_times(now, end=_time(claims, "exp"), begin=_time(claims, "nbf", default=0))
    _check_required(claims, rules.required)
    name = _username(claims, rules)
    groups = _texts(claims.get(rules.groups_claim, []), rules.groups_claim) if rules.groups_claim else []
    prefixed = [rules.groups_prefix + group for group in groups if group]
    if len(prefixed) > access.MAX_GROUPS:
        raise _refused(f"names more than {access.MAX_GROUPS} groups")
    kept = tuple(group for group in prefixed if access.is_name(group) and not access.is_reserved_group(group))
    return Identity(role="user", name=name, groups=kept)


def parse_required(texts: Sequence[str]) -> dict[str, str]:
    """Read `claim=value` pairs. Raises InvalidError."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InvalidError(f'"{text[:80]}" is not claim=value', element="--oidc-required-claim")
        if pairs.setdefault(name.strip(), value) != value:
            raise InvalidError(f'claim "{name[:80]}" is given twice', element="--oidc-required-claim")
    return pairs


def _username(claims: Mapping[str, Any], rules: OidcRules) -> str:
    claim = rules.username_claim
    text = claims.get(claim)
    if not isinstance(text, str) or not text:
        raise _refused(f'has no text in claim "{claim[:80]}"')
    if claim == "email" and claims.get("email_verified", True) is not True:
        raise _refused("its email address is not verified")
    prefix = rules.username_prefix or ("" if claim == "email" else f"{rules.issuer}#")
    name = text if prefix == "-" else prefix + text
    if not access.is_name(name) or access.is_reserved(name):
        raise _refused(f'claim "{claim[:80]}" cannot be a user\'s name here')
    return name


def _check_required(claims: Mapping[str, Any], required: Mapping[str, str]) -> None:
    for name, value in required.items():
        if claims.get(name) != value:
            raise _refused(f'does not have the required value in claim "{name[:80]}"')


def _check_times(now: datetime, *, end: float, begin: float) -> None:
    seconds = now.timestamp()
    if seconds >= end:
        raise _refused("has expired" if end <= 0 or end > 2**33 else f"expired at {_shown(end)}")
    if begin > seconds + LEEWAY.total_seconds():
        raise _refused("is not good yet; the clocks of its maker and of this hub differ")


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _time(claims: Mapping[str, Any], name: str, *, default: float | None = None) -> float:
    value = claims.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(f'has no time in claim "{name}"')
    return value


def _texts(value: Any, name: str) -> list[str]:
    """Return a claim that is one text or a list of them."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise _refused(f'has no texts in claim "{name[:80]}"')
    return found


def _refused(cause: str) -> UnauthorizedError:
    return UnauthorizedError(cause, element=_ELEMENT, hint=_HINT)
