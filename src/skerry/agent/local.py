"""The local socket: how an application on this device holds updates for a while.

A stream of Unix domain, mode 0660. One request a line, one answer a line, JSON, both at most 8 KiB:

    {"verb": "hold", "for": "30m", "holder": "till", "reason": "customers"}   -> {"ok": true, "holds": [...]}
    {"verb": "release", "holder": "till"}                                     -> {"ok": true, "holds": [...]}
    {"verb": "status"}                                                        -> {"ok": true, "holds": [...]}
    anything else                                                             -> {"ok": false, "error": "<sentence>"}

Who may open the socket may hold: its mode and group decide, nothing else. An answer to `hold` comes when the hold is on
the disk. Lives here: the socket and its lines. Must not live here: what a hold means (`hold`).
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from skerry.agent.hold import Holds
from skerry.agent.settings import HoldSettings
from skerry.api import duration
from skerry.api.errors import InvalidError, SkerryError, TimedOutError, UnavailableError
from skerry.api.kinds.device import HoldStatus

log = logging.getLogger(__name__)

SOCKET = "agent.sock"
MAX_LINE_BYTES = 8192
MAX_CLIENTS = 16
"""At a time; more are hung up on."""
IDLE_SECONDS = 10.0
MODE = 0o660
DEFAULT_HOLDER = "application"


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a client."""

    verb: Literal["hold", "release", "status"]
    lasting: Annotated[str, msgspec.Meta(max_length=32)] = msgspec.field(default="", name="for")
    holder: Annotated[str, msgspec.Meta(max_length=200)] = DEFAULT_HOLDER
    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the agent."""

    ok: bool
    error: str = ""
    holds: list[HoldStatus] = []


def path_of(settings: HoldSettings, state_dir: Path) -> Path:
    """Return where the socket is."""
    return Path(settings.socket) if settings.socket else state_dir / SOCKET


class LocalSocket:
    """The agent's end."""

    def __init__(self, holds: Holds, settings: HoldSettings, state_dir: Path) -> None:
        self._holds = holds
        self._group = settings.group
        self._path = path_of(settings, state_dir)
        self._clients: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Answer, until cancelled. What prevents it is logged: a device without its local socket still works."""
        try:
            async with self._listening() as server:
                await server.serve_forever()
        except (OSError, SkerryError) as error:
            log.error("local.not_listening path=%s error=%s", self._path, error)

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[asyncio.Server]:
        listener = self._bind()
        try:
            server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_LINE_BYTES)
        except BaseException:
            listener.close()
            raise
        log.info("local.listening path=%s", self._path)
        try:
            yield server
        finally:
            server.close()
            for client in list(self._clients):
                client.cancel()
            if self._clients:
                await asyncio.wait(set(self._clients))
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _bind(self) -> socket.socket:
        """Nobody may connect before the mode is right: the socket listens only then."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise InvalidError("is there and is no socket", element=str(self._path), hint="set hold.socket")
            self._path.unlink()  # of an agent that was killed; this one holds the lock on the state directory
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short(self._path) as short:
                listener.bind(short)
            os.chmod(self._path, MODE)
            if self._group:
                os.chown(self._path, -1, _group_id(self._group))
        except BaseException:
            listener.close()
            raise
        return listener

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= MAX_CLIENTS:
            writer.close()
            return
        self._clients.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError, ValueError) as error:  # ValueError: a line without an end
            log.debug("local.hung_up error=%s", error)
        finally:
            self._clients.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(IDLE_SECONDS):
                line = await reader.readline()
                if not line:
                    return
                writer.write(msgspec.json.encode(self.answer(line)) + b"\n")
                await writer.drain()

    def answer(self, line: bytes) -> Answer:
        """Carry one request out."""
        try:
            request = msgspec.json.decode(line, type=Request)
            if request.verb == "hold":
                seconds = duration.to_seconds(request.lasting)
                self._holds.take(request.holder, seconds=seconds, reason=request.reason)
            elif request.verb == "release":
                self._holds.release(request.holder)
        except SkerryError as error:
            return Answer(ok=False, error=error.sentence, holds=self._holds.in_force())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Answer(ok=False, error=f"the request is not understood: {str(error)[:300]}")
        return Answer(ok=True, holds=self._holds.in_force())


def ask(path: Path, request: Request) -> Answer:
    """Ask the agent, from another process; blocks. Raises UnavailableError, TimedOutError, InvalidError."""
    element = f"agent's socket {path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(IDLE_SECONDS)
        try:
            with _short(path) as short:
                client.connect(short)
            client.sendall(msgspec.json.encode(request) + b"\n")
            raw = bytearray()
            while not raw.endswith(b"\n") and len(raw) <= MAX_LINE_BYTES * 8:
                piece = client.recv(MAX_LINE_BYTES)
                if not piece:
                    raise UnavailableError("hung up", element=element, hint="too many ask at a time; try again")
                raw += piece
        except TimeoutError:
            raise TimedOutError(f"does not answer within {IDLE_SECONDS:g} s", element=element) from None
        except OSError as error:
            raise UnavailableError(
                f"cannot be asked: {error.strerror}", element=element, hint="is the agent running, and may you use it?"
            ) from None
    try:
        answer = msgspec.json.decode(bytes(raw), type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UnavailableError("answers something else", element=element) from None
    if not answer.ok:
        raise InvalidError(answer.error, element="hold")
    return answer


@contextlib.contextmanager
def _short(path: Path) -> Any:
    """Yield a short name for the same place: the address of such a socket has no more than 107 bytes."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidError(f'there is no group "{name[:80]}"', element="hold.group") from None
