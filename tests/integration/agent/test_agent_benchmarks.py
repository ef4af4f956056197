"""Benchmarks and refusals on a real device: real servers, a registry over HTTP, a disk."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

import msgspec

from skerry.agent import benchmark
from skerry.agent.settings import AgentSettings, BenchmarkSettings, HardwareSettings, PolicySettings, RefusalRule
from skerry.api.kinds.device import BenchmarkStatus
from skerry.core import messages, trust
from skerry.core.journal import State
from skerry.core.messages import BENCHMARK_PREFIX, DesiredState, WorkloadDesired


def asked(model: Any, mark: str = "a", **changes: Any) -> WorkloadDesired:
    plain = model.desired(name=f"{BENCHMARK_PREFIX}{mark * 64}", rollout="-")
    return msgspec.structs.replace(plain, rollout="", revision=0, **changes)


async def want(world: Any, *workloads: WorkloadDesired, benchmarks: tuple[WorkloadDesired, ...]) -> None:
    plain = trust.open_envelope(
        world.hub.sign(*workloads), DesiredState, uid="d1", keys={"k1": world.hub.key.public_key()}
    )
    state = msgspec.structs.replace(plain, benchmarks=list(benchmarks))
    await world.hub.publish(messages.encode(trust.sign(state, world.hub.key, "k1")))


async def told(world: Any, *phases: str) -> list[BenchmarkStatus]:
    """Wait until the benchmarks are reported in these phases, by name."""
    await world.hub.until(
        lambda: world.hub.reports and tuple(b.phase for b in world.hub.reports[-1].benchmarks) == phases
    )
    return list(world.hub.reports[-1].benchmarks)


def predict(port: int) -> str:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 0, 0, 0]}]}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/digits/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.loads(answer.read())["model_version"])


async def test_measures_beside_what_serves_one_after_the_other_and_leaves_nothing(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        serving = await world.hub.running("digits-v1")
        wanted = (asked(models["v2"], "a"), asked(models["no-model"], "b"), asked(models["v1"], "c"))
        await want(world, models["v1"].desired(), benchmarks=wanted)
        good, bad, known = await told(world, "Measured", "Failed", "Measured")
        assert good.measurement is not None
        assert (good.measurement.samples, good.measurement.accuracy) == (20, 0.75)
        assert good.measurement.peak_memory_bytes > 1024**2
        assert (good.model_version, good.variant, good.refusal) == ("digits-v2", "onnx-fp32", "")
        assert "the inference server failed" in bad.message
        assert known.measurement is not None
        await world.until_servers(1)
        assert sorted(path.name for path in (world.directory / "workloads").iterdir()) == ["digits"]
        after = await world.hub.running("digits-v1")
        assert (after.running, after.restarts) == (serving.running, 0), "what serves was not touched"
        assert await asyncio.to_thread(predict, after.running.port) == "v1"
        seen = [{b.name: b.phase for b in report.benchmarks} for report in world.hub.reports]
        assert all(list(phases.values()).count("Running") <= 1 for phases in seen)
        assert all({w.name for w in report.workloads} <= {"digits"} for report in world.hub.reports)


async def test_what_was_measured_is_fetched_once_and_forgotten_with_the_wish(world: Any, models: Any) -> None:
    async with world.agent():
        await want(world, benchmarks=(asked(models["v2"]),))
        await told(world, "Measured")
        await want(world, models["v2"].desired(), benchmarks=(asked(models["v2"]),))
        status = await world.hub.running("digits-v2")
        assert status.fetched_bytes == 0, "the benchmark had fetched it"
        await want(world, models["v2"].desired(), benchmarks=())
        await told(world)
    kept = json.loads((world.directory / benchmark.FILE).read_bytes())
    assert not kept.get("results")


async def test_results_survive_a_restart_and_an_interrupted_one_is_begun_anew(world: Any, models: Any) -> None:
    one, other = asked(models["v1"], "a"), asked(models["v2"], "b")
    async with world.agent():
        await want(world, benchmarks=(one,))
        [first] = await told(world, "Measured")
        world.registry.hold.clear()
        await want(world, benchmarks=(one, other))
        await asyncio.to_thread(world.registry.holding.wait, 20)
    world.registry.hold.set()
    assert world.disk.workloads() == [], "an agent that ends in order leaves nothing behind"
    world.disk.write_journal(State(name=other.name))  # as if it had been killed instead
    async with world.agent():
        again, _ = await told(world, "Measured", "Measured")
        assert again == first, "what is known is not measured again"
    assert world.disk.workloads() == []


async def test_what_takes_the_agent_down_is_not_begun_for_ever(world: Any, models: Any) -> None:
    one = asked(models["v1"])
    begun = {"begun": {one.name: benchmark.MAX_BEGINNINGS}}
    world.disk.write(benchmark.FILE, json.dumps(begun).encode())
    async with world.agent():
        await want(world, benchmarks=(one,))
        [status] = await told(world, "Failed")
    assert "was interrupted" in status.message
    assert world.registry.requests == []


async def test_a_damaged_file_means_measuring_again(world: Any, models: Any) -> None:
    world.disk.write(benchmark.FILE, b'{"results": [{"nam')
    async with world.agent():
        await want(world, benchmarks=(asked(models["v1"]),))
        await told(world, "Measured")


async def test_one_that_takes_too_long_is_given_up_but_not_for_its_way_here(world: Any, models: Any) -> None:
    world.settings = AgentSettings(benchmarks=BenchmarkSettings(max_time="250ms"))
    world.registry.down = True
    async with world.agent():
        await want(world, benchmarks=(asked(models["no-model"]),))
        await told(world, "Running")
        await told(world, "Pending")
        world.registry.down = False
        [status] = await told(world, "Failed")
    assert "not measured within 250ms, it was " in status.message
    assert status.refusal == ""


async def test_no_benchmark_without_the_owner_or_the_memory(world: Any, models: Any) -> None:
    world.settings = AgentSettings(hardware=HardwareSettings(memory="100Mi"))
    big = msgspec.structs.replace(models["v2"].desired().needs, memory_bytes=60 << 20)
    async with world.agent():
        serving = msgspec.structs.replace(models["v1"].desired(), needs=big)
        await world.hub.want(serving)
        await world.hub.running("digits-v1")
        await want(world, serving, benchmarks=(asked(models["v2"], needs=big),))
        [status] = await told(world, "Failed")
        assert (status.refusal, status.measurement) == ("Memory", None)
        assert "40.0 MiB of 100.0 MiB are left for it" in status.message
    world.settings = AgentSettings(benchmarks=BenchmarkSettings(enabled=False))
    world.disk.delete(benchmark.FILE)
    async with world.agent():
        await told(world, "Failed")
        await world.hub.until(lambda: world.hub.reports[-1].benchmarks[0].refusal == "Policy")


async def test_a_refusal_says_why_and_what_served_goes_on(world: Any, models: Any) -> None:
    rule = RefusalRule(model="digits-v2", reason="not during the sale")
    world.settings = AgentSettings(policy=PolicySettings(refuse=[rule]))
    async with world.agent():
        await world.hub.want(models["v2"].desired())
        first = await world.hub.status(lambda one: one.phase == "Failed")
        assert (first.refusal, first.variant) == ("Policy", "onnx-fp32")
        assert "its owner refuses it: not during the sale" in first.message
        assert world.registry.requests == [], "nothing is fetched for it"
        await world.hub.want(models["v1"].desired())
        serving = await world.hub.running("digits-v1")
        assert serving.refusal == ""
        await world.hub.want(models["v2"].desired(rollout="again"))
        refused = await world.hub.status(lambda one: one.rollout == "again" and one.phase == "Running")
        assert (refused.refusal, refused.running) == ("Policy", serving.running)


async def test_a_disk_without_room_is_a_refusal(world: Any, models: Any) -> None:
    world.disk = type(world.disk)(world.directory, limit_bytes=10)
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        status = await world.hub.status(lambda one: one.phase == "Failed")
    assert status.refusal == "Disk"
