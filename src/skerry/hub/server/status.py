"""Errors to `metav1.Status`: the one place that gives the domain's errors HTTP numbers.

Every cause also carries its hint in a field of its own, which other clients ignore and ours reads back.
Source: Kubernetes API conventions, "Response Status Kind".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from skerry.api import errors
from skerry.api.meta import GROUP

JSON = "application/json"
_ENCODER = msgspec.json.Encoder()

CODES: Mapping[type[errors.SkerryError], tuple[int, str]] = {
    errors.BadRequestError: (400, "BadRequest"),
    errors.UnauthorizedError: (401, "Unauthorized"),
    errors.ForbiddenError: (403, "Forbidden"),
    errors.NotFoundError: (404, "NotFound"),
    errors.NotAcceptableError: (406, "NotAcceptable"),
    errors.AlreadyExistsError: (409, "AlreadyExists"),
    errors.ConflictError: (409, "Conflict"),
    errors.FieldConflictError: (409, "Conflict"),
    errors.ExpiredError: (410, "Expired"),
    errors.TooLargeError: (413, "RequestEntityTooLarge"),
    errors.UnsupportedError: (415, "UnsupportedMediaType"),
    errors.InvalidError: (422, "Invalid"),
    errors.DivergedError: (503, "ServiceUnavailable"),  # another hub may know better
    errors.IntegrityError: (422, "Invalid"),
    errors.UnreadableError: (500, "StorageReadError"),
    errors.UnavailableError: (503, "ServiceUnavailable"),
    errors.TimedOutError: (504, "Timeout"),
    errors.StorageFullError: (507, "StorageFull"),
}
"""HTTP code and reason of each error type; `drivers.client.failures` reads the reasons back."""
_OF_SEVERAL = errors.InvalidError | errors.FieldConflictError | errors.NamespaceTerminatingError
_WHY: Mapping[type[errors.SkerryError], str] = {
    errors.FieldConflictError: "FieldManagerConflict",
    errors.NamespaceTerminatingError: "NamespaceTerminating",
    errors.ForbiddenFieldError: "FieldValueForbidden",
}
"""What the causes of an error are called, as clients look for it."""


def code_and_reason(error: errors.SkerryError) -> tuple[int, str]:
    """Return the HTTP code and the machine-readable reason of an error."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), (500, "InternalError"))


def status_of(
    error: errors.SkerryError, *, group: str = GROUP, kind: str = "", plural: str = "", name: str = ""
) -> dict[str, Any]:
    """Return the Status object for an error; the kind and name of what was asked for go into its details."""
    code, reason = code_and_reason(error)
    each = error.each if isinstance(error, _OF_SEVERAL) else (error,)
    if isinstance(error, errors.ListOptionsError):
        group, kind, name = "meta.k8s.io", "ListOptions", ""  # which are wrong, not the object
    invalid = reason == "Invalid"
    message = error.sentence
    if invalid and kind:
        message = f'{kind} "{name}" is invalid: {error.sentence}' if name else f"{kind} is invalid: {error.sentence}"
    details: dict[str, Any] = {"causes": [_cause(problem, _why(error, problem)) for problem in each]}
    if kind:
        # kubectl names an invalid object by its kind and everything else by its resource
        details |= _group(group) | {"kind": kind if invalid else plural}
    if isinstance(error, errors.DeniedError):
        # what was refused, which need not be what the path names
        details |= {"group": error.group, "kind": error.resource}
        name = error.name
    if name:
        details["name"] = name
    if code == 503:
        details["retryAfterSeconds"] = 1
    return _status("Failure", message, reason=reason, code=code, details=details)


def success(*, group: str = GROUP, plural: str, name: str, uid: str) -> dict[str, Any]:
    """Return the Status that answers a deletion."""
    details = _group(group) | {"kind": plural, "name": name, "uid": uid}
    return _status("Success", "", reason="", code=200, details=details)


def plain(code: int, reason: str, message: str) -> dict[str, Any]:
    """Return a Failure for what is no domain error: no such path, no such method, a fault of the hub's own."""
    return _status("Failure", message, reason=reason, code=code, details={})


def respond(value: Any, *, code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return any JSON value as a response."""
    return Response(_ENCODER.encode(value), status_code=code, media_type=JSON, headers=dict(headers or {}))


def respond_status(status: dict[str, Any]) -> Response:
    """Return a Status as a response with its own code."""
    code = status.get("code", 200)
    headers = {"Retry-After": "1"} if code == 503 else {}
    if code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return respond(status, code=code, headers=headers)


def _why(error: errors.SkerryError, problem: errors.SkerryError) -> str:
    found = (why for kind, why in _WHY.items() if isinstance(error, kind) or isinstance(problem, kind))
    return next(found, "FieldValueInvalid")


def _group(group: str) -> dict[str, Any]:
    return {"group": group} if group else {}


def _cause(problem: errors.SkerryError, reason: str) -> dict[str, str]:
    message = f"{problem.cause}; {problem.hint}" if problem.hint else problem.cause
    cause = {"reason": reason, "field": problem.element, "message": message, "hint": problem.hint}
    return {key: value for key, value in cause.items() if value}


def _status(outcome: str, message: str, *, reason: str, code: int, details: dict[str, Any]) -> dict[str, Any]:
    status = {
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": outcome,
        "message": message,
        "reason": reason,
        "details": details,
        "code": code,
    }
    return {key: value for key, value in status.items() if value != ""}
