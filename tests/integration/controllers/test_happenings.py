"""What the controllers do, told as events: the story of a good model and of a worse one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.integration.controllers.bench import NS, STRATEGY, WAIT, Bench, phase, reason, running

from skerry.api.kinds.event import Event
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.core.allowance import Rate
from skerry.hub.controllers.happenings import Happenings
from skerry.hub.events import EventLimits, Recorder


@contextlib.asynccontextmanager
async def telling(bench: Bench) -> AsyncIterator[None]:
    """Tell what happens in the block, as a hub does but at once."""
    limits = EventLimits(each=Rate(burst=1000, seconds=0.001), all=Rate(burst=1000, seconds=0.001))
    recorder = Recorder(bench.objects, bench.context.clock, limits=limits)
    after = await bench.objects.store.revision()
    work = (recorder.run(), Happenings(bench.objects.store, recorder).run(after=after))
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def told(bench: Bench, kind: str, name: str, last: str) -> dict[str, Event]:
    """Wait until that reason was told of an object; returns all that was, by reason."""
    async with asyncio.timeout(WAIT):
        while True:
            found = (await bench.objects.list(Event, NS)).items
            own = {
                one.reason: one for one in found if (one.involved_object.kind, one.involved_object.name) == (kind, name)
            }
            if last in own:
                return own
            await asyncio.sleep(0.01)


async def test_a_good_model_and_a_worse_one_are_told_with_what_was_measured(bench: Bench) -> None:
    async with running(bench), telling(bench):
        for number in range(3):
            await bench.add_device(f"till-{number}")
        await bench.apply(modelVersion="v1", strategy=STRATEGY)
        missing = await told(bench, "ModelDeployment", "digits", "ModelVersionMissing")
        assert 'model version "v1" does not exist' in missing["ModelVersionMissing"].message
        await bench.push("v1")
        await bench.until(ModelVersion, "v1", phase("Ready"))
        assert set(await told(bench, "ModelVersion", "v1", "Unsigned")) == {"Verified", "Unsigned"}
        first = await bench.until(Rollout, "digits-1", phase("Succeeded"))
        good = await told(bench, "Rollout", "digits-1", "Completed")
        assert good["RolloutStarted"].involved_object.uid == first.metadata.uid
        assert good["RolloutStarted"].message == "revision 1 of digits rolls out model version v1"
        assert "accuracy 0.97 (asked 0.9)" in good["WavePassed"].message
        assert {one.type for one in good.values()} == {"Normal"}
        assert "Serving" in await told(bench, "Device", "till-0", "Serving")

        bench.accuracy["v2"] = 0.1
        await bench.push("v2")
        await bench.apply(modelVersion="v2")
        await bench.until(Rollout, "digits-2", phase("RolledBack"))
        bad = await told(bench, "Rollout", "digits-2", "RolledBack")
        assert "accuracy" in bad["GateFailed"].message
        assert "0.1" in bad["GateFailed"].message
        assert bad["GateFailed"].type == bad["RollingBack"].type == bad["RolledBack"].type == "Warning"
        wish = await bench.until(ModelDeployment, "digits", reason("RolledBack"))
        whole = await told(bench, "ModelDeployment", "digits", "RolledBack")
        assert {"RolloutStarted", "WavePassed", "Completed", "GateFailed"} <= set(whole)
        assert whole["GateFailed"].involved_object.uid == wish.metadata.uid
