from __future__ import annotations

import asyncio

import pytest

from skerry.kit.workqueue import WorkQueue


async def test_keys_come_in_order_and_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for key in "abab":
        queue.add(key)
    assert len(queue) == 2
    for expected in "ab":
        async with queue.take() as key:
            assert key == expected
    assert queue.idle


async def test_a_key_added_while_it_is_handled_is_handled_again_and_by_nobody_else_meanwhile() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    async with queue.take() as key:
        assert key == "a"
        queue.add("a")
        queue.add("a")
        queue.add("b")
        async with queue.take() as other:
            assert other == "b"
        assert not queue.idle
        assert len(queue) == 1
    async with queue.take() as key:
        assert key == "a"
    assert queue.idle


async def test_several_workers_share_and_wait() -> None:
    queue: WorkQueue[int] = WorkQueue()
    done: list[int] = []

    async def work() -> None:
        while True:
            async with queue.take() as key:
                await asyncio.sleep(0)
                done.append(key)

    workers = [asyncio.ensure_future(work()) for _ in range(3)]
    await asyncio.sleep(0)
    for key in range(20):
        queue.add(key)
    while not queue.idle:  # noqa: ASYNC110 - each turn of the loop is a step of the workers
        await asyncio.sleep(0)
    assert sorted(done) == list(range(20))
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


async def test_a_failing_worker_leaves_the_key_to_others() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")

    async def fail() -> None:
        async with queue.take():
            queue.add("a")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await fail()
    async with queue.take() as key:
        assert key == "a"
