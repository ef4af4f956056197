"""Blobs: whole, in parts (RFC 9110, section 14), and gone.

Must not live here: how blobs come in (`uploads`).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from skerry.core import manifest as manifests
from skerry.core.ports import ArtifactStore
from skerry.hub.server.registry.answers import VERSION, problem
from skerry.hub.server.registry.call import Call
from skerry.hub.server.registry.devices import DeviceReach

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)


class Blobs:
    """The endpoints of `/v2/<name>/blobs/<digest>`."""

    def __init__(self, artifacts: ArtifactStore, reach: DeviceReach) -> None:
        self._artifacts = artifacts
        self._reach = reach

    async def get(self, call: Call) -> Response:
        """Send a blob or a part of it, as it is read from the store."""
        digest = call.part("digest")
        manifests.check_digest(digest)
        if call.caller.is_device:
            await self._reach.check_blob(call.caller.identity, call.name, digest)
        size = await self._artifacts.stat_blob(call.name, digest)
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, max-age=31536000, immutable",
            **VERSION,
        }
        wanted = call.header("range") if call.header("if-range") in ("", headers["ETag"]) else ""
        part = wanted_part(wanted, size)
        if part is not None and part[0] >= part[1]:
            refusal = problem(416, "SIZE_INVALID", f"there are {size} bytes")
            refusal.headers["Content-Range"] = f"bytes */{size}"
            return refusal
        start, end = part or (0, size)
        if part is not None:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        headers["Content-Length"] = str(end - start)
        status = 206 if part is not None else 200
        if call.is_head:
            return Response(status_code=status, headers=headers)
        caller = f"{call.name.partition('/')[0]}/{call.caller.name}"
        content = self._artifacts.read_blob(call.name, digest, start=start, length=end - start, caller=caller)
        return _Streamed(content, status_code=status, headers=headers)

    async def delete(self, call: Call) -> Response:
        """Take a blob from the repository."""
        await self._artifacts.delete_blob(call.name, call.part("digest"))
        return Response(status_code=202, headers=VERSION)


def wanted_part(text: str, size: int) -> tuple[int, int] | None:
    """Return the half-open part that a `Range` asks for; None for all of it, an empty part if there is no such one.

    What is not understood, several parts among it, is ignored as RFC 9110, section 14.2, allows.
    """
    match = _RANGE.fullmatch(text)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    start, end = int(first), min(size, int(last) + 1 if last else size)
    if last and int(last) < start:
        return None
    return start, end


class _Streamed(StreamingResponse):
    """A response whose source is closed at once when the receiver goes away."""

    async def stream_response(self, send: Send) -> None:
        async with aclosing(cast(AsyncGenerator[bytes, None], self.body_iterator)):
            await super().stream_response(send)
