"""A server's Status turned back into the error it was made of, with its element, cause and hint.

Lives here: the meaning of reasons and causes. Must not live here: connections. `hub.server.status` is the other end.
Source: Kubernetes API conventions, "Response Status Kind".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from skerry.api import errors

OTHER_HINT = "is this URL really a hub's?"

REASONS: Mapping[str, type[errors.SkerryError]] = {
    "BadRequest": errors.BadRequestError,
    "Unauthorized": errors.UnauthorizedError,
    "Forbidden": errors.ForbiddenError,
    "NotFound": errors.NotFoundError,
    "NotAcceptable": errors.NotAcceptableError,
    "AlreadyExists": errors.AlreadyExistsError,
    "Conflict": errors.ConflictError,
    "Expired": errors.ExpiredError,
    "RequestEntityTooLarge": errors.TooLargeError,
    "UnsupportedMediaType": errors.UnsupportedError,
    "Invalid": errors.InvalidError,
    "StorageReadError": errors.UnreadableError,
    "ServiceUnavailable": errors.UnavailableError,
    "Timeout": errors.TimedOutError,
    "StorageFull": errors.StorageFullError,
}
"""Which error each reason of a Status stands for."""


class _Cause(msgspec.Struct):
    reason: str | None = None
    message: str | None = None
    field: str | None = None
    hint: str | None = None


class _Details(msgspec.Struct):
    causes: list[_Cause] | None = None


class _Status(msgspec.Struct):
    kind: Literal["Status"]
    reason: str | None = None
    message: str | None = None
    details: _Details | None = None


def error_of(code: int, content: bytes | Mapping[str, Any], server: str) -> errors.SkerryError:
    """Return the error that a Status, or any other failed answer, stands for."""
    try:
        if isinstance(content, bytes):
            status = msgspec.json.decode(content, type=_Status)
        else:
            status = msgspec.convert(content, _Status)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return errors.UnavailableError(f"answered with HTTP {code}", element=server, hint=OTHER_HINT)
    made = REASONS.get(status.reason or "", errors.SkerryError)
    causes = (status.details and status.details.causes) or []
    if causes and all(cause.reason == "FieldManagerConflict" for cause in causes):
        return errors.FieldConflictError.of_fields([(cause.message or "", cause.field or "") for cause in causes])
    problems = [_problem(cause, made) for cause in causes]
    invalid = [problem for problem in problems if isinstance(problem, errors.InvalidError)]
    if len(invalid) > 1:
        return errors.InvalidError.of(invalid)
    return problems[0] if problems else made(status.message or "")


def _problem(cause: _Cause, kind: type[errors.SkerryError]) -> errors.SkerryError:
    hint = cause.hint or ""
    message = (cause.message or "").removesuffix(f"; {hint}" if hint else "")
    return kind(message, element=cause.field or "", hint=hint)
