"""The agent killed while it measures for the hub: the result comes all the same, once, and nothing is left behind.

What serves goes on serving meanwhile. The points come from a trace of an undisturbed run (`power_cut.py`). A few are
tried; SKERRY_POWER_CUTS=all tries every one, SKERRY_POWER_CUTS=both every one both ways.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import datetime
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.integration.agent.processes import Authority, Device
from tests.integration.agent.surroundings import KEY_ID, PATIENCE, Model, Registry
from tests.integration.agent.test_agent_power_cuts import Customer, Story, served, version_at

from skerry.agent.benchmark import FILE
from skerry.agent.disk import AcceptedDesired
from skerry.core import messages, trust
from skerry.core.messages import BENCHMARK_PREFIX, DesiredState
from skerry.drivers.runtime.process import ProcessRuntime

LAUNCHER = Path(__file__).with_name("power_cut.py")
WANTED = os.environ.get("SKERRY_POWER_CUTS", "")
STORY = Story("benchmark", after="v1")
SAMPLES = 4
NAME = f"{BENCHMARK_PREFIX}{'a' * 64}"


@pytest.fixture(scope="module")
def registry(authority: Authority, models: dict[str, Model]) -> Iterator[Registry]:
    made = Registry(authority.server_context())
    made.add(*models.values())
    yield made
    made.close()


def make(directory: Path, authority: Authority, registry: Registry, models: dict[str, Model]) -> Device:
    """A device that has accepted one workload and one benchmark, and is out of reach of its hub."""
    device = Device(directory / "state", authority, registry)
    asked = msgspec.structs.replace(models["v2"].desired(name=NAME), rollout="", revision=0)
    state = DesiredState(
        uid=device.uid,
        manifest_version=1,
        issued_at=datetime.datetime.now(datetime.UTC),
        workloads=[models["v1"].desired()],
        benchmarks=[asked],
    )
    envelope = messages.encode(trust.sign(state, authority.signing, KEY_ID))
    device.disk.write_desired(AcceptedDesired(manifest_version=1, envelope=envelope))
    return device


def done(device: Device) -> bool:
    """The result is on the disk, the workload serves, and nothing else is there."""
    try:
        kept: dict[str, Any] = json.loads((device.directory / FILE).read_bytes())
    except FileNotFoundError:
        return False
    phases = [one["phase"] for one in kept.get("results", [])]
    servers = asyncio.run(ProcessRuntime(device.directory / "runtime").list())
    tidy = device.disk.workloads() == ["digits"] and len(servers) == 1
    return phases == ["Measured"] and device.journal().get("phase") == "Running" and tidy


def wait_done(device: Device) -> bool:
    """Wait for the end, or for the agent's; tells which."""
    process, deadline = device.process, time.monotonic() + PATIENCE
    assert process is not None
    while not done(device):
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, device.log()
        time.sleep(0.02)
    return True


def cut(device: Device, number: int, *, power: bool) -> list[str]:
    """Live until the result is there, killed at that point (0: never); return the points that were passed."""
    armed, trace = device.directory.parent / "armed", device.directory.parent / "trace"
    armed.touch()
    try:
        device.start(str(LAUNCHER), str(number), str(armed), str(trace))
        with Customer(device, STORY) as customer:
            ended_well = wait_done(device)
        assert not customer.failures, customer.failures
        if not ended_well:
            assert device.process is not None
            assert device.process.returncode == -signal.SIGKILL, device.log()
            device.process = None
            expected = served(device.journal())
            if expected is not None:
                assert version_at(expected[1]) == "v1", "what the journal calls running outlives the agent"
            if power:
                device.stop_servers()
            starts = device.log().count("agent.started")
            device.start()
            device.wait(lambda _: device.log().count("agent.started") > starts)
            with contextlib.nullcontext() if power else Customer(device, STORY) as again:
                assert wait_done(device), device.log()
            assert again is None or not again.failures, again.failures
        points = trace.read_text().splitlines()
        assert device.end(signal.SIGTERM) in (0, -signal.SIGKILL)
        return points
    finally:
        device.close()


def test_killed_while_it_measures_it_measures_again_and_leaves_nothing(
    tmp_path: Path, authority: Authority, registry: Registry, models: dict[str, Model]
) -> None:
    numbers = itertools.count()

    def attempt(number: int, *, power: bool) -> list[str]:
        return cut(make(tmp_path / str(next(numbers)), authority, registry, models), number, power=power)

    points = attempt(0, power=False)
    first = next(place for place, label in enumerate(points, 1) if FILE in label)
    of_it = range(first, len(points) + 1)
    assert len(of_it) > 20, points
    print(f"benchmark: {len(of_it)} points")
    step = 1 if WANTED else max(1, len(of_it) // SAMPLES)
    chosen = of_it[::-step]
    ways = [(number, bool(place % 2)) for place, number in enumerate(chosen)]
    if WANTED == "both":
        ways += [(number, not power) for number, power in ways]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        tries = {pool.submit(attempt, number, power=power): number for number, power in ways}
        failed = {tries[one]: error for one in concurrent.futures.as_completed(tries) if (error := one.exception())}
    assert not failed, "\n".join(f"point {number} ({points[number - 1]}): {e}" for number, e in sorted(failed.items()))
