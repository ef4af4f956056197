"""Namespaces, read-only: they exist implicitly, as soon as anybody names them.

The list has `default` and every namespace with an object in it, found by skipping from one to the next.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from skerry.api import rules
from skerry.api.errors import NotFoundError
from skerry.api.kinds import KINDS
from skerry.hub.context import HubContext
from skerry.hub.objects import Objects, prefix_of
from skerry.hub.server import status

DEFAULT = "default"
MAX_LISTED = 1000
_AFTER_SLASH = "0"  # the character that sorts right after "/", so that one key skips a whole namespace


async def list_namespaces(context: HubContext, request: Request) -> Response:
    """Return all namespaces that hold something, as objects or as a table."""
    names = sorted({DEFAULT, *await find_namespaces(context.objects)})
    items = [_namespace(name) for name in names]
    metadata = {"resourceVersion": str(await context.objects.store.revision())}
    if "as=Table" in request.headers.get("accept", ""):
        return status.respond(_table(items, metadata))
    return status.respond({"kind": "NamespaceList", "apiVersion": "v1", "metadata": metadata, "items": items})


async def get_namespace(context: HubContext, request: Request) -> Response:
    """Return one namespace, which exists if it can be a name at all. Raises NotFoundError."""
    name = request.path_params["name"]
    if not rules.is_namespace(name):
        raise NotFoundError(element=f'namespaces "{name[:80]}"', hint="a namespace's name is a DNS label")
    item = _namespace(name)
    if "as=Table" in request.headers.get("accept", ""):
        return status.respond(_table([item], {"resourceVersion": str(await context.objects.store.revision())}))
    return status.respond(item)


async def find_namespaces(objects: Objects) -> set[str]:
    """Return the namespaces that have objects of any kind."""
    names: set[str] = set()
    for info in KINDS:
        if not (info.namespaced and info.stored):
            continue
        prefix = prefix_of(info.type)
        start = prefix
        while len(names) < MAX_LISTED:
            page = await objects.store.list(prefix, limit=1, start=start)
            if not page.records:
                break
            name = page.records[0].key.removeprefix(prefix).split("/", 1)[0]
            names.add(name)
            start = f"{prefix}{name}{_AFTER_SLASH}"
    return names


def _namespace(name: str) -> dict[str, Any]:
    return {
        "kind": "Namespace",
        "apiVersion": "v1",
        "metadata": {"name": name, "uid": f"namespace-{name}"},
        "spec": {},
        "status": {"phase": "Active"},
    }


def _table(items: list[dict[str, Any]], metadata: dict[str, Any]) -> dict[str, Any]:
    columns = [
        {"name": name, "type": "string", "format": form, "description": path, "priority": 0}
        for name, form, path in (("Name", "name", "metadata.name"), ("Status", "", "status.phase"))
    ]
    rows = [
        {
            "cells": [item["metadata"]["name"], item["status"]["phase"]],
            "object": {
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": item["metadata"],
            },
        }
        for item in items
    ]
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    }
