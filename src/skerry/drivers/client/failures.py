"""A server's Status turned back into the error it was made of, with its element, cause and hint.

Lives here: the meaning of reasons and causes. Must not live here: connections. `hub.server.status` is the other end.
Source: Kubernetes API conventions, "Response Status Kind".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from skerry.api import errors

OTHER_HINT = "is this URL really a hub's?"

REASONS: Mapping[str, type[errors.SkerryError]] = {
    "BadRequest": errors.BadRequestError,
    "Unauthorized": errors.UnauthorizedError,
    "Forbidden": errors.ForbiddenError,
    "NotFound": errors.NotFoundError,
    "AlreadyExists": errors.AlreadyExistsError,
    "Conflict": errors.ConflictError,
    "Expired": errors.ExpiredError,
    "RequestEntityTooLarge": errors.TooLargeError,
    "UnsupportedMediaType": errors.UnsupportedError,
    "Invalid": errors.InvalidError,
    "ServiceUnavailable": errors.UnavailableError,
    "Timeout": errors.TimedOutError,
    "StorageFull": errors.StorageFullError,
}
"""Which error each reason of a Status stands for."""


def error_of(code: int, content: bytes | Mapping[str, Any], server: str) -> errors.SkerryError:
    """Return the error that a Status, or any other failed answer, stands for."""
    status: Any = content
    if isinstance(content, bytes):
        try:
            status = json.loads(content)
        except (ValueError, RecursionError):
            status = None
    if not isinstance(status, Mapping) or status.get("kind") != "Status":
        return errors.UnavailableError(f"answered with HTTP {code}", element=server, hint=OTHER_HINT)
    made = REASONS.get(str(status.get("reason")), errors.SkerryError)
    details = status.get("details") or {}
    problems = [_problem(cause, made) for cause in details.get("causes") or []]
    invalid = [problem for problem in problems if isinstance(problem, errors.InvalidError)]
    if len(invalid) > 1:
        return errors.InvalidError.of(invalid)
    return problems[0] if problems else made(str(status.get("message") or ""), element="")


def _problem(cause: Mapping[str, str], kind: type[errors.SkerryError]) -> errors.SkerryError:
    hint = cause.get("hint", "")
    message = cause.get("message", "").removesuffix(f"; {hint}" if hint else "")
    return kind(message, element=cause.get("field", ""), hint=hint)
