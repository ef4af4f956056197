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
"""For the rest of the output once the command has ended; everything that could write more was killed."""


async def talk(asked: Conversation) -> None:
    """Run the command to its end, or the client's. Raises UnavailableError when it cannot be started."""
    session, socket = asked.session, asked.socket
    running = await asked.execute(asked.place.name, list(session.argv), terminal=session.tty)
    try:
        outputs = [asyncio.ensure_future(_send(running.output, channels.STDOUT, socket, wanted=session.stdout))]
        if running.errors >= 0:
            outputs.append(asyncio.ensure_future(_send(running.errors, channels.STDERR, socket, wanted=session.stderr)))
        if not session.stdin:
            running.close_input()
        listening = asyncio.ensure_future(_listen(running, socket))
        ending = asyncio.ensure_future(running.wait())
        try:
            await asyncio.wait({listening, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                return  # nobody listens any more
            await running.kill()
            await asyncio.wait(outputs, timeout=DRAIN_SECONDS)
            await socket.send(channels.ended(ending.result()))
            await socket.close()
        finally:
            for task in (*outputs, listening, ending):
                task.cancel()
            await asyncio.gather(*outputs, listening, ending, return_exceptions=True)
    finally:
        await running.end()


async def _send(descriptor: int, channel: int, socket: WebSocket, *, wanted: bool) -> None:
    """Send what comes out, until its end; what nobody wants is read all the same, or the command would wait."""
    while True:
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            await readable(descriptor)
            continue
        except OSError:  # a terminal nobody has open any more
            return
        if not data:
            return
        if wanted:
            await socket.send(channels.frame(channel, data))


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
