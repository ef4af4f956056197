"""Being cancelled in the same step in which a child of a TaskGroup fails, and otherwise."""

from __future__ import annotations

import asyncio

import pytest

from skerry.kit.cancellation import in_own_task


async def stay(begun: asyncio.Event, fail: asyncio.Event) -> None:
    """Try for ever to keep a connection that breaks when told to."""

    async def child() -> None:
        begun.set()
        await fail.wait()
        raise OSError("the connection ended")

    async def converse() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())

    while True:
        try:
            await in_own_task(converse())
        except* OSError:
            begun.clear()
            fail.clear()


@pytest.mark.parametrize("steps", range(8))
async def test_a_loop_that_tries_again_ends_when_it_is_cancelled_while_a_try_fails(steps: int) -> None:
    begun, fail = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(stay(begun, fail))
    await begun.wait()
    fail.set()
    for _ in range(steps):  # each is one step further on the failure's way up
        await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=10)
    assert done
    assert task.cancelled()


async def test_work_that_is_cancelled_has_ended_and_cleaned_up() -> None:
    begun, ended = asyncio.Event(), False

    async def work() -> None:
        nonlocal ended
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended = True

    task = asyncio.create_task(in_own_task(work()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_what_it_returns_and_what_it_raises_come_through() -> None:
    async def returns() -> int:
        return 7

    async def raises() -> int:
        raise LookupError("here")

    assert await in_own_task(returns()) == 7
    with pytest.raises(LookupError, match="here"):
        await in_own_task(raises())
