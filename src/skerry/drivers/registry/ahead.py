"""Parts of a blob by several connections at a time, handed on in order: for links that bound each connection.

One connection's bytes are handed on as they come. Of several, a few workers ask for one part after the other, a little
ahead of what is handed on. So nothing has to be kept but what is in order: the file grows as if one connection brought
it, and a break costs no more than what was ahead, which is in memory and bounded (`width + 1` parts); the beginning of
the part that broke is handed on too. How many connections are worth it is found by trying: each further number has to
be faster by `WORTH`. Lives here: that, with blocking calls in threads. Must not live here: HTTP, files, digests.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

PART_BYTES = 1024 * 1024
TRY_BYTES = 4 * PART_BYTES
"""So much decides about a number of connections."""
LEAST_BYTES = 2 * TRY_BYTES
"""Of what is missing; with less, trying does not pay."""
FAST_SECONDS = 0.5
"""One connection that brings TRY_BYTES in less is not what a link holds back."""
WORTH = 1.25

Ask = Callable[[int, int], bytes]
"""Brings the bytes from one offset to another, exactly; blocks, and raises CutError with what came."""
Stream = Callable[[int, int], Iterator[bytes]]
"""The same, bit by bit."""


class CutError(Exception):
    """A part did not come, or not whole; `prefix` is what came of it, and the cause is why."""

    def __init__(self, prefix: bytes) -> None:
        super().__init__()
        self.prefix = prefix


def in_order(ask: Ask, start: int, end: int, width: int) -> Generator[bytes]:
    """Give the bytes of a span in order, asked for by `width` at a time.

    Raises what `ask` raises, after what came before, the beginning of what was cut off with it. Whoever closes the
    iterator waits until the workers have ended: have `ask` end soon then.
    """
    size, waiting = PART_BYTES, deque[Future[bytes]]()
    offsets = iter(range(start, end, size))
    with ThreadPoolExecutor(width, thread_name_prefix="part") as workers:
        try:
            while True:
                while len(waiting) <= width and (offset := next(offsets, None)) is not None:
                    waiting.append(workers.submit(ask, offset, min(offset + size, end)))
                if not waiting:
                    return
                try:
                    part = waiting.popleft().result()
                except CutError as cut:
                    if cut.prefix:
                        yield cut.prefix
                    raise
                yield part
        finally:
            for one in waiting:
                one.cancel()


def widest(
    ask: Ask,
    start: int,
    end: int,
    most: int,
    *,
    stream: Stream,
    monotonic: Callable[[], float] = time.monotonic,
) -> Generator[tuple[int, bytes]]:
    """Give the bytes of a span in order, each with the number of connections that brought them; up to `most`.

    `stream` is asked while it is one.

    It ends early where one connection is the best number: what is missing then is better asked for at once.
    """
    best, best_rate, offset = 1, 0.0, start
    for width in _doubling(most):
        began, until = monotonic(), min(offset + TRY_BYTES, end)
        for part in stream(offset, until) if width == 1 else in_order(ask, offset, until, width):
            yield width, part
        seconds, offset = max(monotonic() - began, 1e-6), until
        rate = TRY_BYTES / seconds
        if best_rate and rate < best_rate * WORTH:
            break
        best, best_rate = width, rate
        if offset >= end or (width == 1 and seconds < FAST_SECONDS):
            break
    if best > 1:
        for part in in_order(ask, offset, end, best):
            yield best, part


def _doubling(most: int) -> Iterator[int]:
    for power in count():
        if 2**power > most:
            return
        yield 2**power
