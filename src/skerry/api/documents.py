"""YAML and JSON text to plain values (dicts, lists, text, numbers), with a bound on everything.

Lives here: reading documents from outside without trusting them: size, depth, count, aliases, duplicate keys. Must
not live here: what the values mean (`codec`), files. Scalars are read as kubectl reads them (YAML 1.1 booleans),
except that times and sexagesimal numbers stay text: nothing here wants them otherwise.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from skerry.api.errors import BadRequestError

MAX_BYTES = 4 * 1024 * 1024
MAX_DOCUMENTS = 1000
MAX_DEPTH = 64
MAX_NODES = 200_000
"""Values of one text, with every alias counted as often as it is used."""
MAX_INT = 2**63 - 1

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLEANS = {
    spelled: truth
    for word, truth in (("true", True), ("yes", True), ("on", True), ("false", False), ("no", False), ("off", False))
    for spelled in (word, word.capitalize(), word.upper())
}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,19})|0x[0-9a-fA-F]{1,16}|0o[0-7]{1,21}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,40}|(0|[1-9][0-9]{0,39})(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,3})?")
_STANDARD_TAG = "tag:yaml.org,2002:"
_MERGE = "<<"


def read_json(data: bytes, *, source: str = "the body") -> Any:
    """Parse one JSON text; duplicate keys, NaN and numbers beyond 64 bits are refused. Raises BadRequestError."""
    text = _decode(data, source)
    try:
        value = json.loads(text, object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant)
    except RecursionError:
        raise BadRequestError(f"is nested deeper than {MAX_DEPTH} levels", element=source) from None
    except ValueError as error:
        raise BadRequestError(f"is not JSON: {str(error)[:300]}", element=source) from None
    _check_tree(value, source)
    return value


def read_yaml(data: bytes, *, source: str = "the text") -> list[Any]:
    """Parse a stream of YAML documents; empty ones are left out. Raises BadRequestError naming the line."""
    builder = _Builder(source=source)
    try:
        for event in yaml.parse(_decode(data, source), Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        what = " ".join(filter(None, (error.context, error.problem)))[:300]
        raise BadRequestError(f"is not YAML: {what}", element=_at(source, line)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadRequestError(f"is not YAML: {str(error)[:300]}", element=source) from None
    for document in builder.documents:
        _check_tree(document, source)
    return [document for document in builder.documents if document is not None]


def _decode(data: bytes, source: str) -> str:
    if len(data) > MAX_BYTES:
        raise BadRequestError(f"has {len(data)} bytes, more than the {MAX_BYTES} allowed", element=source)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequestError(f"is not UTF-8 text (byte {error.start})", element=source) from None


def _at(source: str, line: int) -> str:
    return f"{source}, line {line}" if line else source


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f'the key "{twice[:80]}" appears twice')
    return result


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number in JSON")


def _check_tree(value: Any, source: str) -> None:
    """Bound depth and count; refuse what JSON encoders cannot send on: huge or infinite numbers, half surrogates."""
    pending: list[tuple[Any, int]] = [(value, 0)]
    count = 0
    while pending:
        item, depth = pending.pop()
        count += 1
        if depth >= MAX_DEPTH and isinstance(item, dict | list):
            raise BadRequestError(f"is nested deeper than {MAX_DEPTH} levels", element=source)
        if count > MAX_NODES:
            raise BadRequestError(f"has more than {MAX_NODES} values", element=source)
        match item:
            case dict():
                for key, inner in item.items():
                    _check_scalar(key, source)
                    pending.append((inner, depth + 1))
            case list():
                pending.extend((inner, depth + 1) for inner in item)
            case _:
                _check_scalar(item, source)


def _check_scalar(value: Any, source: str) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRequestError("has text with half of a surrogate pair", element=source) from None
    elif isinstance(value, int) and abs(value) > MAX_INT:
        raise BadRequestError(f"has a number of more than 64 bits ({str(value)[:24]}...)", element=source)
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadRequestError("has a number too large for 64-bit floating point", element=source)


@dataclass(kw_only=True)
class _Frame:
    """A list or mapping that is still open."""

    value: list[Any] | dict[str, Any]
    anchor: str | None
    before: int  # nodes counted when it was opened
    height: int = 1  # levels below, itself included
    key: str | None = None
    merges: list[dict[str, Any]] = field(default_factory=list)


@dataclass(kw_only=True)
class _Builder:
    """Makes values of parser events, without recursion; counts what aliases would expand to before it expands them."""

    source: str
    documents: list[Any] = field(default_factory=list)
    _open: list[_Frame] = field(default_factory=list)
    _anchors: dict[str, tuple[Any, int, int]] = field(default_factory=dict)  # value, nodes, height
    _nodes: int = 0

    def take(self, event: yaml.Event) -> None:
        """Take the parser's next event."""
        line = event.start_mark.line + 1 if event.start_mark else 0
        match event:
            case yaml.DocumentStartEvent():
                self._anchors.clear()
                if len(self.documents) >= MAX_DOCUMENTS:
                    raise self._error(f"has more than {MAX_DOCUMENTS} documents", line)
            case yaml.ScalarEvent():
                self._scalar(event, line)
            case yaml.AliasEvent():
                self._alias(event, line)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                self._start(event, line)
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                self._end(line)

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        frame = self._open[-1] if self._open else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            self._set_key(frame, event, line)
            return
        self._count(1, line)
        value = _resolve(event) if not event.tag else self._tagged(event, line)
        if event.anchor:
            self._anchors[event.anchor] = (value, 1, 1)
        self._place(value, 1, line)

    def _set_key(self, frame: _Frame, event: yaml.ScalarEvent, line: int) -> None:
        if event.value in frame.value:
            raise self._error(f'the key "{event.value[:80]}" appears twice', line)
        plain_merge = event.value == _MERGE and event.implicit[0]
        frame.key = _MERGE if plain_merge else event.value
        if event.anchor:
            self._anchors[event.anchor] = (event.value, 1, 1)

    def _alias(self, event: yaml.AliasEvent, line: int) -> None:
        if event.anchor not in self._anchors:
            raise self._error(f'the alias "*{str(event.anchor)[:80]}" has no finished anchor before it', line)
        value, nodes, height = self._anchors[event.anchor or ""]
        self._count(nodes, line)
        if len(self._open) + height > MAX_DEPTH:
            raise self._error(f"is nested deeper than {MAX_DEPTH} levels", line)
        self._place(copy.deepcopy(value), height, line)

    def _start(self, event: yaml.SequenceStartEvent | yaml.MappingStartEvent, line: int) -> None:
        mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in (None, "!", f"{_STANDARD_TAG}{'map' if mapping else 'seq'}"):
            raise self._error(f'the tag "{str(event.tag)[:80]}" is not supported', line)
        if len(self._open) >= MAX_DEPTH:
            raise self._error(f"is nested deeper than {MAX_DEPTH} levels", line)
        frame = self._open[-1] if self._open else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            raise self._error("a key must be text", line)
        self._count(1, line)
        self._open.append(_Frame(value={} if mapping else [], anchor=event.anchor, before=self._nodes - 1))

    def _end(self, line: int) -> None:
        frame = self._open.pop()
        value = frame.value
        if isinstance(value, dict):
            for merged in frame.merges:
                value = {**merged, **value}
        if frame.anchor:
            self._anchors[frame.anchor] = (value, self._nodes - frame.before, frame.height)
        self._place(value, frame.height, line)

    def _place(self, value: Any, height: int, line: int) -> None:
        if not self._open:
            self.documents.append(value)
            return
        frame = self._open[-1]
        frame.height = max(frame.height, height + 1)
        if isinstance(frame.value, list):
            frame.value.append(value)
        elif frame.key is None:  # an alias in the place of a key
            if not isinstance(value, str) or value in frame.value:
                raise self._error("a key must be text, and appear once", line)
            frame.key = value
        elif frame.key == _MERGE and isinstance(value, dict | list):
            frame.merges.extend(self._merged(value, line))
            frame.key = None
        else:
            frame.value[frame.key] = value
            frame.key = None

    def _merged(self, value: dict[str, Any] | list[Any], line: int) -> Iterator[dict[str, Any]]:
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, dict):
                raise self._error("<< merges mappings only", line)
            yield item

    def _tagged(self, event: yaml.ScalarEvent, line: int) -> Any:
        if event.tag in ("!", f"{_STANDARD_TAG}str"):
            return event.value
        kinds = {"null": type(None), "bool": bool, "int": int, "float": (int, float)}
        wanted = kinds.get(str(event.tag).removeprefix(_STANDARD_TAG))
        value = _resolve_plain(event.value)
        if wanted is None or not isinstance(value, wanted):  # type: ignore[arg-type]
            raise self._error(f'the tag "{str(event.tag)[:80]}" is not supported here', line)
        return value

    def _count(self, nodes: int, line: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise self._error(f"has more than {MAX_NODES} values, with its aliases expanded", line)

    def _error(self, cause: str, line: int) -> BadRequestError:
        return BadRequestError(cause, element=_at(self.source, line))


def _resolve(event: yaml.ScalarEvent) -> Any:
    return _resolve_plain(event.value) if event.implicit[0] else event.value


def needs_quotes(text: str) -> bool:
    """Return whether text without quotes would be read as something else: a number, a boolean, nothing."""
    return text in _NULLS or text in _BOOLEANS or bool(_INT.fullmatch(text) or _FLOAT.fullmatch(text))


def _resolve_plain(text: str) -> Any:
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INT.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
