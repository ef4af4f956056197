"""OpenAPI v3 documents: `kubectl explain` and kubectl's checks before it sends anything.

Schemas come from `api.schema`; here are the paths. Source: Kubernetes "OpenAPI V3", OpenAPI Specification 3.0.
"""

from __future__ import annotations

import functools
from hashlib import sha256
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import skerry
from skerry.api import schema
from skerry.api.kinds import KINDS, KindInfo
from skerry.api.meta import GROUP, VERSION
from skerry.hub.server import status

GROUP_PATH = f"apis/{GROUP}/{VERSION}"
_JSON = "application/json"
_PATCHES = ("application/merge-patch+json", "application/json-patch+json", "application/apply-patch+yaml")


async def index(_: Request) -> Response:
    """Return where the documents are, each with its hash so that clients may keep it."""
    url = f"/openapi/v3/{GROUP_PATH}?hash={document()[1]}"
    return status.respond({"paths": {GROUP_PATH: {"serverRelativeURL": url}}})


async def group_document(request: Request) -> Response:
    """Return our group's document; unchanged when the client has it already."""
    content, digest = document()
    headers = {"ETag": f'"{digest}"', "Cache-Control": "public" if "hash" in request.query_params else "no-cache"}
    if request.headers.get("if-none-match") == f'"{digest}"':
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_JSON, headers=headers)


@functools.cache
def document() -> tuple[bytes, str]:
    """Return the document as JSON, and its digest."""
    content = msgspec.json.encode(
        {
            "openapi": "3.0.0",
            "info": {"title": "Skerry", "version": skerry.__version__},
            "paths": {path: item for info in KINDS for path, item in _paths(info)},
            "components": {"schemas": schema.components()},
        },
        order="deterministic",
    )
    return content, sha256(content).hexdigest()


_WRITING = ("dryRun", "fieldValidation", "fieldManager")
_LISTING = (
    "labelSelector",
    "fieldSelector",
    "limit",
    "continue",
    "resourceVersion",
    "resourceVersionMatch",
    "watch",
    "allowWatchBookmarks",
    "sendInitialEvents",
    "timeoutSeconds",
)
_TYPES = {
    "limit": "integer",
    "timeoutSeconds": "integer",
    "watch": "boolean",
    "allowWatchBookmarks": "boolean",
    "sendInitialEvents": "boolean",
    "force": "boolean",
}
"""Query parameters that are no text."""


def _paths(info: KindInfo) -> list[tuple[str, dict[str, Any]]]:
    one, many = f"{schema.PREFIX}{info.kind}", f"{schema.PREFIX}{info.kind}List"
    collection = f"/{GROUP_PATH}/namespaces/{{namespace}}/{info.plural}"
    changes = {
        "get": _operation(info, "get", one, ()),
        "put": _operation(info, "put", one, _WRITING, body=(_JSON,)),
        "patch": _operation(info, "patch", one, (*_WRITING, "force"), body=_PATCHES),
    }
    status_changes = {verb: shown | {"operationId": f"{shown['operationId']}Status"} for verb, shown in changes.items()}
    everywhere = _operation(info, "list", many, _LISTING) | {"operationId": f"list{info.kind}ForAllNamespaces"}
    return [
        (f"/{GROUP_PATH}/{info.plural}", {"get": everywhere}),
        (
            collection,
            {
                "parameters": _in_path("namespace"),
                "get": _operation(info, "list", many, _LISTING),
                "post": _operation(info, "post", one, _WRITING, body=(_JSON,), code="201"),
                "delete": _operation(info, "deletecollection", many, ("dryRun", "labelSelector", "fieldSelector")),
            },
        ),
        (
            f"{collection}/{{name}}",
            {
                "parameters": _in_path("namespace", "name"),
                **changes,
                "delete": _operation(info, "delete", one, ("dryRun",)),
            },
        ),
        (f"{collection}/{{name}}/status", {"parameters": _in_path("namespace", "name"), **status_changes}),
    ]


def _in_path(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _operation(
    info: KindInfo,
    action: str,
    answer: str,
    parameters: tuple[str, ...],
    *,
    body: tuple[str, ...] = (),
    code: str = "200",
) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "operationId": f"{action}{info.kind}",
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": schema.group_version_kind(info.kind),
        "parameters": [
            {"name": name, "in": "query", "schema": {"type": _TYPES.get(name, "string")}} for name in parameters
        ],
        "responses": {code: {"description": "OK", "content": {_JSON: {"schema": _reference(answer)}}}},
    }
    if body:
        shown["requestBody"] = {
            "content": {
                media: {"schema": _reference(answer) if media == _JSON else {"type": "object"}} for media in body
            }
        }
    return shown


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
