"""What a list's or a watch's parameters must not say together.

Source: Kubernetes API concepts, "Semantics for get and list" and "Streaming lists".
"""

from __future__ import annotations

from collections.abc import Sequence

from skerry.api.errors import ForbiddenFieldError, InvalidError, ListOptionsError
from skerry.hub.server.call import Call

_MATCH, _INITIAL = "resourceVersionMatch", "sendInitialEvents"
_EXACT, _NEWER = "Exact", "NotOlderThan"


def check_list(call: Call) -> None:
    """Return when a list may be asked for so. Raises ListOptionsError with everything that is wrong."""
    match, version = call.text(_MATCH), call.text("resourceVersion")
    problems: list[InvalidError] = []
    if match and not version:
        problems.append(_forbidden("is forbidden unless resourceVersion is provided"))
    if match and call.text("continue"):
        problems.append(_forbidden("is forbidden when continue is provided"))
    if match:
        problems += _unsupported(match, (_EXACT, _NEWER))
    if match == _EXACT and version == "0":
        problems.append(_forbidden('"exact" is forbidden for resourceVersion "0"'))
    if call.text(_INITIAL):
        problems.append(ForbiddenFieldError(f"Forbidden: {_INITIAL} is forbidden for list", element=_INITIAL))
    _raise(problems)


def check_watch(call: Call) -> None:
    """Return when a watch may be asked for so. Raises ListOptionsError with everything that is wrong.

    Beyond Kubernetes, `sendInitialEvents` needs no `resourceVersionMatch`, which could mean nothing else.
    """
    match = call.text(_MATCH)
    problems: list[InvalidError] = []
    if match and not call.text(_INITIAL):
        problems.append(_forbidden(f"is forbidden for watch unless {_INITIAL} is provided"))
    if match:
        problems += _unsupported(match, (_NEWER,))
    if match and call.text("continue"):
        problems.append(_forbidden("is forbidden when continue is provided"))
    _raise(problems)


def _forbidden(cause: str) -> InvalidError:
    return ForbiddenFieldError(f"Forbidden: {_MATCH} {cause}", element=_MATCH)


def _unsupported(match: str, known: Sequence[str]) -> list[InvalidError]:
    if match in known:
        return []
    named = ", ".join(f'"{name}"' for name in known)
    return [InvalidError(f'Unsupported value: "{match[:40]}": supported values: {named}', element=_MATCH)]


def _raise(problems: Sequence[InvalidError]) -> None:
    if problems:
        raise ListOptionsError.of(problems)
