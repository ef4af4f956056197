"""A command beside a workload, its input and output as channels of one connection.

Lives here: pumps between descriptors and messages, each waiting for the other. Must not live here: starting it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

from skerry.agent.remote.door import Conversation
from skerry.api.errors import SkerryError
from skerry.core import channels
from skerry.core.ports import Executed
from skerry.drivers.runtime.sessions import readable, writable
from skerry.kit.websocket_client import WebSocket

CHUNK = 32 * 1024
DRAIN_SECONDS = 5.0
"""For more of the output to come once the command has ended; everything that could write it was killed."""


async def talk(asked: Conversation) -> None:
    """Run the command to its end, or the client's. Raises UnavailableError when it cannot be started."""
    session, socket = asked.session, asked.socket
    running = await asked.execute(asked.place.name, list(session.argv), terminal=session.tty)
    try:
        pumps = [_Pump(running.output, channels.STDOUT, socket, wanted=session.stdout)]
        if running.errors >= 0:
            pumps.append(_Pump(running.errors, channels.STDERR, socket, wanted=session.stderr))
        outputs = [asyncio.ensure_future(pump.run()) for pump in pumps]
        if not session.stdin:
            running.close_input()
        listening = asyncio.ensure_future(_listen(running, socket))
        ending = asyncio.ensure_future(running.wait())
        try:
            await asyncio.wait({listening, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                return  # nobody listens any more
            await running.kill()
            while any(not output.done() for output in outputs) and not listening.done():
                rest = {output for output in outputs if not output.done()}
                done, _ = await asyncio.wait(
                    {*rest, listening}, timeout=DRAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if not done and not any(pump.sends for pump in pumps):
                    break
            await socket.send(channels.ended(ending.result()))
        finally:
            for task in (*outputs, listening, ending):
                task.cancel()
            await asyncio.gather(*outputs, listening, ending, return_exceptions=True)
    finally:
        await running.end()


class _Pump:
    """Sends what comes out, until its end; what nobody wants is read all the same, or the command would wait."""

    def __init__(self, descriptor: int, channel: int, socket: WebSocket, *, wanted: bool) -> None:
        self.sends = False
        """It waits for whoever takes the output, not for more of it."""
        self._descriptor = descriptor
        self._channel = channel
        self._socket = socket
        self._wanted = wanted

    async def run(self) -> None:
        """Raises UnavailableError for a client that has left."""
        while True:
            try:
                data = os.read(self._descriptor, CHUNK)
            except BlockingIOError:
                await readable(self._descriptor)
                continue
            except OSError:  # a terminal nobody has open any more
                return
            if not data:
                return
            if self._wanted:
                self.sends = True
                await self._socket.send(channels.frame(self._channel, data))
                self.sends = False


async def _listen(running: Executed, socket: WebSocket) -> None:
    """Take what the client says, until it leaves."""
    with contextlib.suppress(SkerryError):
        while (message := await socket.receive()) is not None:
            channel, content = message[:1], message[1:]
            if channel == bytes((channels.STDIN,)) and content:
                await _write(running, content)
            elif channel == bytes((channels.RESIZE,)):
                size = channels.parse_size(content)
                if size is not None:
                    running.resize(size.height, size.width)
            elif message == bytes((channels.CLOSE, channels.STDIN)):
                running.close_input()


async def _write(running: Executed, content: bytes) -> None:
    """Write as the command reads; what it does not want is dropped."""
    rest = memoryview(content)
    while rest and running.input >= 0:
        try:
            rest = rest[os.write(running.input, rest) :]
        except BlockingIOError:
            await writable(running.input)
        except OSError:
            running.close_input()
            return
