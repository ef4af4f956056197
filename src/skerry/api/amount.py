"""Amounts of devices: a count (`5`) or a share (`10%`), as Kubernetes' IntOrString in disruption budgets."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from skerry.api.errors import InvalidError
from skerry.api.meta import END

PATTERN = rf"^(0|[1-9][0-9]{{0,8}}|(0|[1-9][0-9]?|100)%){END}"

Amount = Annotated[
    str,
    msgspec.Meta(
        pattern=PATTERN,
        max_length=9,
        extra_json_schema={"format": "int-or-string"},
        description="a count such as 5, or a share such as 10%",
    ),
]


def is_zero(text: str) -> bool:
    """Return whether it means nothing of whatever there is. Raises InvalidError."""
    return _parse(text)[0] == 0


def round_down(text: str, base: int) -> int:
    """Return the count, or the share of `base` rounded down, but at least 1 of a share above 0. Raises InvalidError."""
    value, share = _parse(text)
    if not share:
        return value
    return max(value * base // 100, 1) if value else 0


def round_up(text: str, base: int) -> int:
    """Return the count, or the share of `base` rounded up. Raises InvalidError."""
    value, share = _parse(text)
    return -(-value * base // 100) if share else value


def exceeds(count: int, text: str, base: int) -> bool:
    """Return whether `count` is more than it says, where a share is of `base` and exact. Raises InvalidError."""
    value, share = _parse(text)
    return count * 100 > value * base if share else count > value


def _parse(text: str) -> tuple[int, bool]:
    if not re.match(PATTERN, text):
        raise InvalidError(f'"{text[:20]}" is not an amount', hint="write a count such as 5, or a share such as 10%")
    return int(text.removesuffix("%")), text.endswith("%")
