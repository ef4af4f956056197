"""One call of the API: what was asked for, and the reading of its query and body, bounded.

Lives here: everything that several verbs need of a request. Must not live here: what a verb does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from starlette.requests import Request

from skerry.api import codec, documents, protobuf
from skerry.api.errors import BadRequestError, ConflictError, TooLargeError, UnsupportedError
from skerry.api.kinds import KindInfo, Resource
from skerry.api.meta import GROUP
from skerry.core.access import ANONYMOUS, Identity
from skerry.hub.context import HubContext
from skerry.hub.identity import IDENTITY

MAX_BODY_BYTES = 3 * 1024 * 1024
"""Of an admin's or a user's request; Kubernetes has the same bound."""
MAX_DEVICE_BODY_BYTES = 256 * 1024
"""Of anybody else's: an enrolment is small, and is read before its token can be looked at."""
MAX_OPTIONS_BYTES = 64 * 1024
"""Of how something is to be deleted, which is a few words."""
_AT_ONCE = 4096
"""Bytes in protocol buffers up to which nobody notices that they are read."""
_YAML = ("application/yaml", "text/yaml", "application/x-yaml")
_SERVER_METADATA = (
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
)
"""Metadata that only the hub sets; what a client sends there is read as precondition or not at all."""

FieldValidation = Literal["Strict", "Warn", "Ignore"]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request on its way to a verb. An empty namespace means all of them, an empty name the collection."""

    context: HubContext
    request: Request
    info: KindInfo
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def identity(self) -> Identity:
        """Who asks."""
        return cast(Identity, self.request.scope.get(IDENTITY, ANONYMOUS))

    @property
    def is_person(self) -> bool:
        """Whether it is somebody who was let in by name, an admin or a user: no device, and no stranger."""
        return self.identity.role in ("admin", "user")

    def text(self, parameter: str) -> str:
        """Return a query parameter, or ""."""
        return self.request.query_params.get(parameter, "")

    def number(self, parameter: str, *, default: int, most: int) -> int:
        """Return a query parameter as a whole number from 0 on. Raises BadRequestError."""
        text = self.text(parameter)
        if not text:
            return default
        if not (text.isascii() and text.isdigit()) or len(text) > 18 or int(text) > most:
            raise BadRequestError(f'"{text[:40]}" is not a whole number from 0 to {most}', element=parameter)
        return int(text)

    def flag(self, parameter: str) -> bool:
        """Return a query parameter as truth. Raises BadRequestError."""
        text = self.text(parameter)
        if text.lower() not in ("", "0", "false", "1", "true"):
            raise BadRequestError(f'"{text[:40]}" is neither true nor false', element=parameter)
        return text.lower() in ("1", "true")

    @property
    def dry_run(self) -> bool:
        """Whether nothing must be written. Raises BadRequestError for anything but `All`."""
        values = self.request.query_params.getlist("dryRun")
        if any(value != "All" for value in values):
            raise BadRequestError(f'"{values[0][:40]}" is not supported', element="dryRun", hint="write dryRun=All")
        return bool(values)

    @property
    def field_validation(self) -> FieldValidation:
        """What to do with unknown fields; strict unless the client asks otherwise. Raises BadRequestError.

        Devices may be newer than the hub: what it does not know yet is dropped.
        """
        if not self.is_person:
            return "Ignore"
        text = self.text("fieldValidation") or "Strict"
        if text not in ("Strict", "Warn", "Ignore"):
            raise BadRequestError(
                f'"{text[:40]}" is not known', element="fieldValidation", hint="Strict, Warn or Ignore"
            )
        return cast(FieldValidation, text)

    async def body(self, *, most: int = MAX_BODY_BYTES) -> bytes:
        """Return the body. Raises TooLargeError as soon as it is too long, UnsupportedError for a compressed one."""
        coding = self.request.headers.get("content-encoding", "identity").strip().lower()
        if coding != "identity":  # a bound on what comes is no bound on what it unpacks to
            raise UnsupportedError(
                f'content encoding "{coding[:40]}" is not supported', element="the body", hint="send it as it is"
            )
        limit = most if self.is_person else min(most, MAX_DEVICE_BODY_BYTES)
        announced = self.request.headers.get("content-length", "")
        if announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
            raise _too_large(limit)
        chunks, size = [], 0
        async for chunk in self.request.stream():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            chunks.append(chunk)
        return b"".join(chunks)

    @property
    def content_type(self) -> str:
        """The body's media type without its parameters; JSON when not said."""
        return self.request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()

    async def read_options(self) -> dict[str, Any]:
        """Return a deletion's options, unchecked. Raises BadRequestError, TooLargeError, UnsupportedError."""
        data = await self.body(most=MAX_OPTIONS_BYTES)
        if not data.strip():
            return {}
        if self.content_type != protobuf.MEDIA_TYPE:
            return codec.decode_json(data)
        return protobuf.decode(data) if len(data) <= _AT_ONCE else await asyncio.to_thread(protobuf.decode, data)

    async def read_object(self) -> dict[str, Any]:
        """Return the object in the body, unchecked. Raises BadRequestError, TooLargeError, UnsupportedError."""
        kind, data = self.content_type, await self.body()
        if kind == "application/json":
            return codec.decode_json(data)
        if kind == protobuf.MEDIA_TYPE and self.info.group != GROUP:  # what kubectl has a type for, it sends so
            return await asyncio.to_thread(protobuf.decode, data)
        if kind in _YAML and self.is_person:  # slow to read: not for those whose word counts for nothing
            found = await asyncio.to_thread(documents.read_yaml, data, source="the body")
            if len(found) == 1 and isinstance(found[0], dict):
                return found[0]
            raise BadRequestError("is not exactly one object", element="the body")
        raise UnsupportedError(
            f'content type "{kind[:80]}" is not supported',
            element="the body",
            hint=f"send application/json or {_YAML[0]}",
        )

    def typed(self, raw: dict[str, Any]) -> Resource:
        """Return the checked object for this call's path, without anything that only the hub sets.

        Raises InvalidError with all problems, BadRequestError when the object belongs to another path.
        """
        metadata = raw.get("metadata")
        if isinstance(metadata, dict):
            metadata = {key: value for key, value in metadata.items() if key not in _SERVER_METADATA}
            self._check_path(metadata)
            raw = {**raw, "metadata": {**metadata, "namespace": self.namespace}}
        if codec.kind_of(raw) is not self.info:
            raise BadRequestError(
                f"is a {str(raw['kind'])[:80]}, but this path takes a {self.info.kind}", element="the body"
            )
        return codec.validate(raw, unknown="refuse" if self.field_validation == "Strict" else "drop")

    def check_preconditions(self, current: Resource, *, uid: str, revision: str) -> None:
        """Return when the object is the one the client means, where it said so. Raises ConflictError."""
        element = f'{self.info.plural} "{self.name}"'
        if uid and uid != current.metadata.uid:
            raise ConflictError(f"its uid is {current.metadata.uid}, not {uid[:80]}", element=element)
        if revision and revision != current.metadata.resource_version:
            raise ConflictError(element=element)

    def _check_path(self, metadata: Mapping[str, Any]) -> None:
        for field, here in (("namespace", self.namespace), ("name", self.name)):
            given = metadata.get(field)
            if given and here and given != here:
                raise BadRequestError(
                    f'"{str(given)[:80]}" does not match "{here}" in the request\'s path', element=f"metadata.{field}"
                )


def precondition(raw: Mapping[str, Any], field: str) -> str:
    """Return `uid` or `resourceVersion` from an object's metadata, or "". Raises BadRequestError when it is no text."""
    metadata = raw.get("metadata")
    value = metadata.get(field) if isinstance(metadata, Mapping) else None
    if value is None:
        return ""
    digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18
    if not isinstance(value, str) or (field == "resourceVersion" and value and not digits):
        raise BadRequestError(f'"{str(value)[:40]}" cannot be one', element=f"metadata.{field}")
    return value


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"has more than {limit} bytes", element="the body")
