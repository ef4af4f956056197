"""How a client shows a registry who it is: Basic, or a Bearer token that the registry's token server gives for it.

Lives here: the challenge and its answer. Must not live here: where credentials come from (`credentials`). Source:
RFC 7235 (challenges), the distribution project's token authentication specification.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Generator
from urllib.parse import urlsplit

import httpx
import msgspec

from skerry.api.errors import InvalidError, UnauthorizedError, UnsupportedError
from skerry.core import reference as references
from skerry.drivers.client.credentials import Credentials

LOGIN_HINT = "log in: `skopeo login`, `podman login`, or --username with --password-stdin"
MAX_TOKEN_BYTES = 256 * 1024
_MAX_SCOPES = 8
_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))\s*(?:,\s*|$)')


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


class RegistryAuth(httpx.Auth):
    """Answers one registry's challenges. Tokens are fetched when asked for, and kept; safe for several threads.

    Credentials go to the registry itself, and to the token server it names; never over plain HTTP to another machine.
    """

    def __init__(self, host: str, credentials: Credentials | None) -> None:
        self._host = host
        self._credentials = credentials
        self._lock = threading.Lock()
        self._header = ""
        self._scopes: dict[str, set[str]] = {}

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        """Send the request, and once more with what a 401 asked for."""
        used = self._header
        if used:
            request.headers["Authorization"] = used
        answer = yield request
        if answer.status_code != 401 or answer.request.url.host != request.url.host:
            return
        scheme, parameters = parse_challenge(answer.headers.get("WWW-Authenticate", ""))
        if scheme == "basic":
            if self._credentials is None or used == self._credentials.basic:
                return
            self._check_private(str(request.url))
            header = self._credentials.basic
        elif scheme == "bearer":
            ask = self._token_request(parameters)
            header = "Bearer " + _read_token((yield ask), self._host)
        else:
            return
        with self._lock:
            self._header = header
        request.headers["Authorization"] = header
        yield request

    def _token_request(self, parameters: dict[str, str]) -> httpx.Request:
        realm = parameters.get("realm", "")
        self._check_private(realm)
        with self._lock:
            for scope in parameters.get("scope", "").split():
                place, _, actions = scope.rpartition(":")
                if place in self._scopes or len(self._scopes) < _MAX_SCOPES:
                    self._scopes.setdefault(place, set()).update(actions.split(","))
            scopes = [f"{place}:{','.join(sorted(actions))}" for place, actions in sorted(self._scopes.items())]
        query = [("scope", scope) for scope in scopes]
        if "service" in parameters:
            query.append(("service", parameters["service"]))
        headers = {"Accept": "application/json"}
        if self._credentials is not None:
            headers["Authorization"] = self._credentials.basic
        url = httpx.URL(realm)
        return httpx.Request("GET", url.copy_with(params=[*url.params.multi_items(), *query]), headers=headers)

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
