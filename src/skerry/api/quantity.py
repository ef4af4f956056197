"""Kubernetes quantities: `500m`, `64Mi`, `1.5G`, `2e3`.

Source: Kubernetes API conventions, `resource.Quantity`.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

import msgspec

from skerry.api.errors import InvalidError
from skerry.api.meta import END

PATTERN = rf"^[+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]{{1,2}})?{END}"

Quantity = Annotated[
    str,
    msgspec.Meta(
        pattern=PATTERN,
        max_length=32,
        extra_json_schema={"format": "quantity"},
        description="a quantity such as 500m or 64Mi",
    ),
]

_FACTORS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)},
}
_SPLIT = re.compile(PATTERN)


def parse(text: str) -> Decimal:
    """Return the quantity's value in its base unit (bytes, cores). Raises InvalidError."""
    match = _SPLIT.match(text) if len(text) <= 32 else None
    if match is None:
        raise InvalidError(
            f'"{text}" is not a quantity', hint="write a number with an optional suffix, as in 500m, 64Mi or 2G"
        )
    number, suffix = Decimal(match.group(1)), match.group(3) or ""
    if suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix != "Ei":
        return number.scaleb(int(suffix[1:]))
    return number * _FACTORS[suffix]


def to_bytes(text: str) -> int:
    """Return a memory or storage quantity in whole bytes, rounded up. Raises InvalidError."""
    value = parse(text)
    return int(value.to_integral_value(rounding="ROUND_CEILING"))


def to_millis(text: str) -> int:
    """Return a quantity of CPU in thousandths of a core, rounded up. Raises InvalidError."""
    return int((parse(text) * 1000).to_integral_value(rounding="ROUND_CEILING"))


def from_bytes(count: int) -> str:
    """Render a byte count as the largest binary suffix that keeps it exact: 67108864 -> `64Mi`."""
    for suffix, power in (("Ti", 4), ("Gi", 3), ("Mi", 2), ("Ki", 1)):
        if count and count % 1024**power == 0:
            return f"{count // 1024**power}{suffix}"
    return str(count)


def human_bytes(count: float) -> str:
    """Render a byte count for people, rounded: 1536 -> `1.5 KiB`."""
    for suffix in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {suffix}" if suffix == "B" else f"{count:.1f} {suffix}"
        count /= 1024
    return f"{count:.1f} TiB"
