"""Answers in the specification's words: errors, locations, and the bounds of requests.

Must not live here: decisions; what any endpoint does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from starlette.responses import Response

from skerry.api.errors import (
    BadRequestError,
    ConflictError,
    ForbiddenError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    SkerryError,
    StorageFullError,
    TimedOutError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedError,
)
from skerry.core import manifest as manifests

log = logging.getLogger(__name__)

VERSION = {"Docker-Distribution-API-Version": "registry/2.0"}


@dataclass(frozen=True, kw_only=True)
class RegistrySettings:
    """Bounds of requests; those of blobs belong to the artifact store."""

    max_manifest_bytes: int = manifests.MAX_MANIFEST_BYTES
    idle_seconds: float = 60.0
    """How long a sender may send nothing, or a receiver take nothing, before its request is given up."""
    bearer_seconds: float = 300.0
    """Life of a Bearer token; clients take those that live for less than a minute for useless."""


@dataclass(frozen=True, kw_only=True)
class Codes:
    """The specification's codes where the thing that a URL names is not there, or is no such thing."""

    missing: str = "NAME_UNKNOWN"
    invalid: str = "NAME_INVALID"


def refusal(error: SkerryError, codes: Codes, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer that says an error."""
    kinds: dict[type[SkerryError], tuple[int, str]] = {
        UnauthorizedError: (401, "UNAUTHORIZED"),
        ForbiddenError: (403, "DENIED"),
        NotFoundError: (404, codes.missing),
        TimedOutError: (408, "BLOB_UPLOAD_INVALID"),
        ConflictError: (409, "BLOB_UPLOAD_INVALID"),
        BadRequestError: (400, "UNSUPPORTED"),
        InvalidError: (400, codes.invalid),
        IntegrityError: (400, "DIGEST_INVALID"),
        TooLargeError: (413, "SIZE_INVALID"),
        StorageFullError: (507, "STORAGE_FULL"),
        UnavailableError: (503, "UNAVAILABLE"),
        UnsupportedError: (405, "UNSUPPORTED"),
    }
    status, code = next((kinds[kind] for kind in type(error).__mro__ if kind in kinds), (500, "UNKNOWN"))
    if status >= 500:
        log.error("registry.request_failed code=%s error=%s", code, error)
    response = problem(status, code, error.sentence)
    response.headers.update(headers or {})
    return response


def problem(status: int, code: str, message: str) -> Response:
    """Return an error as the specification has it."""
    return json({"errors": [{"code": code, "message": message}]}, status=status)


def json(content: object, *, status: int = 200) -> Response:
    """Return a JSON document."""
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json", headers=VERSION)


def created(location: str, digest: str) -> Response:
    """Return that something is there now."""
    return Response(status_code=201, headers={"Location": location, "Docker-Content-Digest": digest, **VERSION})


def accepted(name: str, upload: str, size: int, *, status: int = 202) -> Response:
    """Return how far an upload has got."""
    return Response(status_code=status, headers=upload_headers(name, upload, size))


def upload_headers(name: str, upload: str, size: int) -> dict[str, str]:
    """Return where an upload goes on; an empty one has the range 0-0, too, on which clients and registries agree."""
    return {
        "Location": f"/v2/{name}/blobs/uploads/{upload}",
        "Range": f"0-{max(0, size - 1)}",
        "Docker-Upload-UUID": upload,
        **VERSION,
    }
