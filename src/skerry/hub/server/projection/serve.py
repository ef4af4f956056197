"""GET of nodes and pods: one, a list, a watch, and a pod's log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from skerry.api import rules, selector
from skerry.api.errors import BadRequestError, InvalidError, NotFoundError, SkerryError
from skerry.api.kinds import Resource, find_kind
from skerry.api.kinds.device import Device
from skerry.core.messages import MAX_TAIL_LINES
from skerry.hub.context import HubContext
from skerry.hub.objects import ObjectChange, ObjectPage
from skerry.hub.server import answer, list_options, logs, long_list, status
from skerry.hub.server import list as lists
from skerry.hub.server.call import Call
from skerry.hub.server.long_list import Part
from skerry.hub.server.projection import metrics, nodes, pods
from skerry.hub.server.projection.nodes import NODES
from skerry.hub.server.projection.pods import PODS
from skerry.hub.server.projection.view import Selection, Shown, View, partial, table_of
from skerry.hub.server.stream import EventStream, EventType, duration, line
from skerry.hub.server.watch import INITIAL_END

_DEVICE = find_kind("Device")
VIEWS = (NODES, PODS)
SECONDS = 60.0
Verb = Callable[[Call, View], Awaitable[Response]]


def routes(context: HubContext) -> list[Route]:
    """Return the routes of nodes and pods."""

    def at(path: str, view: View, verb: Verb) -> Route:
        async def endpoint(request: Request) -> Response:
            return await _answer(context, request, view, verb)

        base = f"/apis/{view.api_version}" if view.group else "/api/v1"
        return Route(f"{base}/{path}", endpoint, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])

    of_nodes, of_pods = metrics.views(context)
    return [
        at("nodes", of_nodes, _collection),
        at("nodes/{name}", of_nodes, _get_node),
        at("pods", of_pods, _collection),
        at("namespaces/{namespace}/pods", of_pods, _collection),
        at("namespaces/{namespace}/pods/{name}", of_pods, _get_pod),
        at("nodes", NODES, _collection),
        at("nodes/{name}", NODES, _get_node),
        at("pods", PODS, _collection),
        at("namespaces/{namespace}/pods", PODS, _collection),
        at("namespaces/{namespace}/pods/{name}", PODS, _get_pod),
        at("namespaces/{namespace}/pods/{name}/log", PODS, _log),
    ]


async def _answer(context: HubContext, request: Request, view: View, verb: Verb) -> Response:
    assert _DEVICE is not None
    if request.method not in ("GET", "HEAD"):
        raise HTTPException(405, f"{view.plural} are a picture of devices; change those", headers={"Allow": "GET"})
    parts = request.path_params
    if not rules.is_namespace(parts.get("namespace", "default")):
        raise NotFoundError("the server could not find the requested resource", element=request.url.path[:200])
    call = Call(
        context=context,
        request=request,
        info=_DEVICE,
        namespace=parts.get("namespace", ""),
        name=parts.get("name", ""),
    )
    try:
        if verb is _collection and call.flag("watch"):
            if view.group:
                raise HTTPException(405, f"{view.plural} are not watched, for they change all the time")
            return await _watch(call, view)
        async with asyncio.timeout(SECONDS):
            return await verb(call, view)
    except SkerryError as error:
        failure = status.status_of(error, group=view.group, kind=view.kind, plural=view.plural, name=call.name)
        return status.respond_status(failure)


async def _collection(call: Call, view: View) -> Response:
    selection, shape = _selection(call, view), _Shape(call=call, view=view)
    limit = call.number("limit", default=0, most=lists.MAX_LIMIT)
    parts = _selected(call, view, selection, limit=limit, begin=await lists.position(call))
    return await long_list.respond(call, shape, parts, limit=limit)


async def _selected(
    call: Call, view: View, selection: Selection, *, limit: int, begin: lists.Position
) -> AsyncGenerator[Part]:
    count = 0
    async with aclosing(lists.pages(call, revision=begin.revision, start=begin.key)) as steps:
        async for page in steps:
            found: list[Shown] = []
            for device in page.items:
                assert isinstance(device, Device)
                key = lists.key_of(call, device)
                skip = begin.skip if key == begin.key else 0
                shown = [item for item in view.project(device) if selection.takes(item)][skip:]
                room = limit - count if limit else len(shown)
                found += shown[:room]
                if len(shown) > room:
                    going_on = lists.Position(revision=page.revision, key=key, skip=room + skip)
                    metadata = _metadata(page.revision, going_on.text)
                    yield Part(items=found, metadata=metadata, left_out=_left_out(selection, page))
                    return
                count += len(shown)
            yield Part(items=found, metadata=_metadata(page.revision), left_out=_left_out(selection, page))


def _left_out(selection: Selection, page: ObjectPage[Resource]) -> Sequence[tuple[str, str]]:
    """Return which devices cannot be read; they are no business of who asked for one picture by its name."""
    return () if any(path == "metadata.name" for path, _, _ in selection.terms) else page.unreadable


def _metadata(revision: int, going_on: str = "") -> Shown:
    return {"resourceVersion": str(revision), **({"continue": going_on} if going_on else {})}


async def _get_node(call: Call, view: View) -> Response:
    namespace, name = nodes.parts_of(call.name)
    device = await call.context.objects.find(Device, namespace, name) if namespace else None
    if device is None:
        raise NotFoundError(element=f'nodes "{call.name[:300]}"', hint="a node is <device>.<namespace>")
    found = view.project(device)
    if not found:
        raise NotFoundError(element=f'{view.plural} "{call.name[:300]}"', hint=metrics.HINT)
    return status.respond(_Shape(call=call, view=view).one(found[0]))


async def _get_pod(call: Call, view: View) -> Response:
    device, _ = await find_pod(call)
    pod = next((item for item in view.project(device) if item["metadata"]["name"] == call.name), None)
    if pod is None:
        raise NotFoundError(element=f'{view.plural} "{call.name[:300]}"', hint=metrics.HINT)
    return status.respond(_Shape(call=call, view=view).one(pod))


async def _log(call: Call, view: View) -> Response:  # noqa: ARG001 - as all verbs
    """A workload's log; all that a device keeps of it, unless less is asked for."""
    device, workload = await find_pod(call)
    return await logs.answer(call, device, workload, default_tail=MAX_TAIL_LINES, most_tail=2**31)


async def find_pod(call: Call) -> tuple[Device, str]:
    """Return the device and the workload that a call's pod stands for. Raises NotFoundError."""
    workload, name = pods.parts_of(call.name)
    device = await call.context.objects.find(Device, call.namespace, name) if workload and name else None
    if device is None or all(one.name != workload for one in device.status.workloads):
        raise NotFoundError(element=f'pods "{call.name[:300]}"', hint="a pod is <workload>.<device>")
    return device, workload


async def _watch(call: Call, view: View) -> Response:
    list_options.check_watch(call)
    revision = call.number("resourceVersion", default=0, most=2**62)
    shape = _Shape(call=call, view=view)
    shape.many([], {})  # says now, not in the stream, what is wrong with the parameters
    changes = _Changes(
        call=call,
        view=view,
        selection=_selection(call, view),
        shape=shape,
        revision=revision,
        bookmarks=call.flag("allowWatchBookmarks"),
        marked=call.flag("sendInitialEvents"),
    )
    seconds = duration(call.number("timeoutSeconds", default=0, most=2**31))
    return EventStream(events=changes.events, seconds=seconds, kind=view.kind, plural=view.plural, group="")


def _selection(call: Call, view: View) -> Selection:
    try:
        return Selection(
            labels=selector.parse_labels(call.text("labelSelector")),
            terms=selector.parse_fields(call.text("fieldSelector"), view.fields),
        )
    except InvalidError as error:
        raise BadRequestError(error.cause, element=error.element, hint=error.hint) from None


@dataclass(kw_only=True)
class _Shape:
    """How one call wants what it gets."""

    call: Call
    view: View
    form: answer.Form = field(init=False)

    def __post_init__(self) -> None:
        self.form = answer.shape_of(self.call).form

    def one(self, item: Shown, *, header: bool = True) -> Shown:
        if self.form == "Table":
            return self._table([item], {"resourceVersion": item["metadata"]["resourceVersion"]}, header=header)
        return partial(item) if self.form == "PartialObjectMetadata" else item

    def many(self, items: Sequence[Shown], metadata: Mapping[str, Any]) -> Shown:
        if self.form == "Table":
            return self._table(items, metadata, header=True)
        if self.form == "PartialObjectMetadata":
            shown = [partial(item) for item in items]
            kind, version = "PartialObjectMetadataList", "meta.k8s.io/v1"
        else:
            shown, kind, version = list(items), f"{self.view.kind}List", self.view.api_version
        return {"kind": kind, "apiVersion": version, "metadata": metadata, "items": shown}

    def bookmark(self, metadata: Shown) -> Shown:
        if self.form == "Table":
            return self._table([], metadata, header=False)
        whole = self.form == "Object"
        kind, version = (self.view.kind, self.view.api_version) if whole else (self.form, "meta.k8s.io/v1")
        return {"kind": kind, "apiVersion": version, "metadata": metadata}

    def _table(self, items: Sequence[Shown], metadata: Mapping[str, Any], *, header: bool) -> Shown:
        include = answer.included(self.call)
        now = self.call.context.clock.now()
        return table_of(self.view, items, now=now, metadata=metadata, include=include, header=header)


@dataclass(kw_only=True, eq=False)
class _Changes:
    """What one watch is told: a change of a device is none, one or several changes of what stands for it."""

    call: Call
    view: View
    selection: Selection
    shape: _Shape
    revision: int
    bookmarks: bool
    marked: bool
    _first: bool = field(default=True, init=False)

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield the events, for ever. Raises ExpiredError."""
        call, after = self.call, self.revision
        bookmarks, marked = self.bookmarks, self.marked
        if marked or not after:
            async with aclosing(lists.pages(call)) as steps:
                async for page in steps:
                    after = page.revision
                    for device in page.items:
                        for item in self._shown(device).values():
                            yield self._event("ADDED", item)
            if marked and bookmarks:
                yield self._bookmark(after, {INITIAL_END: "true"})
        async with call.context.objects.watch(Device, call.namespace, after=after) as changes:
            async for change in changes:
                if change.object is not None:
                    for event in self._seen(change):
                        yield event
                elif bookmarks:
                    yield self._bookmark(change.revision)

    def _shown(self, device: object) -> dict[str, Shown]:
        if not isinstance(device, Device):
            return {}
        items = (item for item in self.view.project(device) if self.selection.takes(item))
        return {item["metadata"]["name"]: item for item in items}

    def _seen(self, change: ObjectChange[Device]) -> list[bytes]:
        before, after = self._shown(change.previous), self._shown(change.object)
        if change.type == "DELETED":
            before, after = after, {}
        revision = str(change.revision)
        events = []
        for name in {**before, **after}:
            old, new = before.get(name), after.get(name)
            if new is None and old is not None:
                gone = {**old, "metadata": {**old["metadata"], "resourceVersion": revision}}
                events.append(self._event("DELETED", gone))
            elif new is not None and (old is None or _content(old) != _content(new)):
                events.append(self._event("MODIFIED" if old is not None else "ADDED", new))
        return events

    def _event(self, kind: EventType, item: Shown) -> bytes:
        header, self._first = self._first, False
        return line(kind, self.shape.one(item, header=header))

    def _bookmark(self, revision: int, annotations: dict[str, str] | None = None) -> bytes:
        metadata: Shown = {"resourceVersion": str(revision)}
        return line("BOOKMARK", self.shape.bookmark(metadata | ({"annotations": annotations} if annotations else {})))


def _content(item: Shown) -> Shown:
    return {**item, "metadata": {**item["metadata"], "resourceVersion": ""}}
