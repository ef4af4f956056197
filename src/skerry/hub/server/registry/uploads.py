"""Uploads: at once, in one request after the first, or in chunks that go on where a broken line left them.

An upload's id, as clients see it, is the store's own and a MAC over it, the repository and who began it: with anybody
else, or in another repository, there is no such upload. Must not live here: how bytes are kept.
"""

from __future__ import annotations

import hmac
import re
from contextlib import suppress
from hashlib import sha256

from starlette.responses import Response

from skerry.api.errors import ConflictError, InvalidError, NotFoundError
from skerry.core import manifest as manifests
from skerry.core.ports import ArtifactStore
from skerry.hub.context import HubContext
from skerry.hub.server.registry import callers
from skerry.hub.server.registry.answers import RegistrySettings, accepted, created, problem, upload_headers
from skerry.hub.server.registry.call import Call

_CONTENT_RANGE = re.compile(r"(?:bytes )?([0-9]{1,18})-([0-9]{1,18})(?:/\S*)?")
_KEY = "registry uploads v1"


class Uploads:
    """The endpoints of `/v2/<name>/blobs/uploads/`."""

    def __init__(self, context: HubContext, settings: RegistrySettings) -> None:
        self._context = context
        self._artifacts: ArtifactStore = context.artifacts
        self._idle = settings.idle_seconds

    async def start(self, call: Call) -> Response:
        """Begin an upload; mount the blob, or take all of it, where the request says so and that is possible."""
        mount, source = call.query("mount"), call.query("from") or call.name
        if mount and await callers.may(self._context, call.caller, "pull", source):
            try:
                await self._artifacts.mount_blob(call.name, mount, source=source)
                return created(f"/v2/{call.name}/blobs/{mount}", mount)
            except (NotFoundError, InvalidError):
                pass  # the specification's answer is to begin an ordinary upload
        digest = call.query("digest")
        if digest:
            manifests.check_digest(digest)
        upload = await self._artifacts.start_upload(call.name)
        if not digest:
            return accepted(call.name, self._seal(call, upload), 0)
        try:
            await self._artifacts.append_upload(upload, call.body(self._idle), offset=0)
            await self._artifacts.finish_upload(upload, digest)
        except BaseException:
            with suppress(NotFoundError):  # nobody knows its id, so nobody could go on with it
                await self._artifacts.cancel_upload(upload)
            raise
        return created(f"/v2/{call.name}/blobs/{digest}", digest)

    async def get(self, call: Call) -> Response:
        """Tell how far an upload has got."""
        upload = await self._open(call)
        return accepted(call.name, call.part("upload"), await self._artifacts.upload_size(upload), status=204)

    async def append(self, call: Call) -> Response:
        """Take a chunk, which must begin where the last one ended."""
        upload = await self._open(call)
        try:
            offset, length = sent_part(call.header("content-range"))
            _check_length(call, length)
            size = await self._artifacts.append_upload(upload, call.body(self._idle), offset=offset)
        except (ConflictError, _RangeError) as error:
            return await self._out_of_order(call, upload, error)
        except _SizeError as error:
            return problem(400, "SIZE_INVALID", error.sentence)
        if offset is not None and length is not None and size - offset != length:
            return problem(400, "SIZE_INVALID", f"Content-Range announced {length} bytes, {size - offset} came")
        return accepted(call.name, call.part("upload"), size)

    async def finish(self, call: Call) -> Response:
        """Take the last chunk, if there is one, and turn the upload into a blob."""
        upload = await self._open(call)
        digest = call.query("digest")
        manifests.check_digest(digest)
        try:
            offset, length = sent_part(call.header("content-range"))
            _check_length(call, length)
            await self._artifacts.append_upload(upload, call.body(self._idle), offset=offset)
            await self._artifacts.finish_upload(upload, digest)
        except (ConflictError, _RangeError) as error:
            return await self._out_of_order(call, upload, error)
        except _SizeError as error:
            return problem(400, "SIZE_INVALID", error.sentence)
        return created(f"/v2/{call.name}/blobs/{digest}", digest)

    async def cancel(self, call: Call) -> Response:
        """Drop an upload."""
        await self._artifacts.cancel_upload(await self._open(call))
        return Response(status_code=204)

    async def _open(self, call: Call) -> str:
        """Return the store's id of an upload. Raises NotFoundError for anybody else's."""
        shown = call.part("upload")
        upload = shown.rpartition(".")[0]
        if not hmac.compare_digest(self._seal(call, upload).encode(), shown.encode()):
            raise NotFoundError(element=f"upload {shown[:64]!a}", hint="start again")
        if await self._artifacts.upload_repository(upload) != call.name:
            raise NotFoundError(f"was not begun in {call.name}", element=f"upload {shown[:64]!a}")
        return upload

    def _seal(self, call: Call, upload: str) -> str:
        said = "\0".join((call.name, call.caller.name, upload)).encode()
        mac = hmac.new(self._context.authority.derive_key(_KEY), said, sha256).hexdigest()
        return f"{upload}.{mac[:32]}"

    async def _out_of_order(self, call: Call, upload: str, error: ConflictError | _RangeError) -> Response:
        refusal = problem(416, "BLOB_UPLOAD_INVALID", error.sentence)
        size = await self._artifacts.upload_size(upload)
        refusal.headers.update(upload_headers(call.name, call.part("upload"), size))
        return refusal


class _RangeError(InvalidError):
    """Is not a range."""


def sent_part(text: str) -> tuple[int | None, int | None]:
    """Return where a `Content-Range` says the body begins, and its length; None where nothing is said.

    Raises InvalidError for what is none; the specification answers that as a chunk out of order.
    """
    if not text:
        return None, None
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None or int(match.group(2)) < int(match.group(1)):
        raise _RangeError(f'"{text[:80]}" is not a range', element="Content-Range", hint="write it as <first>-<last>")
    start, last = map(int, match.groups())
    return start, last + 1 - start


def _check_length(call: Call, length: int | None) -> None:
    announced = call.header("content-length")
    if length is not None and announced and announced != str(length):
        raise _SizeError(f"Content-Range says {length} bytes, Content-Length {announced[:30]}", element="chunk")


class _SizeError(InvalidError):
    """Has another size than announced."""
