"""The table of the registry's URLs, and the way every request goes: known, allowed, well named, handled, answered.

Must not live here: what any of them does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from skerry.api.errors import InvalidError, SkerryError, UnauthorizedError
from skerry.core import manifest as manifests
from skerry.hub.context import HubContext
from skerry.hub.server import audit
from skerry.hub.server.registry import answers, callers, tokens
from skerry.hub.server.registry.answers import Codes, RegistrySettings
from skerry.hub.server.registry.blobs import Blobs
from skerry.hub.server.registry.call import Call, Handler
from skerry.hub.server.registry.devices import DeviceReach
from skerry.hub.server.registry.manifests import Manifests
from skerry.hub.server.registry.uploads import Uploads

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_PULL, _PUSH, _DELETE = ("pull",), ("pull", "push"), ("delete",)
_NO_CODES = Codes()


@dataclass(frozen=True, kw_only=True)
class _Action:
    """One method of one URL, with what its caller has to be allowed."""

    handler: Handler
    needs: tuple[str, ...] = _PULL
    codes: Codes = _NO_CODES


def routes(context: HubContext, settings: RegistrySettings | None = None) -> list[BaseRoute]:
    """Return the registry's routes, all under `/v2/`."""
    settings = settings or RegistrySettings()

    async def version(request: Request) -> Response:
        return _known(context, request) or answers.json({})

    async def token(request: Request) -> Response:
        return await tokens.issue(context, settings, request)

    async def unknown(request: Request) -> Response:
        nothing = f"there is nothing at {quote(request.url.path[:200])}"
        return _known(context, request) or answers.problem(404, "UNSUPPORTED", nothing)

    described = [
        Route(path, _endpoint(context, actions), methods=_METHODS)
        for path, actions in _table(context, settings).items()
    ]
    return [
        *(Route(path, version, methods=_METHODS) for path in ("/v2", "/v2/")),
        Route(callers.TOKEN_PATH, token, methods=_METHODS),
        *described,
        Route("/v2/{rest:path}", unknown, methods=_METHODS),
    ]


def _table(context: HubContext, settings: RegistrySettings) -> Mapping[str, Mapping[str, _Action]]:
    reach = DeviceReach(context)
    blobs, uploads = Blobs(context.artifacts, reach), Uploads(context, settings)
    documents = Manifests(context.artifacts, settings, reach)
    blob = Codes(missing="BLOB_UNKNOWN", invalid="DIGEST_INVALID")
    upload = Codes(missing="BLOB_UPLOAD_UNKNOWN", invalid="DIGEST_INVALID")
    manifest = Codes(missing="MANIFEST_UNKNOWN", invalid="MANIFEST_INVALID")
    pushed = Codes(missing="MANIFEST_BLOB_UNKNOWN", invalid="MANIFEST_INVALID")

    def read(handler: Handler, codes: Codes = _NO_CODES) -> dict[str, _Action]:
        return {method: _Action(handler=handler, codes=codes) for method in ("GET", "HEAD")}

    def push(handler: Handler, codes: Codes = upload) -> _Action:
        return _Action(handler=handler, needs=_PUSH, codes=codes)

    def delete(handler: Handler, codes: Codes) -> _Action:
        return _Action(handler=handler, needs=_DELETE, codes=codes)

    begin = {"POST": push(uploads.start)}
    return {
        "/v2/{name:path}/blobs/uploads": begin,
        "/v2/{name:path}/blobs/uploads/": begin,
        "/v2/{name:path}/blobs/uploads/{upload}": {
            "GET": push(uploads.get),
            "HEAD": push(uploads.get),
            "PATCH": push(uploads.append),
            "PUT": push(uploads.finish),
            "DELETE": push(uploads.cancel),
        },
        "/v2/{name:path}/blobs/{digest}": {**read(blobs.get, blob), "DELETE": delete(blobs.delete, blob)},
        "/v2/{name:path}/manifests/{reference}": {
            **read(documents.get, manifest),
            "PUT": push(documents.put, pushed),
            "DELETE": delete(documents.delete, manifest),
        },
        "/v2/{name:path}/tags/list": read(documents.tags),
        "/v2/{name:path}/referrers/{digest}": read(documents.referrers, blob),
    }


def _endpoint(context: HubContext, actions: Mapping[str, _Action]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        action = actions.get(request.method)
        name: str = request.path_params["name"]
        needs, codes = (action.needs, action.codes) if action else (_PULL, _NO_CODES)
        caller: callers.Caller | None = None
        try:
            caller = callers.identify(context, request)
            audit.call_by_token(request.scope, caller.subject)
            callers.check_known(caller)
            if action is None:
                refusal = answers.problem(405, "UNSUPPORTED", f"{request.method} is not for this URL")
                refusal.headers["Allow"] = ", ".join(actions)
                return refusal
            await callers.check_allowed(context, caller, needs, name)
            try:
                manifests.check_repository(name)
            except InvalidError as error:
                return answers.problem(400, "NAME_INVALID", error.sentence)
            await audit.begin_in_registry(request.scope)
            return await action.handler(Call(request=request, name=name, caller=caller))
        except UnauthorizedError as error:
            asked = name if manifests.is_repository(name) else ""
            headers = callers.challenge(request, context, asked, needs, known=caller is not None)
            return answers.refusal(error, codes, headers)
        except SkerryError as error:
            return answers.refusal(error, codes)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody receives it

    return endpoint


def _known(context: HubContext, request: Request) -> Response | None:
    """Return the answer to nobody; None where the caller is somebody."""
    try:
        callers.check_known(callers.identify(context, request))
    except UnauthorizedError as error:
        return answers.refusal(error, _NO_CODES, callers.challenge(request, context, "", (), known=False))
    return None
