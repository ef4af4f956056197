"""The controllers over the real store and the real artifact directory, and a fleet that writes Device.status."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec
import pytest
from tests.integration.controllers.bench import (
    MIB,
    NS,
    STRATEGY,
    WAIT,
    Bench,
    phase,
    reason,
    running,
)

from skerry.api.errors import NotFoundError
from skerry.api.kinds.device import (
    Device,
    WorkloadStatus,
)
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import ModelVersion
from skerry.api.kinds.rollout import Rollout
from skerry.api.meta import find_condition
from skerry.core import promotion
from skerry.hub.controllers import model_version, rollout
from skerry.hub.explain import explain


async def test_a_model_goes_to_the_whole_fleet_and_a_worse_one_comes_back(bench: Bench) -> None:
    async with running(bench):
        for number in range(4):
            await bench.add_device(f"till-{number}")
        await bench.push("v1")
        ready = await bench.until(ModelVersion, "v1", phase("Ready"))
        assert [variant.name for variant in ready.status.variants] == ["onnx-fp32"]
        assert ready.status.variants[0].manifest is not None
        await bench.apply(modelVersion="v1", strategy=STRATEGY)
        first = await bench.until(Rollout, "digits-1", phase("Succeeded"))
        assert [(w.target, w.assigned, w.running) for w in first.status.waves] == [(1, 1, 1), (2, 1, 1), (4, 2, 2)]
        wish = await bench.until(ModelDeployment, "digits", reason("Complete"))
        assert (wish.status.selected, wish.status.updated, wish.status.ready) == (4, 4, 4)
        assert (wish.status.revision, wish.status.stable_rollout) == (1, "digits-1")
        assert wish.status.variants == {"onnx-fp32": 4}

        bench.accuracy["v2"] = 0.1
        await bench.push("v2")
        await bench.apply(modelVersion="v2")
        second = await bench.until(Rollout, "digits-2", phase("RolledBack"))
        assert "accuracy 0.1 is below 0.9" in second.status.message
        assert second.spec.previous == "digits-1"
        wish = await bench.until(ModelDeployment, "digits", reason("RolledBack"))
        assert (wish.status.revision, wish.status.rollout, wish.status.stable_rollout) == (1, "digits-2", "digits-1")
        available = find_condition(wish.status.conditions, "Available")
        assert available is not None
        assert (available.status, available.message) == ("True", "4 of 4 devices serving")
        records = [await bench.objects.get_desired(f"u-till-{number}") for number in range(4)]
        versions = sorted(record.manifest_version for record in records if record is not None)
        assert versions == [1, 1, 1, 3], "only the canary was touched"


async def test_a_fleet_that_measures_but_never_serves_is_no_success(bench: Bench) -> None:
    serving = bench.report_of

    def portless(workload: Any) -> WorkloadStatus:
        return msgspec.structs.replace(serving(workload), phase="Starting", running=None, served=False)

    bench.report_of = portless  # type: ignore[method-assign]
    async with running(bench):
        await bench.add_device("till-0")
        await bench.push("v1")
        await bench.apply(modelVersion="v1", strategy={**STRATEGY, "deviceTimeout": "2s"})
        failed = await bench.until(
            Rollout, "digits-1", lambda item: item.status.phase not in ("Pending", "Progressing")
        )
        assert failed.status.phase in ("RollingBack", "RolledBack")
        assert "it was not Running within 2 s" in failed.status.message


async def test_a_deployment_waits_for_its_model_version_and_goes_on_when_it_comes(bench: Bench) -> None:
    async with running(bench):
        await bench.add_device("till-0")
        await bench.apply(modelVersion="v1", strategy=STRATEGY)
        waiting = await bench.until(ModelDeployment, "digits", reason("ModelVersionMissing"))
        found = find_condition(waiting.status.conditions, "Progressing")
        assert found is not None
        assert 'model version "v1" does not exist' in found.message
        await bench.push("v1")
        await bench.until(ModelDeployment, "digits", reason("Complete"))


async def test_a_model_version_made_again_under_its_name_does_not_slip_past_the_canary(bench: Bench) -> None:
    async with running(bench):
        for number in range(3):
            await bench.add_device(f"till-{number}")
        await bench.push("v1")
        await bench.apply(modelVersion="v1", strategy={**STRATEGY, "bakeTime": "1h"})
        await bench.until(Rollout, "digits-1", lambda item: [w.phase for w in item.status.waves[:1]] == ["Baking"])
        await bench.objects.delete(ModelVersion, NS, "v1")
        await bench.push("v1", memory=20 * MIB)
        await bench.until(ModelVersion, "v1", phase("Ready"))
        await bench.until(ModelDeployment, "digits", reason("ModelVersionReplaced"))
        await bench.apply(modelVersion="v1", strategy=STRATEGY)  # the bake time ends, yet nothing goes on
        waiting = await bench.until(ModelDeployment, "digits", reason("ModelVersionReplaced"))
        assert waiting.status.selected == 3
        rollout = await bench.objects.get(Rollout, NS, "digits-1")
        assert [wave.assigned for wave in rollout.status.waves if wave.assigned] == [1], "the canary, and nobody else"


async def test_the_same_content_pushed_again_is_the_same_model(bench: Bench) -> None:
    async with running(bench):
        for number in range(3):
            await bench.add_device(f"till-{number}")
        first = await bench.push("v1")
        await bench.apply(modelVersion="v1", strategy={**STRATEGY, "bakeTime": "1h"})
        await bench.until(Rollout, "digits-1", lambda item: [w.phase for w in item.status.waves[:1]] == ["Baking"])
        await bench.objects.delete(ModelVersion, NS, "v1")
        again = await bench.push("v1")
        assert again.metadata.uid != first.metadata.uid
        await bench.apply(modelVersion="v1", strategy=STRATEGY)
        await bench.until(ModelDeployment, "digits", reason("Complete"))


async def test_a_model_version_with_missing_artifacts_is_broken_until_they_come(bench: Bench) -> None:
    async with running(bench):
        await bench.add_device("till-0")
        item = await bench.push("v1", blobs=False)
        broken = await bench.until(ModelVersion, "v1", phase("Broken"))
        assert item.spec.artifact.digest in broken.status.conditions[0].message
        await bench.apply(modelVersion="v1")
        await bench.until(ModelDeployment, "digits", reason("ModelVersionBroken"))
        await bench.objects.delete(ModelVersion, NS, "v1")
        await bench.push("v1")
        await bench.until(ModelDeployment, "digits", reason("Complete"))


async def test_what_is_pushed_later_heals_a_broken_model_version(bench: Bench) -> None:
    async with running(bench):
        item = await bench.push("v1", blobs=False)
        await bench.until(ModelVersion, "v1", phase("Broken"))
        await bench.push_artifacts("v1")
        healed = await bench.until(ModelVersion, "v1", phase("Ready"))
        assert healed.metadata.uid == item.metadata.uid


async def test_deleting_the_deployment_clears_devices_and_rollouts(bench: Bench) -> None:
    async with running(bench):
        await bench.add_device("till-0")
        await bench.push("v1")
        await bench.apply(modelVersion="v1")
        await bench.until(ModelDeployment, "digits", reason("Complete"))
        await bench.objects.delete(ModelDeployment, NS, "digits")
        record = await bench.until_record("till-0", lambda record: not record.assignments)
        assert record.manifest_version == 2
        await bench.until_none(Rollout)


async def test_a_recreated_deployment_starts_anew(bench: Bench) -> None:
    async with running(bench):
        await bench.add_device("till-0")
        await bench.push("v1")
        await bench.push("v2")
        await bench.apply(modelVersion="v1")
        first = await bench.until(Rollout, "digits-1", phase("Succeeded"))
        await bench.objects.delete(ModelDeployment, NS, "digits")
        await bench.apply(modelVersion="v2")
        second = await bench.until(
            Rollout,
            "digits-1",
            lambda item: item.metadata.uid != first.metadata.uid and item.status.phase == "Succeeded",
        )
        assert second.spec.template.model_version == "v2"
        device = await bench.until(
            Device,
            "till-0",
            lambda item: any(w.running and w.running.model_version == "v2" for w in item.status.workloads),
        )
        assert device.status.observed_manifest_version >= 2


async def test_late_and_leaving_devices_after_success(bench: Bench) -> None:
    async with running(bench):
        await bench.add_device("till-0")
        await bench.push("v1")
        await bench.apply(modelVersion="v1")
        await bench.until(ModelDeployment, "digits", reason("Complete"))
        await bench.add_device("late")
        await bench.until_record("late", lambda record: record.find("digits") is not None)
        device = await bench.objects.get(Device, NS, "till-0")
        unlabelled = msgspec.structs.replace(device.metadata, labels={})
        await bench.objects.replace(msgspec.structs.replace(device, metadata=unlabelled), expected="")
        await bench.until_record("till-0", lambda record: not record.assignments)
        await bench.until(ModelDeployment, "digits", lambda item: item.status.selected == item.status.updated == 1)


async def test_the_bake_time_is_a_timer_not_a_poll(bench: Bench) -> None:
    async with running(bench):
        for number in range(2):
            await bench.add_device(f"till-{number}")
        await bench.push("v1")
        await bench.apply(modelVersion="v1", strategy={**STRATEGY, "bakeTime": "300ms"})
        done = await bench.until(Rollout, "digits-1", phase("Succeeded"))
        for wave in done.status.waves:
            assert wave.settled_at is not None
            assert wave.finished_at is not None
            assert (wave.finished_at - wave.settled_at).total_seconds() >= 0.3


async def test_a_device_that_never_answers_times_out(bench: Bench) -> None:
    async with running(bench, fleet=False):
        await bench.add_device("till-0")
        await bench.push("v1")
        await bench.apply(modelVersion="v1", strategy={**STRATEGY, "deviceTimeout": "200ms"})
        failed = await bench.until(Rollout, "digits-1", phase("RolledBack"))
        assert "it was not Running within 0.2 s" in failed.status.message
        record = await bench.objects.get_desired("u-till-0")
        assert record is not None
        assert record.assignments == []


async def test_explain_tells_why(bench: Bench) -> None:
    async with running(bench):
        await bench.add_device("till-0")
        await bench.add_device("small", memory=MIB)
        await bench.push("v1")
        await bench.apply(modelVersion="v1")
        await bench.until(ModelDeployment, "digits", reason("Complete"))
    told = await explain(bench.context, NS, "digits", "till-0")
    assert (told["variant"], told["rollout"], told["revision"]) == ("onnx-fp32", "digits-1", 1)
    assert told["running"]["variant"] == "onnx-fp32"
    assert told["candidates"][0]["taken"] is True
    assert told["candidates"][0]["latencyP95Ms"] == 2
    assert msgspec.json.decode(msgspec.json.encode(told)) == told
    told = await explain(bench.context, NS, "digits", "small")
    assert told["variant"] == ""
    assert told["reason"] == "no variant fits: onnx-fp32 needs 10.0 MiB, the device gives workloads 1.0 MiB"
    with pytest.raises(NotFoundError):
        await explain(bench.context, NS, "digits", "nobody")


async def test_a_hub_that_is_stopped_at_any_moment_goes_on_where_it_was(bench: Bench) -> None:
    """Start and cancel the controllers again and again, each time after a few writes, until the story is told."""
    for number in range(3):
        await bench.add_device(f"till-{number}")
    await bench.push("v1")
    await bench.push("v2")
    bench.accuracy["v2"] = 0.1
    await bench.apply(modelVersion="v1", strategy=STRATEGY)
    assert await restart_until(bench, "digits-1", "Succeeded") > 1
    await bench.apply(modelVersion="v2")
    assert await restart_until(bench, "digits-2", "RolledBack") > 1
    records = [await bench.objects.get_desired(f"u-till-{number}") for number in range(3)]
    for record in records:
        assert record is not None
        held = record.find("digits")
        assert held is not None
        assert held.workload.rollout == "digits-1"
    assert sorted(record.manifest_version for record in records if record) == [1, 1, 3]


async def restart_until(bench: Bench, name: str, wanted: str) -> int:
    """Run the controllers for three writes at a time; returns how often that was needed."""
    store = bench.objects.store
    async with asyncio.timeout(WAIT):
        for starts in range(1, 200):
            item = await bench.objects.find(Rollout, NS, name)
            if item is not None and item.status.phase == wanted:
                return starts
            begun = await store.revision()
            async with store.watch("", after=begun) as changes, running(bench):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        async for change in changes:
                            if change.revision >= begun + 3:
                                break
    raise AssertionError("too many starts")


async def annotate(bench: Bench, name: str, key: str, value: str) -> None:
    item = await bench.objects.get(Rollout, NS, name)
    said = msgspec.structs.replace(item.metadata, annotations={**item.metadata.annotations, key: value})
    await bench.objects.replace(msgspec.structs.replace(item, metadata=said), expected="")


async def test_an_approval_lets_it_go_on_and_an_abort_takes_it_back(bench: Bench) -> None:
    async with running(bench):
        for number in range(3):
            await bench.add_device(f"till-{number}")
        await bench.push("v1")
        await bench.push("v2")
        await bench.apply(modelVersion="v1", strategy={**STRATEGY, "promotion": "manual"})
        waiting = await bench.until(ModelDeployment, "digits", reason("AwaitingApproval"))
        assert waiting.status.rollout == "digits-1"
        held = (await bench.objects.get(Rollout, NS, "digits-1")).status
        assert [wave.phase for wave in held.waves][:2] == ["Passed", "Pending"]
        await annotate(bench, "digits-1", promotion.APPROVED, held.waves[-1].name)
        await bench.until(Rollout, "digits-1", phase("Succeeded"))
        await bench.apply(modelVersion="v2")
        await bench.until(Rollout, "digits-2", phase("Paused"))
        await annotate(bench, "digits-2", promotion.ABORT, "not today")
        back = await bench.until(Rollout, "digits-2", phase("RolledBack"))
        assert back.status.message.startswith("aborted: not today; digits-1 is back on 1 device")


async def test_assignments_carry_the_windows_and_wait_for_the_download_window(bench: Bench) -> None:
    closed = {"schedule": "0 0 29 2 *", "duration": "1m"}
    always = {"schedule": "* * * * *", "duration": "2m"}
    async with running(bench):
        await bench.add_device("till-0")
        await bench.push("v1")
        await bench.apply(modelVersion="v1", strategy={**STRATEGY, "windows": {"download": [closed]}})
        await bench.until(ModelDeployment, "digits", reason("WindowClosed"))
        await bench.apply(strategy={**STRATEGY, "windows": {"download": [always], "switchOver": [always]}})
        await bench.until(Rollout, "digits-1", phase("Succeeded"))
        record = await bench.until_record("till-0", lambda found: found.find("digits") is not None)
        told = record.assignments[0].workload.windows
        assert told is not None
        assert told.issued_at == record.assignments[0].assigned_at
        assert [window.schedule for window in told.switch_over] == ["* * * * *"]


async def test_nothing_is_kept_of_deployments_that_are_gone(bench: Bench) -> None:
    for number in range(3):
        await bench.add_device(f"till-{number}")
    await bench.push("v1")
    controller = rollout.Rollouts(bench.context)
    rosters, update = controller._rosters, bench.objects.update_status
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(model_version.run(bench.context)), group.create_task(controller.run())]
        await bench.until(ModelVersion, "v1", phase("Ready"))

        async def deleting(kind: type[Any], namespace: str, name: str, change: Any) -> Any:
            if kind is Rollout:  # in the midst of a step, and known before the step ends
                bench.objects.update_status = update  # type: ignore[method-assign]
                await bench.objects.delete(ModelDeployment, NS, "digits")
                while rosters.fleet.deployments.get(f"{NS}/digits") is not None:  # noqa: ASYNC110 - signals nothing
                    await asyncio.sleep(0)
            return await update(kind, namespace, name, change)

        bench.objects.update_status = deleting  # type: ignore[method-assign, assignment]
        await bench.apply(modelVersion="v1", placement={"benchmark": True})
        await bench.until_none(ModelDeployment)
        await bench.until_none(Rollout)
        async with asyncio.timeout(WAIT):
            while rosters._ledgers or controller._benchmarking._notes:  # noqa: ASYNC110 - signals nothing
                await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
