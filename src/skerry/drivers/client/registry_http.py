"""Connections to OCI registries elsewhere, and what a registry's refusals mean in our words.

Lives here: TLS, time limits, answers turned into `api.errors`. Must not live here: what is asked (`repository`), how to
log in (`registry_auth`).
"""

from __future__ import annotations

import ssl
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
from skerry.drivers.client.registry_auth import LOGIN_HINT, RegistryAuth

CONNECT_SECONDS = 5.0
IDLE_SECONDS = 65.0
"""Longest silence of a registry in an answer; some make a whole upload durable before they say anything."""
_MAX_ERROR_BYTES = 64 * 1024
_MISSING = frozenset({"BLOB_UNKNOWN", "MANIFEST_BLOB_UNKNOWN", "MANIFEST_UNKNOWN", "NAME_UNKNOWN"})
_CERTIFICATES = ("/etc/containers/certs.d", "/etc/docker/certs.d")


def open_registry(
    host: str, credentials: Credentials | None, *, plain_http: bool = False, idle_seconds: float = IDLE_SECONDS
) -> httpx.Client:
    """Return a client for a registry elsewhere; to be closed. Raises InvalidError for plain HTTP to another machine.

    HTTPS trusts the system's authorities, and those that podman or docker were given for this host.
    """
    if plain_http and not references.is_loopback(host):
        raise InvalidError(
            "plain HTTP is for registries on this machine only", element=f"registry {host}", hint="use HTTPS"
        )
    address = "registry-1.docker.io" if host == "docker.io" else host
    return httpx.Client(
        base_url=f"{'http' if plain_http else 'https'}://{address}",
        auth=RegistryAuth(host, credentials),
        headers={"User-Agent": f"skerry/{skerry.__version__}"},
        verify=True if plain_http else _tls(host),
        timeout=httpx.Timeout(idle_seconds, connect=CONNECT_SECONDS),
        trust_env=not references.is_loopback(host),
    )


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
