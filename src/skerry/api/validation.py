"""The strict walk over an object as the user wrote it: every problem at its path, and what could be meant instead.

Lives here: comparing plain values with the kinds' types. Must not live here: parsing text (`documents`), rules that
types cannot say (`rules`), HTTP. Amounts written as bare numbers become text, as Kubernetes has it (`cpu: 2`).
"""

from __future__ import annotations

import difflib
import functools
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from msgspec import inspect

from skerry.api import duration, quantity, rules
from skerry.api.errors import InvalidError

MAX_PROBLEMS = 50
"""Problems, and unknown fields, that are told; a text with more of them is told the first ones."""


@dataclass(kw_only=True)
class Findings:
    """What one walk found."""

    problems: list[InvalidError] = field(default_factory=list)
    strange: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)
    """(path, name, names there are) of fields that the type does not have; they are left out of the result."""

    def add(self, path: str, cause: str, hint: str = "") -> None:
        """Note one problem, as long as there are not too many."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(InvalidError(cause, element=path or "the object", hint=hint))

    def add_unknown(self, path: str, key: str, known: tuple[str, ...]) -> None:
        """Note one field that the type does not have, as long as there are not too many."""
        if len(self.strange) < MAX_PROBLEMS:
            self.strange.append((path, key[:100], known))

    @property
    def unknown(self) -> list[tuple[str, str]]:
        """(path, suggested name or "") of fields that the type does not have. Guessing costs, so it is done here."""
        return [(path, closest(key, known)) for path, key, known in self.strange]


def walk(kind: type, raw: Any) -> tuple[Any, Findings]:
    """Return the value cleaned of nulls and unknown fields, ready for `msgspec.convert`, with all that was found."""
    found = Findings()
    return _walk(_type_info(kind), raw, "", found), found


@functools.cache
def _type_info(kind: type) -> inspect.Type:
    return inspect.type_info(kind)


@functools.lru_cache(maxsize=1024)
def closest(word: str, known: tuple[str, ...]) -> str:
    """Return the known word that was probably meant, or ""."""
    plain = {re.sub(r"[^a-z0-9]", "", candidate.lower()): candidate for candidate in known}
    exact = plain.get(re.sub(r"[^a-z0-9]", "", word.lower()))
    if exact is not None:
        return exact
    near = difflib.get_close_matches(word[:100], known, n=1, cutoff=0.6)
    return near[0] if near else ""


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return the hint for a word that is not known: the nearest one, or all of them when they are few."""
    near = closest(word, tuple(known))
    if near:
        return f'did you mean "{near}"?'
    return f"known: {', '.join(known)}" if known and len(known) <= 16 else ""


def _walk(kind: inspect.Type, value: Any, path: str, found: Findings) -> Any:
    extra: dict[str, Any] = {}
    while isinstance(kind, inspect.Metadata):
        extra = {**(kind.extra_json_schema or {}), **extra}
        kind = kind.type
    match kind:
        case inspect.StructType():
            return _walk_struct(kind, value, path, found)
        case inspect.ListType():
            return _walk_list(kind, value, path, found)
        case inspect.DictType():
            return _walk_dict(kind, value, path, found)
        case inspect.UnionType():
            inner = [option for option in kind.types if not isinstance(option, inspect.NoneType)]
            return _walk(inner[0], value, path, found) if len(inner) == 1 else value
        case _:
            return _walk_leaf(kind, extra, value, path, found)


def _walk_struct(kind: inspect.StructType, value: Any, path: str, found: Findings) -> Any:
    if not isinstance(value, dict):
        found.add(path, f"expected an object with fields, got {_describe(value)}")
        return value
    fields = {f.encode_name: f for f in kind.fields}
    result: dict[str, Any] = {}
    for key, inner in value.items():
        if key not in fields:
            found.add_unknown(_join(path, key), key, tuple(fields))
        elif inner is not None:  # null means absent, as in Kubernetes
            result[key] = _walk(fields[key].type, inner, _join(path, key), found)
    for name, wanted in fields.items():
        if wanted.required and name not in result:
            found.add(_join(path, name), "is required")
    _apply_rule(kind.cls, result, path, found)
    return result


def _apply_rule(cls: type, value: Any, path: str, found: Findings) -> None:
    rule = rules.RULES.get(cls)
    if rule is None:
        return
    try:
        typed: Any = msgspec.convert(value, cls)
    except msgspec.ValidationError:
        return  # said already, field by field
    for problem in rule(typed, path):
        found.add(problem.element, problem.cause, problem.hint)


def _walk_list(kind: inspect.ListType, value: Any, path: str, found: Findings) -> Any:
    if not isinstance(value, list):
        found.add(path, f"expected a list, got {_describe(value)}", "write it as in [a, b], or with one '- ' per line")
        return value
    if kind.min_length is not None and len(value) < kind.min_length:
        found.add(path, f"has {len(value)} entries, at least {kind.min_length} needed")
    if kind.max_length is not None and len(value) > kind.max_length:
        found.add(path, f"has {len(value)} entries, at most {kind.max_length} allowed")
        return value
    return [_walk(kind.item_type, item, f"{path}[{position}]", found) for position, item in enumerate(value)]


def _walk_dict(kind: inspect.DictType, value: Any, path: str, found: Findings) -> Any:
    if not isinstance(value, dict):
        found.add(path, f"expected a mapping, got {_describe(value)}")
        return value
    return {
        key: _walk(kind.value_type, item, f"{path}[{key[:80]}]", found)
        for key, item in value.items()
        if item is not None or isinstance(kind.value_type, inspect.AnyType)
    }


def _walk_leaf(kind: inspect.Type, extra: dict[str, Any], value: Any, path: str, found: Findings) -> Any:
    match kind:
        case inspect.StrType():
            return _text(kind, extra, value, path, found)
        case inspect.BoolType():
            if not isinstance(value, bool):
                found.add(path, f"expected true or false, got {_describe(value)}")
        case inspect.IntType() | inspect.FloatType():
            _number(kind, value, path, found)
        case inspect.LiteralType():
            if value not in kind.values or isinstance(value, bool):
                words = [str(word) for word in kind.values]
                found.add(path, f"{_describe(value)} is not one of {', '.join(words)}", _near(value, words))
        case inspect.DateTimeType():
            _time(value, path, found)
    return value


def _text(kind: inspect.StrType, extra: dict[str, Any], value: Any, path: str, found: Findings) -> Any:
    checks: dict[str, Callable[[str], Any]] = {"quantity": quantity.parse, "duration": duration.parse}
    check = checks.get(extra.get("format", ""))
    if check is quantity.parse and isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    if check is duration.parse and value == 0 and not isinstance(value, bool):
        value = "0s"
    if extra.get("format") == "int-or-string" and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        hint = "write a number with a unit, as in 10m" if check is duration.parse else "write it in quotes"
        found.add(path, f"expected text, got {_describe(value)}", hint)
    elif check is not None:
        try:
            check(value)
        except InvalidError as error:
            found.add(path, error.cause, error.hint)
    elif kind.max_length is not None and len(value) > kind.max_length:
        found.add(path, f"has {len(value)} characters, at most {kind.max_length} allowed")
    elif kind.min_length is not None and len(value) < kind.min_length:
        found.add(path, f"has {len(value)} characters, at least {kind.min_length} needed")
    elif kind.pattern is not None and not re.search(kind.pattern, value):
        found.add(path, f'"{value[:80]}" is not {extra.get("description", "in the form " + kind.pattern)}')
    return value


def _number(kind: inspect.IntType | inspect.FloatType, value: Any, path: str, found: Findings) -> None:
    whole = isinstance(kind, inspect.IntType)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        found.add(path, f"expected a {'whole number' if whole else 'number'}, got {_describe(value)}")
        return
    limits = (
        (kind.ge, operator.ge, "at least"),
        (kind.gt, operator.gt, "more than"),
        (kind.le, operator.le, "at most"),
        (kind.lt, operator.lt, "less than"),
    )
    for bound, holds, words in limits:
        if bound is not None and not holds(value, bound):
            found.add(path, f"{value} is out of range", f"{words} {bound:g}")


def _time(value: Any, path: str, found: Findings) -> None:
    try:
        aware = msgspec.convert(value, datetime).tzinfo is not None
    except msgspec.ValidationError:
        aware = False
    if not aware:
        found.add(path, f"{_describe(value)} is not a time with its zone", "write it as in 2026-01-31T12:00:00Z")


def _near(value: Any, words: Sequence[str]) -> str:
    near = closest(value, tuple(words)) if isinstance(value, str) else ""
    return f'did you mean "{near}"?' if near else ""


def _join(path: str, key: str) -> str:
    return f"{path}.{key[:80]}" if path else key[:80]


def _describe(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            return f'"{value[:80]}"'
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return "nothing"
