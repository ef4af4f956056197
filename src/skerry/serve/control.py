"""The server's side of the control socket: one question after the other, each bounded in time and size.

Lives here: the socket, who may ask, and passing descriptors. Must not live here: what a question does (`lifecycle`
answers), or the messages (`core.control`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from skerry.api.errors import InvalidError, SkerryError, UnavailableError
from skerry.core import control
from skerry.core.control import Question, Reply
from skerry.kit import packets

log = logging.getLogger(__name__)

BACKLOG = 16
EXCHANGE_SECONDS = 5.0
"""A caller that says nothing holds the others up no longer than this."""
PAUSE_SECONDS = 1.0
"""After an accept that failed for want of descriptors or memory."""
_NO_ROOM = (errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Such a disk takes no socket; what is installed is served all the same."""

Answerer = Callable[[Question, socket.socket | None], Awaitable[tuple[Reply, socket.socket | None]]]
"""Gets the descriptor that came with the question, and owns it; what it gives with the reply stays its own."""


class ControlSocket:
    """Listens on a path, for its own user and root alone. Raises UnavailableError when it cannot."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._listener = _bound(path)
        except OSError as error:
            raise UnavailableError(
                f"cannot be listened on: {error.strerror or error}",
                element=str(path),
                hint="a relative path, or one of at most 107 bytes, is needed",
            ) from error

    async def run(self, answer: Answerer) -> None:
        """Answer until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                channel, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                log.warning("control.not_accepted error=%s", error)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            with channel:
                try:
                    async with asyncio.timeout(EXCHANGE_SECONDS):
                        await _converse(channel, answer)
                except (OSError, TimeoutError) as error:
                    log.warning("control.caller_lost error=%s", error)

    def close(self) -> None:
        """Listen no more."""
        named = self._listener.getsockname() == str(self._path)
        self._listener.close()
        if named:
            with contextlib.suppress(OSError):  # the directory may be gone, or read only by now
                self._path.unlink(missing_ok=True)


def _bound(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.setblocking(False)
        try:
            _bind_path(listener, path)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            found = path.absolute().parent.stat()
            listener.bind(control.abstract_name(found.st_dev, found.st_ino))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind_path(listener: socket.socket, path: Path) -> None:
    path.unlink(missing_ok=True)  # of a server that was killed
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)


async def _converse(channel: socket.socket, answer: Answerer) -> None:
    channel.setblocking(False)
    packet, received = await packets.receive(channel, control.MAX_PACKET_BYTES)
    if not packet and received is None:
        return
    lent = None
    try:
        if not _may_ask(channel):
            raise InvalidError("only the server's own user may ask", element="control socket")
        question = control.decode_question(packet)
    except SkerryError as error:
        if received is not None:
            received.close()
        reply: Reply = control.Refused(error=error.sentence[:1000])
    else:
        try:
            reply, lent = await answer(question, received)
        except SkerryError as error:
            reply = control.Refused(error=error.sentence[:1000])
    packets.send(channel, control.encode(reply), lent)


def _may_ask(channel: socket.socket) -> bool:
    return packets.peer(channel) in (0, os.geteuid())
