"""What there is: versions, groups and resources, in the old form and the aggregated one.

Source: Kubernetes API concepts, "API Discovery". Must not live here: schemas (`openapi`).
"""

from __future__ import annotations

import platform
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import skerry
from skerry.api.kinds import KINDS, KindInfo
from skerry.api.meta import API_VERSION, GROUP, VERSION
from skerry.hub.server import status
from skerry.hub.server.projection.serve import VIEWS
from skerry.hub.server.projection.view import View

_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
_GROUP_VERSION = {"groupVersion": API_VERSION, "version": VERSION}
_AGGREGATED = ("v2", "v2beta1")
_READ_ONLY = ("get", "list")
_WATCHED = ("get", "list", "watch")
_SUBRESOURCES: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "devices": (
        ("log", "Device", ("get",)),
        ("infer", "Device", ("create",)),
        ("reconcile", "Device", ("create",)),
    ),
    "modeldeployments": (("explain", "ModelDeployment", ("get",)),),
}


async def version(_: Request) -> Response:
    """Return the Kubernetes API level we speak, and our own version."""
    return status.respond(
        {
            "major": "1",
            "minor": "32",
            "gitVersion": f"v1.32.0+skerry-{skerry.__version__}",
            "platform": f"linux/{platform.machine()}",
        }
    )


async def api(request: Request) -> Response:
    """Return the core group's versions."""
    if (form := _aggregated(request)) is not None:
        group = {"metadata": {}, "versions": [_aggregate("v1", [_NAMESPACES, *map(_aggregated_view, VIEWS)])]}
        return _group_list(form, [group])
    return status.respond({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})


async def apis(request: Request) -> Response:
    """Return the groups."""
    if (form := _aggregated(request)) is not None:
        resources = [_aggregated_resource(info) for info in KINDS]
        group = {"metadata": {"name": GROUP}, "versions": [_aggregate(VERSION, resources)]}
        return _group_list(form, [group])
    return status.respond({"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group()]})


async def group(_: Request) -> Response:
    """Return our group's versions."""
    return status.respond({"kind": "APIGroup", "apiVersion": "v1", **_group()})


async def resources(_: Request) -> Response:
    """Return our group's resources."""
    listed = [resource for info in KINDS for resource in _resources(info)]
    return status.respond(_resource_list(API_VERSION, listed))


async def core_resources(_: Request) -> Response:
    """Return the core group's resources: namespaces, so that kubectl can name them."""
    namespaces = {
        "name": "namespaces",
        "singularName": "namespace",
        "namespaced": False,
        "kind": "Namespace",
        "verbs": list(_READ_ONLY),
        "shortNames": ["ns"],
    }
    return status.respond(_resource_list("v1", [namespaces, *(one for view in VIEWS for one in _viewed(view))]))


_NAMESPACES = {
    "resource": "namespaces",
    "responseKind": {"group": "", "version": "v1", "kind": "Namespace"},
    "scope": "Cluster",
    "singularResource": "namespace",
    "shortNames": ["ns"],
    "verbs": list(_READ_ONLY),
}


def _viewed(view: View) -> list[dict[str, Any]]:
    main = {
        "name": view.plural,
        "singularName": view.singular,
        "namespaced": view.namespaced,
        "kind": view.kind,
        "verbs": list(_WATCHED),
        "shortNames": list(view.short_names),
    }
    log = {"name": "pods/log", "singularName": "", "namespaced": True, "kind": "Pod", "verbs": ["get"]}
    return [main, log] if view.kind == "Pod" else [main]


def _aggregated_view(view: View) -> dict[str, Any]:
    kind = {"group": "", "version": "v1", "kind": view.kind}
    shown = {
        "resource": view.plural,
        "responseKind": kind,
        "scope": "Namespaced" if view.namespaced else "Cluster",
        "singularResource": view.singular,
        "shortNames": list(view.short_names),
        "verbs": list(_WATCHED),
    }
    log = {"subresource": "log", "responseKind": kind, "verbs": ["get"]}
    return {**shown, "subresources": [log]} if view.kind == "Pod" else shown


def _group() -> dict[str, Any]:
    return {"name": GROUP, "versions": [_GROUP_VERSION], "preferredVersion": _GROUP_VERSION}


def _resource_list(version_: str, listed: list[dict[str, Any]]) -> dict[str, Any]:
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version_, "resources": listed}


def _resources(info: KindInfo) -> list[dict[str, Any]]:
    shared = {"singularName": "", "namespaced": True, "group": GROUP, "version": VERSION}
    main = {
        **shared,
        "name": info.plural,
        "singularName": info.singular,
        "kind": info.kind,
        "verbs": list(_VERBS),
        "shortNames": list(info.short_names),
        "categories": ["skerry"],
    }
    return [
        main,
        *(
            {**shared, "name": f"{info.plural}/{name}", "kind": kind, "verbs": list(verbs)}
            for name, kind, verbs in _subs(info)
        ),
    ]


def _subs(info: KindInfo) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    return (("status", info.kind, ("get", "patch", "update")), *_SUBRESOURCES.get(info.plural, ()))


def _aggregated_resource(info: KindInfo) -> dict[str, Any]:
    return {
        "resource": info.plural,
        "responseKind": {"group": GROUP, "version": VERSION, "kind": info.kind},
        "scope": "Namespaced",
        "singularResource": info.singular,
        "shortNames": list(info.short_names),
        "categories": ["skerry"],
        "verbs": list(_VERBS),
        "subresources": [
            {
                "subresource": name,
                "responseKind": {"group": GROUP, "version": VERSION, "kind": kind},
                "verbs": list(verbs),
            }
            for name, kind, verbs in _subs(info)
        ],
    }


def _aggregate(version_: str, listed: list[dict[str, Any]]) -> dict[str, Any]:
    return {"version": version_, "resources": listed, "freshness": "Current"}


def _aggregated(request: Request) -> str | None:
    """Return which aggregated form the client prefers over the old one, if any."""
    for accepted in request.headers.get("accept", "").split(","):
        parts = {part.strip() for part in accepted.split(";")}
        if {"g=apidiscovery.k8s.io", "as=APIGroupDiscoveryList"} <= parts:
            for form in _AGGREGATED:
                if f"v={form}" in parts:
                    return form
    return None


def _group_list(form: str, groups: list[dict[str, Any]]) -> Response:
    response = status.respond(
        {"kind": "APIGroupDiscoveryList", "apiVersion": f"apidiscovery.k8s.io/{form}", "metadata": {}, "items": groups}
    )
    response.headers["content-type"] = f"application/json;g=apidiscovery.k8s.io;v={form};as=APIGroupDiscoveryList"
    response.headers["vary"] = "accept"
    return response
