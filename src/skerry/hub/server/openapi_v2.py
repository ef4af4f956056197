"""OpenAPI v2 in one document, for clients from before v3: the v3 documents (`openapi`) in its older words.

Source: OpenAPI Specification 2.0; Kubernetes' `/openapi/v2`. It is served as JSON. kubectl takes nothing but protocol
buffers, in which it looks for what v3 cannot tell it: how to check a file that is a list. It is given a document that
describes nothing, so that it leaves checking to the hub, which is strict.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import skerry
from skerry.hub.server import openapi, status

_JSON = "application/json"
_PROTOBUF = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
_TAKEN = frozenset({"", _JSON, "application/*", "*/*"})
_V3, _V2 = "#/components/schemas/", "#/definitions/"


async def document(request: Request, *, groups: Collection[str] = openapi.GROUPS) -> Response:
    """Return the document of the served groups; 406 for clients that take neither JSON nor protocol buffers."""
    accepted = {part.partition(";")[0].strip() for part in request.headers.get("accept", "").split(",")}
    if not accepted & _TAKEN and _PROTOBUF in accepted:
        headers = {"content-type": _PROTOBUF.replace("@", "."), "Vary": "Accept"}  # no @ may stand in a media type
        return Response(_nothing(), headers=headers)
    if not accepted & _TAKEN:
        text = f"only {_JSON} is served here; ask /openapi/v3 for more"
        return status.respond_status(status.plain(406, "NotAcceptable", text))
    content, digest = _made(frozenset(groups))
    headers = {"ETag": f'"{digest}"', "Vary": "Accept"}
    if request.headers.get("if-none-match") == f'"{digest}"':
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_JSON, headers=headers)


def _nothing() -> bytes:
    """Return `swagger` and `info` alone, as gnostic's `openapi.v2.Document` has them: fields 1 and 2, with 1 and 2."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    return field(1, b"2.0") + field(2, field(1, b"Skerry") + field(2, skerry.__version__.encode()[:64]))


@functools.cache
def _made(groups: frozenset[str]) -> tuple[bytes, str]:
    paths: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for group, version in openapi.PATHS.values():
        if group in groups:
            newer = msgspec.json.decode(openapi.document(group, version)[0])
            paths |= {path: _path(item) for path, item in newer["paths"].items()}
            definitions |= {name: _schema(one) for name, one in newer["components"]["schemas"].items()}
    whole = {
        "swagger": "2.0",
        "info": {"title": "Skerry", "version": skerry.__version__},
        "paths": paths,
        "definitions": definitions,
    }
    content = msgspec.json.encode(whole, order="deterministic")
    return content, sha256(content).hexdigest()


def _path(item: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {verb: _operation(one) for verb, one in item.items() if verb != "parameters"}
    if "parameters" in item:
        made["parameters"] = [_parameter(one) for one in item["parameters"]]
    return made


def _operation(operation: Mapping[str, Any]) -> dict[str, Any]:
    made = {key: value for key, value in operation.items() if key not in ("requestBody", "parameters", "responses")}
    parameters = [_parameter(one) for one in operation.get("parameters", [])]
    body = operation.get("requestBody", {}).get("content")
    if body:
        schema = body.get(_JSON, next(iter(body.values())))["schema"]
        parameters.insert(0, {"name": "body", "in": "body", "required": True, "schema": _schema(schema)})
        made["consumes"] = list(body)
    responses = {code: _response(one) for code, one in operation["responses"].items()}
    return {**made, "parameters": parameters, "produces": [_JSON], "responses": responses}


def _parameter(parameter: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in parameter.items() if key != "schema"}
    return kept | dict(parameter["schema"])


def _response(response: Mapping[str, Any]) -> dict[str, Any]:
    schema = response.get("content", {}).get(_JSON, {}).get("schema")
    return {"description": response["description"]} | ({"schema": _schema(schema)} if schema else {})


def _schema(value: Any) -> Any:
    """Return a schema with its references in the older place, beside which other words may stand."""
    if isinstance(value, list):
        return [_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {key: _schema(inner) for key, inner in value.items() if key != "allOf"}
    for option in value.get("allOf", []):
        made |= _schema(option)
    if isinstance(made.get("$ref"), str):
        made["$ref"] = made["$ref"].replace(_V3, _V2)
    return made
