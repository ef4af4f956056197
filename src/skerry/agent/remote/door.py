"""What of a device may be talked to, by its owner's settings, and the connections for it, bounded.

Lives here: permission, the number of conversations, their idle time, their log. Must not live here: what is said
(`commands`, `forwards`, `following`), which are imported when they are needed first: most devices never do.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from skerry.agent.settings import RemoteSettings
from skerry.api import duration
from skerry.api.errors import (
    ForbiddenError,
    InvalidError,
    NotFoundError,
    SkerryError,
    UnavailableError,
    UnsupportedError,
)
from skerry.core import channels
from skerry.core.messages import Command, CommandResult, RemoteSession
from skerry.core.ports import Executed
from skerry.kit.websocket import GOING_AWAY

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from skerry.kit.websocket_client import WebSocket

log = logging.getLogger(__name__)

DIAL_SECONDS = 15.0
LEAVE_SECONDS = 2.0
_KINDS = {"exec": "exec", "attach": "logs", "logs": "logs", "forward": "forward"}
_MODULES = {"exec": "execution", "attach": "following", "logs": "following", "forward": "forwarding"}
_PROTOCOLS = {
    "exec": channels.COMMAND_PROTOCOLS,
    "attach": channels.COMMAND_PROTOCOLS,
    "forward": channels.FORWARD_PROTOCOLS,
    "logs": ("",),
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """One workload, as conversations need it."""

    name: str
    log: Path
    endpoint: int = 0
    """Where it answers callers; 0 while it does not."""


class Execute(Protocol):
    """Runs a command beside what a workload has running."""

    async def __call__(self, workload: str, argv: list[str], *, terminal: bool) -> Executed:
        """Start it. Raises UnavailableError."""
        ...


class Dial(Protocol):
    """Connects to the hub for one conversation."""

    def __call__(self, tunnel: str, /) -> AbstractAsyncContextManager[WebSocket]:
        """Return the connection. Raises UnavailableError, TimedOutError."""
        ...


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Everything one conversation has to do with."""

    session: RemoteSession
    tail_lines: int
    place: Place
    socket: WebSocket
    execute: Execute
    ports: Mapping[int, int]
    """Which port of this device stands for which that was asked for."""


class Door:
    """One agent's conversations; `run` holds them, and has to run."""

    def __init__(
        self, settings: RemoteSettings, *, dial: Dial | None, execute: Execute, place: Callable[[str], Place | None]
    ) -> None:
        self._settings = settings
        self._idle_seconds = duration.to_seconds(settings.idle_timeout)
        self._dial = dial
        self._execute = execute
        self._place = place
        self._tasks: asyncio.TaskGroup | None = None
        self._open = 0

    async def run(self) -> None:
        """Hold the conversations, for ever; cancelled, it ends them all."""
        async with asyncio.TaskGroup() as self._tasks:
            await asyncio.Event().wait()

    async def answer(self, command: Command) -> CommandResult:
        """Connect and begin; the answer comes when the hub has taken the connection, or says why there is none."""
        session = command.remote
        try:
            if session is None or self._tasks is None or self._dial is None:
                raise InvalidError("says not what for", element="command remote")
            place = self._check(session, command.workload)
            await self._begin(session, command, place)
        except SkerryError as error:
            log.info("remote.refused purpose=%s error=%s", "" if session is None else session.purpose, error)
            reason = type(error).__name__.removesuffix("Error")
            return CommandResult(uid=command.uid, id=command.id, error=error.sentence[:4000], reason=reason)
        return CommandResult(uid=command.uid, id=command.id)

    def _check(self, session: RemoteSession, workload: str) -> Place:
        kind = _KINDS[session.purpose]
        if kind not in self._settings.allow:
            raise ForbiddenError(
                f"{kind} is switched off on this device by its owner",
                element=f"workload {workload[:253]}",
                hint=f'`allow` in [remote] of its agent.toml would have to name "{kind}"',
            )
        if session.protocol not in _PROTOCOLS[session.purpose]:
            raise UnsupportedError(f'"{session.protocol[:80]}" is not spoken here', element="protocol")
        place = self._place(workload)
        if place is None:
            raise NotFoundError("is not on this device", element=f"deployment {workload[:253]}")
        if session.purpose in ("exec", "forward") and not place.endpoint:
            raise UnavailableError("does not run at the moment", element=f"deployment {workload[:253]}")
        if self._open >= self._settings.max_sessions:
            raise UnavailableError(
                f"{self._open} conversations are open, as many as this device has at a time",
                element=f"deployment {workload[:253]}",
                hint="end one of them",
            )
        return place

    async def _begin(self, session: RemoteSession, command: Command, place: Place) -> None:
        assert self._tasks is not None and self._dial is not None  # noqa: PT018 - asked by `answer`
        self._open += 1
        stack = AsyncExitStack()
        try:
            socket = await stack.enter_async_context(self._dial(session.tunnel))
        except BaseException:
            self._open -= 1
            raise
        self._tasks.create_task(self._hold(stack, session, command, place, socket), name=f"remote {session.purpose}")

    async def _hold(
        self, stack: AsyncExitStack, session: RemoteSession, command: Command, place: Place, socket: WebSocket
    ) -> None:
        log.info("remote.began purpose=%s workload=%s user=%r", session.purpose, place.name, session.user)
        why = "ended"
        try:
            async with stack:
                talking = asyncio.ensure_future(self._talk(session, command, place, socket))
                try:
                    why = await self._watch(talking, socket)
                except asyncio.CancelledError:
                    why = "the agent ends"
                    await socket.close(GOING_AWAY, why)
                    raise
                finally:
                    talking.cancel()
                    await asyncio.gather(talking, return_exceptions=True)
                if why != "ended":
                    if session.purpose in ("exec", "attach"):
                        await socket.send(channels.failed(why))
                    await socket.close(1011, why)
        except SkerryError as error:
            why = str(error)
        except Exception:
            log.exception("remote.broke purpose=%s workload=%s", session.purpose, place.name)
        finally:
            self._open -= 1
            log.info(
                "remote.ended purpose=%s workload=%s user=%r bytes=%d why=%r",
                *(session.purpose, place.name, session.user, socket.moved, why),
            )

    async def _talk(self, session: RemoteSession, command: Command, place: Place, socket: WebSocket) -> None:
        module = importlib.import_module(f"skerry.agent.remote.{_MODULES[session.purpose]}")
        ports = {port: port for port in (place.endpoint, *self._settings.ports) if port}
        await module.talk(
            Conversation(
                session=session,
                tail_lines=command.tail_lines,
                place=place,
                socket=socket,
                execute=self._execute,
                ports=ports,
            )
        )
        await socket.finish()

    async def _watch(self, talking: asyncio.Future[None], socket: WebSocket) -> str:
        """Wait for the end, or for so long that nothing is said; return why."""
        seen = -1
        going = asyncio.ensure_future(_left(socket))
        try:
            while True:
                done, _ = await asyncio.wait(
                    {talking, going}, timeout=self._idle_seconds or None, return_when=asyncio.FIRST_COMPLETED
                )
                if talking in done:
                    try:
                        talking.result()
                    except SkerryError as error:
                        return error.sentence
                    return "ended"
                if going in done:
                    return "the client has left"
                if socket.moved == seen:
                    return f"nothing was said for {self._settings.idle_timeout}"
                seen = socket.moved
        finally:
            going.cancel()
            await asyncio.gather(going, return_exceptions=True)


async def _left(socket: WebSocket) -> None:
    """Wait until the hub has hung up; what it said last still has a while to be taken."""
    await socket.gone()
    await asyncio.sleep(LEAVE_SECONDS)
