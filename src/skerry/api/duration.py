"""Go-style durations: `300ms`, `10m`, `1h30m`.

Source: Go's `time.ParseDuration`, as used in Kubernetes' `metav1.Duration`; negative durations make no sense here.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

import msgspec

from skerry.api.errors import InvalidError
from skerry.api.meta import END

PATTERN = rf"^(0|([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+){END}"

Duration = Annotated[
    str,
    msgspec.Meta(
        pattern=PATTERN,
        max_length=32,
        extra_json_schema={"format": "duration"},
        description="a duration such as 300ms or 1h30m",
    ),
]

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")


def parse(text: str) -> timedelta:
    """Return the duration. Raises InvalidError for anything Go would refuse, and for negative durations."""
    if len(text) > 32 or not re.match(PATTERN, text):
        raise InvalidError(f'"{text}" is not a duration', hint="write a number with a unit, as in 300ms, 10m or 1h30m")
    try:
        return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text)))
    except OverflowError:
        raise InvalidError(f'"{text}" is longer than any duration that can be kept') from None


def to_seconds(text: str) -> float:
    """Return the duration in seconds. Raises InvalidError."""
    return parse(text).total_seconds()


def render(value: timedelta) -> str:
    """Render a duration the short way people write it, exactly: 5400 s -> `1h30m`, 0.25 s -> `250ms`."""
    if value < timedelta(0):
        return f"-{render(-value)}"
    if value < timedelta(seconds=1):
        return f"{_decimal(value // timedelta(microseconds=1), 1000)}ms" if value else "0s"
    minutes, micros = divmod(value // timedelta(microseconds=1), 60_000_000)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    return "".join([*parts, f"{_decimal(micros, 1_000_000)}s" if micros else ""])


def _decimal(number: int, divisor: int) -> str:
    whole, rest = divmod(number, divisor)
    return f"{whole}.{rest:0{len(str(divisor)) - 1}d}".rstrip("0").rstrip(".")
