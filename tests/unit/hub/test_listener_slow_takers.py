"""A peer that asks and then takes nothing of the answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

from skerry.hub import listener, pki


async def test_who_takes_nothing_of_an_answer_is_given_up(live_authority: pki.Authority) -> None:
    ended = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        watching = asyncio.ensure_future(_disconnected(receive))
        try:
            while not watching.done():
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            ended.set()
        finally:
            watching.cancel()

    sock = listener.bind("127.0.0.1", 0, purpose="test", option="--port")
    limits = listener.Limits(take_seconds=0.2)
    async with listener.serve(endless, sock, live_authority.server_context(), limits):
        context = ssl.create_default_context(cadata=live_authority.ca_pem.decode())
        raw = socket.create_connection(("127.0.0.1", sock.getsockname()[1]))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with await asyncio.to_thread(context.wrap_socket, raw, server_hostname="localhost") as line:
            await asyncio.to_thread(line.sendall, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(20):
                await ended.wait()


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
