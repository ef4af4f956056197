"""GET with `watch=true`: every change from a revision on, one JSON line each, until the client or the time is up.

A change is seen through the selection: an object that begins to match is ADDED, one that no longer does is DELETED.
Source: Kubernetes API concepts, "Efficient detection of changes".
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from starlette.responses import Response

from skerry.api.kinds import Resource
from skerry.hub.objects import ObjectChange
from skerry.hub.server import answer, list_options
from skerry.hub.server import list as lists
from skerry.hub.server.call import Call
from skerry.hub.server.stream import EventStream, EventType, duration, line

INITIAL_END = "k8s.io/initial-events-end"
BOOKMARK_SECONDS = 30.0
"""How long a watch may see nothing but what it does not select before it is told how far it has got."""


async def watch(call: Call) -> Response:
    """Return the stream. Raises BadRequestError for its parameters; what happens later is an ERROR event in it."""
    list_options.check_watch(call)
    revision = call.number("resourceVersion", default=0, most=2**62)
    shape = answer.shape_of(call)
    shape.many([], {})  # says now, not in the stream, what is wrong with the parameters
    changes = _Changes(
        call=call,
        selection=lists.selection_of(call),
        shape=shape,
        revision=revision,
        bookmarks=call.flag("allowWatchBookmarks"),
        initial=call.flag("sendInitialEvents") or (revision == 0 and not call.text("sendInitialEvents")),
        mark_initial=call.flag("sendInitialEvents"),
    )
    seconds = duration(call.number("timeoutSeconds", default=0, most=2**31))
    info = call.info
    return EventStream(events=changes.events, seconds=seconds, kind=info.kind, plural=info.plural, group=info.group)


@dataclass(kw_only=True, eq=False)
class _Changes:
    """What one watch is told."""

    call: Call
    selection: lists.Selection
    shape: answer.Shape
    revision: int
    """Changes after this one are sent; 0 begins with all there is."""
    bookmarks: bool
    initial: bool
    mark_initial: bool
    _first: bool = field(default=True, init=False)

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield the events, for ever. Raises ExpiredError."""
        objects, kind, namespace = self.call.context.objects, self.call.info.type, self.call.namespace
        clock = self.call.context.clock
        after = self.revision or await objects.store.revision()
        if self.initial:
            async with aclosing(lists.pages(self.call)) as steps:
                async for page in steps:
                    after = page.revision
                    for item in filter(self.selection.takes, page.items):
                        yield self._event("ADDED", item)
            if self.mark_initial and self.bookmarks:
                yield self._bookmark(after, annotations={INITIAL_END: "true"})
        async with objects.watch(kind, namespace, after=after) as changes:
            told = clock.monotonic()
            async for change in changes:
                lines = self._seen(change)
                if not lines and self.bookmarks and clock.monotonic() - told >= BOOKMARK_SECONDS:
                    lines = [self._bookmark(change.revision)]  # or it would have to begin again after a pause
                for line in lines:
                    told = clock.monotonic()
                    yield line

    def _seen(self, change: ObjectChange[Resource]) -> Sequence[bytes]:
        if change.object is None:
            return [self._bookmark(change.revision)] if self.bookmarks else []
        matched = change.previous is not None and self.selection.takes(change.previous)
        matching = self.selection.takes(change.object)
        match change.type:
            case "DELETED":
                return [self._event("DELETED", change.object)] if matching else []
            case "MODIFIED" if matched and not matching:
                return [self._event("DELETED", change.object)]
            case "MODIFIED" if matched:
                return [self._event("MODIFIED", change.object)]
            case _:
                return [self._event("ADDED", change.object)] if matching else []

    def _event(self, kind: EventType, item: Resource) -> bytes:
        header, self._first = self._first, False
        return line(kind, self.shape.one(item, header=header))

    def _bookmark(self, revision: int, annotations: dict[str, str] | None = None) -> bytes:
        shown = self.shape.bookmark(revision)
        if annotations:
            shown = {**shown, "metadata": {**shown["metadata"], "annotations": annotations}}
        return line("BOOKMARK", shown)
