"""The simulated disk and benchmarks: what was written stays, what was not is gone."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from skerry.api.errors import NotFoundError
from skerry.api.kinds.device import Measurement
from skerry.core.journal import State
from skerry.core.messages import ServingDesired, WorkloadDesired
from skerry.kit.clock import SystemClock
from skerry.sim import draws, profiles, sample
from skerry.sim.benchmarks import SimulatedBenchmarks
from skerry.sim.disk import SimulatedDisk


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk(profiles.find("ideal"), draws.dice(7, "test"))


@pytest.fixture
def wanted(tmp_path: Path) -> list[WorkloadDesired]:
    card = sample.write(tmp_path / "v1", "v1")
    return [
        WorkloadDesired(
            name=f"bench-{packaged.variant.precision}",
            rollout="r",
            revision=1,
            model=card.model,
            model_version="simulated-v1",
            version="v1",
            variant=packaged.variant.name,
            format="onnx",
            needs=packaged.variant.needs,
            signature=card.signature,
            repository="default/simulated",
            blob=packaged.variant.blob,
            golden=card.golden.blob,
            serving=ServingDesired(),
        )
        for packaged in card.variants
    ]


async def test_a_disk_keeps_what_was_written(disk: SimulatedDisk):
    await disk.write_journal(State(name="one", phase="Running"))
    await disk.write_journal(State(name="two"))
    await disk.write_journal(State(name="one", phase="Failed"))
    await disk.delete_workload("two")
    assert disk.read_journals() == [State(name="one", phase="Failed")]
    assert disk.read_desired() is None
    await disk.write_desired(3, b"envelope")
    assert disk.read_desired() == (3, b"envelope")


async def test_a_write_that_a_power_cut_ends_never_was(disk: SimulatedDisk):
    slow = SimulatedDisk(profiles.find("slow-disks"), draws.dice(7, "test"))
    writing = asyncio.create_task(slow.write_journal(State(name="one")))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert slow.read_journals() == []


async def test_benchmarks_are_measured_once_and_failures_told(disk: SimulatedDisk, wanted: list[WorkloadDesired]):
    asked: list[str] = []
    done = asyncio.Event()

    async def measure(one: WorkloadDesired) -> Measurement:
        asked.append(one.variant)
        if one.variant == "onnx-fp16":
            raise NotFoundError(element=one.repository)
        return Measurement(
            samples=1, agreement=1.0, max_abs_error=0.0, latency_p50_ms=1.0, latency_p95_ms=1.0, peak_memory_bytes=1
        )

    def changed() -> None:
        if all(one.phase != "Pending" for one in benchmarks.statuses()):
            done.set()

    benchmarks = SimulatedBenchmarks(disk, SystemClock(), measure, changed)
    benchmarks.want(wanted)
    assert {one.phase for one in benchmarks.statuses()} == {"Pending"}
    running = asyncio.create_task(benchmarks.run())
    async with asyncio.timeout(30):
        await done.wait()
    running.cancel()
    phases = {one.variant: one.phase for one in benchmarks.statuses()}
    assert phases == {"onnx-fp32": "Measured", "onnx-fp16": "Failed", "onnx-int8": "Measured"}
    assert all(one.finished_at and one.finished_at < datetime.now(UTC) for one in benchmarks.statuses())
    after_boot = SimulatedBenchmarks(disk, SystemClock(), measure, changed)
    after_boot.want(wanted)
    assert after_boot.statuses() == benchmarks.statuses()
    assert sorted(asked) == sorted(phases)
    after_boot.want([])
    assert disk.benchmarks == {}
