"""Logs of workloads: their end at once, or as they grow, of pods and of devices alike.

What is there already comes as the answer to one command; following takes a connection that the device opens.
Lives here: Kubernetes' PodLogOptions. Must not live here: which lines (`core.logs`, on the device).
Source: Kubernetes API reference, Pod v1, "get read log of the specified Pod".
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta

import msgspec
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from skerry.api.errors import BadRequestError, SkerryError, UnavailableError
from skerry.api.kinds.device import Device
from skerry.core.messages import MAX_TAIL_LINES, LogQuery, RemoteSession
from skerry.hub.server import status
from skerry.hub.server.call import Call
from skerry.hub.tunnels import DELETED, ENDED, WATCH_SECONDS, why_ended
from skerry.hub.upgrade import Wire

log = logging.getLogger(__name__)

COMMAND_SECONDS = 30.0
"""How long a device may take to answer."""
_LEFT = "the client has left"
_MAX_SINCE = 10 * 366 * 24 * 3600


async def answer(call: Call, device: Device, workload: str, *, default_tail: int, most_tail: int) -> Response:
    """Return a workload's log as it was asked for; a device sends `MAX_TAIL_LINES` at most.

    Raises BadRequestError, and what the device answers.
    """
    query, tail = _query(call), call.number("tailLines", default=default_tail, most=most_tail)
    tail = min(tail, MAX_TAIL_LINES)
    container = call.text("container")
    if container not in ("", workload):
        raise BadRequestError(f'container "{container[:80]}" is not valid for this pod', element="container")
    if call.flag("follow") and not query.previous:
        return _Following(call, device, workload, query, tail)
    result = await call.context.gateway.command(
        device.metadata.uid, "logs", workload, tail_lines=tail, log_query=query, timeout_seconds=COMMAND_SECONDS
    )
    return PlainTextResponse(result.text)


def _query(call: Call) -> LogQuery:
    seconds, text, since = call.number("sinceSeconds", default=0, most=_MAX_SINCE), call.text("sinceTime"), None
    if seconds and text:
        raise BadRequestError("at most one of them may be given", element="sinceSeconds, sinceTime")
    if seconds:
        since = call.context.clock.now() - timedelta(seconds=seconds)
    elif text:
        try:
            since = msgspec.convert(text, datetime)
        except msgspec.ValidationError:
            since = None
        if since is None or since.tzinfo is None:
            raise BadRequestError(f'"{text[:80]}" is no time', element="sinceTime", hint="as in 2026-11-23T10:00:00Z")
    if call.text("stream") not in ("", "All"):
        raise BadRequestError("what a workload writes is not kept apart", element="stream", hint="leave it out")
    return LogQuery(
        since=since,
        timestamps=call.flag("timestamps"),
        previous=call.flag("previous"),
        limit_bytes=call.number("limitBytes", default=0, most=2**40),
    )


class _Following(Response):
    """The answer that grows: text, until the client leaves, or the device does."""

    def __init__(self, call: Call, device: Device, workload: str, query: LogQuery, tail: int) -> None:
        super().__init__()
        self._call = call
        self._device = device
        self._workload = workload
        self._query = query
        self._tail = tail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the device connect, and pass on what it sends."""
        call, started = self._call, False
        session = RemoteSession(tunnel="", purpose="logs", user=call.identity.name, log=self._query)
        try:
            async with call.context.tunnels.open(
                call.context.gateway, self._device, self._workload, session, tail_lines=self._tail
            ) as tunnel:
                device = await tunnel.start()
                started = True
                headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await self._pass_on(device, receive, send)
                await device.close()
        except SkerryError as error:
            if started:
                raise
            failure = status.status_of(error, group="", kind="Pod", plural="pods", name=call.name)
            await status.respond_status(failure)(scope, receive, send)

    async def _pass_on(self, device: Wire, receive: Receive, send: Send) -> None:
        """Raises UnavailableError when the device is lost: an answer that breaks off is taken for no whole one."""
        element = f"{self._device.metadata.namespace}/{self._device.metadata.name}"
        user = self._call.identity.name
        log.info("remote.began purpose=logs device=%r workload=%r user=%r", element, self._workload, user)
        received, why = 0, "the hub ended it"

        async def copy() -> None:
            nonlocal received
            while (message := await device.receive()) is not None:
                received += len(message)
                await send({"type": "http.response.body", "body": message, "more_body": True})

        copying, leaving = asyncio.ensure_future(copy()), asyncio.ensure_future(_until_left(receive))
        try:
            why = await self._watch(copying, leaving) or why_ended(device)
        finally:
            for task in (copying, leaving):
                task.cancel()
            await asyncio.gather(copying, leaving, return_exceptions=True)
            log.info(
                "remote.ended purpose=logs device=%r workload=%r user=%r received=%d why=%r",
                *(element, self._workload, user, received, why),
            )
        if why not in (ENDED, _LEFT):
            raise UnavailableError(why, element=f"device {self._device.metadata.name}")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, copying: asyncio.Future[None], leaving: asyncio.Future[None]) -> str:
        """Return why it is over; "" when the device knows."""
        while self._call.context.gateway.known(self._device.metadata.uid):
            done, _ = await asyncio.wait({copying, leaving}, timeout=WATCH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if copying in done:
                copying.result()
                return ""
            if leaving in done:
                return _LEFT
        return DELETED


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
