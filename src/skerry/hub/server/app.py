"""All paths of the hub's HTTP API, and the one place where errors become answers.

Around the application this module builds, `hub.identity` says whose certificate it is; `hub.authentication` knows those
who have none, `access` decides what they may do.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skerry.api import rules
from skerry.api.errors import NotFoundError, SkerryError, TimedOutError
from skerry.api.kinds import KINDS, KindInfo
from skerry.api.kinds.namespace import Namespace
from skerry.api.meta import GROUP, VERSION
from skerry.hub.authentication import chain
from skerry.hub.context import HubContext
from skerry.hub.server import (
    access,
    attributes,
    audit,
    audit_events,
    authentication,
    certificates,
    create,
    delete,
    discovery,
    forward,
    garbage,
    get,
    health,
    metrics,
    openapi,
    openapi_v2,
    patch,
    registry,
    remote,
    resources,
    status,
    subresources,
    update,
    watch,
)
from skerry.hub.server import list as lists
from skerry.hub.server.call import Call
from skerry.hub.server.projection import serve as projection

REQUEST_SECONDS = 60.0
"""How long any call but a watch may take; above what a device may take to answer."""

log = logging.getLogger(__name__)
Verb = Callable[[Call], Awaitable[Response]]

_KINDS = {(info.path, info.plural): info for info in KINDS}
_NAMESPACES = next(info for info in KINDS if info.type is Namespace)
_PATHS = tuple(dict.fromkeys(info.path for info in KINDS))
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_EVERYWHERE: dict[str, tuple[Verb, str]] = {"GET": (lists.list_, "list")}
_COLLECTION = _EVERYWHERE | {
    "POST": (create.create, "create"),
    "DELETE": (delete.delete_collection, "deletecollection"),
}
_ITEM: dict[str, tuple[Verb, str]] = {
    "GET": (get.get, "get"),
    "PUT": (update.update, "update"),
    "PATCH": (patch.patch, "patch"),
    "DELETE": (delete.delete, "delete"),
}
_SUBRESOURCES: dict[tuple[str, str], dict[str, Verb]] = {
    **{
        (info.plural, "status"): {method: verb for method, (verb, name) in _ITEM.items() if name in info.status_verbs}
        for info in KINDS
        if info.status_verbs
    },
    ("devices", "log"): {"GET": subresources.log},
    ("devices", "infer"): {"POST": subresources.infer},
    ("devices", "reconcile"): {"POST": subresources.reconcile},
    ("modeldeployments", "explain"): {"GET": subresources.explain},
    ("serviceaccounts", "token"): {"POST": authentication.create_token},
    ("namespaces", "finalize"): {"PUT": update.update},
    # Decisions go by their own path, and only the hub signs.
    ("certificatesigningrequests", "approval"): {
        "GET": get.get,
        "PUT": certificates.approve,
        "PATCH": certificates.patch_approval,
    },
}
_HINTS = {
    "scale": "nothing here has a number of replicas: a model deployment runs on every device that its selector means, "
    "and spec.strategy.waves says how many at a time"
}
"""For subresources that clients know from elsewhere."""


def build_app(context: HubContext) -> Starlette:
    """Return the whole HTTP API over these parts; `scope["skerry.identity"]` must say who calls."""
    known = authentication.authentication_of(context)
    routes = [
        *_routes(context),
        *authentication.routes(context),
        *projection.routes(context),
        *remote.routes(context),
        *registry.routes(context),
        *(route for path in _PATHS for route in _resource_routes(context, path)),
    ]
    return Starlette(
        routes=[route for route in routes if _is_served(route, context.groups)],
        middleware=[
            Middleware(audit.recorded, audit=context.audit, clock=context.clock, attributes_of=attributes.of),
            Middleware(guarded),
            Middleware(chain.authenticated, authentication=known, audience=context.hub_url),
            Middleware(audit.known),
            Middleware(access.authorized, authorizer=context.authorizer),
            Middleware(audit.begun),
            Middleware(forward.forwarded, forwarding=context.forwarding),
        ],
        exception_handlers={HTTPException: _http_error},
    )


def _routes(context: HubContext) -> list[BaseRoute]:
    async def cacerts(_: Request) -> Response:
        return Response(context.authority.ca_pem, media_type="application/x-pem-file")

    async def read_store() -> None:
        await context.objects.store.revision()

    context.health.add("store", read_store)
    groups = resources.GROUPS if context.groups is None else context.groups

    return [
        *health.routes(context.health),
        *metrics.routes(context.shed),
        Route("/version", discovery.version),
        Route("/cacerts", cacerts),
        Route("/api", discovery.api),
        Route("/api/{version}", partial(discovery.group_version, groups=groups)),
        Route("/apis", partial(discovery.apis, groups=groups)),
        Route("/apis/{group}", partial(discovery.group, groups=groups)),
        Route("/apis/{group}/{version}", partial(discovery.group_version, groups=groups)),
        *garbage.routes(context, f"/apis/{GROUP}/{VERSION}"),
        *audit_events.routes(context, f"/apis/{GROUP}/{VERSION}"),
        Route("/openapi/v2", partial(openapi_v2.document, groups=groups)),
        Route("/openapi/v3", partial(openapi.index, groups=groups)),
        Route("/openapi/v3/{path:path}", partial(openapi.group_document, groups=groups)),
    ]


def _resource_routes(context: HubContext, path: str) -> list[BaseRoute]:
    """Return the routes of one group and version: a namespace's resources, and those that are in none or in all."""
    endpoint = _resource_endpoint(context, path)
    within, without = f"{path}/namespaces/{{namespace}}/{{plural}}", f"{path}/{{plural}}"
    below = ("", "/{name}", "/{name}/{subresource}")
    routes: list[BaseRoute] = [
        Route(base + rest, endpoint, methods=_METHODS) for base in (within, without) for rest in below
    ]
    if path == _NAMESPACES.path:  # a namespace's own subresources, where its resources would stand
        for name in attributes.OF_NAMESPACES:
            its_own = _resource_endpoint(context, path, plural=_NAMESPACES.plural, subresource=name)
            routes.insert(0, Route(f"{path}/namespaces/{{name}}/{name}", its_own, methods=_METHODS))
    return routes


def _is_served(route: BaseRoute, groups: Collection[str] | None) -> bool:
    """Return whether a route is of no group, or of one that is served here; else its path is one that is not there."""
    if groups is None:
        return True
    match str(getattr(route, "path", "")).split("/")[1:]:
        case ["api", *_]:
            return "" in groups
        case ["apis", group, *_] if not group.startswith("{"):
            return group in groups
    return True


def _resource_endpoint(context: HubContext, path: str, **fixed: str) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint of a group's paths: it finds the verb and answers its errors with the object's name."""

    async def endpoint(request: Request) -> Response:
        parts = {**fixed, **request.path_params}
        info = _KINDS.get((path, parts["plural"]))
        if info is None or not _in_scope(info, parts):
            raise _unknown_path(request)
        call = Call(
            context=context,
            request=request,
            info=info,
            namespace=parts.get("namespace", ""),
            name=parts.get("name", ""),
            subresource=parts.get("subresource", ""),
        )
        try:
            verb = _verb(call)
            if verb is watch.watch:
                return await verb(call)
            async with asyncio.timeout(REQUEST_SECONDS):
                return await verb(call)
        except TimeoutError:
            error: SkerryError = TimedOutError(element=f"{request.method} {request.url.path[:200]}")
        except SkerryError as raised:
            error = raised
        return status.respond_status(
            status.status_of(error, group=info.group, kind=info.kind, plural=info.plural, name=call.name)
        )

    return endpoint


def _in_scope(info: KindInfo, parts: Mapping[str, str]) -> bool:
    """Return whether a kind has paths of this form; objects in namespaces are seen without one all together only."""
    namespace = parts.get("namespace")
    if namespace is None:
        return not info.namespaced or "name" not in parts
    return info.namespaced and rules.is_namespace(namespace)


def _verb(call: Call) -> Verb:
    if call.subresource:
        verbs = _SUBRESOURCES.get((call.info.plural, call.subresource))
        if verbs is None:
            raise _unknown_path(call.request, hint=_HINTS.get(call.subresource, ""))
    else:
        verbs = {method: verb for method, (verb, name) in _found(call).items() if name in call.info.verbs}
    method = "GET" if call.request.method == "HEAD" else call.request.method
    if method not in verbs:
        raise HTTPException(405, headers={"Allow": ", ".join(verbs)})
    if call.request.method == "GET" and not call.name and call.flag("watch"):
        return watch.watch
    return verbs[method]


def _found(call: Call) -> dict[str, tuple[Verb, str]]:
    """Return the verbs at this path, each with its name."""
    if call.name:
        return _ITEM
    return _EVERYWHERE if call.info.namespaced and not call.namespace else _COLLECTION


def _unknown_path(request: Request, *, hint: str = "") -> NotFoundError:
    element = f"{request.method} {request.url.path[:200]}"
    return NotFoundError("the server could not find the requested resource", element=element, hint=hint)


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer what the router itself refuses."""
    assert isinstance(error, HTTPException)  # registered for this type only
    reason = {404: "NotFound", 405: "MethodNotAllowed"}.get(error.status_code, "BadRequest")
    message = {404: "the server could not find the requested resource"}.get(error.status_code, error.detail)
    response = status.respond_status(
        status.plain(error.status_code, reason, f"{request.method} {request.url.path[:200]}: {message}")
    )
    response.headers.update(error.headers or {})
    return response


def guarded(app: ASGIApp) -> ASGIApp:
    """Wrap an application so that whatever is raised becomes a Status, and is logged if it was our own fault."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await app(scope, receive, noting)
            return
        except ClientDisconnect:
            return  # nobody is there to be answered
        except SkerryError as error:
            answer = status.status_of(error)
        except TimeoutError:
            answer = status.plain(504, "Timeout", "no answer within the time allowed")
        except Exception:
            incident = secrets.token_hex(4)
            log.exception("api.failed path=%r incident=%s", scope.get("path", "")[:200], incident)
            answer = status.plain(500, "InternalError", f"the hub failed; its log has more under incident {incident}")
        if started:
            raise ConnectionAbortedError("an answer broke off")  # the server closes the connection
        await status.respond_status(answer)(scope, receive, send)

    return guard
