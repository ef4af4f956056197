"""OpenAPI v3 documents: `kubectl explain` and kubectl's checks before it sends anything.

Schemas come from `api.schema`; here are the paths. Source: Kubernetes "OpenAPI V3", OpenAPI Specification 3.0.
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
from skerry.api import schema
from skerry.api.errors import NotFoundError
from skerry.api.kinds import KindInfo
from skerry.api.kinds.pictures import Picture
from skerry.api.meta import GROUP, VERSION
from skerry.hub.server import status

_JSON = "application/json"
_PATCHES = (
    "application/merge-patch+json",
    "application/json-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)
PATHS: Mapping[str, tuple[str, str]] = {
    info.path.removeprefix("/"): (info.group, info.version) for info in schema.DOCUMENTED
}
"""Group and version by the path that the index has for them."""
GROUPS = frozenset(group for group, _ in PATHS.values())


async def index(_: Request, *, groups: Collection[str] = GROUPS) -> Response:
    """Return where the served groups' documents are, each with its hash so that clients may keep it."""
    served = {path: of for path, of in PATHS.items() if of[0] in groups}
    urls = {path: f"/openapi/v3/{path}?hash={document(*of)[1]}" for path, of in served.items()}
    return status.respond({"paths": {path: {"serverRelativeURL": url} for path, url in urls.items()}})


async def group_document(request: Request, *, groups: Collection[str] = GROUPS) -> Response:
    """Return a served group's document; unchanged when the client has it already. Raises NotFoundError."""
    of = PATHS.get(request.path_params["path"])
    if of is None or of[0] not in groups:
        raise NotFoundError(
            "the server could not find the requested resource", element=f"{request.method} {request.url.path[:200]}"
        )
    content, digest = document(*of)
    headers = {"ETag": f'"{digest}"', "Cache-Control": "public" if "hash" in request.query_params else "no-cache"}
    if request.headers.get("if-none-match") == f'"{digest}"':
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_JSON, headers=headers)


@functools.cache
def document(group: str = GROUP, version: str = VERSION) -> tuple[bytes, str]:
    """Return a group's document as JSON, and its digest."""
    infos = [info for info in schema.DOCUMENTED if (info.group, info.version) == (group, version)]
    content = msgspec.json.encode(
        {
            "openapi": "3.0.0",
            "info": {"title": "Skerry", "version": skerry.__version__},
            "paths": {path: item for info in infos for path, item in _paths(info)},
            "components": {"schemas": schema.components(group, version)},
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
_DELETING = ("dryRun", "labelSelector", "fieldSelector")
_VERBS = {
    "get": "get",
    "put": "update",
    "patch": "patch",
    "list": "list",
    "post": "create",
    "deletecollection": "deletecollection",
    "delete": "delete",
}
"""The API's verb of each action."""
_TYPES = {
    "limit": "integer",
    "timeoutSeconds": "integer",
    "watch": "boolean",
    "allowWatchBookmarks": "boolean",
    "sendInitialEvents": "boolean",
    "force": "boolean",
}
"""Query parameters that are no text."""


def _paths(info: KindInfo | Picture) -> list[tuple[str, dict[str, Any]]]:
    one = f"{schema.prefix_of(info.group, info.version)}{info.type.__name__}"
    within = f"{info.path}/namespaces/{{namespace}}" if info.namespaced else info.path
    scope = ("namespace",) if info.namespaced else ()
    collection, item = f"{within}/{info.plural}", f"{within}/{info.plural}/{{name}}"
    changes = {
        "get": _operation(info, "get", one, ()),
        "put": _operation(info, "put", one, _WRITING, body=(_JSON,)),
        "patch": _operation(info, "patch", one, (*_WRITING, "force"), body=_PATCHES),
    }
    paths = [
        (
            collection,
            {
                "get": _operation(info, "list", f"{one}List", _LISTING),
                "post": _operation(info, "post", one, _WRITING, body=(_JSON,), code="201"),
                "delete": _operation(info, "deletecollection", f"{one}List", _DELETING),
            },
        ),
        (item, {**changes, "delete": _operation(info, "delete", one, ("dryRun",))}),
    ]
    if info.has_status:
        writable = info.status_verbs if isinstance(info, KindInfo) else info.verbs
        shown = {verb: one for verb, one in changes.items() if _VERBS[one["x-kubernetes-action"]] in writable}
        paths.append((f"{item}/status", {verb: _named(one, "Status") for verb, one in shown.items()}))
    served = [
        (
            path,
            {verb: shown for verb, shown in operations.items() if _VERBS[shown["x-kubernetes-action"]] in info.verbs},
        )
        for path, operations in paths
    ]
    found = [
        (path, {"parameters": _in_path(*scope, *(("name",) if path.startswith(item) else ())), **operations})
        for path, operations in served
        if operations
    ]
    if info.namespaced and "list" in info.verbs:
        everywhere = _named(_operation(info, "list", f"{one}List", _LISTING), "ForAllNamespaces")
        found.append((f"{info.path}/{info.plural}", {"get": everywhere}))
    return found


def _named(operation: dict[str, Any], suffix: str) -> dict[str, Any]:
    return operation | {"operationId": f"{operation['operationId']}{suffix}"}


def _in_path(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]


def _operation(
    info: KindInfo | Picture,
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
        "x-kubernetes-group-version-kind": schema.group_version_kind(info),
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
