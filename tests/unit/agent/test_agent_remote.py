"""What of a device may be talked to, and how long: the door's decisions, with a connection that is a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from skerry.agent.remote import door
from skerry.agent.remote.door import Door, Place
from skerry.agent.settings import RemoteSettings
from skerry.api.errors import UnavailableError
from skerry.core import channels
from skerry.core.messages import Command, CommandResult, LogQuery, RemoteSession
from skerry.kit.websocket import Closed

WAIT_SECONDS = 20.0


class Socket:
    """A connection's end, as the door and the conversations use it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.moved = 0
        self.ended: Closed | None = None
        self.closed: tuple[int, str] | None = None
        self.incoming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.seen = asyncio.Event()
        self.over = asyncio.Event()
        self.left = asyncio.Event()

    async def receive(self) -> bytes | None:
        return await self.incoming.get()

    async def send(self, data: bytes) -> None:
        if self.closed is not None:
            raise UnavailableError("was closed")
        self.sent.append(data)
        self.moved += len(data)
        self.seen.set()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.closed = self.closed or (code, reason)
        self.over.set()

    async def finish(self) -> None:
        """The hub has taken everything at once."""

    async def gone(self) -> None:
        await self.left.wait()


class World:
    def __init__(self, tmp_path: Path, settings: RemoteSettings) -> None:
        self.log = tmp_path / "server.log"
        self.sockets: list[Socket] = []
        self.down = False
        self.door = Door(settings, dial=self.dial, execute=self.execute, place=self.place)

    @asynccontextmanager
    async def dial(self, tunnel: str, /) -> AsyncIterator[Any]:
        if self.down:
            raise UnavailableError("cannot be reached", element="hub")
        socket = Socket()
        self.sockets.append(socket)
        yield socket
        await socket.close()

    async def execute(self, workload: str, argv: list[str], *, terminal: bool) -> Any:
        raise UnavailableError("cannot be started", element=argv[0])

    def place(self, name: str) -> Place | None:
        return Place(name=name, log=self.log, endpoint=8080 if name == "up" else 0) if name in ("up", "off") else None

    async def ask(self, purpose: str, workload: str = "up", protocol: str | None = None, **more: Any) -> CommandResult:
        spoken = {"exec": channels.V5, "attach": channels.V4, "forward": channels.V4}.get(purpose, "")
        session = RemoteSession(
            tunnel="t", purpose=purpose, protocol=spoken if protocol is None else protocol, argv=["x"], **more
        )
        expires = datetime.now(UTC) + timedelta(minutes=1)
        return await self.door.answer(
            Command(uid="d", id="c", expires_at=expires, verb="remote", workload=workload, remote=session, tail_lines=5)
        )


async def within(event: asyncio.Event) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        await event.wait()


@asynccontextmanager
async def world(tmp_path: Path, **settings: Any) -> AsyncIterator[World]:
    made = World(tmp_path, RemoteSettings(**settings))
    running = asyncio.create_task(made.door.run())
    await asyncio.sleep(0)
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_commands_are_not_there_unless_the_owner_says_so(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        refused = await one.ask("exec")
        assert (refused.reason, one.sockets) == ("Forbidden", [])
        assert "switched off on this device by its owner" in refused.error
        assert (await one.ask("forward", ports=[1])).error == ""
        assert (await one.ask("logs")).error == ""
    async with world(tmp_path, allow=[]) as one:
        assert {(await one.ask(purpose)).reason for purpose in ("exec", "attach", "forward", "logs")} == {"Forbidden"}
        assert one.sockets == []


async def test_what_cannot_be_is_said_before_anything_is_dialled(tmp_path: Path) -> None:
    async with world(tmp_path, allow=["logs", "forward", "exec"]) as one:
        assert (await one.ask("exec", "other")).reason == "NotFound"
        assert (await one.ask("exec", "off")).reason == "Unavailable"
        assert (await one.ask("exec", protocol="v1")).reason == "Unsupported"
        nothing = Command(
            uid="d", id="c", expires_at=datetime.now(UTC) + timedelta(minutes=1), verb="remote", workload="up"
        )
        assert (await one.door.answer(nothing)).reason == "Invalid"
        assert one.sockets == []
        one.down = True
        assert "cannot be reached" in (await one.ask("exec")).error
    unheld = World(tmp_path, RemoteSettings())
    assert (await unheld.ask("logs")).reason == "Invalid"


async def test_one_that_fails_is_told_on_its_last_channel(tmp_path: Path) -> None:
    async with world(tmp_path, allow=["exec"]) as one:
        assert (await one.ask("exec")).error == ""
        [socket] = one.sockets
        await within(socket.seen)
        with pytest.raises(UnavailableError, match="cannot be started"):
            channels.exit_code(socket.sent[-1][1:])
        await within(socket.over)
        assert (socket.closed or (0, ""))[0] == 1011


async def test_no_more_at_a_time_than_set_and_room_again_after(tmp_path: Path) -> None:
    async with world(tmp_path, max_sessions=2) as one:
        assert [(await one.ask("logs")).error for _ in range(2)] == ["", ""]
        full = await one.ask("logs")
        assert (full.reason, "as many as this device has at a time" in full.error) == ("Unavailable", True)
        one.down = True
        one.sockets[0].incoming.put_nowait(None)
        await within(one.sockets[0].over)
        await asyncio.sleep(0)  # the door hears of it
        assert "cannot be reached" in (await one.ask("logs")).error
        one.down = False
        assert (await one.ask("logs")).error == "", "one that could not be dialled keeps no room"


async def test_a_silent_one_is_ended(tmp_path: Path) -> None:
    async with world(tmp_path, idle_timeout="20ms") as one:
        await one.ask("attach")
        [socket] = one.sockets
        await within(socket.seen)
        assert b"nothing was said for 20ms" in socket.sent[-1]


async def test_a_log_is_sent_from_where_it_was_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.log.write_bytes(b"".join(b"line %d\n" % number for number in range(9)))
        await one.ask("logs", log=LogQuery(limit_bytes=13))
        [socket] = one.sockets
        await within(socket.seen)
        assert b"".join(socket.sent) == b"line 4\nline 5\n"[:13]
        await within(socket.over)
        assert socket.closed == (1000, "")


async def test_one_whose_client_is_gone_is_ended_also_while_its_input_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "LEAVE_SECONDS", 0.01)
    async with world(tmp_path) as one:
        await one.ask("logs")
        [socket] = one.sockets
        socket.left.set()  # and `receive` says nothing of it
        await within(socket.over)
        assert socket.closed == (1011, "the client has left")
