"""Talking to a running inference server: hand it the workload's endpoint, let it mirror, ask for its counters.

The endpoint is one listening socket for the life of the workload. The kernel keeps it, with the connections that wait
in its queue, as long as any process holds it: the agent and the servers pass it on (`handover`), and an agent that was
killed takes it back from a server that lives (`lent`).
Lives here: one exchange over a server's control socket, bounded in time and size. Must not live here: which server, and
when (`core.workload`), or the messages (`core.control`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

from skerry.api.errors import InvalidError, TimedOutError, UnavailableError
from skerry.core import control
from skerry.core.control import Observation, Question, Reply
from skerry.kit import packets

EXCHANGE_SECONDS = 10.0


class ServerControl:
    """The control socket of one slot's server. Nothing is kept open between two calls.

    Every method raises UnavailableError when nothing answers there, TimedOutError, InvalidError for what is no reply
    and for what the server refuses.
    """

    def __init__(self, directory: Path, *, timeout_seconds: float = EXCHANGE_SECONDS) -> None:
        self._directory = directory
        self._timeout = timeout_seconds

    async def handover(self, listener: socket.socket) -> None:
        """Let it accept connections on the endpoint. Others that do go on; harmless when repeated."""
        await self._done(control.Accept(), listener)

    async def lent(self) -> socket.socket | None:
        """Return a descriptor of the listening socket of its endpoint; None when it has none."""
        reply, received = await self._ask(control.Lend())
        try:
            _require_done(reply)
            if received is not None and not _is_listening(received):
                raise InvalidError("lends something that is no listening socket", element=self._name)
        except BaseException:
            if received is not None:
                received.close()
            raise
        return received

    async def retire(self) -> None:
        """Let it accept nothing more, answer what is under way, and end. Returns at once."""
        await self._done(control.Retire())

    async def shadow(self, port: int, share: float) -> None:
        """Let it mirror a share of its requests to the server at that loopback port, behind its callers' backs."""
        await self._done(control.Mirror(port=port, share=share))

    async def stop_shadow(self) -> None:
        """Let it mirror nothing more."""
        await self._done(control.StopMirror())

    async def observe(self) -> Observation:
        """Return its counters."""
        reply, received = await self._ask(control.Observe())
        if received is not None:
            received.close()
        if not isinstance(reply, Observation):
            raise InvalidError(_refusal(reply), element=self._name)
        return reply

    @property
    def _name(self) -> str:
        return f"server in {self._directory}"

    async def _done(self, question: Question, descriptor: socket.socket | None = None) -> None:
        reply, received = await self._ask(question, descriptor)
        if received is not None:
            received.close()
        _require_done(reply, self._name)

    async def _ask(
        self, question: Question, descriptor: socket.socket | None = None
    ) -> tuple[Reply, socket.socket | None]:
        try:
            async with asyncio.timeout(self._timeout):
                with _connected(self._directory) as channel:
                    return await _exchange(channel, control.encode(question), descriptor)
        except TimeoutError:
            raise TimedOutError(f"no answer within {self._timeout:g} s", element=self._name) from None
        except OSError as error:
            cause = "nothing listens there" if isinstance(error, ConnectionRefusedError) else error.strerror
            raise UnavailableError(f"{cause or error}", element=self._name) from None


def _connected(directory: Path) -> socket.socket:
    """Connect; through the directory's descriptor, since a socket's path holds no more than 107 bytes (unix(7)).

    Where nothing listens, or another user does, it raises OSError.
    """
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(place)
        try:
            return _connected_to(f"/proc/self/fd/{place}/{control.SOCKET_FILE}")
        except (ConnectionRefusedError, FileNotFoundError) as error:
            try:
                return _connected_to(control.abstract_name(found.st_dev, found.st_ino))
            except ConnectionRefusedError:
                raise error from None
    finally:
        os.close(place)


def _connected_to(name: str) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        channel.setblocking(False)
        channel.connect(name)
        if packets.peer(channel) not in (0, os.geteuid()):
            raise PermissionError(errno.EPERM, "another user listens there")
    except BaseException:
        channel.close()
        raise
    return channel


async def _exchange(
    channel: socket.socket, packet: bytes, descriptor: socket.socket | None
) -> tuple[Reply, socket.socket | None]:
    packets.send(channel, packet, descriptor)
    answer, received = await packets.receive(channel, control.MAX_PACKET_BYTES)
    try:
        if not answer:
            raise UnavailableError("it closed the connection without an answer", element="server")
        return control.decode_reply(answer), received
    except BaseException:
        if received is not None:
            received.close()
        raise


def _require_done(reply: Reply, element: str = "server") -> None:
    if not isinstance(reply, control.Done):
        raise InvalidError(_refusal(reply), element=element)


def _refusal(reply: Reply) -> str:
    return reply.error if isinstance(reply, control.Refused) else f"answered {type(reply).__name__} instead"


def _is_listening(found: socket.socket) -> bool:
    return (
        found.family in (socket.AF_INET, socket.AF_INET6)
        and found.type == socket.SOCK_STREAM
        and bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    )
