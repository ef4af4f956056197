"""Messages on their way to one MQTT client: bounded in bytes, a window of them unacknowledged at a time.

Lives here: order, bounds, packet ids. Must not live here: the socket, or what to do when there is no room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from skerry.drivers.link import packets

OVERHEAD_BYTES = 1024
"""Counted for each message beside its payload: topic, objects, packet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message for a client."""

    topic: str
    payload: bytes
    qos: int
    retain: bool = False

    @property
    def cost(self) -> int:
        """Bytes it takes of an outbox's budget."""
        return len(self.payload) + OVERHEAD_BYTES


class Outbox:
    """First in, first out. What is unacknowledged counts against the budget until its PUBACK."""

    def __init__(self, *, max_bytes: int, window: int) -> None:
        self._free = max_bytes
        self._window = window
        self._queue: deque[Message] = deque()
        self._unacknowledged: dict[int, Message] = {}
        self._room: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._changed = asyncio.Event()
        self._last_id = 0

    def __len__(self) -> int:
        """Messages that have not arrived yet, as far as is known."""
        return len(self._queue) + len(self._unacknowledged)

    def offer(self, message: Message) -> bool:
        """Queue it if there is room now, and nobody waits for room."""
        if self._room or message.cost > self._free:
            return False
        self.force(message)
        return True

    def force(self, message: Message) -> None:
        """Queue it whether there is room or not; for what is bounded otherwise."""
        self._free -= message.cost
        self._queue.append(message)
        self._changed.set()

    async def put(self, message: Message) -> None:
        """Queue it, waiting for room in the order of arrival; the waiting is the senders' backpressure."""
        if self.offer(message):
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (message.cost, granted)
        self._room.append(entry)
        try:
            await granted
        except asyncio.CancelledError:
            if entry in self._room:
                self._room.remove(entry)
            else:
                self._free += message.cost  # it was granted in the moment of the cancellation
            self._grant()
            raise
        self._queue.append(message)
        self._changed.set()

    async def next(self) -> packets.Publish:
        """Return the next message to write; waits for one, and for the window to have room for it."""
        while (packet := self.take()) is None:
            await self.wait_changed()
        return packet

    async def wait_changed(self) -> None:
        """Wait until there may be a message to take; for one reader."""
        self._changed.clear()
        await self._changed.wait()

    def wake(self) -> None:
        """Have the reader look up."""
        self._changed.set()

    def take(self) -> packets.Publish | None:
        """Return the next message to write, if there is one and the window has room for it."""
        if not self._queue or (self._queue[0].qos and len(self._unacknowledged) >= self._window):
            return None
        message = self._queue.popleft()
        number = 0
        if message.qos:
            number = self._next_id()
            self._unacknowledged[number] = message
        else:
            self._release(message)
        return packets.Publish(topic=message.topic, payload=message.payload, retain=message.retain, packet_id=number)

    def acknowledge(self, packet_id: int) -> None:
        """Forget a message that arrived; unknown ids are ignored."""
        message = self._unacknowledged.pop(packet_id, None)
        if message is not None:
            self._release(message)
            self._changed.set()

    def rewind(self) -> None:
        """Put what was not acknowledged back to the front, for the client's next connection."""
        self._queue.extendleft(reversed(self._unacknowledged.values()))
        self._unacknowledged.clear()
        self._changed.set()

    def _release(self, message: Message) -> None:
        self._free += message.cost
        self._grant()

    def _grant(self) -> None:
        while self._room and self._room[0][0] <= self._free:
            cost, granted = self._room.popleft()
            if granted.cancelled():
                continue
            self._free -= cost
            granted.set_result(None)

    def _next_id(self) -> int:
        self._last_id = self._last_id % 65535 + 1
        while self._last_id in self._unacknowledged:
            self._last_id = self._last_id % 65535 + 1
        return self._last_id
