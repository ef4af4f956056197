"""OpenID Connect: identity tokens of one issuer elsewhere, verified with the keys that it publishes.

Keys are fetched when they are first needed, again when they grow old, and when a token names one that is not known; at
a bounded rate, also while the issuer does not answer. What was fetched goes on counting for a day without it. Must not
live here: what is taken of a token (`core.claims`). Sources: OpenID Connect Discovery 1.0; the `--oidc-*` flags of
Kubernetes' API server.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec

from skerry.api.errors import InvalidError, SkerryError, UnauthorizedError, UnavailableError
from skerry.core import claims
from skerry.core.claims import OidcRules
from skerry.core.ports import Clock
from skerry.hub.authentication import jws
from skerry.hub.authentication.chain import Authenticated
from skerry.hub.settings import HubSettings

log = logging.getLogger(__name__)

FETCH_SECONDS = 10.0
MAX_DOCUMENT_BYTES = 1024 * 1024
FRESH_SECONDS = 15 * 60.0
RETRY_SECONDS = 10.0
"""Between two fetches, whatever tokens ask for and however the last one ended."""
KEPT_SECONDS = 24 * 3600.0
"""How long keys count while their issuer cannot be asked: one that it has withdrawn must not be good for ever."""

_TRIED_WITHOUT_ID = 8


class _Document(msgspec.Struct):
    issuer: str
    jwks_uri: str


class IssuerKeys:
    """The keys of one issuer, as they were when last fetched."""

    def __init__(self, issuer: str, algorithms: Sequence[str], tls: ssl.SSLContext, clock: Clock) -> None:
        self._issuer, self._algorithms, self._tls, self._clock = issuer, algorithms, tls, clock
        self._keys: dict[tuple[str, str], jws.VerificationKey] = {}
        self._fetched = self._tried = float("-inf")
        self._fetching = asyncio.Lock()

    async def find(self, key_id: str, algorithm: str) -> list[jws.VerificationKey]:
        """Return the keys that may have signed such a token; with a key id there is one at most.

        Raises UnavailableError while there are no keys to say anything by.
        """
        found = self._look_up(key_id, algorithm)
        fresh = self._clock.monotonic() - self._fetched < FRESH_SECONDS
        if (not found or not fresh) and not (found and self._fetching.locked()):
            async with self._fetching:
                await self._refresh()
            found = self._look_up(key_id, algorithm)
        if self._clock.monotonic() - self._fetched >= KEPT_SECONDS:
            raise UnavailableError(
                "its keys cannot be fetched at the moment", element=f"issuer {self._issuer}", hint="try again later"
            )
        return found

    def _look_up(self, key_id: str, algorithm: str) -> list[jws.VerificationKey]:
        if key_id:
            key = self._keys.get((key_id, algorithm))
            return [key] if key else []
        return [key for (_, known), key in self._keys.items() if known == algorithm][:_TRIED_WITHOUT_ID]

    async def _refresh(self) -> None:
        now = self._clock.monotonic()
        if now - self._tried < RETRY_SECONDS:
            return
        self._tried = now
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                self._keys = await self._fetch()
        except (SkerryError, httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, TimeoutError) as error:
            cause = error.sentence if isinstance(error, SkerryError) else f"{type(error).__name__} {error}"
            log.warning("oidc.keys_not_fetched issuer=%s cause=%r", self._issuer, cause[:300])
            return
        self._fetched = now
        log.info("oidc.keys_fetched issuer=%s keys=%d", self._issuer, len(self._keys))

    async def _fetch(self) -> dict[tuple[str, str], jws.VerificationKey]:
        async with httpx.AsyncClient(
            verify=self._tls, timeout=FETCH_SECONDS, follow_redirects=False, trust_env=not _is_loopback(self._issuer)
        ) as http:
            place = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
            try:
                document = msgspec.json.decode(await _get(http, place), type=_Document)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                raise InvalidError("is not an OpenID Connect discovery document", element=place) from None
            if document.issuer != self._issuer:
                raise InvalidError(f"says that it is of {document.issuer[:200]!r}", element=place)
            check_url(document.jwks_uri.partition("?")[0], element=f"{place}: jwks_uri")
            return jws.read_keys(await _get(http, document.jwks_uri), self._algorithms, element=document.jwks_uri[:200])


class OidcTokens:
    """The identity tokens of one issuer, for one client id; `audience` is this hub's API."""

    def __init__(
        self, rules: OidcRules, keys: IssuerKeys, *, algorithms: Sequence[str], clock: Clock, audience: str
    ) -> None:
        self._rules, self._keys, self._algorithms = rules, keys, frozenset(algorithms)
        self._clock, self._audience = clock, audience

    async def authenticate(self, token: str, audiences: Sequence[str]) -> Authenticated | None:
        """Return whom it names; None when it is of another issuer. Raises UnauthorizedError, UnavailableError."""
        seen = jws.look(token)
        if seen is None or seen.issuer != self._rules.issuer:
            return None
        if seen.algorithm not in self._algorithms:
            raise UnauthorizedError("its algorithm is not one that is accepted", element="bearer token")
        if self._audience not in audiences:
            raise UnauthorizedError("is for somebody else", element="bearer token")
        keys = await self._keys.find(seen.key_id, seen.algorithm)
        for number, key in enumerate(keys, start=1):
            try:
                payload = jws.verify(token, key)
            except UnauthorizedError:
                if number == len(keys):
                    raise
                continue
            identity = claims.read_oidc(payload, self._rules, now=self._clock.now())
            return Authenticated(identity=identity, audiences=(self._audience,))
        raise UnauthorizedError("its key is not known to its issuer", element="bearer token", hint="log in again")


def open_issuer(settings: HubSettings, *, clock: Clock, audience: str) -> OidcTokens | None:
    """Return what the settings say of an issuer, or None when they name none. Raises InvalidError."""
    if not settings.oidc_issuer_url:
        given = [name for name in ("client_id", "groups_claim", "ca_file") if getattr(settings, f"oidc_{name}")]
        if given or settings.oidc_required_claim:
            raise InvalidError("is needed with the other --oidc options", element="--oidc-issuer-url")
        return None
    check_url(settings.oidc_issuer_url, element="--oidc-issuer-url")
    if not settings.oidc_client_id:
        raise InvalidError("is needed with --oidc-issuer-url", element="--oidc-client-id")
    if settings.oidc_issuer_url == audience:
        raise InvalidError("is this hub itself", element="--oidc-issuer-url")
    rules = OidcRules(
        issuer=settings.oidc_issuer_url,
        client_id=settings.oidc_client_id,
        username_claim=settings.oidc_username_claim,
        username_prefix=settings.oidc_username_prefix,
        groups_claim=settings.oidc_groups_claim,
        groups_prefix=settings.oidc_groups_prefix,
        required=claims.parse_required(settings.oidc_required_claim),
    )
    algorithms = settings.oidc_signing_algs or ("RS256",)
    keys = IssuerKeys(rules.issuer, algorithms, tls_context(settings.oidc_ca_file), clock)
    return OidcTokens(rules, keys, algorithms=algorithms, clock=clock, audience=audience)


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return the context to reach the issuer with: the system's CAs, or only those in a file. Raises InvalidError."""
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise InvalidError(
            f"is not a file of CA certificates in PEM ({getattr(error, 'strerror', None) or type(error).__name__})",
            element=f"--oidc-ca-file {ca_file}",
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def check_url(text: str, *, element: str) -> None:
    """Return when this is an address that keys may come from. Raises InvalidError."""
    try:
        parts = urlsplit(text)
        good = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0 and parts.username is None
    except ValueError:
        good = False
    if not good or len(text) > 2048 or not text.isprintable() or parts.query or parts.fragment:
        raise InvalidError(f'"{text[:200]}" is not a plain https:// URL', element=element)


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _get(http: httpx.AsyncClient, url: str) -> bytes:
    """Return a document. Raises UnavailableError, and what httpx raises."""
    async with http.stream(
        "GET", url, headers={"Accept": "application/json", "Accept-Encoding": "identity"}
    ) as response:
        if response.status_code != 200:
            raise UnavailableError(f"answered {response.status_code}", element=url[:200])
        content = bytearray()
        async for piece in response.aiter_raw():
            content += piece
            if len(content) > MAX_DOCUMENT_BYTES:
                raise UnavailableError(f"answered with more than {MAX_DOCUMENT_BYTES} bytes", element=url[:200])
    return bytes(content)
