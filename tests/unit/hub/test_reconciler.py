"""Reconcilers: a key that costs much rests, and what is asked of it meanwhile is done in one go."""

import asyncio
import time

from skerry.hub.controllers.reconciler import QUICK, REST, Reconciler


class Handled:
    """Counts how often it handles, and spends the event loop's time on it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.count = 0
        self.began: list[float] = []
        self.ended: list[float] = []
        self.once = asyncio.Event()

    async def __call__(self, key: str) -> float | None:
        self.count += 1
        self.began.append(time.monotonic())
        until = time.thread_time() + self.seconds
        while time.thread_time() < until:
            pass
        self.ended.append(time.monotonic())
        self.once.set()
        return None

    async def failed(self, key: str, error: Exception) -> None:
        raise AssertionError(key) from error


async def test_what_is_asked_during_a_rest_is_handled_once_after_it():
    handled = Handled(3 * QUICK)
    reconciler: Reconciler[str] = Reconciler("test", handled, handled.failed)
    running = asyncio.create_task(reconciler.run())
    reconciler.add("big")
    await handled.once.wait()
    handled.once.clear()
    for _ in range(100):
        reconciler.add("big")
    async with asyncio.timeout(10):
        await handled.once.wait()
    assert handled.count == 2
    assert handled.began[1] - handled.ended[0] > REST * handled.seconds - 0.01  # timers are never early
    running.cancel()


async def test_a_rest_concerns_its_own_key_only():
    handled = Handled(3 * QUICK)
    reconciler: Reconciler[str] = Reconciler("test", handled, handled.failed, workers=1)
    running = asyncio.create_task(reconciler.run())
    async with asyncio.timeout(10):
        for count in range(1, 4):
            reconciler.add(f"key-{count}")
            await handled.once.wait()
            handled.once.clear()
            assert handled.count == count
    running.cancel()


async def test_quick_handling_needs_no_rest():
    handled = Handled(0)
    reconciler: Reconciler[str] = Reconciler("test", handled, handled.failed)
    running = asyncio.create_task(reconciler.run())
    async with asyncio.timeout(10):
        for count in range(1, 50):
            reconciler.add("small")
            await handled.once.wait()
            handled.once.clear()
            assert handled.count == count
    running.cancel()
