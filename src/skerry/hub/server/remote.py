"""exec, attach and port-forward of pods, and the connections that devices open for them.

What can be refused is refused before the protocol is switched, so that clients see a Status and not a connection that
breaks. Lives here: Kubernetes' parameters and protocols. Must not live here: the joining (`hub.tunnels`), what a device
allows (its own settings), who may (`access`: pods/exec, pods/attach, pods/portforward).
Source: Kubernetes API reference, PodExecOptions, PodAttachOptions, PodPortForwardOptions; KEP-4006.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from skerry.api import rules
from skerry.api.errors import BadRequestError, NotFoundError, SkerryError
from skerry.api.kinds import find_kind
from skerry.api.meta import API_VERSION
from skerry.core import channels, messages
from skerry.core.messages import RemoteSession
from skerry.hub.command_streams import CommandStreams
from skerry.hub.context import HubContext
from skerry.hub.raw_upgrade import RawUpgrade
from skerry.hub.server import status
from skerry.hub.server.call import Call
from skerry.hub.server.projection.serve import find_pod
from skerry.hub.tunnels import Splice, tell
from skerry.hub.upgrade import FAILED, UPGRADE, Switchable, Switching, Wire, upgrade_of

log = logging.getLogger(__name__)

MAX_QUERY_BYTES = 32 * 1024
_DEVICE = find_kind("Device")
Read = Callable[[Call, str], RemoteSession]


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """The protocols of one kind of conversation, best first."""

    messages: tuple[str, ...]
    """Over WebSocket."""
    streams: tuple[str, ...]
    """Over SPDY, as kubectl before 1.30 (1.31 for ports) asks for it."""
    device: str
    """What a device is told that a client over SPDY speaks."""


_COMMAND = Spoken(messages=channels.COMMAND_PROTOCOLS, streams=channels.STREAM_COMMAND_PROTOCOLS, device=channels.V5)
_FORWARD = Spoken(
    messages=channels.FORWARD_PROTOCOLS, streams=(channels.STREAM_FORWARD_PROTOCOL,), device=channels.SPDY_FORWARD
)


def routes(context: HubContext) -> list[Route]:
    """Return the routes of conversations with pods, and of devices' connections for them."""

    def at(subresource: str, read: Read, spoken: Spoken) -> Route:
        async def endpoint(request: Request) -> Response:
            return _answer(context, request, read, spoken)

        path = f"/api/v1/namespaces/{{namespace}}/pods/{{name}}/{subresource}"
        return Route(path, endpoint, methods=["GET", "POST"])

    async def arrived(request: Request) -> Response:
        return await _arrived(context, request)

    return [
        at("exec", read_exec, _COMMAND),
        at("attach", read_attach, _COMMAND),
        at("portforward", read_forward, _FORWARD),
        Route(f"/apis/{API_VERSION}/tunnels/{{tunnel}}", arrived, methods=["GET"]),
    ]


def _answer(context: HubContext, request: Request, read: Read, spoken: Spoken) -> Response:
    assert _DEVICE is not None
    parts = request.path_params
    if not rules.is_namespace(parts["namespace"]):
        raise NotFoundError("the server could not find the requested resource", element=request.url.path[:200])
    call = Call(context=context, request=request, info=_DEVICE, namespace=parts["namespace"], name=parts["name"])
    return _Conversation(call, read, spoken)


class _Conversation(Response):
    """The answer: a Status when it cannot be had, else the conversation, to its end."""

    def __init__(self, call: Call, read: Read, spoken: Spoken) -> None:
        super().__init__()
        self._call = call
        self._read = read
        self._spoken = spoken

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find the pod, have the device connect, switch, join."""
        call = self._call
        switched = False

        def switching() -> None:
            nonlocal switched
            switched = True

        try:
            await self._hold(scope, receive, send, switching)
        except SkerryError as error:
            if switched:
                raise
            failure = status.status_of(error, group="", kind="Pod", plural="pods", name=call.name)
            await status.respond_status(failure)(scope, receive, send)

    async def _hold(self, scope: Scope, receive: Receive, send: Send, switching: Callable[[], None]) -> None:
        call = self._call
        upgrade, protocol = self._agree()
        is_raw = isinstance(upgrade, RawUpgrade)
        device, workload = await find_pod(call)
        session = msgspec.structs.replace(
            self._read(call, workload),
            protocol=self._spoken.device if is_raw else protocol,
            user=call.identity.name,
        )
        gateway = call.context.gateway
        async with call.context.tunnels.open(gateway, device, workload, session) as tunnel:

            async def talk(wire: Wire) -> None:
                client = wire
                try:
                    if is_raw and session.purpose != "forward":
                        client = streams = CommandStreams(wire, session, protocol)
                        await streams.open()
                    begun = await tunnel.start()
                except SkerryError as error:
                    await tell(client, error.sentence)
                    await client.close(FAILED)
                    raise
                splice = Splice(
                    client=client,
                    device=begun,
                    known=lambda: gateway.known(device.metadata.uid),
                    status_channel=session.purpose != "forward",
                )
                await _log_and_run(splice, session.purpose, f"{call.namespace}/{call.name}", session.user)

            switching()
            # Who offers nothing over SPDY is of a time before versions, and is told none.
            await Switching(talk, protocol=protocol if upgrade.protocols else "")(scope, receive, send)

    def _agree(self) -> tuple[Switchable, str]:
        """Return what to switch, and the protocol to speak. Raises BadRequestError."""
        request = self._call.request
        if len(request.scope.get("query_string", b"")) > MAX_QUERY_BYTES:
            raise BadRequestError(f"has more than {MAX_QUERY_BYTES} bytes", element="the query")
        upgrade: Switchable | None = request.scope.get(UPGRADE)
        if upgrade is None:
            raise BadRequestError("an upgrade to WebSocket or SPDY/3.1 is required", element="Upgrade")
        is_raw = isinstance(upgrade, RawUpgrade)
        if not is_raw and request.method != "GET":
            raise BadRequestError("is no way to ask for WebSocket", element=request.method)
        known = self._spoken.streams if is_raw else self._spoken.messages
        offered = upgrade.protocols or (known[-1:] if is_raw else ())
        chosen = channels.choose(offered, known)
        if not chosen:
            raise BadRequestError(
                f"none of {', '.join(offered)[:200] or 'no protocols'} is spoken here",
                element="X-Stream-Protocol-Version" if is_raw else "Sec-WebSocket-Protocol",
                hint=f"offer {' or '.join(known)}",
            )
        return upgrade, chosen


async def _log_and_run(splice: Splice, purpose: str, element: str, user: str) -> None:
    log.info("remote.began purpose=%s pod=%r user=%r", purpose, element, user)
    try:
        await splice.run()
    finally:
        log.info(
            "remote.ended purpose=%s pod=%r user=%r sent=%d received=%d why=%r",
            *(purpose, element, user, splice.sent, splice.received, splice.why),
        )


async def _arrived(context: HubContext, request: Request) -> Response:
    """GET tunnels/{id}: the device's end."""
    assert _DEVICE is not None
    call = Call(context=context, request=request, info=_DEVICE)
    upgrade_of(request)
    tunnel = await context.tunnels.arrive(call.identity, request.path_params["tunnel"])

    async def talk(upgrade: Wire) -> None:
        if not tunnel.ready.done():
            tunnel.ready.set_result(upgrade)
        await tunnel.over.wait()

    return Switching(talk)


def read_exec(call: Call, workload: str) -> RemoteSession:
    """Read PodExecOptions. Raises BadRequestError."""
    argv = call.request.query_params.getlist("command")
    if not argv or not argv[0]:
        raise BadRequestError("is required", element="command", hint="as in `kubectl exec POD -- ls -l`")
    if len(argv) > messages.MAX_ARGUMENTS or any("\0" in word for word in argv):
        raise BadRequestError("cannot be run", element="command", hint=f"at most {messages.MAX_ARGUMENTS} words")
    return _streams(call, workload, RemoteSession(tunnel="", purpose="exec", argv=argv))


def read_attach(call: Call, workload: str) -> RemoteSession:
    """Read PodAttachOptions: a server's output can be looked at, but it listens to nobody. Raises BadRequestError."""
    session = _streams(call, workload, RemoteSession(tunnel="", purpose="attach"))
    if session.stdin or session.tty:
        raise BadRequestError(
            "an inference server reads no input and has no terminal",
            element="stdin, tty",
            hint="attach without -i and -t to see what it logs, or run a command with `kubectl exec -it`",
        )
    return session


def read_forward(call: Call, workload: str) -> RemoteSession:
    """Read PodPortForwardOptions. Raises BadRequestError."""
    del workload
    text = [part for value in call.request.query_params.getlist("ports") for part in value.split(",")]
    ports = [
        int(part) for part in text if part.isascii() and part.isdigit() and len(part) < 6 and 0 < int(part) < 65536
    ]
    if len(ports) != len(text) or len(ports) > messages.MAX_FORWARDED_PORTS:
        raise BadRequestError("are not ports from 1 to 65535", element="ports")
    upgrade = call.request.scope.get(UPGRADE)
    is_raw = isinstance(upgrade, RawUpgrade)
    by_channels = upgrade is not None and not is_raw and channels.SPDY_FORWARD not in upgrade.protocols
    if by_channels and not ports:
        raise BadRequestError("are required", element="ports", hint="with v4.channel.k8s.io, ports are named at first")
    return RemoteSession(tunnel="", purpose="forward", ports=ports)


def _streams(call: Call, workload: str, session: RemoteSession) -> RemoteSession:
    container = call.text("container")
    if container not in ("", workload):
        raise BadRequestError(f'container "{container[:80]}" is not valid for this pod', element="container")
    tty, stdin, stdout = call.flag("tty"), call.flag("stdin"), call.flag("stdout")
    stderr = call.flag("stderr") and not tty  # a terminal has one way out
    if not (stdin or stdout or stderr):
        raise BadRequestError("one of stdin, stdout and stderr is required", element="stdin, stdout, stderr")
    return msgspec.structs.replace(session, tty=tty, stdin=stdin, stdout=stdout, stderr=stderr)
