"""What there is: versions, groups and resources, in the old form and the aggregated one.

What is listed comes from `resources`. Source: Kubernetes API concepts, "API Discovery". Must not live here: schemas
(`openapi`).
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Sequence
from hashlib import sha256
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import skerry
from skerry.api.errors import NotFoundError
from skerry.hub.server import resources, status
from skerry.hub.server.resources import Served, Subresource

_AGGREGATED = ("v2", "v2beta1")
_UNKNOWN = "the server could not find the requested resource"


async def version(_: Request) -> Response:
    """Return the Kubernetes API level we speak, and our own version."""
    return status.respond(
        {
            "major": "1",
            "minor": "32",
            "gitVersion": f"v1.32.0+skerry-{skerry.__version__}",
            # Required by the type, so that typed clients refuse an answer without them.
            "gitCommit": "",
            "gitTreeState": "",
            "buildDate": "",
            "goVersion": f"python{platform.python_version()}",
            "compiler": platform.python_implementation(),
            "platform": f"linux/{platform.machine()}",
        }
    )


async def api(request: Request) -> Response:
    """Return the core group's versions."""
    if (form := _aggregated(request)) is not None:
        return _group_list(request, form, [_aggregated_group("")])
    return status.respond({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})


async def apis(request: Request, *, groups: Collection[str] = resources.GROUPS) -> Response:
    """Return those of the groups that are served here."""
    names = [name for name in resources.GROUPS if name and name in groups]
    if (form := _aggregated(request)) is not None:
        return _group_list(request, form, [_aggregated_group(name) for name in names])
    listed = [_group(name) for name in names]
    return status.respond({"kind": "APIGroupList", "apiVersion": "v1", "groups": listed})


async def group(request: Request, *, groups: Collection[str] = resources.GROUPS) -> Response:
    """Return one group's versions, if it is served here. Raises NotFoundError."""
    name = request.path_params["group"]
    if not name or name not in resources.GROUPS or name not in groups:
        raise NotFoundError(_UNKNOWN, element=f"{request.method} {request.url.path[:200]}")
    return status.respond({"kind": "APIGroup", "apiVersion": "v1", **_group(name)})


async def group_version(request: Request, *, groups: Collection[str] = resources.GROUPS) -> Response:
    """Return the resources of one group and version, if they are served here. Raises NotFoundError."""
    name, of = request.path_params.get("group", ""), request.path_params["version"]
    if name not in groups or of not in resources.GROUPS.get(name, {}):
        raise NotFoundError(_UNKNOWN, element=f"{request.method} {request.url.path[:200]}")
    served = resources.GROUPS[name][of]
    listed = [one for item in served for one in _resources(item)]
    return status.respond(
        {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": _join(name, of), "resources": listed}
    )


def _group(name: str) -> dict[str, Any]:
    versions = [{"groupVersion": _join(name, of), "version": of} for of in resources.GROUPS[name]]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def _resources(item: Served) -> list[dict[str, Any]]:
    shared = {"singularName": "", "namespaced": item.namespaced}
    main = {
        **shared,
        "name": item.plural,
        "singularName": item.singular,
        "group": item.group,
        "version": item.version,
        "kind": item.kind,
        "verbs": list(item.verbs),
        "shortNames": list(item.short_names),
        "categories": list(item.categories),
    }
    return [
        {key: value for key, value in main.items() if value != []},
        *(
            {
                **shared,
                "name": f"{item.plural}/{sub.name}",
                "group": item.group if sub.group is None else sub.group,
                "version": sub.version or item.version,
                "kind": sub.kind,
                "verbs": list(sub.verbs),
            }
            for sub in item.subresources
        ),
    ]


def _aggregated_group(name: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name} if name else {},
        "versions": [_aggregated_version(of, served) for of, served in resources.GROUPS[name].items()],
    }


def _aggregated_version(name: str, served: Sequence[Served]) -> dict[str, Any]:
    return {"version": name, "resources": [_aggregated_resource(one) for one in served], "freshness": "Current"}


def _aggregated_resource(item: Served) -> dict[str, Any]:
    shown = {
        "resource": item.plural,
        "responseKind": {"group": item.group, "version": item.version, "kind": item.kind},
        "scope": "Namespaced" if item.namespaced else "Cluster",
        "singularResource": item.singular,
        "shortNames": list(item.short_names),
        "categories": list(item.categories),
        "verbs": list(item.verbs),
        "subresources": [_aggregated_subresource(item, sub) for sub in item.subresources],
    }
    return {key: value for key, value in shown.items() if value != []}


def _aggregated_subresource(item: Served, sub: Subresource) -> dict[str, Any]:
    kind = {
        "group": item.group if sub.group is None else sub.group,
        "version": sub.version or item.version,
        "kind": sub.kind,
    }
    return {"subresource": sub.name, "responseKind": kind, "verbs": list(sub.verbs)}


def _aggregated(request: Request) -> str | None:
    """Return which aggregated form the client prefers over the old one, if any."""
    for accepted in request.headers.get("accept", "").split(","):
        parts = {part.strip() for part in accepted.split(";")}
        if {"g=apidiscovery.k8s.io", "as=APIGroupDiscoveryList"} <= parts:
            for form in _AGGREGATED:
                if f"v={form}" in parts:
                    return form
    return None


def _group_list(request: Request, form: str, groups: list[dict[str, Any]]) -> Response:
    response = status.respond(
        {"kind": "APIGroupDiscoveryList", "apiVersion": f"apidiscovery.k8s.io/{form}", "metadata": {}, "items": groups}
    )
    response.headers["content-type"] = f"application/json;g=apidiscovery.k8s.io;v={form};as=APIGroupDiscoveryList"
    response.headers["vary"] = "accept"
    response.headers["etag"] = tag = f'"{sha256(response.body).hexdigest()}"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"etag": tag, "vary": "accept"})
    return response


def _join(group_: str, version_: str) -> str:
    return f"{group_}/{version_}" if group_ else version_
