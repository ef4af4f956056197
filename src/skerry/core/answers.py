"""What a device has against a command, made fit for whoever asked: a device may be anybody's. Pure.

Of a device come a reason, which becomes a status code that clients act upon, and words, which end up in terminals and
logs. Lives here: which reasons a device may give, and how its words are shown. Must not live here: codes
(`hub.server.status`), commands (`core.messages`).
"""

from __future__ import annotations

from skerry.api import errors
from skerry.core.messages import CommandResult

MAX_SHOWN = 1000
"""Characters of what a device says, of which its own errors have a few hundred at most."""
_REASONS: dict[str, type[errors.SkerryError]] = {
    kind.__name__.removesuffix("Error"): kind
    for kind in (
        errors.BadRequestError,
        errors.ForbiddenError,
        errors.InvalidError,
        errors.NotFoundError,
        errors.TimedOutError,
        errors.TooLargeError,
        errors.UnavailableError,
        errors.UnsupportedError,
    )
}
"""None by which clients would log in anew, read everything again, or take a write for one that was overtaken."""


def error_of(result: CommandResult, *, element: str) -> errors.SkerryError:
    """Return the error that a device answered with; of a reason it may not give, only that it could not."""
    kind = _REASONS.get(result.reason, errors.UnavailableError)
    return kind(shown(result.error), element=element)


def shown(text: str) -> str:
    """Return what a device said on one line, bounded, with nothing in it that a terminal would act upon."""
    words = " ".join(text[: 2 * MAX_SHOWN].split())
    cut = words if len(words) <= MAX_SHOWN and len(text) <= 2 * MAX_SHOWN else words[: MAX_SHOWN - 1] + "…"
    return "".join(letter if letter.isprintable() else "?" for letter in cut)
