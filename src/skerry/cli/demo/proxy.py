"""A TCP proxy whose line can be cut: how the demo makes the hub unreachable for one device.

Forwards bytes between loopback ports in a thread of its own. Must not know what it forwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator


class Line:
    """One forwarded port. `cut` drops what is open and refuses what is new, until `mend`."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self._up = True
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self) -> asyncio.Server:
        """Listen on a free loopback port."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def cut(self) -> None:
        """Break every connection at once, as a pulled cable does."""
        self._up = False
        for writer in list(self._open):
            writer.transport.abort()

    def mend(self) -> None:
        """Let connections through again."""
        self._up = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._up:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, far_writer}
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, far_writer))
                pumps.create_task(self._pump(far_reader, writer))
        finally:
            self._open -= {writer, far_writer}
            for end in (writer, far_writer):
                end.transport.abort()

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof() if writer.can_write_eof() else writer.close()


class Uplink:
    """All lines of one device to its hub, cut and mended together."""

    def __init__(self, lines: list[Line], loop: asyncio.AbstractEventLoop) -> None:
        self._lines = lines
        self._loop = loop

    @property
    def ports(self) -> list[int]:
        """The forwarding ports, in the order the targets were given."""
        return [line.port for line in self._lines]

    def cut(self) -> None:
        """Make the hub unreachable through this uplink."""
        for line in self._lines:
            self._loop.call_soon_threadsafe(line.cut)

    def mend(self) -> None:
        """Make it reachable again."""
        for line in self._lines:
            self._loop.call_soon_threadsafe(line.mend)


@contextlib.contextmanager
def uplink(*targets: int) -> Iterator[Uplink]:
    """Forward a free loopback port to each of the target ports while the context lasts."""
    loop = asyncio.new_event_loop()
    lines = [Line(port) for port in targets]
    started = threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        servers = [await line.serve() for line in lines]
        started.set()
        await stop.wait()
        for server in servers:
            server.close()
        for line in lines:
            line.cut()
        # With every connection broken the pumps end by themselves; their tasks belong to the servers.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), name="uplink", daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield Uplink(lines, loop)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
