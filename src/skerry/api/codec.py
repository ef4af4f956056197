"""Text to resources and back: documents are read with bounds, checked strictly, and shown with their defaults.

Lives here: what the hub's API and the command line share of reading and writing objects. Must not live here: HTTP,
files. See `documents` for the text, `validation` and `rules` for the checks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import msgspec
import yaml

from skerry.api import documents, rules, validation
from skerry.api.errors import BadRequestError, InvalidError
from skerry.api.kinds import KINDS, KindInfo, Resource
from skerry.api.meta import API_VERSION

T = TypeVar("T", bound=Resource)
_BY_KIND: Mapping[tuple[str, str], KindInfo] = {(info.api_version, info.kind): info for info in KINDS}
_BY_NAME: Mapping[str, KindInfo] = {info.kind: info for info in reversed(KINDS)}
_VERSIONS = tuple(dict.fromkeys(info.api_version for info in KINDS))
_HEADER = frozenset({"api_version", "kind", "metadata"})
_ENCODER = msgspec.json.Encoder()
_NOTHING: tuple[Any, ...] = ({}, msgspec.Raw(b"{}"))
_EMPTY: tuple[Any, ...] = ("", [], *_NOTHING)
_SIZED = frozenset({str, list, dict})
_PLAIN = frozenset({str, int, float, bool})
Plain = Callable[[Any], Any]
"""Makes something of a value that its encoder takes: builtins, or JSON."""


def load_documents(data: bytes, *, source: str = "the text") -> list[dict[str, Any]]:
    """Return the objects in YAML or JSON text, lists of objects unfolded. Raises BadRequestError, naming the line."""
    if data.lstrip()[:1] in (b"{", b"["):
        try:
            values = [documents.read_json(data, source=source)]
        except BadRequestError as error:
            try:
                values = documents.read_yaml(data, source=source)  # YAML has a flow style that begins so, too
            except BadRequestError:
                raise error from None
    else:
        values = documents.read_yaml(data, source=source)
    return [item for position, value in enumerate(values, start=1) for item in _unfold(value, source, position)]


def decode_json(data: bytes) -> dict[str, Any]:
    """Return the one JSON object that a request carries. Raises BadRequestError."""
    value = documents.read_json(data)
    if not isinstance(value, dict):
        raise BadRequestError("is not a JSON object", element="the body")
    return value


def kind_of(raw: Mapping[str, Any]) -> KindInfo:
    """Return which kind an object says it is. Raises InvalidError for an apiVersion or kind that is not ours."""
    version, kind = raw.get("apiVersion"), raw.get("kind")
    if isinstance(version, str) and isinstance(kind, str) and (info := _BY_KIND.get((version, kind))) is not None:
        return info
    problems = []
    named = _BY_NAME.get(kind) if isinstance(kind, str) else None
    if version not in _VERSIONS or named is not None:
        cause = f'"{str(version)[:80]}" is not known' if version else "is required"
        if version in _VERSIONS:
            cause = f'"{version}" is not known for a {kind}'
        wanted = named.api_version if named is not None else API_VERSION
        problems.append(InvalidError(cause, element="apiVersion", hint=f"write apiVersion: {wanted}"))
    if named is None:
        cause = f'"{str(kind)[:80]}" is not known' if kind else "is required"
        near = validation.closest(str(kind or ""), tuple(_BY_NAME))
        known = tuple(info.kind for info in KINDS if info.api_version in (version, API_VERSION))
        hint = f'did you mean "{near}"?' if near else validation.did_you_mean("", known)
        problems.append(InvalidError(cause, element="kind", hint=hint))
    raise InvalidError.of(problems)


def validate(raw: Mapping[str, Any], *, unknown: Literal["refuse", "drop"] = "refuse") -> Resource:
    """Return the typed object. Raises InvalidError with every problem: fields, types, units, names, rules."""
    info = kind_of(raw)
    cleaned, found = validation.walk(info.type, raw)
    problems = list(found.problems)
    if unknown == "refuse":
        problems.extend(unknown_field_problem(path, near) for path, near in found.unknown)
    if isinstance(metadata := raw.get("metadata"), Mapping):
        problems.extend(rules.check_name(info, metadata))
    if problems:
        raise InvalidError.of(sorted(problems, key=lambda problem: _order(problem.element)))
    return _convert(cleaned, info.type)


def unknown_field_problem(path: str, near: str) -> InvalidError:
    """Return the sentence for a field that does not exist."""
    return InvalidError("is not a field", element=path, hint=f'did you mean "{near}"?' if near else "")


def read(raw: Mapping[str, Any], kind: type[T]) -> T:
    """Return the typed object a hub sent; it may be newer, so unknown fields are ignored. Raises InvalidError."""
    return _convert(raw, kind)


def present(item: Resource) -> dict[str, Any]:
    """Return the object as clients see it: the spec with its defaults filled in, the status at least with its phase.

    Other fields, of kinds that have them, are left out where they are empty.
    """
    return _shown(item, msgspec.to_builtins)


def encode(item: Resource) -> bytes:
    """Return the same as JSON, in a third of the time that it takes to make it first and to encode it then."""
    return _ENCODER.encode(_shown(item, _encoded))


def _shown(item: Resource, plain: Plain) -> dict[str, Any]:
    shown = {"apiVersion": item.api_version, "kind": item.kind, "metadata": plain(item.metadata)}
    for name, key in _fields(type(item)):
        if name in _HEADER:
            continue
        value = getattr(item, name)
        if name in ("spec", "status"):
            shown[key] = _filled(value, plain, deep=name == "spec")
        elif value is not None and (inner := plain(value)) not in _EMPTY:
            shown[key] = inner
    return shown


def as_stored(item: Resource) -> dict[str, Any]:
    """Return the object as it is kept: without the defaults of what is in it, so that nobody seems to have set them."""
    kept = {"apiVersion": item.api_version, "kind": item.kind, "metadata": msgspec.to_builtins(item.metadata)}
    for name, key in _fields(type(item)):
        if name not in _HEADER and (value := getattr(item, name)) is not None:
            kept[key] = msgspec.to_builtins(value)
    return kept


def spec_of(item: Resource) -> Any:
    """Return the object's spec, or None where its kind has none."""
    return getattr(item, "spec", None)


def with_status_of(item: T, other: T) -> T:
    """Return the object with another one's status, where its kind has one."""
    if "status" not in item.__struct_fields__:
        return item
    changes: dict[str, Any] = {"status": getattr(other, "status")}  # noqa: B009 - not every kind has one
    return msgspec.structs.replace(item, **changes)


def to_yaml(raw: Any) -> str:
    """Return YAML for people: block style, keys in their order, long text unfolded."""
    return yaml.dump(raw, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, and repeats what is shared instead of using aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # The library quotes what it would itself read as something else, and it reads 0E0 as text.
    style = "|" if "\n" in text else "'" if documents.needs_quotes(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _unfold(value: Any, source: str, position: int) -> list[dict[str, Any]]:
    items = value if isinstance(value, list) else [value]
    unfolded: list[dict[str, Any]] = []
    for item in items:
        if not isinstance(item, dict):
            raise BadRequestError(
                f"document {position} is not an object",
                element=source,
                hint="an object begins with apiVersion: and kind:",
            )
        if str(item.get("kind", "")).endswith("List") and isinstance(item.get("items"), list):
            unfolded.extend(_unfold(item["items"], source, position))
        else:
            unfolded.append(item)
    return unfolded


def _convert(raw: Any, kind: type[T]) -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        cause, _, path = str(error).partition(" - at `$")
        raise InvalidError(cause, element=path.strip("`.") or "the object") from None


def _order(element: str) -> tuple[int, str]:
    heads = ("apiVersion", "kind", "metadata", "spec", "status")
    head = element.partition(".")[0]
    return (heads.index(head) if head in heads else len(heads), element)


def _filled(value: Any, plain: Plain, *, deep: bool) -> Any:
    """Defaults are shown, except empty ones: applying the same file again must find nothing to change."""
    if isinstance(value, list):
        return [_filled(item, plain, deep=deep) for item in value]
    if not isinstance(value, msgspec.Struct):
        return plain(value)
    result: dict[str, Any] = {}
    for name, shown in _fields(type(value)):
        inner = getattr(value, name)
        if inner is None or (type(inner) in _SIZED and not inner):
            continue
        if type(inner) not in _PLAIN:
            nested = deep and isinstance(inner, msgspec.Struct | list)
            inner = _filled(inner, plain, deep=True) if nested else plain(inner)
            if inner in _NOTHING and not deep:
                continue
        result[shown] = inner
    return result


def _encoded(value: Any) -> Any:
    """Return what is encoded already, where that is not at once done with the rest."""
    return msgspec.Raw(_ENCODER.encode(value)) if isinstance(value, msgspec.Struct) else value


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> tuple[tuple[str, str], ...]:
    return tuple(zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True))
