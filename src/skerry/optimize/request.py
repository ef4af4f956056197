"""What is asked of the factory: `optimize.yaml` and the command line's options become one value, checked.

Options override the file. Every problem names where it is: a field's path in the file, or the option. Lives here:
reading, merging, checking before any work begins. Must not live here: what the fields mean (`recipe`).
"""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from skerry.api import documents, schema, validation
from skerry.api.errors import BadRequestError, InvalidError, NotFoundError
from skerry.api.meta import END
from skerry.optimize import metrics, recipe
from skerry.optimize.recipe import DEFAULT_VARIANTS, PRECISIONS, Optimization

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "--torch": ("source", "path"),
    "--source": ("source", "path"),
    "--kind": ("source", "kind"),
    "--weights": ("source", "weights"),
    "--allow-code": ("source", "allowCode"),
    "--data": ("data", "path"),
    "--name": ("name",),
    "--model-version": ("version",),
    "--out": ("out",),
    "--variants": ("variants",),
    "--allowed-drop": ("allowedDrop",),
    "--metric": ("metric",),
    "--golden": ("golden",),
    "--runs": ("runs",),
    "--seed": ("seed",),
    "--plot": ("plot",),
    "--memory": ("resources", "memory"),
    "--parallel": ("resources", "parallel"),
    "--timeout": ("resources", "timeoutSeconds"),
}
"""Option of the command line -> the field it sets."""

_SHARES = ("accuracy", "top-", "f1-", "iou")
"""Metrics between 0 and 1: a drop above 1 allows everything."""
_DROP_HINT = "write a number, as in 0.01; a large one keeps every variant"
_PATHS = (("source", "path"), ("source", "weights"), ("source", "code"), ("data", "path"), ("out",), ("metric",))


def read(file: Path | None, options: Mapping[str, Any]) -> Optimization:
    """Return what the file and the options ask for, with absolute paths.

    `options` holds the given ones alone, by their names with dashes. Raises InvalidError with every problem,
    NotFoundError, BadRequestError for what is not YAML.
    """
    raw = _load(file) if file is not None else {}
    sources: dict[str, str] = {}
    if file is not None:
        _absolute(raw, Path(os.path.abspath(file)).parent)
    given: dict[str, Any] = {}
    for option, value in options.items():
        path = OPTIONS[option]
        _put(given, path, _named(value) if option == "--variants" else value)
        sources[".".join(path)] = option
    if "--torch" in options:
        given["source"].setdefault("kind", "pytorch")
    _absolute(given, Path.cwd())
    _merge(raw, given)
    name = file.name if file is not None else ""
    cleaned, found = validation.walk(Optimization, raw)
    problems = [*found.problems]
    problems += [
        InvalidError("is not a field", element=path, hint=f'did you mean "{near}"?' if near else "")
        for path, near in found.unknown
    ]
    if not problems:
        wanted = _convert(cleaned)
        problems = _check(wanted)
        if not problems:
            return wanted
    raise InvalidError.of([_at(problem, name, sources) for problem in problems])


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of `optimize.yaml`, for editors: every field with its words and its default."""
    (reference,), parts = msgspec.json.schema_components([Optimization], ref_template="#/$defs/{name}")
    for name, part in parts.items():
        _describe(part, getattr(recipe, name, None))
    variants = parts["Optimization"]["properties"]["variants"]
    alone = {**parts["VariantSpec"]["properties"]["name"], "description": "A variant without options, by its name."}
    variants["items"] = {"anyOf": [alone, variants["items"]]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "optimize.yaml",
        **reference,
        "$defs": {name: _plain(part) for name, part in parts.items()},
    }


def _describe(part: dict[str, Any], cls: type | None) -> None:
    """Put the words under each field into its schema, and refuse fields that are not known, as the reader does."""
    if "properties" not in part or cls is None:
        return
    part["additionalProperties"] = False
    part.pop("title", None)
    texts: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        texts |= schema.field_descriptions(each)
    fields = zip(cls.__struct_encode_fields__, cls.__struct_fields__, strict=True)  # type: ignore[attr-defined]
    for shown, name in fields:
        inner = part["properties"][shown]
        if "$ref" in inner:
            part["properties"][shown] = inner = {"allOf": [{"$ref": inner.pop("$ref")}], **inner}
        inner["description"] = texts.get(name, inner.get("description", ""))
        if inner.get("default", "") in ("", None, [], {}):
            inner.pop("default", None)


def _plain(value: Any) -> Any:
    """Return patterns as JSON Schema has them: its `$` means the very end."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.replace(END, "$") if isinstance(value, str) else value


def _load(file: Path) -> dict[str, Any]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", element=str(file)) from None
    found = documents.read_yaml(content, source=file.name)
    if len(found) != 1 or not isinstance(found[0], dict):
        raise BadRequestError("is not one YAML mapping", element=file.name, hint="begin with name:, version:, source:")
    raw: dict[str, Any] = copy.deepcopy(found[0])
    if isinstance(raw.get("variants"), list):
        raw["variants"] = [{"name": each} if isinstance(each, str) else each for each in raw["variants"]]
    return raw


def _named(value: str) -> list[dict[str, str]]:
    """Return variants by their names; a precision alone means ONNX."""
    names = dict.fromkeys(filter(None, (part.strip() for part in value.split(","))))
    return [{"name": f"onnx-{name}" if name.partition("-pruned")[0] in PRECISIONS else name} for name in names]


def _put(raw: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *heads, last = path
    functools.reduce(lambda inner, head: inner.setdefault(head, {}), heads, raw)[last] = value


def _merge(raw: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Put what was given over what the file says, mapping by mapping; a new source path forgets the old kind."""
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(raw.get(key), dict):
            _merge(raw[key], value)
        else:
            raw[key] = value


def _absolute(raw: dict[str, Any], base: Path) -> None:
    """Make paths absolute: those of a file are relative to it, those of options to where the command runs."""
    for path in _PATHS:
        *heads, last = path
        inner: Any = raw
        for head in heads:
            inner = inner.get(head) if isinstance(inner, dict) else None
        value = inner.get(last) if isinstance(inner, dict) else None
        if isinstance(value, str) and value and (path != ("metric",) or ".py:" in value):
            inner[last] = os.path.normpath(base / os.path.expanduser(value))
    variants = raw.get("variants")
    for variant in variants if isinstance(variants, list) else []:
        pruning = variant.get("pruning") if isinstance(variant, dict) else None
        if isinstance(pruning, dict) and isinstance(tune := pruning.get("fineTune"), str) and tune:
            pruning["fineTune"] = os.path.normpath(base / os.path.expanduser(tune))


def _convert(cleaned: Any) -> Optimization:
    try:
        return msgspec.convert(cleaned, Optimization)
    except msgspec.ValidationError as error:
        cause, _, path = str(error).partition(" - at `$")
        raise InvalidError(cause, element=path.strip("`.") or "optimize.yaml") from None


def _check(wanted: Optimization) -> list[InvalidError]:
    """Return what types cannot say."""
    problems = []
    names = [variant.name for variant in wanted.variants]
    for position, name in enumerate(names):
        if name in names[:position]:
            hint = "give the second one a word of its own, as in onnx-int8-entropy"
            problems.append(InvalidError(f"{name} is there twice", element=f"variants[{position}].name", hint=hint))
    drops = {f"variants[{n}].allowedDrop": variant.allowed_drop for n, variant in enumerate(wanted.variants)}
    for element, drop in {"allowedDrop": wanted.allowed_drop, **drops}.items():
        if drop is not None and not math.isfinite(drop):
            problems.append(InvalidError(f"{drop:g} is not a finite number", element=element, hint=_DROP_HINT))
    if wanted.metric.startswith(_SHARES) and 1 < wanted.allowed_drop < math.inf:
        hint = "write a share, as in 0.01 for one percent"
        problems.append(InvalidError(f"{wanted.allowed_drop:g} is more than 1", element="allowedDrop", hint=hint))
    if ".py:" not in wanted.metric:
        try:
            metrics.metric(wanted.metric)
        except InvalidError as error:
            problems.append(error)
    if wanted.source.weights and ".py:" not in wanted.source.path:
        problems.append(InvalidError("goes with FILE.py:FUNCTION only", element="source.weights"))
    return problems


def _at(problem: InvalidError, file: str, sources: Mapping[str, str]) -> InvalidError:
    """Say where a field's value came from: an option, or the file."""
    path = problem.element
    option = next((option for field, option in sources.items() if path == field or path.startswith(f"{field}[")), "")
    if not option and not file:
        option = next((option for option, field in OPTIONS.items() if ".".join(field) == path), "")
        option = option or {"source": "--torch", "data": "--data"}.get(path, path)
    hint = problem.hint
    if problem.cause == "is required" and not hint:
        hint = "give the option, or the field in optimize.yaml with -f; docs/factory.md has both"
    if path == "variants" and not hint:
        hint = f"choose from {', '.join(PRECISIONS)}, or write names as in {DEFAULT_VARIANTS[0]}"
    return InvalidError(problem.cause, element=option or f"{file}, {path}", hint=hint)
