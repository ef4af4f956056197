"""Errors of foreign libraries, cut down to what fits into one of our sentences."""

from __future__ import annotations

_MOST = 240


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says something, shortened, with the error's type if it says nothing."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if not line:
        return type(error).__name__
    return line if len(line) <= _MOST else f"{line[:_MOST]}..."
