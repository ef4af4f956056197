"""A cancellation that must not get lost.

Before Python 3.13 a TaskGroup whose child fails in the very step in which its own task is cancelled from outside raises
the failure alone, and leaves the task's count of cancellations wrong (gh-116720). A loop that takes failures for a
reason to try again would then try for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def in_own_task(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns, or raise what it raises; cancelled from outside it raises CancelledError, always.

    To be used where failures of a TaskGroup are handled. The work has ended when this returns.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
    return task.result()
