"""Connections to OCI registries elsewhere, and what a registry's refusals mean in our words.

Lives here: TLS, time limits, answers turned into `api.errors`. Must not live here: what is asked (`repository`), how to
log in (`registry_auth`).
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

import skerry
from skerry.api.errors import (
    BadRequestError,
    ConflictError,
    ForbiddenError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    SkerryError,
    StorageFullError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from skerry.core import manifest as manifests
from skerry.core import reference as references
from skerry.drivers.client.credentials import Credentials
from skerry.drivers.client.registry_auth import LIMIT, LOGIN_HINT, LookUp, RegistryAuth

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 65.0
"""Longest silence of a registry in an answer; some make a whole upload durable before they say anything."""
MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""Of any answer but a blob."""
_MAX_ERROR_BYTES = 64 * 1024
_MISSING = frozenset({"BLOB_UNKNOWN", "MANIFEST_BLOB_UNKNOWN", "MANIFEST_UNKNOWN", "NAME_UNKNOWN"})
_CERTIFICATES = ("/etc/containers/certs.d", "/etc/docker/certs.d")


def open_registry(
    host: str,
    credentials: Credentials | None,
    *,
    plain_http: bool = False,
    idle_seconds: float = IDLE_SECONDS,
    look_up: LookUp | None = None,
    limits: httpx.Limits = httpx.Limits(max_connections=100, max_keepalive_connections=20),  # noqa: B008 - immutable
) -> httpx.Client:
    """Return a client for a registry elsewhere; to be closed. Raises InvalidError for plain HTTP to another machine.

    HTTPS trusts the system's authorities, and those that podman or docker were given for this host. `look_up` reads
    credentials again once they are refused. Answers are bounded; see `bound`.
    """
    if plain_http and not references.is_loopback(host):
        raise InvalidError(
            "plain HTTP is for registries on this machine only", element=f"registry {host}", hint="use HTTPS"
        )
    address = "registry-1.docker.io" if host == "docker.io" else host
    return httpx.Client(
        base_url=f"{'http' if plain_http else 'https'}://{address}",
        auth=RegistryAuth(host, credentials, look_up),
        headers={"User-Agent": f"skerry/{skerry.__version__}", "Accept-Encoding": "identity"},
        event_hooks={"response": [bound]},
        limits=limits,
        verify=True if plain_http else _tls(host),
        timeout=httpx.Timeout(idle_seconds, connect=CONNECT_SECONDS),
        trust_env=not references.is_loopback(host),
    )


def bound(answer: httpx.Response) -> None:
    """Keep an answer from taking more memory than it may, before anybody reads of it.

    The request's extension `LIMIT` says how many bytes; None for those who count themselves. Of errors no more than
    their beginning is read. What comes encoded is not decoded: a little of it may be gigabytes.
    """
    limit = answer.request.extensions.get(LIMIT, MAX_ANSWER_BYTES)
    if not answer.is_success:
        answer.headers.pop("Content-Encoding", None)
        answer.stream = _Bounded(answer.stream, _MAX_ERROR_BYTES, cut=True)
    elif limit is not None:
        encoding = answer.headers.pop("Content-Encoding", "identity")
        answer.stream = _Bounded(answer.stream, limit, encoded=encoding.lower() != "identity")


class _Bounded(httpx.SyncByteStream):
    """An answer's bytes, up to a limit: then an error, or where it is to be cut its end."""

    def __init__(self, stream: Any, limit: int, *, cut: bool = False, encoded: bool = False) -> None:
        self._stream = stream
        self._limit = limit
        self._cut = cut
        self._encoded = encoded

    def __iter__(self) -> Iterator[bytes]:
        left = self._limit
        for piece in self._stream:
            if self._encoded:
                raise UnsupportedError("the registry sends it encoded, which was not asked for", element="answer")
            if len(piece) > left:
                if self._cut:
                    yield piece[:left]
                    return
                raise TooLargeError(f"is larger than {self._limit} bytes", element="the registry's answer")
            left -= len(piece)
            yield piece

    def close(self) -> None:
        """Give the connection back, or end it where there was more."""
        self._stream.close()


class _Problem(msgspec.Struct):
    code: str = ""
    message: str = ""
    detail: Any = None

    def __str__(self) -> str:
        """Say it in the registry's words, and of what it spoke where that is a digest."""
        about = self.detail.get("digest") if isinstance(self.detail, dict) else self.detail
        known = f" ({about})" if isinstance(about, str) and manifests.is_digest(about) else ""
        return f"{self.message or self.code}"[:500] + known


class _Problems(msgspec.Struct):
    errors: list[_Problem] = []


def refused(answer: httpx.Response, element: str) -> SkerryError:
    """Return what an answer that is no success means, with the registry's own words for it."""
    kinds: dict[int, type[SkerryError]] = {
        400: InvalidError,
        401: UnauthorizedError,
        403: ForbiddenError,
        404: NotFoundError,
        405: UnsupportedError,
        409: ConflictError,
        413: TooLargeError,
        507: StorageFullError,
    }
    later = answer.status_code >= 500 or answer.status_code in (408, 425, 429)
    kind = kinds.get(answer.status_code, UnavailableError if later else BadRequestError)
    try:
        answer.read()
        problems = msgspec.json.decode(answer.content[:_MAX_ERROR_BYTES], type=_Problems).errors
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        problems = []
    said = "; ".join(map(str, problems[:3])) or answer.reason_phrase
    codes = {problem.code for problem in problems}
    if codes & _MISSING:
        kind = NotFoundError
    elif "DIGEST_INVALID" in codes:
        kind = IntegrityError
    return kind(
        f"the registry answers {answer.status_code}: {said}",
        element=element,
        hint=LOGIN_HINT if kind is UnauthorizedError else "",
    )


def _tls(host: str) -> ssl.SSLContext:
    """Return a context that trusts the system's authorities and those given for this host as podman and docker do."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for directory in _CERTIFICATES:
        for file in sorted(Path(directory, host).glob("*.crt")):
            try:
                context.load_verify_locations(cafile=file)
            except (OSError, ssl.SSLError) as error:
                raise InvalidError(f"is no certificate that can be used: {error}", element=str(file)) from None
    return context
