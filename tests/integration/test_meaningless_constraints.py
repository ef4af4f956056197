"""A deployment whose constraint means nothing for its model says so and rolls nothing out, until that is mended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from skerry.api.kinds.model_deployment import ModelDeployment, ModelDeploymentSpec
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec, ModelVersionStatus
from skerry.api.kinds.rollout import Rollout
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Evaluation, Golden
from skerry.api.meta import ObjectMeta, find_condition
from skerry.core import deployment
from skerry.drivers.registry.directory import DirectoryStore
from skerry.drivers.store.sqlite import open_store
from skerry.hub import objects as stored
from skerry.hub.context import HubContext
from skerry.hub.controllers import rollout
from skerry.hub.objects import Objects
from skerry.kit.clock import SystemClock

NS = "default"
BLOB = Blob(digest=f"sha256:{'0' * 64}", size=1)


def model(metric: str, *, higher: bool) -> ModelVersion:
    return ModelVersion(
        metadata=ObjectMeta(name="v1", namespace=NS),
        spec=ModelVersionSpec(
            model="meter",
            version="v1",
            artifact=Artifact(repository=f"{NS}/meter", digest=BLOB.digest),
            signature=ModelSignature(inputs=[], outputs=[]),
            evaluation=Evaluation(metric=metric, higher_is_better=higher, baseline=0.5, samples=100, allowed_drop=0.01),
            golden=Golden(blob=BLOB, samples=1),
        ),
        status=ModelVersionStatus(phase="Ready"),
    )


def wish(**constraints: Any) -> ModelDeploymentSpec:
    plain = {"modelVersion": "v1", "deviceSelector": {}, "constraints": constraints}
    return msgspec.convert(plain, ModelDeploymentSpec)


@pytest.mark.parametrize(
    ("metric", "higher", "constraints", "held"),
    [
        ("mae", False, {"minAccuracy": 0.9}, True),
        ("mae", False, {"minAccuracy": 0.0}, True),
        ("mae", False, {"maxLatency": "5ms"}, False),
        ("accuracy", True, {"minAccuracy": 0.9}, False),
    ],
)
def test_which_constraint_means_nothing(metric: str, higher: bool, constraints: dict[str, Any], held: bool) -> None:
    hold = deployment.meaningless(wish(**constraints), model(metric, higher=higher))
    assert (hold is not None) == held
    if hold is not None:
        assert hold.reason == "ConstraintMeaningless"
        assert 'minAccuracy is a lower limit, and model version "v1" is judged by mae' in hold.message


async def test_no_rollout_begins_until_it_is_taken_out(tmp_path: Path) -> None:
    async with open_store(tmp_path / "hub.db") as store:
        clock = SystemClock()
        objects = Objects(store, clock)
        context = HubContext(
            objects=objects,
            artifacts=DirectoryStore(tmp_path / "artifacts"),
            clock=clock,
            authority=cast(Any, None),
            gateway=cast(Any, None),
            state_dir=tmp_path,
            hub_url="",
            mqtt_host="",
            mqtt_port=0,
        )
        made = await objects.create(model("mae", higher=False))
        status = ModelVersionStatus(phase="Ready")
        await objects.update_status(
            ModelVersion, NS, made.metadata.name, lambda item: msgspec.structs.replace(item, status=status)
        )
        meta = ObjectMeta(name="meter", namespace=NS)
        asked = await objects.create(ModelDeployment(metadata=meta, spec=wish(minAccuracy=0.9)))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(rollout.run(context))
            held = await until(objects, lambda item: reason(item) == "ConstraintMeaningless")
            assert (await objects.list(Rollout, NS)).items == []
            assert held.status.rollout == ""
            await objects.replace(msgspec.structs.replace(asked, spec=wish()), expected="")
            await until(objects, lambda item: item.status.rollout == "meter-2")
            task.cancel()


def reason(item: ModelDeployment) -> str:
    found = find_condition(item.status.conditions, "Progressing")
    return "" if found is None else found.reason


async def until(objects: Objects, holds: Callable[[ModelDeployment], bool]) -> ModelDeployment:
    key = stored.key_of(ModelDeployment, NS, "meter")
    async with asyncio.timeout(20):
        revision = await objects.store.revision()
        item = await objects.find(ModelDeployment, NS, "meter")
        if item is not None and holds(item):
            return item
        async with objects.store.watch(key, after=revision) as changes:
            async for change in changes:
                if change.record is not None and change.type != "DELETED":
                    item = stored.decode(ModelDeployment, change.record)
                    if holds(item):
                        return item
    raise AssertionError("the watch ended")
