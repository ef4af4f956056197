"""Manifests and what is known of them: tags, and what refers to them.

Must not live here: what manifests mean (`core.manifest`).
"""

from __future__ import annotations

import re
from urllib.parse import urlencode

import msgspec
from starlette.responses import Response

from skerry.api.errors import ForbiddenError, TooLargeError
from skerry.core import manifest as manifests
from skerry.core.ports import ArtifactStore, Manifest
from skerry.hub.server.registry.answers import VERSION, RegistrySettings, created, json, problem
from skerry.hub.server.registry.call import Call
from skerry.hub.server.registry.devices import DeviceReach

MAX_TAGS = 1000
"""Tags in one answer; more follow by the `Link` header."""
MAX_REFERRERS_BYTES = 1024 * 1024
"""Of one page of referrers; more follow by the `Link` header."""
MAX_REFERRER_BYTES = 256 * 1024
"""Of a manifest with a subject: all that refer to one subject are read to list them."""


class Manifests:
    """The endpoints of `/v2/<name>/manifests/`, `/tags/list` and `/referrers/`."""

    def __init__(self, artifacts: ArtifactStore, settings: RegistrySettings, reach: DeviceReach) -> None:
        self._artifacts = artifacts
        self._settings = settings
        self._reach = reach

    async def get(self, call: Call) -> Response:
        """Send a manifest by tag or digest, as it was pushed."""
        reference = call.part("reference")
        if call.caller.is_device:
            found = await self._reach.get_manifest(call.caller.identity, call.name, reference)
        else:
            found = await self._artifacts.get_manifest(call.name, reference)
        headers = {
            "Content-Type": found.media_type,
            "Content-Length": str(len(found.raw)),
            "Docker-Content-Digest": found.digest,
            "ETag": f'"{found.digest}"',
            **VERSION,
        }
        return Response(b"" if call.is_head else found.raw, headers=headers)

    async def put(self, call: Call) -> Response:
        """Store a manifest whose parts are there."""
        most = self._settings.max_manifest_bytes
        too_large = TooLargeError(f"is larger than a manifest may be ({most} bytes)", element="manifest")
        announced = call.header("content-length")
        if announced.isdecimal() and int(announced) > most:
            raise too_large
        raw = bytearray()
        async for chunk in call.body(self._settings.idle_seconds):
            raw += chunk
            if len(raw) > most:
                raise too_large
        media_type = call.header("content-type").partition(";")[0].strip()
        subject = manifests.parse(bytes(raw), media_type).subject
        if subject is not None and len(raw) > MAX_REFERRER_BYTES:
            raise TooLargeError(f"with a subject is larger than {MAX_REFERRER_BYTES} bytes", element="manifest")
        stored = await self._artifacts.put_manifest(call.name, call.part("reference"), media_type, bytes(raw))
        response = created(f"/v2/{call.name}/manifests/{stored.digest}", stored.digest)
        if subject is not None:
            response.headers["OCI-Subject"] = subject.digest
        return response

    async def delete(self, call: Call) -> Response:
        """Remove a tag, or a manifest with all its tags."""
        await self._artifacts.delete_manifest(call.name, call.part("reference"))
        return Response(status_code=202, headers=VERSION)

    async def tags(self, call: Call) -> Response:
        """List tags in order, `n` at a time after `last`."""
        if call.caller.is_device:
            raise ForbiddenError("may not list tags", element=f"device {call.caller.identity.name}")
        wanted = call.request.query_params.get("n")
        if wanted is not None and not re.fullmatch(r"[0-9]{1,9}", wanted):
            return problem(400, "PAGINATION_NUMBER_INVALID", f'n is "{wanted[:20]}", which is not a number')
        limit = min(MAX_TAGS, int(wanted)) if wanted is not None else MAX_TAGS
        last = call.query("last")
        tags = [tag for tag in await self._artifacts.list_tags(call.name) if tag > last]
        response = json({"name": call.name, "tags": tags[:limit]})
        if 0 < limit < len(tags):
            _link(response, f"/v2/{call.name}/tags/list", n=str(limit), last=tags[limit - 1])
        return response

    async def referrers(self, call: Call) -> Response:
        """List what refers to a manifest, of one artifact type if asked."""
        digest = call.part("digest")
        if call.caller.is_device:
            await self._reach.check_referrers(call.caller.identity, call.name, digest)
        wanted, last = call.request.query_params.get("artifactType"), call.query("last")
        page: list[manifests.Descriptor] = []
        size, more = 0, False
        for referrer in await self._artifacts.list_referrers(call.name, digest):
            entry = _describe(referrer)
            if entry.digest <= last or (wanted is not None and entry.artifact_type != wanted):
                continue
            size += len(msgspec.json.encode(entry))
            if page and size > MAX_REFERRERS_BYTES:
                more = True
                break
            page.append(entry)
        index = manifests.ImageIndex(schema_version=2, media_type=manifests.INDEX_TYPE, manifests=page)
        response = Response(msgspec.json.encode(index), media_type=manifests.INDEX_TYPE, headers=VERSION)
        query = {} if wanted is None else {"artifactType": wanted}
        if wanted is not None:
            response.headers["OCI-Filters-Applied"] = "artifactType"
        if more:
            _link(response, f"/v2/{call.name}/referrers/{digest}", **query, last=page[-1].digest)
        return response


def _link(response: Response, path: str, **query: str) -> None:
    response.headers["Link"] = f'<{path}?{urlencode(query)}>; rel="next"'


def _describe(referrer: Manifest) -> manifests.Descriptor:
    document = manifests.parse(referrer.raw, referrer.media_type)
    return manifests.Descriptor(
        media_type=referrer.media_type,
        digest=referrer.digest,
        size=len(referrer.raw),
        artifact_type=document.type,
        annotations=document.annotations,
    )
