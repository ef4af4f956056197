"""The Kubernetes cluster that a hub runs in: its API server, asked as the pod's service account.

Lives here: where the API server is, the account's credentials, which change while the hub runs, and bounded requests.
Must not live here: what is asked for (`hub.delegation`, `hub.authentication.delegated`).
Source: Kubernetes documentation, "Accessing the Kubernetes API from a Pod".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import msgspec

from skerry.api.errors import ForbiddenError, InvalidError, NotFoundError, UnavailableError

log = logging.getLogger(__name__)

_JSON = "application/json"
HINT = "look at the kube-apiserver, and at the network policies between it and the hub"


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Where the cluster's API server is, and how it is asked."""

    url: str
    credentials: Path
    """With the files `token` and `ca.crt`."""
    answer_seconds: float = 5.0
    """For one request, with its connection; the cluster itself waits ten seconds for a webhook."""
    reread_seconds: float = 30.0
    """The token is replaced an hour or so before its end; the CA's bundle within a minute."""
    max_connections: int = 32
    max_answer_bytes: int = 4 * 1024 * 1024


def in_cluster(credentials: Path, environment: Mapping[str, str] | None = None) -> ClusterSettings:
    """Return where this pod's cluster is. Raises InvalidError outside of one."""
    given = os.environ if environment is None else environment
    host, port = given.get("KUBERNETES_SERVICE_HOST", ""), given.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise InvalidError(
            "there is no cluster here: KUBERNETES_SERVICE_HOST is not set",
            element="--delegated",
            hint="run the hub as a pod, or without this option",
        )
    for name in ("token", "ca.crt"):
        if not (credentials / name).is_file():
            raise InvalidError(
                "is missing",
                element=str(credentials / name),
                hint="let the pod have its service account's token (automountServiceAccountToken)",
            )
    return ClusterSettings(url=f"https://{f'[{host}]' if ':' in host else host}:{port}", credentials=credentials)


class Cluster:
    """The cluster's API server; an async context manager.

    Every request ends within `answer_seconds`, with an answer or with UnavailableError: whoever asks on behalf of a
    caller refuses the caller then. A request is repeated once, when its connection was lost or its token was refused.
    """

    def __init__(self, settings: ClusterSettings, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._monotonic = monotonic
        self._client: httpx.AsyncClient | None = None
        self._retired: list[httpx.AsyncClient] = []
        self._token = ""
        self._authority = b""
        self._reread_at = 0.0
        self.answered_at: float | None = None
        """When it last answered anything, by the monotonic clock."""

    async def __aenter__(self) -> Cluster:
        """Read the credentials. Raises UnavailableError, InvalidError."""
        self._reread()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        for client in (*self._retired, *([self._client] if self._client else [])):
            await client.aclose()
        self._client = None

    async def get(self, path: str) -> Any:
        """Return what is at a path. Raises NotFoundError, ForbiddenError, UnavailableError."""
        return await self._ask("GET", path)

    async def post(self, path: str, body: Any) -> Any:
        """Return the answer to a posted object. Raises as `get`."""
        return await self._ask("POST", path, content=msgspec.json.encode(body))

    async def patch(self, path: str, change: Any) -> Any:
        """Return an object after a merge patch (RFC 7386). Raises as `get`."""
        return await self._ask("PATCH", path, content=msgspec.json.encode(change), kind="application/merge-patch+json")

    @contextlib.asynccontextmanager
    async def watch(self, path: str, params: Mapping[str, str], *, seconds: int) -> AsyncIterator[AsyncIterator[Any]]:
        """Give the events of a watch, one by one, until the server ends it. Raises as `get`."""
        timeout = httpx.Timeout(self._settings.answer_seconds, read=seconds + self._settings.answer_seconds)
        query = {**params, "watch": "true", "timeoutSeconds": str(seconds)}
        with self._explained():
            async with self._current().stream(
                "GET", path, params=query, headers=self._headers(), timeout=timeout
            ) as answer:
                if answer.status_code != httpx.codes.OK:
                    self._reread_at = 0.0
                    self._refuse(answer.status_code, path)
                self.answered_at = self._monotonic()
                yield self._events(answer)

    async def _events(self, answer: httpx.Response) -> AsyncIterator[Any]:
        rest = b""
        async for piece in answer.aiter_bytes():
            rest += piece
            *lines, rest = rest.split(b"\n")
            if len(rest) > self._settings.max_answer_bytes:
                raise UnavailableError("sent an event without an end", element=self._element, hint=HINT)
            for line in lines:
                if line.strip():
                    yield self._decode(line)

    async def _ask(self, method: str, path: str, *, content: bytes | None = None, kind: str = _JSON) -> Any:
        try:
            async with asyncio.timeout(self._settings.answer_seconds):
                try:
                    code, raw = await self._send(method, path, content, kind)
                except UnavailableError:
                    self._reread_at = 0.0
                    code, raw = await self._send(method, path, content, kind)  # e.g. a kept connection that had ended
                if code == httpx.codes.UNAUTHORIZED:
                    self._reread_at = 0.0
                    code, raw = await self._send(method, path, content, kind)
        except TimeoutError:
            raise UnavailableError("did not answer in time", element=self._element, hint=HINT) from None
        if not 200 <= code < 300:
            self._refuse(code, path)
        self.answered_at = self._monotonic()
        return self._decode(raw)

    async def _send(self, method: str, path: str, content: bytes | None, kind: str) -> tuple[int, bytes]:
        with self._explained():
            client = self._current()
            async with client.stream(method, path, content=content, headers=self._headers(kind)) as answer:
                raw = b""
                async for piece in answer.aiter_bytes():
                    raw += piece
                    if len(raw) > self._settings.max_answer_bytes:
                        raise UnavailableError("answered too much", element=self._element, hint=HINT)
                return answer.status_code, raw

    def _refuse(self, code: int, path: str) -> None:
        element = f"{self._element}{path}"
        match code:
            case httpx.codes.NOT_FOUND:
                raise NotFoundError(element=element)
            case httpx.codes.UNAUTHORIZED | httpx.codes.FORBIDDEN:
                raise ForbiddenError(
                    f"the hub's service account was refused ({code})",
                    element=element,
                    hint="bind it to the ClusterRole system:auth-delegator, in kube-system to the Role"
                    " extension-apiserver-authentication-reader, and to the Role of deploy/ in its own namespace",
                )
            case _:
                raise UnavailableError(f"answered {code}", element=element, hint=HINT)

    def _decode(self, raw: bytes) -> Any:
        try:
            return msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UnavailableError("answered something that is no JSON", element=self._element, hint=HINT) from None

    @property
    def _element(self) -> str:
        return f"the cluster's API server ({self._settings.url})"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.StreamError, ssl.SSLError, OSError) as error:
            cause = str(error) or type(error).__name__
            raise UnavailableError(f"cannot be asked ({cause[:200]})", element=self._element, hint=HINT) from None

    def _headers(self, kind: str = _JSON) -> dict[str, str]:
        return {
            "authorization": f"Bearer {self._token}",
            "content-type": kind,
            "accept": _JSON,
            "user-agent": "skerry-hub",
        }

    def _current(self) -> httpx.AsyncClient:
        if self._monotonic() >= self._reread_at:
            self._reread()
        if self._client is None:
            raise UnavailableError("is not connected", element=self._element)
        return self._client

    def _reread(self) -> None:
        """Take the account's token and the cluster's CA as the files have them now."""
        directory = self._settings.credentials
        try:
            token = (directory / "token").read_text(encoding="ascii").strip()
            authority = (directory / "ca.crt").read_bytes()
        except (OSError, ValueError) as error:
            if self._client is None:
                raise UnavailableError(f"cannot be read ({error})", element=str(directory)) from None
            log.warning("cluster.credentials_kept directory=%s cause=%s", directory, error)
            token, authority = self._token, self._authority
        if not token.isprintable() or not token:
            raise UnavailableError("is no token", element=str(directory / "token"))
        if authority != self._authority or self._client is None:
            replaced, self._client = self._client, self._connect(authority, str(directory / "ca.crt"))
            if replaced is not None:  # requests under way may end on it
                self._retired.append(replaced)
        self._token, self._authority = token, authority
        self._reread_at = self._monotonic() + self._settings.reread_seconds

    def _connect(self, authority: bytes, element: str) -> httpx.AsyncClient:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # and not strict: the cluster's CA is as old as the cluster
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(cadata=authority.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError, ValueError):
            if self._client is not None:
                log.warning("cluster.ca_kept file=%s", element)
                return self._client
            raise InvalidError("is no bundle of certificates in PEM that can be read", element=element) from None
        bound = self._settings.max_connections
        return httpx.AsyncClient(
            base_url=self._settings.url,
            verify=context,
            timeout=self._settings.answer_seconds,
            limits=httpx.Limits(max_connections=bound, max_keepalive_connections=bound),
            trust_env=False,
        )
