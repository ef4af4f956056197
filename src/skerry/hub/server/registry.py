"""The artifact store over HTTP: the OCI Distribution Specification 1.1 under `/v2/`.

Lives here: URLs, headers and codes of the specification. Must not live here: how content is kept (`core.ports.
ArtifactStore`), what manifests mean (`core.manifest`), how a caller was identified (middleware puts an `Identity` into
the scope).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote, urlencode

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Send

from skerry.api.errors import (
    ConflictError,
    ForbiddenError,
    IntegrityError,
    InvalidError,
    NotFoundError,
    SkerryError,
    StorageFullError,
    TimedOutError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)
from skerry.core import access
from skerry.core import manifest as manifests
from skerry.core.ports import ArtifactStore, Manifest
from skerry.hub.context import HubContext
from skerry.hub.identity import IDENTITY

_log = logging.getLogger(__name__)

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_VERSION = {"Docker-Distribution-API-Version": "registry/2.0"}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d{1,18})-(\d{1,18})(?:/\S*)?")
MAX_TAGS = 1000
"""Tags in one answer; more follow by the `Link` header."""


@dataclass(frozen=True, kw_only=True)
class RegistrySettings:
    """Bounds of requests; those of blobs belong to the artifact store."""

    max_manifest_bytes: int = manifests.MAX_MANIFEST_BYTES
    idle_seconds: float = 60.0
    """How long a sender may send nothing before its request is given up."""


_Handler = Callable[[Request, str], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class _Action:
    """One method of one URL: who may call it, and the specification's code when the thing is not there or wrong."""

    handler: _Handler
    push: bool = False
    missing: str = "NAME_UNKNOWN"
    invalid: str = "NAME_INVALID"


def routes(context: HubContext, settings: RegistrySettings | None = None) -> list[BaseRoute]:
    """Return the registry's routes, all under `/v2/`."""
    registry = _Registry(context.artifacts, settings or RegistrySettings())
    blob: dict[str, Any] = {"missing": "BLOB_UNKNOWN", "invalid": "DIGEST_INVALID"}
    upload: dict[str, Any] = {"push": True, "missing": "BLOB_UPLOAD_UNKNOWN", "invalid": "DIGEST_INVALID"}
    manifest: dict[str, Any] = {"missing": "MANIFEST_UNKNOWN", "invalid": "MANIFEST_INVALID"}
    begin = {"POST": _Action(handler=registry.start_upload, **upload)}
    table: Mapping[str, Mapping[str, _Action]] = {
        "/v2/{name:path}/blobs/uploads": begin,
        "/v2/{name:path}/blobs/uploads/": begin,
        "/v2/{name:path}/blobs/uploads/{upload}": {
            "GET": _Action(handler=registry.get_upload, **upload),
            "PATCH": _Action(handler=registry.append_upload, **upload),
            "PUT": _Action(handler=registry.finish_upload, **upload),
            "DELETE": _Action(handler=registry.cancel_upload, **upload),
        },
        "/v2/{name:path}/blobs/{digest}": {
            "GET": _Action(handler=registry.get_blob, **blob),
            "HEAD": _Action(handler=registry.get_blob, **blob),
            "DELETE": _Action(handler=registry.delete_blob, push=True, **blob),
        },
        "/v2/{name:path}/manifests/{reference}": {
            "GET": _Action(handler=registry.get_manifest, **manifest),
            "HEAD": _Action(handler=registry.get_manifest, **manifest),
            "PUT": _Action(
                handler=registry.put_manifest, push=True, missing="MANIFEST_BLOB_UNKNOWN", invalid="MANIFEST_INVALID"
            ),
            "DELETE": _Action(handler=registry.delete_manifest, push=True, **manifest),
        },
        "/v2/{name:path}/tags/list": {"GET": _Action(handler=registry.list_tags)},
        "/v2/{name:path}/referrers/{digest}": {"GET": _Action(handler=registry.list_referrers, **blob)},
    }
    described = [Route(path, _endpoint(actions), methods=_METHODS) for path, actions in table.items()]
    version = [Route(path, _version, methods=_METHODS) for path in ("/v2", "/v2/")]
    return [*version, *described, Route("/v2/{rest:path}", _unknown, methods=_METHODS)]


class _Registry:
    def __init__(self, artifacts: ArtifactStore, settings: RegistrySettings) -> None:
        self._artifacts = artifacts
        self._settings = settings

    # --- blobs -----------------------------------------------------------------------------------------------------

    async def get_blob(self, request: Request, name: str) -> Response:
        digest = request.path_params["digest"]
        size = await self._artifacts.stat_blob(name, digest)
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, max-age=31536000, immutable",
        }
        part = _wanted_part(request, size, etag=headers["ETag"])
        if part is not None and part[0] >= part[1]:
            refusal = _error(416, "SIZE_INVALID", f"there are {size} bytes")
            refusal.headers["Content-Range"] = f"bytes */{size}"
            return refusal
        start, end = part or (0, size)
        if part is not None:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        headers["Content-Length"] = str(end - start)
        status = 206 if part is not None else 200
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        content = self._artifacts.read_blob(name, digest, start=start, length=end - start)
        return _Streamed(content, status_code=status, headers=headers)

    async def delete_blob(self, request: Request, name: str) -> Response:
        await self._artifacts.delete_blob(name, request.path_params["digest"])
        return Response(status_code=202)

    # --- uploads ---------------------------------------------------------------------------------------------------

    async def start_upload(self, request: Request, name: str) -> Response:
        mount, source = request.query_params.get("mount", ""), request.query_params.get("from", "")
        if mount and source and access.may_pull(_identity(request), source):
            try:
                await self._artifacts.mount_blob(name, mount, source=source)
                return _created(f"/v2/{name}/blobs/{mount}", mount)
            except (NotFoundError, InvalidError):
                pass  # the specification's answer is to begin an ordinary upload
        upload = await self._artifacts.start_upload(name)
        digest = request.query_params.get("digest", "")
        if not digest:
            return _accepted(name, upload, 0)
        try:
            await self._artifacts.append_upload(upload, self._body(request), offset=0)
        except BaseException:
            with suppress(NotFoundError):  # nobody knows its id, so nobody could go on with it
                await self._artifacts.cancel_upload(upload)
            raise
        await self._artifacts.finish_upload(upload, digest)
        return _created(f"/v2/{name}/blobs/{digest}", digest)

    async def get_upload(self, request: Request, name: str) -> Response:
        upload = await self._upload(request, name)
        return _accepted(name, upload, await self._artifacts.upload_size(upload), status=204)

    async def append_upload(self, request: Request, name: str) -> Response:
        upload = await self._upload(request, name)
        offset, length = _sent_part(request)
        try:
            size = await self._artifacts.append_upload(upload, self._body(request), offset=offset)
        except ConflictError as error:
            return await self._out_of_order(name, upload, error)
        if offset is not None and length is not None and size - offset != length:
            return _error(400, "SIZE_INVALID", f"Content-Range announced {length} bytes, {size - offset} came")
        return _accepted(name, upload, size)

    async def finish_upload(self, request: Request, name: str) -> Response:
        upload = await self._upload(request, name)
        digest = request.query_params.get("digest", "")
        manifests.check_digest(digest)
        offset, _ = _sent_part(request)
        try:
            await self._artifacts.append_upload(upload, self._body(request), offset=offset)
            await self._artifacts.finish_upload(upload, digest)
        except ConflictError as error:
            return await self._out_of_order(name, upload, error)
        return _created(f"/v2/{name}/blobs/{digest}", digest)

    async def cancel_upload(self, request: Request, name: str) -> Response:
        await self._artifacts.cancel_upload(await self._upload(request, name))
        return Response(status_code=204)

    async def _upload(self, request: Request, name: str) -> str:
        upload: str = request.path_params["upload"]
        if await self._artifacts.upload_repository(upload) != name:
            raise NotFoundError(f"was not begun in {name}", element=f"upload {upload}")
        return upload

    async def _out_of_order(self, name: str, upload: str, error: ConflictError) -> Response:
        refusal = _error(416, "BLOB_UPLOAD_INVALID", error.sentence)
        refusal.headers.update(_upload_headers(name, upload, await self._artifacts.upload_size(upload)))
        return refusal

    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        async with aclosing(request.stream()) as stream:
            while True:
                try:
                    async with asyncio.timeout(self._settings.idle_seconds):
                        chunk = await anext(stream)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise TimedOutError(
                        f"the sender sent nothing for {self._settings.idle_seconds:g} s", element="request body"
                    ) from None
                if chunk:
                    yield chunk

    # --- manifests -------------------------------------------------------------------------------------------------

    async def get_manifest(self, request: Request, name: str) -> Response:
        found = await self._artifacts.get_manifest(name, request.path_params["reference"])
        headers = {
            "Content-Type": found.media_type,
            "Content-Length": str(len(found.raw)),
            "Docker-Content-Digest": found.digest,
            "ETag": f'"{found.digest}"',
        }
        return Response(b"" if request.method == "HEAD" else found.raw, headers=headers)

    async def put_manifest(self, request: Request, name: str) -> Response:
        raw = bytearray()
        async for chunk in self._body(request):
            raw += chunk
            if len(raw) > self._settings.max_manifest_bytes:
                raise TooLargeError(
                    f"is larger than a manifest may be ({self._settings.max_manifest_bytes} bytes)", element="manifest"
                )
        media_type = request.headers.get("content-type", "").partition(";")[0].strip()
        stored = await self._artifacts.put_manifest(name, request.path_params["reference"], media_type, bytes(raw))
        response = _created(f"/v2/{name}/manifests/{stored.digest}", stored.digest)
        subject = manifests.parse(stored.raw, stored.media_type).subject
        if subject is not None:
            response.headers["OCI-Subject"] = subject.digest
        return response

    async def delete_manifest(self, request: Request, name: str) -> Response:
        await self._artifacts.delete_manifest(name, request.path_params["reference"])
        return Response(status_code=202)

    async def list_tags(self, request: Request, name: str) -> Response:
        wanted = request.query_params.get("n")
        if wanted is not None and not re.fullmatch(r"\d{1,9}", wanted):
            return _error(400, "PAGINATION_NUMBER_INVALID", f'n is "{wanted[:20]}", which is not a number')
        limit = min(MAX_TAGS, int(wanted)) if wanted is not None else MAX_TAGS
        last = request.query_params.get("last", "")
        tags = [tag for tag in await self._artifacts.list_tags(name) if tag > last]
        response = _json({"name": name, "tags": tags[:limit]})
        if 0 < limit < len(tags):
            query = urlencode({"n": limit, "last": tags[limit - 1]})
            response.headers["Link"] = f'</v2/{name}/tags/list?{query}>; rel="next"'
        return response

    async def list_referrers(self, request: Request, name: str) -> Response:
        found = await self._artifacts.list_referrers(name, request.path_params["digest"])
        wanted = request.query_params.get("artifactType")
        entries = [_describe(referrer) for referrer in found]
        kept = [entry for entry in entries if wanted is None or entry.artifact_type == wanted]
        index = manifests.ImageIndex(schema_version=2, media_type=manifests.INDEX_TYPE, manifests=kept)
        response = Response(msgspec.json.encode(index), media_type=manifests.INDEX_TYPE)
        if wanted is not None:
            response.headers["OCI-Filters-Applied"] = "artifactType"
        return response


class _Streamed(StreamingResponse):
    """A response whose source is closed at once when the receiver goes away."""

    async def stream_response(self, send: Send) -> None:
        async with aclosing(cast(AsyncGenerator[bytes, None], self.body_iterator)):
            await super().stream_response(send)


def _endpoint(actions: Mapping[str, _Action]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        action = actions.get(request.method)
        name: str = request.path_params["name"]
        try:
            _check_known(request)
            if action is None:
                refusal = _error(405, "UNSUPPORTED", f"{request.method} is not for this URL")
                refusal.headers["Allow"] = ", ".join(actions)
                return refusal
            _check_allowed(request, name, push=action.push)
            try:
                manifests.check_repository(name)
            except InvalidError as error:
                return _error(400, "NAME_INVALID", error.sentence)
            return await action.handler(request, name)
        except SkerryError as error:
            return _refusal(error, action)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody receives it

    return endpoint


async def _version(request: Request) -> Response:
    try:
        _check_known(request)
    except SkerryError as error:
        return _refusal(error, None)
    return _json({})


async def _unknown(request: Request) -> Response:
    try:
        _check_known(request)
    except SkerryError as error:
        return _refusal(error, None)
    return _error(404, "UNSUPPORTED", f"there is nothing at {quote(request.url.path[:200])}")


def _identity(request: Request) -> access.Identity:
    return cast(access.Identity, request.scope.get(IDENTITY, access.ANONYMOUS))


def _check_known(request: Request) -> None:
    if _identity(request).role == "anonymous":
        raise UnauthorizedError(element="registry", hint="present a client certificate of this hub")


def _check_allowed(request: Request, name: str, *, push: bool) -> None:
    identity = _identity(request)
    if not access.may_pull(identity, name) or (push and not access.may_push(identity)):
        verb = "push to" if push else "pull from"
        raise ForbiddenError(f"may not {verb} it", element=f"{identity.role} {identity.name}, repository {name[:255]}")


def _refusal(error: SkerryError, action: _Action | None) -> Response:
    missing, invalid = (action.missing, action.invalid) if action else ("NAME_UNKNOWN", "NAME_INVALID")
    codes: dict[type[SkerryError], tuple[int, str]] = {
        UnauthorizedError: (401, "UNAUTHORIZED"),
        ForbiddenError: (403, "DENIED"),
        NotFoundError: (404, missing),
        TimedOutError: (408, "BLOB_UPLOAD_INVALID"),
        ConflictError: (409, "BLOB_UPLOAD_INVALID"),
        InvalidError: (400, invalid),
        IntegrityError: (400, "DIGEST_INVALID"),
        TooLargeError: (413, "SIZE_INVALID"),
        StorageFullError: (507, "STORAGE_FULL"),
        UnavailableError: (503, "UNAVAILABLE"),
    }
    status, code = codes.get(type(error), (500, "UNKNOWN"))
    if status >= 500:
        _log.error("registry.request_failed code=%s error=%s", code, error)
    response = _error(status, code, error.sentence)
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Basic realm="skerry"'
    return response


def _error(status: int, code: str, message: str) -> Response:
    return _json({"errors": [{"code": code, "message": message}]}, status=status)


def _json(content: object, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status_code=status, media_type="application/json", headers=_VERSION)


def _created(location: str, digest: str) -> Response:
    return Response(status_code=201, headers={"Location": location, "Docker-Content-Digest": digest})


def _accepted(name: str, upload: str, size: int, *, status: int = 202) -> Response:
    return Response(status_code=status, headers=_upload_headers(name, upload, size))


def _upload_headers(name: str, upload: str, size: int) -> dict[str, str]:
    # An empty upload has the range 0-0, too: clients and other registries agree on that.
    return {
        "Location": f"/v2/{name}/blobs/uploads/{upload}",
        "Range": f"0-{max(0, size - 1)}",
        "Docker-Upload-UUID": upload,
    }


def _wanted_part(request: Request, size: int, *, etag: str) -> tuple[int, int] | None:
    """Return the half-open part that `Range` asks for; None for all of it, an empty part if there is no such one.

    What is not understood, several parts among it, is ignored as RFC 9110, section 14.2, allows.
    """
    match = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if match is None or request.headers.get("if-range", etag) != etag or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    start, end = int(first), min(size, int(last) + 1 if last else size)
    if last and int(last) < start:
        return None
    return start, end


def _sent_part(request: Request) -> tuple[int | None, int | None]:
    """Return where `Content-Range` says the body begins, and its length; None where nothing is said."""
    text = request.headers.get("content-range")
    if text is None:
        return None, None
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None or int(match.group(2)) < int(match.group(1)):
        raise InvalidError(f'"{text[:80]}" is not a range', element="Content-Range", hint="write it as <first>-<last>")
    start, last = map(int, match.groups())
    return start, last + 1 - start


def _describe(referrer: Manifest) -> manifests.Descriptor:
    document = manifests.parse(referrer.raw, referrer.media_type)
    return manifests.Descriptor(
        media_type=referrer.media_type,
        digest=referrer.digest,
        size=len(referrer.raw),
        artifact_type=document.type,
        annotations=document.annotations,
    )
