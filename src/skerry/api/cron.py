"""Cron expressions with five fields, and the time zones they are read in: parsed and checked, not yet asked.

Minute (0-59), hour (0-23), day of month (1-31), month (1-12 or jan-dec), day of week (0-7 or sun-sat, 0 and 7 are
Sunday). A field is `*` or a list of numbers and ranges, each with an optional step on a range: `*/15`, `1-5`, `0,30`.
When both days are restricted (neither begins with `*`) either may match. Sources: crontab(5) of Vixie cron, POSIX
crontab; the words `@daily` and seconds are left out.
Must not live here: when a window opens (`core.windows`).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from datetime import UTC, date, tzinfo
from typing import Annotated

import msgspec

from skerry.api.errors import InvalidError

MAX_LENGTH = 128

Cron = Annotated[
    str,
    msgspec.Meta(max_length=MAX_LENGTH, description="five cron fields, as in 30 2 * * 1-5"),
]

TimeZone = Annotated[
    str,
    msgspec.Meta(max_length=64, description="an IANA time zone, as in Europe/Berlin"),
]

_MONTHS = {
    word: number
    for number, word in enumerate(
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1
    )
}
_DAYS = {word: number for number, word in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _DAYS),
)
_DAYS_IN_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_ITEM = re.compile(r"(\*|[0-9]{1,2}|[a-z]{3})(?:-([0-9]{1,2}|[a-z]{3}))?(?:/([0-9]{1,2}))?")
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")
_MACHINES_OWN = {"localtime", "posixrules"}
"""Names that mean another zone on every machine."""
_HINT = 'write minute, hour, day of month, month and day of week, as in "30 2 * * 1-5"'


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """One cron expression: what it matches."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday."""
    either_day: bool
    """Both kinds of days are restricted, so one of them is enough."""

    def matches_day(self, day: date) -> bool:
        """Return whether it has times on this day."""
        if day.month not in self.months:
            return False
        by_date, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return by_date or by_weekday if self.either_day else by_date and by_weekday


@functools.lru_cache(maxsize=1024)
def parse(text: str) -> Schedule:
    """Return the schedule. Raises InvalidError, also for one that no day ever matches."""
    words = text.lower().split()
    if len(text) > MAX_LENGTH or len(words) != len(_FIELDS):
        raise InvalidError(f'"{text[:80]}" has {len(words)} fields, a cron expression has 5', hint=_HINT)
    minutes, hours, days, months, weekdays = (
        _parse_field(word, *field) for word, field in zip(words, _FIELDS, strict=True)
    )
    schedule = Schedule(
        minutes=tuple(sorted(minutes)),
        hours=tuple(sorted(hours)),
        days=days,
        months=months,
        weekdays=frozenset(day % 7 for day in weekdays),
        either_day=not words[2].startswith("*") and not words[4].startswith("*"),
    )
    if not schedule.either_day and all(min(days) > _DAYS_IN_MONTH[month - 1] for month in months):
        raise InvalidError(f'"{text[:80]}" never comes: no month it names has such a day', hint=_HINT)
    return schedule


@functools.lru_cache(maxsize=256)
def zone(name: str) -> tzinfo:
    """Return the time zone, from the machine's own tables; UTC needs none. Raises InvalidError for an unknown one."""
    if name == "UTC":
        return UTC
    unknown = InvalidError(
        f'"{name[:64]}" is not a time zone known here', hint="write an IANA name such as UTC or Europe/Berlin"
    )
    if len(name) > 64 or not _ZONE.fullmatch(name) or name in _MACHINES_OWN:
        raise unknown
    try:
        from zoneinfo import ZoneInfo  # noqa: PLC0415 - 0.3 MB that devices without windows do without

        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise unknown from None


def _parse_field(word: str, name: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    found: set[int] = set()
    for item in word.split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise InvalidError(f'"{item[:20]}" cannot be read as {name}', hint=_HINT)
        first, last, step = match[1], match[2], match[3]
        if first == "*" and last is not None:
            raise InvalidError(f'"{item[:20]}" cannot be read as {name}', hint=_HINT)
        begin = low if first == "*" else _number(first, name, low, high, names)
        end = high if first == "*" else begin if last is None else _number(last, name, low, high, names)
        if end < begin:
            raise InvalidError(f'"{item[:20]}" ends before it begins', hint=_HINT)
        if step is not None and (int(step) == 0 or (first != "*" and last is None)):
            raise InvalidError(f'"{item[:20]}": a step needs a range and must be more than 0', hint=_HINT)
        found.update(range(begin, end + 1, int(step or 1)))
    return frozenset(found)


def _number(word: str, name: str, low: int, high: int, names: dict[str, int]) -> int:
    value = names.get(word, int(word) if word.isdigit() else -1)
    if not low <= value <= high:
        raise InvalidError(f'"{word}" is not a {name} ({low} to {high})', hint=_HINT)
    return value
