"""The benchmarks of one simulated device: what the hub wants measured once, one after the other.

Results are on the disk, as the agent's are. Must not live here: what a measurement shows (`measurements`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from skerry.api.errors import SkerryError
from skerry.api.kinds.device import BenchmarkStatus, Measurement
from skerry.core.messages import MAX_BENCHMARKS, WorkloadDesired
from skerry.core.ports import Clock
from skerry.sim.disk import SimulatedDisk


class SimulatedBenchmarks:
    """All benchmarks of one device during one boot; `measure` takes its time."""

    def __init__(
        self,
        disk: SimulatedDisk,
        clock: Clock,
        measure: Callable[[WorkloadDesired], Awaitable[Measurement]],
        changed: Callable[[], None],
    ) -> None:
        self._disk, self._clock, self._measure, self._changed = disk, clock, measure, changed
        self._wanted: dict[str, WorkloadDesired] = {}
        self._news = asyncio.Event()

    def want(self, wanted: Sequence[WorkloadDesired]) -> None:
        """Replace what is to be measured; results that nobody asks for any more are forgotten."""
        self._wanted = {one.name: one for one in wanted[:MAX_BENCHMARKS]}
        for name in [name for name in self._disk.benchmarks if name not in self._wanted]:
            del self._disk.benchmarks[name]
        self._news.set()

    def statuses(self) -> list[BenchmarkStatus]:
        """Return every benchmark that is wanted, as the hub is told of it."""
        return [self._disk.benchmarks.get(name) or _pending(one) for name, one in sorted(self._wanted.items())]

    async def run(self) -> None:
        """Measure what is wanted, for ever."""
        while True:
            self._news.clear()
            waiting = next((one for name, one in self._wanted.items() if name not in self._disk.benchmarks), None)
            if waiting is None:
                await self._news.wait()
                continue
            result = await self._try(waiting)
            if waiting.name in self._wanted:
                self._disk.benchmarks[waiting.name] = result
            self._changed()

    async def _try(self, one: WorkloadDesired) -> BenchmarkStatus:
        try:
            measured = await self._measure(one)
        except SkerryError as error:
            return BenchmarkStatus(
                name=one.name,
                model_version=one.model_version,
                variant=one.variant,
                phase="Failed",
                message=error.sentence[:1000],
                finished_at=self._clock.now(),
            )
        return BenchmarkStatus(
            name=one.name,
            model_version=one.model_version,
            variant=one.variant,
            phase="Measured",
            measurement=measured,
            finished_at=self._clock.now(),
        )


def _pending(one: WorkloadDesired) -> BenchmarkStatus:
    return BenchmarkStatus(name=one.name, model_version=one.model_version, variant=one.variant)
