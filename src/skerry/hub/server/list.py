"""GET of a collection: selectors, limit and continue at one revision."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response

from skerry.api import selector
from skerry.api.errors import BadRequestError, InvalidError, TimedOutError, UnreadableError
from skerry.api.kinds import Resource
from skerry.api.kinds.event import Event
from skerry.api.meta import LabelSelectorRequirement
from skerry.hub import objects
from skerry.hub.objects import ObjectPage
from skerry.hub.server import answer, fields, list_options, long_list
from skerry.hub.server.call import Call
from skerry.hub.server.long_list import Part
from skerry.hub.server.projection import events

log = logging.getLogger(__name__)

MAX_LIMIT = 1_000_000
_STEP = 500  # objects read at once: other requests get their turn between two steps


class Position(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a list begins or goes on; `continue` is its opaque form."""

    v: int = 1
    revision: int = 0
    """0 is now."""
    key: str = ""
    skip: int = 0
    """Of what is shown for the object at `key`, these have been seen."""

    @property
    def text(self) -> str:
        """The opaque form."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).decode().rstrip("=")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which objects of a collection are meant."""

    labels: Sequence[LabelSelectorRequirement] = ()
    terms: Sequence[tuple[str, bool, str]] = ()

    @property
    def everything(self) -> bool:
        """Whether nothing is left out."""
        return not self.labels and not self.terms

    def takes(self, item: Resource) -> bool:
        """Return whether this object is meant."""
        return selector.matches(self.labels, item.metadata.labels) and fields.matches(item, self.terms)

    def left_out(self, page: ObjectPage[Resource]) -> list[tuple[str, str]]:
        """Return which of those that cannot be read may be meant: what they have but a name is not known."""
        return [one for one in page.unreadable if self.name in ("", one[1])]

    @property
    def name(self) -> str:
        """The one name that can match, or ""."""
        names = [value for path, equal, value in self.terms if path == "metadata.name" and equal]
        return names[0] if names else ""


def selection_of(call: Call) -> Selection:
    """Return what labelSelector and fieldSelector select. Raises BadRequestError."""
    try:
        terms = selector.parse_fields(call.text("fieldSelector"), fields.selectable(call.info))
        return Selection(
            labels=selector.parse_labels(call.text("labelSelector")),
            terms=events.as_kept(terms) if call.info.type is Event else terms,
        )
    except InvalidError as error:
        raise BadRequestError(error.cause, element=error.element, hint=error.hint) from None


async def list_(call: Call) -> Response:
    """Return one page of the collection. Raises BadRequestError, ExpiredError for a page that is too old."""
    selection, shape = selection_of(call), answer.shape_of(call)
    limit = call.number("limit", default=0, most=MAX_LIMIT)
    begin = await position(call)
    if selection.name and call.namespace and not begin.key and not begin.revision:
        parts = _single(call, selection)
    else:
        parts = _selected(call, selection, limit=limit, begin=begin)
    return await long_list.respond(call, shape, parts, limit=limit)


async def _single(call: Call, selection: Selection) -> AsyncGenerator[Part]:
    revision = await call.context.objects.store.revision()
    left_out: list[tuple[str, str]] = []
    item = None
    try:
        item = await call.context.objects.find(call.info.type, call.namespace, selection.name)
    except UnreadableError as error:
        key = objects.key_of(call.info.type, call.namespace, selection.name)
        log.error("objects.unreadable key=%s cause=%s", key, error.cause)
        left_out = [(call.namespace, selection.name)]
    items = [] if item is None or not selection.takes(item) else [item]
    for found in items:
        revision = max(revision, int(found.metadata.resource_version))
    yield Part(items=items, metadata={"resourceVersion": str(revision)}, left_out=left_out)


async def pages(
    call: Call, *, revision: int = 0, start: str = "", first: int = _STEP
) -> AsyncGenerator[ObjectPage[Resource]]:
    """Yield the collection's objects in steps, all of one revision; `first` objects in the first step.

    Those that cannot be read are left out, and named: one of them must not keep all others from being seen.
    """
    at: str | None = start
    chunk = min(first, _STEP)
    objects_, kind = call.context.objects, call.info.type
    while at is not None:
        page = await objects_.list(
            kind, call.namespace, limit=chunk, start=at, revision=revision, leave_out_unreadable=True
        )
        revision, at, chunk = page.revision, page.next_key, _STEP
        yield page


async def _selected(call: Call, selection: Selection, *, limit: int, begin: Position) -> AsyncGenerator[Part]:
    room = limit
    async with aclosing(pages(call, revision=begin.revision, start=begin.key, first=limit or _STEP)) as steps:
        async for page in steps:
            places = [place for place, item in enumerate(page.items) if selection.takes(item)]
            metadata: dict[str, Any] = {"resourceVersion": str(page.revision)}
            if limit and len(places) >= room:
                rest = page.items[places[room - 1] + 1 :]
                following = key_of(call, rest[0]) if rest else page.next_key
                if following is not None:
                    metadata["continue"] = Position(revision=page.revision, key=following).text
                    if selection.everything and page.remaining is not None:
                        metadata["remainingItemCount"] = page.remaining + len(rest)
                kept = [page.items[place] for place in places[:room]]
                yield Part(items=kept, metadata=metadata, left_out=selection.left_out(page))
                return
            room -= len(places)
            kept = [page.items[place] for place in places]
            yield Part(items=kept, metadata=metadata, left_out=selection.left_out(page))


async def position(call: Call) -> Position:
    """Return where the list is to begin. Raises BadRequestError, TimedOutError for a revision that is yet to come.

    Raises ListOptionsError for parameters that do not go together.
    """
    list_options.check_list(call)
    token, version = call.text("continue"), call.text("resourceVersion")
    if token:
        if version not in ("", "0"):
            raise BadRequestError("cannot go together with continue", element="resourceVersion")
        decoded = _decode(token)
        if not decoded.key.startswith(objects.prefix_of(call.info.type, call.namespace)):
            raise BadRequestError("belongs to another list", element="continue")
        return decoded
    wanted = call.number("resourceVersion", default=0, most=2**62)
    if not wanted:
        return Position()
    newest = await call.context.objects.store.revision()
    if wanted > newest:
        raise TimedOutError(f"Too large resource version: {wanted}, current: {newest}", element="resourceVersion")
    return Position(revision=wanted if call.text("resourceVersionMatch") == "Exact" else 0)


def key_of(call: Call, item: Resource) -> str:
    """Return where an object of the collection stands in it."""
    return objects.key_of(call.info.type, item.metadata.namespace, item.metadata.name)


def _decode(text: str) -> Position:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        token = msgspec.json.decode(raw, type=Position)
    except (binascii.Error, msgspec.DecodeError, ValueError, RecursionError):
        token = None
    if token is None or token.v != 1 or not 0 < token.revision < 2**62 or token.skip < 0:
        raise BadRequestError("is not a token this hub gave out", element="continue", hint="list again from the start")
    return token
