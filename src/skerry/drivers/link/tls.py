"""TLS below the broker: a connection from its first byte to its last, in little memory and bounded time.

`asyncio.sslproto` is private to asyncio: its buffer's size cannot be had otherwise. Every test of the broker goes
through here, so that a Python in which it is another fails them.

Lives here: the context, handshake and closing of one connection. Must not live here: who may connect (`admission`), who
is there (`broker.identify`).
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio import sslproto
from collections.abc import Callable
from pathlib import Path

_CLOSE_SECONDS = 2.0


class _SmallTls(sslproto.SSLProtocol):
    """asyncio's TLS with a buffer for what devices send: by default each connection holds a quarter of a megabyte."""

    max_size = 16 * 1024


def server_context(*, certificate: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """Return a TLS context from files: TLS 1.2 or later, a client certificate of that CA required, no resumption."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ca)
    context.load_cert_chain(certificate, key)
    return context


class Door(asyncio.Protocol):
    """A connection before its first byte is read."""

    def __init__(self, arrived: Callable[[asyncio.Transport], None]) -> None:
        self._arrived = arrived

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take nothing from it before it was admitted."""
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()  # what comes belongs to the handshake
        self._arrived(transport)


async def secure(
    transport: asyncio.Transport, context: ssl.SSLContext, *, seconds: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """Do what `loop.start_tls` does, with a buffer of our size; None when it was lost in the moment of its success.

    `seconds` bounds the handshake. Raises OSError, of which SSLError is one.
    """
    loop = asyncio.get_running_loop()
    opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, lambda *streams: opened.append(streams), loop=loop)
    done: asyncio.Future[None] = loop.create_future()
    tls = _SmallTls(
        loop,
        protocol,
        context,
        done,
        server_side=True,
        ssl_handshake_timeout=seconds,  # type: ignore[arg-type] # float
        ssl_shutdown_timeout=_CLOSE_SECONDS,
    )
    transport.set_protocol(tls)
    tls.connection_made(transport)
    transport.resume_reading()
    try:
        await done
    except BaseException:
        transport.abort()
        raise
    return opened[0] if opened else None


async def close(writer: asyncio.StreamWriter) -> None:
    """Close in bounded time, also when the peer neither reads nor closes."""
    writer.close()
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()
