"""How a client shows a registry who it is: Basic, or a Bearer token that the registry's token server gives for it.

Lives here: the challenge and its answer. Must not live here: where credentials come from (`credentials`). Source:
RFC 7235 (challenges), the distribution project's token authentication specification.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from urllib.parse import urlsplit

import httpx
import msgspec

from skerry.api.errors import InvalidError, UnauthorizedError, UnsupportedError
from skerry.core import reference as references
from skerry.drivers.client.credentials import Credentials

LookUp = Callable[[], Credentials | None]
"""Reads credentials once more; it blocks."""
LOGIN_HINT = "log in: `skopeo login`, `podman login`, or --username with --password-stdin"
MAX_TOKEN_BYTES = 256 * 1024
MAX_TOKENS = 256
"""Repositories whose tokens are kept; of more, those that were not asked for the longest get theirs anew."""
MAX_SCOPES = 8
"""Repositories that one token is asked for: a mount needs two."""
RENEW_SECONDS = 10.0
"""Credentials that are refused are looked up again, at most so often."""
LIMIT = "skerry.limit"
"""A request's extension: how many bytes of its answer are read (`registry_http.bound`)."""
_REPOSITORY = re.compile(r"/v2/(.{1,255})/(?:manifests|blobs|tags|referrers)/")
_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))\s*(?:,\s*|$)')


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


class _Known:
    """What is known of one repository: the token, and what it was asked for."""

    def __init__(self) -> None:
        self.header = ""
        self.scopes: OrderedDict[str, set[str]] = OrderedDict()

    def widen(self, asked: str) -> list[str]:
        """Return what to ask a token for: all that a challenge names, and what was asked for before."""
        for scope in asked.split()[:MAX_SCOPES]:
            place, _, actions = scope.rpartition(":")
            self.scopes.setdefault(place, set()).update(actions.split(","))
            self.scopes.move_to_end(place)
        while len(self.scopes) > MAX_SCOPES:
            self.scopes.popitem(last=False)
        return [f"{place}:{','.join(sorted(actions))}" for place, actions in sorted(self.scopes.items())]


class RegistryAuth(httpx.Auth):
    """Answers one registry's challenges. Tokens are fetched when asked for, and kept for each repository; safe for
    several threads.

    Credentials go to the registry itself, and to the token server it names; never over plain HTTP to another machine.
    `look_up` is asked for others once they are refused.
    """

    def __init__(
        self,
        host: str,
        credentials: Credentials | None,
        look_up: LookUp | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._credentials = credentials
        self._look_up = look_up
        self._monotonic = monotonic
        self._looked_up = monotonic() - RENEW_SECONDS
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._basic = ""
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        """Send the request, once more with what a 401 asked for, and once more with credentials that are new."""
        place = _needed(request.url)
        used = self._header(place)
        tried: Credentials | None = None
        refusal: UnauthorizedError | None = None
        if used:
            request.headers["Authorization"] = used
        answer = yield request
        for again in (False, True):
            if answer.status_code != 401 or answer.request.url.host != request.url.host:
                return
            credentials = self._renewed(tried) if again else self._credentials
            if again and credentials == tried:
                break
            tried, refusal = credentials, None
            scheme, parameters = parse_challenge(answer.headers.get("WWW-Authenticate", ""))
            try:
                header = yield from self._answer(scheme, parameters, request, credentials)
            except UnauthorizedError as error:
                refusal = error
                continue
            if header and header != used:
                self._keep(place, header, scheme)
                used = request.headers["Authorization"] = header
                answer = yield request
        if refusal is not None:
            raise refusal

    def _answer(
        self, scheme: str, parameters: dict[str, str], request: httpx.Request, credentials: Credentials | None
    ) -> Generator[httpx.Request, httpx.Response, str]:
        """Return the header that answers a challenge; empty for one that cannot be answered."""
        if scheme == "bearer":
            ask = self._token_request(_needed(request.url), parameters, credentials)
            return "Bearer " + _read_token((yield ask), self._host)
        if scheme != "basic":
            return ""
        if credentials is not None:
            self._check_private(str(request.url))
        return credentials.basic if credentials is not None else ""

    def _header(self, place: str) -> str:
        with self._lock:
            known = self._known.get(place)
            if known is None:
                return self._basic
            self._known.move_to_end(place)
            return known.header or self._basic

    def _keep(self, place: str, header: str, scheme: str) -> None:
        with self._lock:
            if scheme == "basic":
                self._basic = header
            else:
                self._of(place).header = header

    def _of(self, place: str) -> _Known:
        known = self._known.setdefault(place, _Known())
        self._known.move_to_end(place)
        while len(self._known) > MAX_TOKENS:
            self._known.popitem(last=False)
        return known

    def _renewed(self, tried: Credentials | None) -> Credentials | None:
        """Return credentials that are looked up again, or were meanwhile; the tried ones if there are no others."""
        with self._renewing:
            now = self._monotonic()
            if self._look_up is not None and self._credentials == tried and now - self._looked_up >= RENEW_SECONDS:
                self._looked_up = now
                self._credentials = self._look_up() or tried
            return self._credentials

    def _token_request(self, place: str, parameters: dict[str, str], credentials: Credentials | None) -> httpx.Request:
        realm = parameters.get("realm", "")
        self._check_private(realm)
        with self._lock:
            _, _, source = place.partition(" ")
            beside = f" repository:{source}:pull" if source else ""
            scopes = self._of(place).widen(parameters.get("scope", "") + beside)
        query = [("scope", scope) for scope in scopes]
        if "service" in parameters:
            query.append(("service", parameters["service"]))
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if credentials is not None:
            headers["Authorization"] = credentials.basic
        url = httpx.URL(realm)
        return httpx.Request(
            "GET",
            url.copy_with(params=[*url.params.multi_items(), *query]),
            headers=headers,
            extensions={LIMIT: MAX_TOKEN_BYTES},
        )

    def _check_private(self, url: str) -> None:
        """Refuse a place that a password must not be sent to."""
        try:
            parts = urlsplit(url)
            private = parts.scheme == "https" or (parts.scheme == "http" and references.is_loopback(parts.netloc))
        except ValueError:
            private = False
        if not private:
            raise UnsupportedError(
                f"asks to log in at {url[:200]!a}, which is not HTTPS", element=f"registry {self._host}"
            )


def _needed(url: httpx.URL) -> str:
    """Return the repository that a request is about, and after a space the one that a blob is mounted from."""
    match = _REPOSITORY.match(url.path)
    source = url.params.get("from", "")[:255] if match else ""
    return " ".join(filter(None, (match.group(1) if match else "", source)))


def parse_challenge(text: str) -> tuple[str, dict[str, str]]:
    """Return the first challenge's scheme in lower case and its parameters; empty ones for what cannot be read."""
    scheme, _, rest = text[:8192].strip().partition(" ")
    parameters: dict[str, str] = {}
    at = 0
    rest = rest.strip()
    while match := _PARAMETER.match(rest, at):
        quoted, plain = match.group(2), match.group(3)
        value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        parameters.setdefault(match.group(1).lower(), value)
        at = match.end()
    return scheme.lower(), parameters


def _read_token(answer: httpx.Response, host: str) -> str:
    element = f"registry {host}"
    if answer.status_code in (400, 401, 403):
        raise UnauthorizedError(
            f"its token server answers {answer.status_code}",
            element=element,
            hint=LOGIN_HINT,
        )
    raw = answer.read()
    if len(raw) > MAX_TOKEN_BYTES:
        raise InvalidError(f"its token is larger than {MAX_TOKEN_BYTES} bytes", element=element)
    try:
        found = msgspec.json.decode(raw, type=_Token) if answer.is_success else _Token()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = _Token()
    token = found.token or found.access_token
    if not token or not token.isascii() or not token.isprintable():
        raise InvalidError(f"its token server gave no token (answer {answer.status_code})", element=element)
    return token
