"""Answers go out as they are written, not when the peer has acknowledged what came before."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

from skerry.hub import listener, pki


async def test_connections_do_not_wait_for_acknowledgements(live_authority: pki.Authority) -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sock = listener.bind("127.0.0.1", 0, purpose="test", option="--port")
    async with listener.serve(nothing, sock, live_authority.server_context(), listener.Limits()):
        context = ssl.create_default_context(cadata=live_authority.ca_pem.decode())
        reader, writer = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1], ssl=context)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(20):
            assert (await reader.readline()).startswith(b"HTTP/1.1 204")
        (option,) = accepted_from(writer.get_extra_info("sockname"))
        assert option != 0
        writer.close()
        await writer.wait_closed()


def accepted_from(peer: tuple[str, int]) -> Iterator[int]:
    """Yield what this process has set of the connections that it accepted from there."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), closing(socket.socket(fileno=os.dup(int(name)))) as found:
            if found.type == socket.SOCK_STREAM and found.getpeername() == peer:
                yield found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
