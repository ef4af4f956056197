"""What a request wants, read off its method and path as Kubernetes' API server does it.

Every path below `/api/<version>/` and `/apis/<group>/<version>/` is a resource's, whether there is one or not: no rule
about paths can open it. What the router would understand in another way than this file is refused here.
Source: Kubernetes documentation, "Authorization", "Determine the request verb". Must not live here: who may do what.
"""

from __future__ import annotations

import re
from dataclasses import replace

from starlette.datastructures import QueryParams
from starlette.types import Scope

from skerry.api import selector
from skerry.api.errors import InvalidError, NotFoundError
from skerry.api.kinds import KINDS
from skerry.core.rbac import Attributes

_VERBS = {"POST": "create", "GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_OF_COLLECTIONS = {"get": "list", "delete": "deletecollection"}
OF_NAMESPACES = ("status", "finalize")
"""What follows a namespace's name and is a part of it, not a resource in it."""
_CONVERSATIONS = {("", "pods", name) for name in ("exec", "attach", "portforward")}
"""They do something, also where WebSocket makes a GET of them: who may only read may not begin one."""
_SEGMENT = re.compile(r"[^/\x00-\x1f\x7f]+")
_NODES = {("", "nodes"), ("metrics.k8s.io", "nodes")}
_CLUSTER_SCOPED = {(info.group, info.plural) for info in KINDS if not info.namespaced} | _NODES


def of(scope: Scope) -> Attributes:
    """Return what a request wants. Raises NotFoundError for a path that no route could have."""
    method, path = scope["method"], scope["path"]
    segments = path.removeprefix("/").removesuffix("/").split("/")
    head = {"api": 2, "apis": 3}.get(segments[0], 0)
    if not head or len(segments) <= head:
        return Attributes(verb=method.lower(), path=path)
    if any(segment in (".", "..") or not _SEGMENT.fullmatch(segment) for segment in segments):
        raise NotFoundError("the server could not find the requested resource", element=f"{method} {path[:200]}")
    group = segments[1] if segments[0] == "apis" else ""
    found = _resource(segments[head:], group)
    found = replace(found, verb=_VERBS.get(method, method.lower()), version=segments[head - 1])
    if (found.group, found.resource, found.subresource) in _CONVERSATIONS:
        found = replace(found, verb="create")
    if found.namespace and found.resource != "namespaces" and (group, found.resource) in _CLUSTER_SCOPED:
        raise NotFoundError("the server could not find the requested resource", element=f"{method} {path[:200]}")
    return found if found.name else _of_collection(found, QueryParams(scope.get("query_string", b"")))


def _resource(rest: list[str], group: str) -> Attributes:
    """Return what the segments behind group and version name, without the verb."""
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2 and rest[2] not in OF_NAMESPACES:
            rest = rest[2:]
    resource, name, subresource, *_ = (*rest, "", "")
    return Attributes(verb="", group=group, resource=resource, name=name, subresource=subresource, namespace=namespace)


def _of_collection(found: Attributes, query: QueryParams) -> Attributes:
    verb = _OF_COLLECTIONS.get(found.verb, found.verb)
    if verb == "list" and query.get("watch", "").lower() not in ("", "0", "false"):
        verb = "watch"
    if verb not in ("list", "watch"):
        return replace(found, verb=verb)
    # Rules with resourceNames allow to list and watch these alone, asked for by name.
    return replace(found, verb=verb, name=_selected_name(query.get("fieldSelector", "")))


def _selected_name(text: str) -> str:
    """Return the one name that a field selector leaves over, or ""."""
    terms = [term.strip() for term in text.split(",")] if len(text) <= selector.MAX_SELECTOR_LENGTH else []
    named = [term for term in terms if re.match(r"metadata\.name\s*={1,2}", term)]
    try:
        found = selector.parse_fields(",".join(named), ("metadata.name",))
    except InvalidError:
        return ""
    names = {value for _, equal, value in found if equal}
    return names.pop() if len(names) == 1 and all(_SEGMENT.fullmatch(name) for name in names) else ""
