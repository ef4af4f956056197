"""Conversations with workloads on devices: commands and forwarded ports, by Kubernetes' protocols over WebSocket.

Lives here: the client's end of `pods/exec` and `pods/portforward`. Must not live here: terminals, printing (`cli`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import msgspec

import skerry
from skerry.api import errors
from skerry.core import channels
from skerry.drivers.client import failures
from skerry.drivers.client.kubeconfig import Connection
from skerry.kit import websocket_client
from skerry.kit.websocket import RefusedError
from skerry.kit.websocket_client import WebSocket

OPEN_SECONDS = 60.0
"""The device is asked and connects before the hub answers."""
_CHUNK = 32 * 1024


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A workload on a device."""

    namespace: str
    device: str
    workload: str

    @property
    def path(self) -> str:
        """Its path in the API."""
        return f"/api/v1/namespaces/{quote(self.namespace)}/pods/{quote(f'{self.workload}.{self.device}')}"


class Running:
    """A command that runs on a device."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def write(self, data: bytes) -> None:
        """Give it input. Raises UnavailableError."""
        await self._socket.send(channels.frame(channels.STDIN, data))

    async def close_input(self) -> None:
        """Let it read the end of its input, where the hub can say so."""
        if self._socket.protocol == channels.V5:
            await self._socket.send(bytes((channels.CLOSE, channels.STDIN)))

    async def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal its size."""
        size = msgspec.json.encode(channels.Size(width=columns, height=rows))
        await self._socket.send(channels.frame(channels.RESIZE, size))

    async def outcome(self, show: Callable[[int, bytes], None]) -> int:
        """Hand out what it writes, with the channel, and return its exit code at its end.

        Raises UnavailableError when it cannot be run, or the connection breaks.
        """
        while (message := await self._socket.receive()) is not None:
            if message[:1] == bytes((channels.ERROR,)):
                return channels.exit_code(message[1:])
            if len(message) > 1:
                show(message[0], message[1:])
        ended = self._socket.ended
        raise errors.UnavailableError("the connection ended before the command did", hint=ended.reason if ended else "")


@asynccontextmanager
async def execute(
    connection: Connection, pod: Pod, argv: Sequence[str], *, stdin: bool, terminal: bool
) -> AsyncIterator[Running]:
    """Start a command beside a workload. Raises what the hub and the device answer."""
    streams = {"stdin": stdin, "stdout": True, "stderr": not terminal, "tty": terminal}
    query = [("command", word) for word in argv] + [(name, "true") for name, wanted in streams.items() if wanted]
    path = f"{pod.path}/exec?{urlencode(query)}"
    async with _connected(connection, path, channels.COMMAND_PROTOCOLS) as socket:
        yield Running(socket)


async def forward(
    connection: Connection, pod: Pod, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Carry one local connection to a workload's port, to the end of either. Raises UnavailableError with the cause."""
    path = f"{pod.path}/portforward?ports={port}"
    async with _connected(connection, path, (channels.V4,)) as socket:
        up = asyncio.ensure_future(_up(reader, socket.send))
        try:
            await _down(socket, writer)
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)


async def _up(reader: asyncio.StreamReader, send: Callable[[bytes], Awaitable[None]]) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            await send(b"\0" + data)
        await send(bytes((channels.CLOSE, 0)))


async def _down(socket: WebSocket, writer: asyncio.StreamWriter) -> None:
    begun: set[int] = set()
    while (message := await socket.receive()) is not None:
        channel, content = message[:1], message[1:]
        if channel and channel[0] not in begun:
            begun.add(channel[0])
            content = content[2:]  # the port, first of all
        if content and channel == b"\1":
            raise errors.UnavailableError(content.decode(errors="replace")[:1000])
        if content:
            writer.write(content)
            try:
                await writer.drain()
            except OSError:  # whoever connected has left
                return


@asynccontextmanager
async def _connected(connection: Connection, path: str, protocols: Sequence[str]) -> AsyncIterator[WebSocket]:
    headers = {"User-Agent": f"skerry/{skerry.__version__}"}
    if connection.token:
        headers["Authorization"] = f"Bearer {connection.token}"
    tls = connection.tls() if connection.server.startswith("https:") else None
    try:
        async with websocket_client.connect(
            f"{connection.server}{path}", tls=tls, protocols=protocols, headers=headers, timeout_seconds=OPEN_SECONDS
        ) as socket:
            yield socket
    except RefusedError as error:
        raise failures.error_of(error.status, error.body, connection.server) from None
