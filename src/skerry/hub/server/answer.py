"""Answers in the form the client accepts: the object, its metadata alone, or a table of it.

Source: Kubernetes API concepts, "Alternate representations of resources".
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec
from starlette.responses import Response

from skerry.api import codec, validation
from skerry.api.errors import BadRequestError, NotAcceptableError
from skerry.api.kinds import Resource
from skerry.hub.server import status, table
from skerry.hub.server.call import Call

Form = Literal["Object", "Table", "PartialObjectMetadata"]
_MAX_WARNINGS = 10
_JSON = ("application/json", "application/*", "*/*")
_COMPRESSED_FROM = 128 * 1024
"""Bytes of an answer below which compressing it is not worth the while; Kubernetes has the same bound."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How one call wants its objects."""

    call: Call
    form: Form

    def one(self, item: Resource, *, header: bool = True) -> dict[str, Any]:
        """Return one object in this shape."""
        match self.form:
            case "Table":
                revision = {"resourceVersion": item.metadata.resource_version}
                return self._table([item], metadata=revision, header=header)
            case "PartialObjectMetadata":
                return table.partial(item)
            case "Object":
                return codec.present(item)

    def many(self, items: Sequence[Resource], metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return a list of objects in this shape, to be encoded as JSON."""
        if self.form == "Table":
            return self._table(items, metadata=metadata, header=True)
        whole = self.form == "Object"
        return {
            "kind": f"{self.call.info.kind}List" if whole else "PartialObjectMetadataList",
            "apiVersion": self.call.info.api_version if whole else "meta.k8s.io/v1",
            "metadata": metadata,
            "items": [msgspec.Raw(codec.encode(item)) if whole else table.partial(item) for item in items],
        }

    def bookmark(self, revision: int) -> dict[str, Any]:
        """Return an object that has nothing but a revision."""
        metadata = {"resourceVersion": str(revision)}
        if self.form == "Table":
            return self._table([], metadata=metadata, header=False)
        if self.form == "PartialObjectMetadata":
            return {"kind": self.form, "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
        return {"kind": self.call.info.kind, "apiVersion": self.call.info.api_version, "metadata": metadata}

    def _table(self, items: Sequence[Resource], *, metadata: Mapping[str, Any], header: bool) -> dict[str, Any]:
        return table.table(
            self.call.info,
            items,
            now=self.call.context.clock.now(),
            metadata=metadata,
            include=included(self.call),
            header=header,
        )


def included(call: Call) -> table.IncludeObject:
    """Return how much of each object a table's rows carry. Raises BadRequestError."""
    include = call.text("includeObject") or "Metadata"
    if include not in ("None", "Metadata", "Object"):
        raise BadRequestError(f'"{include[:40]}" is not known', element="includeObject", hint="None, Metadata, Object")
    return cast(table.IncludeObject, include)


def shape_of(call: Call) -> Shape:
    """Return the first shape in the Accept header that there is; the plain object when none is asked for.

    Raises NotAcceptableError when there is none of those asked for.
    """
    asked = call.request.headers.get("accept", "").strip()
    for accepted in (asked or "*/*").split(","):
        media, *rest = (part.strip() for part in accepted.split(";"))
        parameters = dict(part.split("=", 1) for part in rest if "=" in part)
        wanted = parameters.get("as", "")
        if media not in _JSON or parameters.get("g", "meta.k8s.io") != "meta.k8s.io":
            continue
        if wanted == "Table":
            return Shape(call=call, form="Table")
        if wanted in ("PartialObjectMetadata", "PartialObjectMetadataList"):
            return Shape(call=call, form="PartialObjectMetadata")
        if not wanted:
            return Shape(call=call, form="Object")
    raise NotAcceptableError(
        f'"{asked[:80]}" is not what there is', element="Accept", hint="accept application/json, as it is or as=Table"
    )


def takes_gzip(call: Call) -> bool:
    """Return whether the client takes an answer that is compressed."""
    codings = call.request.headers.get("accept-encoding", "").split(",")
    return "gzip" in {part.partition(";")[0].strip() for part in codings}


async def respond_list(call: Call, shown: Mapping[str, Any]) -> Response:
    """Return a list as the response, compressed when it is long and the client takes it so."""
    response = status.respond(shown)
    if len(response.body) >= _COMPRESSED_FROM and takes_gzip(call):
        content = await asyncio.to_thread(gzip.compress, bytes(response.body), compresslevel=1, mtime=0)
        headers = {"content-encoding": "gzip", "vary": "Accept-Encoding"}
        response = Response(content, media_type=status.JSON, headers=headers)
    return response


def respond(call: Call, item: Resource, *, code: int = 200, sent: Mapping[str, Any] | None = None) -> Response:
    """Return one object as the response; `sent` is what the client wrote, for warnings about unknown fields."""
    response = status.respond(shape_of(call).one(item), code=code)
    if sent is not None and call.field_validation == "Warn":
        unknown = validation.walk(call.info.type, sent)[1].unknown
        warn(response, [codec.unknown_field_problem(path, near).sentence for path, near in unknown])
    return response


def warn(response: Response, texts: Sequence[str]) -> None:
    """Have clients show these words; kubectl does. The first few of many have to do. Source: RFC 7234, 5.5."""
    for text in texts[:_MAX_WARNINGS]:
        printable = "".join(c if " " <= c <= "~" else "?" for c in text)  # no line breaks in headers
        quoted = printable.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.append("Warning", f'299 - "{quoted}"')
