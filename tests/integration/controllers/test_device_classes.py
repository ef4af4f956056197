"""Classes, benchmarks and refusals through the controllers: a real store, real artifacts, a fleet that reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.integration.controllers.bench import MIB, NS, REPOSITORY, Bench, digest, opened, phase, reason, upload

from skerry.api.kinds.device import BenchmarkStatus, Device, EngineFacts, Measurement
from skerry.api.kinds.device_class import DeviceClass
from skerry.api.kinds.model_deployment import ModelDeployment
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec
from skerry.api.kinds.rollout import Rollout
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Evaluation, Golden, NumericalError, Profile, Requirements, Variant
from skerry.api.meta import ObjectMeta
from skerry.core import manifest
from skerry.core.desired import DesiredRecord
from skerry.core.messages import WorkloadDesired
from skerry.hub.controllers import device_class, model_version, rollout
from skerry.hub.explain import explain

FACTORY = {"onnx-fp32": 4.0, "onnx-int8": 1.0}


@dataclass
class Site(Bench):
    """Devices on which int8 is slow; some say nothing, some refuse."""

    p95: dict[str, float] = field(default_factory=lambda: {"onnx-fp32": 2.0, "onnx-int8": 20.0})
    silent: bool = False
    """Nobody answers a benchmark."""
    refuses: tuple[str, ...] = ()
    """Variants that no device takes."""
    told: list[WorkloadDesired] = field(default_factory=list)
    """Everything that was asked to be measured."""

    def report_of(self, workload: Any) -> Any:
        plain = super().report_of(workload)
        if workload.variant in self.refuses:
            return msgspec.structs.replace(
                plain, phase="Failed", running=None, measurement=None, refusal="Policy", message="the owner does not"
            )
        return msgspec.structs.replace(plain, measurement=self.measure(workload))

    def measure(self, workload: WorkloadDesired) -> Measurement:
        p95 = self.p95[workload.variant]
        return Measurement(
            samples=64,
            accuracy=0.97,
            agreement=1,
            max_abs_error=0,
            latency_p50_ms=p95 / 2,
            latency_p95_ms=p95,
            peak_memory_bytes=10 * MIB,
        )

    async def obey(self, record: DesiredRecord) -> None:
        await super().obey(record)
        wanted = {request.workload.name: request.workload for request in record.benchmarks}
        self.told += wanted.values()
        said = [
            BenchmarkStatus(name=name, variant=one.variant, phase="Measured", measurement=self.measure(one))
            for name, one in sorted(wanted.items())
        ]
        if not self.silent:
            await self.objects.update_status(
                Device,
                NS,
                record.device,
                lambda item: msgspec.structs.replace(
                    item, status=msgspec.structs.replace(item.status, benchmarks=said)
                ),
            )

    async def push_variants(self, name: str) -> ModelVersion:
        built = []
        for variant, p95 in FACTORY.items():
            content = f"{variant} of {name}".encode()
            made = manifest.build_variant("digits", name, make_variant(variant, content, p95), file="model.onnx")
            for blob in (b"golden", content, made.config):
                await upload(self.context.artifacts, REPOSITORY, blob)
            built.append(made)
        index = manifest.build_index("digits", name, built)
        for item in (*(made.manifest for made in built), index):
            await self.context.artifacts.put_manifest(REPOSITORY, item.digest, item.media_type, item.raw)
        return await self.objects.create(
            ModelVersion(
                metadata=ObjectMeta(name=name, namespace=NS),
                spec=ModelVersionSpec(
                    model="digits",
                    version=name,
                    artifact=Artifact(repository=REPOSITORY, digest=index.digest),
                    signature=ModelSignature(inputs=[], outputs=[]),
                    evaluation=Evaluation(metric="accuracy", baseline=0.98, samples=100, allowed_drop=0.01),
                    golden=Golden(blob=Blob(digest=digest(b"golden"), size=6), samples=64),
                ),
            )
        )

    async def variants(self) -> dict[str, str]:
        records = [await self.objects.get_desired(d.metadata.uid) for d in (await self.objects.list(Device, NS)).items]
        return {r.device: r.assignments[0].workload.variant for r in records if r is not None and r.assignments}

    async def only_class(self) -> DeviceClass:
        [item] = (await self.objects.list(DeviceClass, NS)).items
        return item


def make_variant(name: str, content: bytes, p95: float) -> Variant:
    precision = name.partition("-")[2]
    return Variant(
        name=name,
        format="onnx",
        precision=precision,  # type: ignore[arg-type]
        needs=Requirements(engine="onnxruntime", precision=precision, memory_bytes=10 * MIB),  # type: ignore[arg-type]
        blob=Blob(digest=digest(content), size=len(content)),
        metric=0.98,
        metric_drop=0,
        error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
        profile=Profile(latency_p50_ms=p95 / 2, latency_p95_ms=p95, peak_memory_bytes=10 * MIB, runs=1),
    )


@asynccontextmanager
async def running(site: Site) -> AsyncIterator[None]:
    jobs = [model_version.run(site.context), rollout.run(site.context), device_class.run(site.context)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job) for job in (*jobs, site.play_fleet())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with opened(tmp_path) as bench:
        yield Site(context=bench.context)


STRATEGY = {"waves": [{"count": 1}, {"percent": 100}]}
BENCHMARK = {"benchmark": True}


async def test_the_first_device_measures_and_the_class_uses_the_best(site: Site) -> None:
    async with running(site):
        for number in range(3):
            await site.add_device(f"till-{number}")
        await site.push_variants("v1")
        await site.apply(modelVersion="v1", strategy=STRATEGY, placement=BENCHMARK)
        await site.until(Rollout, "digits-1", phase("Succeeded"))
        assert await site.variants() == dict.fromkeys(["till-0", "till-1", "till-2"], "onnx-fp32")
        assert len({one.name for one in site.told}) == 2, "both variants, by one device"
        item = await site.until(
            DeviceClass, (await site.only_class()).metadata.name, lambda one: one.status.members == 3
        )
        known = {cost.variant: cost for cost in item.status.variants}
        assert known["onnx-int8"].source == "benchmark"
        assert (known["onnx-int8"].latency_p95_ms, known["onnx-int8"].devices) == (20.0, 1)
        for number in range(3):
            await site.until_record(f"till-{number}", lambda record: not record.benchmarks)
        told = await explain(site.context, NS, "digits", "till-1")
        assert told["deviceClass"] == item.metadata.name
        assert {c["variant"]: c["measuredOn"] for c in told["candidates"]} == dict.fromkeys(FACTORY, item.metadata.name)
        assert {c["variant"]: c["latencyP95Ms"] for c in told["classCosts"]} == site.p95
        assert "measured on class" in told["reason"]


async def test_without_benchmarks_installs_teach_the_class_and_the_choice_stays(site: Site) -> None:
    async with running(site):
        for number in range(2):
            await site.add_device(f"till-{number}")
        await site.push_variants("v1")
        await site.apply(modelVersion="v1", strategy=STRATEGY)
        await site.until(Rollout, "digits-1", phase("Succeeded"))
        assert set((await site.variants()).values()) == {"onnx-int8"}, "the factory's numbers"
        name = (await site.only_class()).metadata.name
        item = await site.until(DeviceClass, name, lambda one: any(c.devices == 2 for c in one.status.variants))
        [cost] = item.status.variants
        assert (cost.variant, cost.source, cost.latency_p95_ms) == ("onnx-int8", "install", 20.0)
        assert site.told == []
        # A limit is held against what the class has shown.
        await site.apply(constraints={"maxLatency": "10ms"})
        await site.until(Rollout, "digits-2", phase("Succeeded"))
        assert set((await site.variants()).values()) == {"onnx-fp32"}


async def test_when_nobody_answers_in_time_the_factory_decides_and_the_reason_says_so(site: Site) -> None:
    site.silent = True
    async with running(site):
        await site.add_device("till-0")
        await site.push_variants("v1")
        await site.apply(modelVersion="v1", placement={"benchmark": True, "timeout": "300ms"})
        wish = await site.until(ModelDeployment, "digits", reason("Benchmarking"))
        assert "till-0 measures the variants" in str(wish.status.conditions)
        await site.until(Rollout, "digits-1", phase("Succeeded"))
        record = await site.until_record("till-0", lambda record: bool(record.assignments))
        assert record.assignments[0].workload.variant == "onnx-int8"
        assert record.assignments[0].reason.endswith("was not measured within 300ms")


async def test_a_device_that_refuses_gets_the_next_best_if_the_deployment_allows_it(site: Site) -> None:
    site.refuses = ("onnx-int8",)
    async with running(site):
        await site.add_device("till-0")
        await site.push_variants("v1")
        await site.apply(modelVersion="v1", placement={"onRefusal": "nextBest"})
        await site.until(Rollout, "digits-1", phase("Succeeded"))
        assert await site.variants() == {"till-0": "onnx-fp32"}
        told = await explain(site.context, NS, "digits", "till-0")
        assert [(r["variant"], r["refusal"]) for r in told["refusals"]] == [("onnx-int8", "Policy")]
        reasons = {c["variant"]: c["reason"] for c in told["candidates"]}
        assert reasons["onnx-int8"] == "refused by the device (Policy): the owner does not"


@pytest.mark.parametrize("placement", [{}, {"onRefusal": "nextBest"}])
async def test_a_refusal_fails_the_device_when_nothing_else_may_or_can_be_tried(site: Site, placement: Any) -> None:
    site.refuses = tuple(FACTORY)
    async with running(site):
        await site.add_device("till-0")
        await site.push_variants("v1")
        await site.apply(modelVersion="v1", placement=placement, strategy={**STRATEGY, "onFailure": "pause"})
        failed = await site.until(Rollout, "digits-1", phase("Paused"))
        assert "the owner does not" in failed.status.message
        told = await explain(site.context, NS, "digits", "till-0")
        assert len(told["refusals"]) == (2 if placement else 1)


async def test_classes_follow_the_devices_and_are_made_anew_when_deleted(site: Site) -> None:
    async with running(site):
        first = await site.add_device("till-0")
        await site.add_device("till-1")
        await site.push_variants("v1")
        await site.apply(modelVersion="v1")
        await site.until(Rollout, "digits-1", phase("Succeeded"))
        name = (await site.only_class()).metadata.name
        await site.until(DeviceClass, name, lambda one: one.status.members == 2 and one.status.measured == 1)
        newer = [EngineFacts(name="onnxruntime", version="1.31.0")]
        await site.objects.update_status(
            Device,
            NS,
            "till-0",
            lambda item: msgspec.structs.replace(item, status=msgspec.structs.replace(item.status, engines=newer)),
        )
        await site.until(DeviceClass, name, lambda one: one.status.members == 1)
        [other] = [i for i in (await site.objects.list(DeviceClass, NS)).items if i.metadata.name != name]
        assert other.spec.engines[0].version == "1.31.0"
        await site.objects.delete(DeviceClass, NS, name)
        again = await site.until(DeviceClass, name, lambda one: one.status.measured == 1)
        assert [o.device for o in again.status.variants[0].observations] == ["till-1"]
        await site.objects.delete(Device, NS, "till-0", uid=first.metadata.uid)
        await site.objects.delete(Device, NS, "till-1")
        deserted = await site.until(DeviceClass, name, lambda one: one.status.members == 0)
        assert deserted.status.variants, "what was measured outlives the devices"


async def test_a_hub_that_restarts_learns_nothing_twice_and_goes_on(site: Site) -> None:
    site.silent = True
    async with running(site):
        await site.add_device("till-0")
        await site.push_variants("v1")
        await site.apply(modelVersion="v1", placement={"benchmark": True, "timeout": "1h"})
        await site.until(ModelDeployment, "digits", reason("Benchmarking"))
        asked = await site.until_record("till-0", lambda record: len(record.benchmarks) == 2)
    site.silent = False
    async with running(site):
        await site.until(Rollout, "digits-1", phase("Succeeded"))
        assert await site.variants() == {"till-0": "onnx-fp32"}
        item = await site.until(
            DeviceClass, (await site.only_class()).metadata.name, lambda one: one.status.measured == 2
        )
    assert asked.manifest_version == 1
    async with running(site):
        await site.until(DeviceClass, item.metadata.name, lambda one: one.status == item.status)
        await site.add_device("till-1")
        grown = await site.until(DeviceClass, item.metadata.name, lambda one: one.status.members == 2)
        known = {
            cost.variant: [o.at for o in cost.observations if o.device == "till-0"] for cost in grown.status.variants
        }
        before = {cost.variant: [o.at for o in cost.observations] for cost in item.status.variants}
        assert known == before, "nothing was learnt again"
