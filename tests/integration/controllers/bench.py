"""The controllers' surroundings: the real store and artifact directory, and a fleet that writes Device.status."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from skerry.api.errors import NotFoundError
from skerry.api.kinds import Resource
from skerry.api.kinds.device import (
    Device,
    DeviceStatus,
    EngineFacts,
    Hardware,
    Measurement,
    RunningRevision,
    WorkloadStatus,
)
from skerry.api.kinds.model_deployment import ModelDeployment, ModelDeploymentSpec
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Evaluation, Golden, NumericalError, Profile, Requirements, Variant
from skerry.api.meta import ObjectMeta, find_condition
from skerry.core import manifest
from skerry.core.desired import DesiredRecord
from skerry.core.ports import ArtifactStore, Manifest
from skerry.drivers.registry.directory import DirectoryStore
from skerry.drivers.store.sqlite import open_store
from skerry.hub import objects as stored
from skerry.hub.context import HubContext
from skerry.hub.controllers import model_version, rollout
from skerry.hub.objects import Objects
from skerry.kit.clock import SystemClock

WAIT = 20.0  # seconds until a test that waits gives up
MIB = 1024 * 1024
NS = "default"
REPOSITORY = f"{NS}/digits"
K = TypeVar("K", bound=Resource)


@dataclass
class Bench:
    """A hub's store and artifacts, and what the scripted fleet is to do."""

    context: HubContext
    accuracy: dict[str, float] = field(default_factory=dict)
    """Model version -> accuracy that devices measure; 0.97 otherwise."""

    @property
    def objects(self) -> Objects:
        return self.context.objects

    async def until(self, kind: type[K], name: str, holds: Callable[[K], bool]) -> K:
        """Wait until the object is there and the condition holds."""
        key = stored.key_of(kind, NS, name)
        async with asyncio.timeout(WAIT):
            revision = await self.objects.store.revision()
            item = await self.objects.find(kind, NS, name)
            if item is not None and holds(item):
                return item
            async with self.objects.store.watch(key, after=revision) as changes:
                async for change in changes:
                    if change.record is None or change.type == "DELETED" or change.record.key != key:
                        continue
                    item = stored.decode(kind, change.record)
                    if holds(item):
                        return item
        raise AssertionError("the watch ended")

    async def until_none(self, kind: type[K]) -> None:
        """Wait until there is no object of that kind."""
        async with asyncio.timeout(WAIT):
            revision = await self.objects.store.revision()
            async with self.objects.store.watch(stored.prefix_of(kind), after=revision) as changes:
                while (await self.objects.list(kind, NS)).items:
                    await anext(changes)

    async def until_record(self, device: str, holds: Callable[[DesiredRecord], bool]) -> DesiredRecord:
        prefix = f"{stored.DESIRED_PREFIX}u-{device}"
        async with asyncio.timeout(WAIT):
            revision = await self.objects.store.revision()
            record = await self.objects.get_desired(f"u-{device}")
            if record is not None and holds(record):
                return record
            async with self.objects.store.watch(prefix, after=revision) as changes:
                async for change in changes:
                    if change.record is None:
                        continue
                    record = msgspec.json.decode(change.record.value, type=DesiredRecord)
                    if holds(record):
                        return record
        raise AssertionError("the watch ended")

    async def push(self, name: str, *, memory: int = 10 * MIB, blobs: bool = True) -> ModelVersion:
        """Create a model version, after putting its artifacts into the registry unless told otherwise."""
        golden, (_, index, _) = b"golden", build(name, memory)
        if blobs:
            await self.push_artifacts(name, memory=memory)
        return await self.objects.create(
            ModelVersion(
                metadata=ObjectMeta(name=name, namespace=NS),
                spec=ModelVersionSpec(
                    model="digits",
                    version=name,
                    artifact=Artifact(repository=REPOSITORY, digest=index.digest),
                    signature=ModelSignature(inputs=[], outputs=[]),
                    evaluation=Evaluation(metric="accuracy", baseline=0.98, samples=100, allowed_drop=0.01),
                    golden=Golden(blob=Blob(digest=digest(golden), size=len(golden)), samples=64),
                ),
            )
        )

    async def push_artifacts(self, name: str, *, memory: int = 10 * MIB) -> None:
        artifacts, (built, index, content) = self.context.artifacts, build(name, memory)
        for blob in (b"golden", content, built.config):
            await upload(artifacts, REPOSITORY, blob)
        for item in (built.manifest, index):
            await artifacts.put_manifest(REPOSITORY, item.digest, item.media_type, item.raw)

    async def add_device(self, name: str, *, memory: int = 100 * MIB, **meta: Any) -> Device:
        device = await self.objects.create(
            Device(metadata=ObjectMeta(name=name, namespace=NS, uid=f"u-{name}", labels={"site": "lab"}, **meta))
        )
        facts = DeviceStatus(
            phase="Online",
            hardware=Hardware(arch="amd64", memory_bytes=memory),
            engines=[EngineFacts(name="onnxruntime", version="1.30.0")],
        )
        return await self.objects.update_status(
            Device, NS, device.metadata.name, lambda item: msgspec.structs.replace(item, status=facts)
        )

    async def apply(self, **spec: Any) -> ModelDeployment:
        """Create the deployment, or change fields of its spec."""
        found = await self.objects.find(ModelDeployment, NS, "digits")
        if found is None:
            plain = {"deviceSelector": {"matchLabels": {"site": "lab"}}, **spec}
            item = ModelDeployment(
                metadata=ObjectMeta(name="digits", namespace=NS), spec=msgspec.convert(plain, ModelDeploymentSpec)
            )
            return await self.objects.create(item)
        plain = {**msgspec.to_builtins(found.spec), **spec}
        changed = msgspec.convert(plain, ModelDeploymentSpec)
        return await self.objects.replace(msgspec.structs.replace(found, spec=changed), expected="")

    # -- the fleet ----------------------------------------------------------------------------------------------

    async def play_fleet(self) -> None:
        """Every device obeys its record at once: it serves, measures, reports."""
        async with self.objects.store.watch(stored.DESIRED_PREFIX, after=0) as changes:
            async for change in changes:
                if change.record is not None and change.type != "DELETED":
                    await self.obey(msgspec.json.decode(change.record.value, type=DesiredRecord))

    async def obey(self, record: DesiredRecord) -> None:
        def report(item: Device) -> Device:
            status = msgspec.structs.replace(
                item.status,
                observed_manifest_version=record.manifest_version,
                workloads=[self.report_of(assignment.workload) for assignment in record.assignments],
            )
            return msgspec.structs.replace(item, status=status)

        with contextlib.suppress(NotFoundError):
            await self.objects.update_status(Device, NS, record.device, report)

    def report_of(self, workload: Any) -> WorkloadStatus:
        running = RunningRevision(
            rollout=workload.rollout,
            revision=workload.revision,
            model_version=workload.model_version,
            variant=workload.variant,
            port=8000,
            since=datetime(2026, 11, 23, tzinfo=UTC),
        )
        return WorkloadStatus(
            name=workload.name,
            rollout=workload.rollout,
            revision=workload.revision,
            variant=workload.variant,
            phase="Running",
            running=running,
            served=True,
            measurement=Measurement(
                samples=64,
                accuracy=self.accuracy.get(workload.model_version, 0.97),
                agreement=1,
                max_abs_error=0,
                latency_p50_ms=1,
                latency_p95_ms=2,
                peak_memory_bytes=MIB,
            ),
        )


def build(name: str, memory: int) -> tuple[manifest.BuiltVariant, Manifest, bytes]:
    """Return a variant, the index and the model file of a version."""
    content = f"weights of {name}".encode()
    variant = Variant(
        name="onnx-fp32",
        format="onnx",
        precision="fp32",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=memory),
        blob=Blob(digest=digest(content), size=len(content)),
        metric=0.98,
        metric_drop=0,
        error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
        profile=Profile(latency_p50_ms=1, latency_p95_ms=2, peak_memory_bytes=memory, runs=1),
    )
    built = manifest.build_variant("digits", name, variant, file="model.onnx")
    return built, manifest.build_index("digits", name, [built]), content


def digest(content: bytes) -> str:
    return f"sha256:{sha256(content).hexdigest()}"


async def upload(artifacts: ArtifactStore, repository: str, content: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield content

    name = await artifacts.start_upload(repository)
    await artifacts.append_upload(name, chunks())
    await artifacts.finish_upload(name, digest(content))


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Bench]:
    async with open_store(directory / "hub.db") as store:
        clock = SystemClock()
        yield Bench(
            context=HubContext(
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
        )


@asynccontextmanager
async def running(bench: Bench, *, fleet: bool = True) -> AsyncIterator[None]:
    """Run the controllers, and the fleet, inside the block."""
    jobs = [model_version.run(bench.context), rollout.run(bench.context)]
    jobs += [bench.play_fleet()] if fleet else []
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job) for job in jobs]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


def phase(name: str) -> Callable[[Any], bool]:
    return lambda item: bool(item.status.phase == name)


def reason(name: str) -> Callable[[ModelDeployment], bool]:
    def holds(item: ModelDeployment) -> bool:
        found = find_condition(item.status.conditions, "Progressing")
        return found is not None and found.reason == name

    return holds


WAVES = [{"name": "canary", "count": 1}, {"name": "half", "percent": 50}, {"name": "all", "percent": 100}]
STRATEGY = {"waves": WAVES, "gates": {"accuracy": {"min": 0.9, "minSamples": 10}}}
