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
    url = f"/openapi/v3/{GROUP_PATH}?hash={_document()[1]}"
    return status.respond({"paths": {GROUP_PATH: {"serverRelativeURL": url}}})


async def group_document(request: Request) -> Response:
    """Return our group's document; unchanged when the client has it already."""
    content, digest = _document()
    headers = {"ETag": f'"{digest}"', "Cache-Control": "public" if "hash" in request.query_params else "no-cache"}
    if request.headers.get("if-none-match") == f'"{digest}"':
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_JSON, headers=headers)


@functools.cache
def _document() -> tuple[bytes, str]:
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


def _paths(info: KindInfo) -> list[tuple[str, dict[str, Any]]]:
    one, many = f"{schema.PREFIX}{info.kind}", f"{schema.PREFIX}{info.kind}List"
    collection = f"/{GROUP_PATH}/namespaces/{{namespace}}/{info.plural}"
    writing = ("dryRun", "fieldValidation", "fieldManager")
    listing = (
        "labelSelector",
        "fieldSelector",
        "limit",
        "continue",
        "resourceVersion",
        "watch",
        "allowWatchBookmarks",
        "timeoutSeconds",
    )
    return [
        (f"/{GROUP_PATH}/{info.plural}", {"get": _operation(info, "list", many, listing)}),
        (
            collection,
            {
                "get": _operation(info, "list", many, listing),
                "post": _operation(info, "post", one, writing, body=(_JSON,)),
            },
        ),
        (
            f"{collection}/{{name}}",
            {
                "get": _operation(info, "get", one, ()),
                "put": _operation(info, "put", one, writing, body=(_JSON,)),
                "patch": _operation(info, "patch", one, (*writing, "force"), body=_PATCHES),
                "delete": _operation(info, "delete", one, ("dryRun",)),
            },
        ),
    ]


def _operation(
    info: KindInfo, action: str, answer: str, parameters: tuple[str, ...], *, body: tuple[str, ...] = ()
) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "operationId": f"{action}{info.kind}",
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": schema.group_version_kind(info.kind),
        "parameters": [{"name": name, "in": "query", "schema": {"type": "string"}} for name in parameters],
        "responses": {"200": {"description": "OK", "content": {_JSON: {"schema": _reference(answer)}}}},
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
