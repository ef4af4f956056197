"""OpenAPI v3 schemas of the kinds, made from their types and docstrings, and the search for unknown fields.

Lives here: what `kubectl explain`, the API's documents and the docs need to know of fields. Must not live here:
paths and verbs (`hub.server.openapi`). Descriptions are read from the source; where it is missing, they are left out.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from skerry.api import meta, validation
from skerry.api.kinds import KINDS, KindInfo
from skerry.api.kinds.pictures import PICTURES, Picture

PREFIX = "dev.skerry.v1alpha1."
"""Put before the name of every schema of our own group in the components of an OpenAPI document."""


DOCUMENTED: tuple[KindInfo | Picture, ...] = (*KINDS, *PICTURES)
"""Every kind that has a schema."""


_OF_ALL = {
    "api_version": "The API group and version that the object is written in.",
    "kind": "What the object is.",
}


def unknown_fields(kind: type, raw: Any) -> list[tuple[str, str]]:
    """Return (path, suggested name or "") of every field that the kind's types do not have."""
    return validation.walk(kind, raw)[1].unknown


def prefix_of(group: str, version: str) -> str:
    """Return what is put before the name of a group's schemas; for Kubernetes' groups what it puts there itself."""
    if group == meta.GROUP:
        return PREFIX
    return f"io.k8s.api.{group.partition('.')[0] or 'core'}.{version}."


def group_version_kind(info: KindInfo | Picture, suffix: str = "") -> dict[str, str]:
    """Return the value of `x-kubernetes-group-version-kind` for one kind, or with a suffix for its list."""
    return {"group": info.group, "version": info.version, "kind": f"{info.kind}{suffix}"}


@functools.cache
def components(group: str = meta.GROUP, version: str = meta.VERSION) -> Mapping[str, dict[str, Any]]:
    """Return OpenAPI v3 schemas by component name, for a group's kinds, their lists and everything in them."""
    infos = [info for info in DOCUMENTED if (info.group, info.version) == (group, version)]
    prefix = prefix_of(group, version)
    types = [info.type for info in infos]
    _, found = msgspec.json.schema_components(types, ref_template=f"#/components/schemas/{prefix}{{name}}")
    classes = {cls.__name__: cls for kind in types for cls in _struct_types(kind)}
    schemas = {f"{prefix}{name}": _described(schema, classes.get(name), found) for name, schema in found.items()}
    for name in _said_elsewhere(schemas) - {f"{prefix}{kind.__name__}" for kind in types}:
        del schemas[name][
            "description"
        ]  # kubectl explains a field by its own words and its type's, one after the other
    for info in infos:
        name = f"{prefix}{info.type.__name__}"
        schemas[name]["x-kubernetes-group-version-kind"] = [group_version_kind(info)]
        if "list" in info.verbs:
            schemas[f"{name}List"] = _list_schema(info, name)
    return schemas


def _said_elsewhere(schemas: Mapping[str, dict[str, Any]]) -> set[str]:
    """Return the schemas whose words a field says that refers to them."""
    properties = (inner for schema in schemas.values() for inner in schema["properties"].values())
    said = ((_referred(inner), inner.get("description", "")) for inner in properties)
    return {name for name, text in said if name in schemas and text and text == schemas[name].get("description")}


def _referred(schema: Mapping[str, Any]) -> str:
    """Return the name of the schema that a property refers to, or "": by itself, or as what it has several of."""
    options = [schema, *schema.get("allOf", ()), schema.get("items") or {}]
    reference: str = next((option["$ref"] for option in options if "$ref" in option), "")
    return reference.rpartition("/")[2]


def _list_schema(info: KindInfo | Picture, name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": f"A list of {info.plural}.",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", "description": "resourceVersion, continue, remainingItemCount."},
            "items": {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}},
        },
        "x-kubernetes-group-version-kind": [group_version_kind(info, "List")],
    }


def _described(schema: dict[str, Any], cls: type[msgspec.Struct] | None, found: Mapping[str, Any]) -> dict[str, Any]:
    texts = field_descriptions(cls) if cls is not None else {}
    if "metadata" in schema.get("properties", {}):
        texts = _OF_ALL | texts
    names = dict(zip(cls.__struct_encode_fields__, cls.__struct_fields__, strict=True)) if cls is not None else {}
    properties = {
        shown: _property(inner, texts.get(names.get(shown, ""), ""), found)
        for shown, inner in schema.get("properties", {}).items()
    }
    result = {"type": "object", "description": schema.get("description", ""), "properties": properties}
    if schema.get("required"):
        result["required"] = schema["required"]
    return result


def _property(schema: dict[str, Any], text: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Schema 2020-12 as msgspec writes it -> OpenAPI 3.0: null options dropped, references without neighbours."""
    default = schema.get("default")
    inner = _translated(schema)
    text = text or inner.get("description", "") or _text_of_reference(inner, found)
    if "$ref" in inner:
        result: dict[str, Any] = {"allOf": [{"$ref": inner["$ref"]}]}
    else:
        result = {"type": "object"} | inner  # where it may be anything: kubectl explains nothing without a type
    if text:
        result["description"] = text
    if default not in (None, "", [], {}):
        result["default"] = default
    return result


def _text_of_reference(schema: dict[str, Any], found: Mapping[str, Any]) -> str:
    """A field without words of its own says what its type says."""
    return str(found.get(_referred(schema).rpartition(".")[2], {}).get("description", ""))


def _translated(schema: dict[str, Any]) -> dict[str, Any]:
    options = [option for option in schema.get("anyOf", []) if option != {"type": "null"}]
    if len(options) == 1:
        schema = options[0]
    result = {key: value for key, value in schema.items() if key not in ("default", "title", "anyOf")}
    if "enum" in result and "type" not in result:
        result["type"] = "string"
    if isinstance(result.get("pattern"), str):
        result["pattern"] = result["pattern"].replace(meta.END, "$")
    for bound in ("Minimum", "Maximum"):  # a number in JSON Schema, a flag beside the bound in OpenAPI 3.0
        if f"exclusive{bound}" in result:
            result[bound.lower()], result[f"exclusive{bound}"] = result[f"exclusive{bound}"], True
    for inner in ("items", "additionalProperties"):
        if isinstance(result.get(inner), dict):
            result[inner] = _translated(result[inner])
    if result.get("type") == "array":
        result.setdefault("items", {"type": "object"})
    return result


def field_descriptions(cls: type) -> dict[str, str]:
    """Return the docstring under each field of a struct type, by the field's Python name; {} without the source."""
    return _descriptions(cls.__module__).get(cls.__name__, {})


@functools.cache
def _descriptions(module: str) -> dict[str, dict[str, str]]:
    """Return field descriptions by class, of one module: its source is parsed once for all its classes."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError, SyntaxError):
        return {}
    return {node.name: _field_texts(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _field_texts(node: ast.ClassDef) -> dict[str, str]:
    texts: dict[str, str] = {}
    for statement, following in itertools.pairwise(node.body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            texts[statement.target.id] = " ".join(str(following.value.value).split())
    return texts


def _struct_types(kind: type) -> Iterator[type[msgspec.Struct]]:
    pending, seen = [msgspec.inspect.type_info(kind)], set[type]()
    while pending:
        item = pending.pop()
        if isinstance(item, msgspec.inspect.StructType):
            if item.cls in seen:
                continue
            seen.add(item.cls)
            yield item.cls
            pending.extend(field.type for field in item.fields)
        inner = [getattr(item, name, None) for name in ("type", "item_type", "value_type")]
        pending.extend(option for option in (*inner, *getattr(item, "types", ())) if option is not None)
