"""Trials over real servers: the golden inputs asked of both, real requests in the shadow, windows, both in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.integration.agent.test_agent_engine import port_of, predict

from skerry.agent.settings import AgentSettings, HardwareSettings
from skerry.api.kinds.device import WorkloadStatus
from skerry.core.messages import ObserveDesired, ShadowDesired, WorkloadDesired

ROWS = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 2, 3, 4]]


def tried(desired: WorkloadDesired, rollout: str = "", **changes: Any) -> WorkloadDesired:
    name = rollout or desired.rollout
    return msgspec.structs.replace(desired, rollout=name, **changes)


@pytest.fixture
def again(models: Any) -> Any:
    """The first model once more, as a version of its own."""
    return models["again"]


async def test_both_versions_answer_the_golden_inputs_while_both_run(world: Any, models: Any, again: Any) -> None:
    async with world.agent():
        await world.hub.want(tried(models["v1"].desired(), compare=True))
        first = await world.hub.running("digits-v1")
        assert first.measurement is not None
        assert first.measurement.comparison is not None
        assert first.measurement.comparison.replaced == "", "there was nothing to compare with"
        await world.hub.want(tried(again.desired(), compare=True))
        same = (await world.hub.running("digits-v9")).measurement.comparison
        assert (same.replaced, same.samples, same.agreement, same.max_abs_difference) == ("digits-v1", 20, 1.0, 0.0)
        assert same.latency_p95_ms > 0
        assert same.replaced_latency_p95_ms > 0
        await world.hub.want(tried(models["v2"].desired(), compare=True))
        other = (await world.hub.running("digits-v2")).measurement.comparison
        assert (other.replaced, other.samples, other.reason) == ("digits-v9", 20, "")
        assert other.agreement < 1.0
        assert other.max_abs_difference > 0.1


async def ask_until(port: int, done: asyncio.Event) -> list[str]:
    """Send requests one after the other, as an application does; return which version answered each."""
    answered: list[str] = []
    while not done.is_set():
        answer = await asyncio.to_thread(predict, port, ROWS[len(answered) % len(ROWS)])
        answered.append(answer["model_version"])
    return answered


async def shadowed(world: Any, desired: WorkloadDesired, until: Any) -> tuple[WorkloadStatus, list[str]]:
    before = await world.hub.running("digits-v1")
    done = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(ask_until(port_of(before), done))
        try:
            await world.hub.want(desired)
            status = await world.hub.status(until)
        finally:
            done.set()
    return status, asking.result()


async def test_real_requests_decide_and_callers_notice_nothing(world: Any, models: Any, again: Any) -> None:
    asked = ShadowDesired(share=1.0, seconds=0.5, min_requests=20, min_agreement=0.95, missing="wait")
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        wanted = tried(again.desired(), shadow=asked)
        status, answered = await shadowed(
            world, wanted, lambda one: one.running is not None and one.running.rollout == "digits-v9"
        )
        assert status.shadow is not None
        assert status.shadow.beside == "digits-v1"
        assert status.shadow.answered >= 20
        assert (status.shadow.agreed, status.shadow.errors) == (status.shadow.answered, 0)
        assert status.shadow.max_abs_difference == 0.0
        assert any(w.phase == "Shadowing" and w.running is not None for r in world.hub.reports for w in r.workloads)
        assert set(answered) <= {"v1", "v9"}
        assert set(answered[:20]) == {"v1"}, "the new one answers nobody before it has agreed on so many"
        await world.until_servers(1)


async def test_a_version_that_answers_otherwise_never_leaves_the_shadow(world: Any, models: Any) -> None:
    asked = ShadowDesired(share=1.0, seconds=0.5, min_requests=20, min_agreement=0.95, missing="wait")
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        status, answered = await shadowed(
            world,
            tried(models["v2"].desired(), shadow=asked),
            lambda one: one.rollout == "digits-v2" and one.phase == "Running",
        )
        assert status.running is not None
        assert status.running.rollout == "digits-v1"
        assert status.message.startswith("While Shadowing, shadow mode failed for ")
        assert "below 0.95" in status.message
        assert status.shadow is not None
        assert status.shadow.agreed < status.shadow.answered
        assert set(answered) == {"v1"}
        await world.until_servers(1)


async def test_nobody_asks_and_nothing_is_known(world: Any, models: Any) -> None:
    asked = ShadowDesired(share=1.0, seconds=0.2, min_agreement=0.5, missing="fail")
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        await world.hub.running("digits-v1")
        await world.hub.want(tried(models["v2"].desired(), shadow=asked))
        status = await world.hub.status(lambda one: one.rollout == "digits-v2" and one.phase == "Running")
        assert "0 requests were answered by both" in status.message
        assert status.running is not None
        assert status.running.rollout == "digits-v1"


async def test_an_agent_that_is_ended_in_the_shadow_comes_back_to_it(world: Any, models: Any, again: Any) -> None:
    asked = ShadowDesired(share=1.0, seconds=0.5, min_requests=10, min_agreement=0.95, missing="wait")
    async with world.agent():
        await world.hub.want(models["v1"].desired())
        port = port_of(await world.hub.running("digits-v1"))
        await world.hub.want(tried(again.desired(), shadow=asked))
        await world.hub.status(lambda one: one.phase == "Shadowing")
    assert (await asyncio.to_thread(predict, port, ROWS[0]))["model_version"] == "v1"
    done = asyncio.Event()
    async with world.agent(), asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(ask_until(port, done))
        status = await world.hub.running("digits-v9")
        done.set()
    assert status.shadow is not None
    assert status.shadow.answered >= 10
    assert set(asking.result()[:10]) == {"v1"}


async def test_memory_for_both_is_looked_at_before_anything_is_fetched(
    world: Any, models: Any, tmp_path: Path, again: Any
) -> None:
    world.settings = AgentSettings(hardware=HardwareSettings(memory="100Mi"))
    needs = msgspec.structs.replace(models["v1"].desired().needs, memory_bytes=60 * 1024**2)
    async with world.agent():
        await world.hub.want(tried(models["v1"].desired(), needs=needs))
        await world.hub.running("digits-v1")
        fetched = len(world.registry.requests)
        await world.hub.want(tried(models["v2"].desired(), needs=needs, shadow=ShadowDesired()))
        status = await world.hub.status(lambda one: one.rollout == "digits-v2" and one.phase == "Running")
        assert "it needs 60.0 MiB beside the version it shadows, and 40.0 MiB of 100.0 MiB are left" in status.message
        assert len(world.registry.requests) == fetched
        await world.hub.want(tried(models["v2"].desired(), "plain", needs=needs))
        await world.hub.running("plain")


async def test_a_server_is_watched_from_when_it_serves(world: Any, models: Any) -> None:
    async with world.agent():
        await world.hub.want(tried(models["v1"].desired(), observe=ObserveDesired(seconds=0.5, min_requests=12)))
        port = port_of(await world.hub.running("digits-v1"))
        for number in range(15):
            await asyncio.to_thread(predict, port, ROWS[number % len(ROWS)])
        status = await world.hub.status(lambda one: one.observation is not None and one.observation.requests >= 12)
        seen = status.observation
        assert seen is not None
        assert seen.requests <= 15, "golden samples are none of the applications' requests"
        assert (seen.errors, seen.restarts, seen.unready) == (0, 0, 0)
        assert seen.seconds >= 0.5
        assert seen.checks >= 2
        assert seen.peak_memory_bytes > 1024**2
        await world.kill_server()
        status = await world.hub.status(lambda one: one.restarts == 1)
        assert status.observation is not None
        assert status.observation.restarts == 1
    async with world.agent():
        status = await world.hub.status(lambda one: one.phase == "Running")
        assert status.observation is not None, "it is remembered beyond the agent's life"
