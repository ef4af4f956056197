"""Hanging up, and noticing that a peer has hung up, also while nothing of what it sent is read.

Who waits for one end of a conversation to take something does not read the other one, and a closed connection is seen
by reading. The kernel knows all the same; where there is no epoll, only `lost` tells, by way of whatever is written.
What a peer has not sent yet for want of room hides its end: to learn of that one, something has to be sent to it.
Must not live here: what is to be done about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Iterator


async def hung_up(transport: asyncio.BaseTransport, lost: asyncio.Event) -> None:
    """Return when the peer has closed or reset the connection, or once `lost` is set."""
    with _noticed(transport) as noticed:
        waits = [asyncio.ensure_future(one.wait()) for one in (noticed, lost)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


def abort(transport: asyncio.BaseTransport) -> None:
    """Hang up at once, whatever was sent and not taken; one that was closed already may be one that is gone."""
    with contextlib.suppress(AttributeError):  # Python before 3.11.4, of a TLS transport that was closed twice
        transport.abort()  # type: ignore[attr-defined] # all of asyncio's that can be written to have it


@contextlib.contextmanager
def _noticed(transport: asyncio.BaseTransport) -> Iterator[asyncio.Event]:
    event = asyncio.Event()
    if not hasattr(select, "epoll"):
        yield event
        return
    with select.epoll() as poll:
        try:
            poll.register(transport.get_extra_info("socket").fileno(), select.EPOLLRDHUP)
        except (OSError, ValueError, AttributeError):  # it has no socket, or no more
            event.set()
            yield event
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(poll.fileno(), event.set)
        try:
            yield event
        finally:
            loop.remove_reader(poll.fileno())
