"""What of a request goes into the audit log, and what never does. Pure.

Writes, refusals, and what reaches into a device or hands out a credential are always recorded; reads when the hub is
set to. Bodies are recorded when the hub is set to, without secrets and up to a bound; else their digest alone.
Must not live here: the log (`hub.audit`), which values are secrets (`redaction`), who may do what.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal
from urllib.parse import quote, unquote_plus

import msgspec

from skerry.core import redaction

Reads = Literal["none", "metadata", "request"]
"""How much is recorded: reads not at all; reads too; reads too, and what was sent with every request."""

MAX_URI = 2048
MAX_AGENT = 256
_LOOKED_AT = 4 * MAX_URI
"""So much of a longer text is gone through: what is behind is not shown, and strangers may send a lot of it."""
MAX_BODY_BYTES = 64 * 1024
"""A larger body is known by its digest alone."""
MAX_FIELDS = 50

OPEN_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/version", "/cacerts"})
"""Asked all day long by whoever watches the hub."""
REACHING = frozenset({"attach", "exec", "infer", "log", "portforward", "proxy", "token"})
"""Subresources that are always recorded, however they are asked for."""
_HARMLESS = frozenset({"infer", "log"})
"""Of these, the ones that change nothing and hand out nothing that lasts."""
_QUESTIONS = frozenset(
    {
        "localsubjectaccessreviews",
        "selfsubjectaccessreviews",
        "selfsubjectreviews",
        "selfsubjectrulesreviews",
        "subjectaccessreviews",
        "tokenreviews",
    }
)
"""Resources that are created to ask something; nothing is written."""
_UNSHOWN = frozenset({"tokenreviews"})
_PUTTING = frozenset({"digest", "mount"})
"""Parameters of a POST that may put a blob into the registry at once."""
_READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def is_write(method: str, resource: str) -> bool:
    """Return whether a request may change something."""
    return method not in _READ_METHODS and resource not in _QUESTIONS


def is_recorded(
    *, method: str, path: str, resource: str, subresource: str, code: int, reads: Reads, query: str = ""
) -> bool:
    """Return whether a request with this answer goes into the log."""
    if code in (401, 403) or subresource in REACHING:
        return True
    if is_registry(path):
        return is_registry_write(method, path, query) or (reads != "none" and method in _READ_METHODS)
    if is_write(method, resource):
        return True
    return reads != "none" and path not in OPEN_PATHS


def is_bulk(*, method: str, resource: str, subresource: str) -> bool:
    """Return whether a request can only read, so that its entry must not drive out those of writes."""
    if subresource in REACHING:
        return subresource in _HARMLESS
    return not is_write(method, resource)


def is_registry(path: str) -> bool:
    """Return whether a path is the artifact registry's."""
    return path == "/v2" or path.startswith("/v2/")


def shows_body(resource: str, subresource: str) -> bool:
    """Return whether what was sent may be recorded: not credentials, and not what is asked of a model."""
    return resource not in _UNSHOWN and subresource not in REACHING


def uri(path: str, query: str) -> str:
    """Return a request's path and query, bounded, without credentials and values that may be secret."""
    text = quote(redaction.credentials(path[:_LOOKED_AT]), safe="/:@!$&'()*+,;=~-._[]", errors="replace")
    if query:
        seen = query if len(query) <= _LOOKED_AT else query[:_LOOKED_AT].rpartition("&")[0]
        text += "?" + (redaction.query(seen) or "...")
    return _bounded(text, MAX_URI)


def agent(text: str) -> str:
    """Return a User-Agent, or another thing that a caller says of itself, bounded and without credentials."""
    return _bounded(redaction.text(text[:_LOOKED_AT]), MAX_AGENT)


def read_body(raw: bytes) -> Any:
    """Return what a body says, without secrets; None for what is too large or no JSON."""
    if not raw or len(raw) > MAX_BODY_BYTES:
        return None
    try:
        return redaction.redacted(msgspec.json.decode(raw))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def patched_fields(raw: bytes) -> str:
    """Return the paths that a merge, JSON or apply patch names, without values, joined by commas; bounded."""
    if not raw or len(raw) > MAX_BODY_BYTES:
        return ""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ""
    paths: list[str] = []
    for path in _named(value) if isinstance(value, list) else _leaves(value, "", 0):
        if len(paths) == MAX_FIELDS:
            paths.append("...")
            break
        paths.append(redaction.text(path))
    return _bounded(",".join(paths), MAX_URI)


def _named(operations: list[Any]) -> Iterator[str]:
    for operation in operations:
        if isinstance(operation, dict) and isinstance(operation.get("path"), str):
            yield operation["path"][:200]


def _leaves(value: Any, path: str, depth: int) -> Iterator[str]:
    if isinstance(value, dict) and value and depth < redaction.MAX_DEPTH:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key[:100]}" if path else key[:100], depth + 1)
    elif path not in ("", "apiVersion", "kind", "metadata.name", "metadata.namespace"):
        yield path


def is_registry_write(method: str, path: str, query: str) -> bool:
    """Return whether a request to the registry puts something into it or takes something out of it.

    An upload is begun and continued without that; it is a blob once it is finished, or at once where it is mounted from
    another repository or comes with the first request.
    """
    if method == "DELETE":
        return True
    if method == "PUT":
        return "/manifests/" in path or "/blobs/uploads/" in path
    return method == "POST" and "/blobs/uploads" in path and not _PUTTING.isdisjoint(_names(query))


def _names(query: str) -> set[str]:
    return {unquote_plus(pair.partition("=")[0]) for pair in query.split("&")}


def _bounded(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
