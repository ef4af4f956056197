"""Keys waiting for work: each is queued once, however often it is added, and handled by one worker at a time.

The model is client-go's work queue. Lives here: which key is next. Must not live here: what handling means, retries.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """First in, first out, without duplicates. A key added while it is handled is handled once more afterwards."""

    def __init__(self) -> None:
        self._waiting: dict[K, None] = {}
        self._active: set[K] = set()
        self._again: set[K] = set()
        self._ready = asyncio.Event()

    def __len__(self) -> int:
        """Keys that still need a worker."""
        return len(self._waiting) + len(self._again)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being handled."""
        return not self._waiting and not self._active

    def add(self, key: K) -> None:
        """Ask for the key to be handled, now or again."""
        if key in self._active:
            self._again.add(key)
        else:
            self._waiting[key] = None
            self._ready.set()

    @asynccontextmanager
    async def take(self) -> AsyncIterator[K]:
        """Wait for the next key; it is this worker's until the block ends."""
        while not self._waiting:
            self._ready.clear()
            await self._ready.wait()
        key = next(iter(self._waiting))
        del self._waiting[key]
        self._active.add(key)
        try:
            yield key
        finally:
            self._active.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)
