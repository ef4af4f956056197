"""Packets over Unix sockets (SOCK_SEQPACKET), each with at most one socket's descriptor beside it.

Lives here: one packet in, one packet out, whose process is at the other end. Must not live here: what is in it, who may
send it, or for how long to wait.

Source: unix(7), SCM_RIGHTS and SO_PEERCRED; recvmsg(2), MSG_CMSG_CLOEXEC.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct

_CREDENTIALS = struct.Struct("=iII")


def send(channel: socket.socket, packet: bytes, beside: socket.socket | None = None) -> None:
    """Send one packet, and a descriptor of that socket. Raises OSError; it never waits on a non-blocking channel."""
    socket.send_fds(channel, [packet], [] if beside is None else [beside.fileno()])


def peer(channel: socket.socket) -> int:
    """Return the user id of the process at the other end, as it was when it connected or listened."""
    _, user, _ = _CREDENTIALS.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(user)


async def receive(channel: socket.socket, max_bytes: int) -> tuple[bytes, socket.socket | None]:
    """Wait for one packet and return it, and the socket that came with it, which is the caller's to close.

    Empty and without a socket: the other end has closed. What is longer is cut. Raises OSError.
    """
    await _readable(channel)
    numbers = array.array("i")
    room = socket.CMSG_LEN(numbers.itemsize)  # a second descriptor is closed by the kernel
    packet, extra, _, _ = channel.recvmsg(max_bytes, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    try:
        return packet, socket.socket(fileno=numbers[0]) if numbers else None
    except OSError:  # something else than a socket
        os.close(numbers[0])
        return packet, None


async def _readable(channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    there: asyncio.Future[None] = loop.create_future()

    def on_readable() -> None:
        if not there.done():
            there.set_result(None)

    loop.add_reader(channel.fileno(), on_readable)
    try:
        await there
    finally:
        loop.remove_reader(channel.fileno())
