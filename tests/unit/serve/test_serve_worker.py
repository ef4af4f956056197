"""The engine's thread: order, bounds, withdrawal; and what is learned to be quick."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator

import pytest

from skerry.api.errors import UnavailableError
from skerry.serve.worker import QUICK_BYTES, Quick, Worker


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    made = Worker(max_queued=2)
    yield made
    made.close()


async def test_jobs_run_in_order_in_one_other_thread(worker: Worker) -> None:
    order = iter(range(3))
    jobs = [worker.submit(lambda: (next(order), threading.current_thread().name)) for _ in range(3)]
    assert await asyncio.gather(*jobs) == [(0, "engine"), (1, "engine"), (2, "engine")]
    assert worker.pending == 0


async def test_a_failure_reaches_the_waiter(worker: Worker) -> None:
    with pytest.raises(ZeroDivisionError):
        await worker.submit(lambda: 1 // 0)
    assert await worker.submit(lambda: 7) == 7


async def test_the_queue_is_bounded_and_a_withdrawn_job_is_not_run(worker: Worker) -> None:
    gate, ran = threading.Event(), list[int]()
    running = worker.submit(gate.wait)
    waiting = [worker.submit(functools.partial(ran.append, i)) for i in range(2)]
    with pytest.raises(UnavailableError, match="2 requests wait already"):
        worker.submit(lambda: None)
    waiting[0].cancel()
    gate.set()
    assert await running
    await waiting[1]
    assert ran == [1]
    assert worker.pending == 0


def test_a_size_is_quick_once_it_has_been() -> None:
    quick = Quick(enabled=True)
    assert not quick.expects(100)
    quick.learn(100, 0.0001, at_once=False)
    assert quick.expects(100)
    assert not quick.expects(101)
    quick.learn(80, 0.005, at_once=True)  # slower than thought
    assert not quick.expects(80)
    assert quick.expects(79)


def test_what_is_large_or_has_been_misjudged_is_never_quick() -> None:
    quick = Quick(enabled=True)
    quick.learn(QUICK_BYTES + 1, 0.0001, at_once=False)
    assert not quick.expects(QUICK_BYTES + 1)
    quick.learn(100, 0.0001, at_once=False)
    quick.learn(10, 0.5, at_once=True)
    quick.learn(100, 0.0001, at_once=False)
    assert not quick.expects(1)


def test_an_engine_with_threads_of_its_own_is_never_run_at_once() -> None:
    quick = Quick(enabled=False)
    quick.learn(100, 0.0001, at_once=False)
    assert not quick.expects(1)
