"""Two real hub processes on one PostgreSQL: one leads, both answer, and the other one takes over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from tests.integration.controllers.bench import STRATEGY, Bench, phase
from tests.integration.hub.conftest import API, START_SECONDS, HubProcess
from tests.postgresql import Server
from tests.postgresql import running as running_server

from skerry.api.kinds.device import Device, WorkloadStatus
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.core.ports import Store
from skerry.drivers.registry.directory import DirectoryStore
from skerry.hub import leadership
from skerry.hub.context import HubContext
from skerry.hub.leadership import Leader
from skerry.hub.objects import Objects
from skerry.hub.stores import open_named_store
from skerry.kit.clock import SystemClock

TAKE_OVER_SECONDS = 60.0
"""Until a test gives up; what is promised is in docs/scaling.md."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def place(server: Server, tmp_path: Path) -> tuple[str, ...]:
    """What hubs on one store have in common."""
    keys, artifacts = tmp_path / "keys", tmp_path / "artifacts"
    return ("--store", server.new_url(), "--keys-dir", str(keys), "--artifacts-dir", str(artifacts))


def start_two(start_hub: Callable[..., HubProcess], tmp_path: Path, place: tuple[str, ...]) -> list[HubProcess]:
    hubs = [start_hub(*place, state_dir=tmp_path / name) for name in ("one", "two")]
    return [hub.wait_ready() for hub in hubs]


async def leader_of(store: Store, holds: Callable[[Leader], bool] = lambda _: True) -> Leader:
    """Wait until a hub leads, and such a one."""
    found: asyncio.Queue[Leader | None] = asyncio.Queue()
    following = asyncio.create_task(leadership.follow(store, found.put_nowait))
    try:
        async with asyncio.timeout(TAKE_OVER_SECONDS):
            while (leader := await found.get()) is None or not holds(leader):
                pass
            return leader
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


def split(hubs: list[HubProcess], leader: Leader) -> tuple[HubProcess, HubProcess]:
    leading = next(hub for hub in hubs if hub.record["url"] == leader.url)
    return leading, next(hub for hub in hubs if hub is not leading)


def make(hub: HubProcess, name: str) -> tuple[int, Any]:
    device = {"apiVersion": "skerry.dev/v1alpha1", "kind": "Device", "metadata": {"name": name}, "spec": {}}
    return hub.call(hub.admin, "POST", f"{API}/devices", device)


def with_a_workload(device: Device) -> Device:
    workload = WorkloadStatus(name="digits", rollout="digits-1", revision=1, variant="onnx-fp32", phase="Running")
    return msgspec.structs.replace(device, status=msgspec.structs.replace(device.status, workloads=[workload]))


async def test_two_hubs_answer_alike_whoever_is_asked(
    start_hub: Callable[..., HubProcess], tmp_path: Path, place: tuple[str, ...]
) -> None:
    hubs = await asyncio.to_thread(start_two, start_hub, tmp_path, place)
    assert hubs[0].record["caFingerprint"] == hubs[1].record["caFingerprint"]
    for number in range(10):
        status, made = make(hubs[number % 2], f"till-{number}")
        assert status == 201, made
        for hub in hubs:
            status, seen = hub.call(hub.admin, "GET", f"{API}/devices/till-{number}")
            assert (status, seen["metadata"]["resourceVersion"]) == (200, made["metadata"]["resourceVersion"])
    # What a device is asked goes through the hub that leads, whoever is asked.
    async with open_named_store(place[1]) as store:
        leading, other = split(hubs, await leader_of(store))
        await bench_on(store, tmp_path).objects.update_status(Device, "default", "till-1", with_a_workload)
    said = [hub.call(hub.admin, "GET", f"{API}/devices/till-1/log?workload=digits") for hub in (other, leading)]
    assert [status for status, _ in said] == [503, 503], said
    assert ["device till-1: is offline" in json.dumps(answer) for _, answer in said] == [True, True], said
    # One hub's administrator is the other one's: their certificates are of one authority.
    status, _ = hubs[1].call(hubs[0].admin, "GET", f"{API}/devices")
    assert status == 200
    # A leader that is told to end hands over, and nobody has anything to complain of.
    await asyncio.to_thread(leading.terminate)
    async with open_named_store(place[1]) as store:
        assert (await leader_of(store, lambda leader: leader.url == other.record["url"])).term > 1
    await asyncio.to_thread(other.terminate)


async def test_a_rollout_goes_on_when_the_leader_is_killed(
    start_hub: Callable[..., HubProcess], tmp_path: Path, place: tuple[str, ...]
) -> None:
    hubs = await asyncio.to_thread(start_two, start_hub, tmp_path, place)
    async with open_named_store(place[1]) as store:
        bench = bench_on(store, tmp_path)
        leading, other = split(hubs, await leader_of(store))
        for number in range(4):
            await bench.add_device(f"till-{number}")
        await bench.push("v1")
        await bench.until(ModelVersion, "v1", phase("Ready"))
        await bench.apply(modelVersion="v1", strategy=STRATEGY)
        # The canary has its orders and nobody obeys yet: in the middle of the rollout the leader is gone.
        await bench.until(Rollout, "digits-1", lambda item: any(wave.assigned for wave in item.status.waves))
        leading.kill()
        async with asyncio.TaskGroup() as group:
            fleet = group.create_task(bench.play_fleet())
            after = await leader_of(store, lambda leader: leader.url == other.record["url"])
            assert after.term > 1
            finished = await bench.until(Rollout, "digits-1", phase("Succeeded"))
            fleet.cancel()
        assert [(wave.target, wave.running) for wave in finished.status.waves] == [(1, 1), (2, 1), (4, 2)]


async def test_what_a_killed_hub_acknowledged_the_other_one_has(
    start_hub: Callable[..., HubProcess], tmp_path: Path, place: tuple[str, ...]
) -> None:
    hubs = await asyncio.to_thread(start_two, start_hub, tmp_path, place)
    async with open_named_store(place[1]) as store:
        leading, other = split(hubs, await leader_of(store))
    acknowledged: list[str] = []
    enough = threading.Event()

    def keep_making(writer: int) -> None:
        with contextlib.suppress(OSError, EOFError, json.JSONDecodeError):  # it was killed
            for number in range(10_000):
                name = f"d-{writer}-{number}"
                if make(leading, name)[0] == 201:
                    acknowledged.append(name)
                if len(acknowledged) > 30:
                    enough.set()

    writers = [threading.Thread(target=keep_making, args=(writer,)) for writer in range(4)]
    for writer in writers:
        writer.start()
    assert await asyncio.to_thread(enough.wait, START_SECONDS)
    leading.kill()
    for writer in writers:
        await asyncio.to_thread(writer.join, START_SECONDS)
    names = {item["metadata"]["name"] for item in other.items("devices")}
    assert set(acknowledged) <= names
    assert make(other, "afterwards")[0] == 201


async def test_a_leader_that_stands_still_is_replaced_and_steps_down(
    start_hub: Callable[..., HubProcess], tmp_path: Path, place: tuple[str, ...]
) -> None:
    hubs = await asyncio.to_thread(start_two, start_hub, tmp_path, place)
    async with open_named_store(place[1]) as store:
        before = await leader_of(store)
        leading, other = split(hubs, before)
        leading.process.send_signal(signal.SIGSTOP)
        try:
            after = await leader_of(store, lambda leader: leader.term > before.term)
            assert after.url == other.record["url"]
        finally:
            leading.process.send_signal(signal.SIGCONT)
        # It answers again, and leaves leading to the other one.
        assert make(leading, "till-1")[0] == 201
        other.kill()
        third = await leader_of(store, lambda leader: leader.term > after.term)
        assert third.url == leading.record["url"]


async def test_a_hub_without_the_keys_or_with_others_is_kept_out(
    start_hub: Callable[..., HubProcess], tmp_path: Path, server: Server
) -> None:
    url = server.new_url()
    first = start_hub("--store", url, state_dir=tmp_path / "one")
    await asyncio.to_thread(first.wait_ready)
    bare = start_hub("--store", url, state_dir=tmp_path / "two")
    said = await asyncio.to_thread(bare.failure)
    assert "keys are not here" in said
    assert "--keys-dir" in said
    assert not (tmp_path / "two" / "pki" / "ca.key").exists()
    stranger = start_hub(state_dir=tmp_path / "three")
    await asyncio.to_thread(stranger.wait_ready)
    stranger.terminate()
    stranger = start_hub("--store", url, state_dir=tmp_path / "three")
    assert "belongs to hubs with other keys" in await asyncio.to_thread(stranger.failure)


def test_a_password_on_the_command_line_is_refused(start_hub: Callable[..., HubProcess], tmp_path: Path) -> None:
    hub = start_hub("--store", "postgresql://skerry:geheim@db/skerry", state_dir=tmp_path / "one")
    _, said = hub.process.communicate(timeout=START_SECONDS)
    assert hub.process.returncode == 2
    assert b"does not belong on the command line" in said
    assert b"geheim" not in said


def bench_on(store: Store, directory: Path) -> Bench:
    clock = SystemClock()
    context = HubContext(
        objects=Objects(store, clock),
        artifacts=DirectoryStore(directory / "artifacts"),
        clock=clock,
        authority=cast(Any, None),
        gateway=cast(Any, None),
        state_dir=directory,
        hub_url="",
        mqtt_host="",
        mqtt_port=0,
    )
    return Bench(context=context)
