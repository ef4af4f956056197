"""Deltas on the hub: made when a version comes that takes a deployed one's place, kept when they are worth it."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from skerry.api.kinds.model_deployment import ModelDeployment, ModelDeploymentSpec
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Delta, Evaluation, Golden, NumericalError, Profile, Requirements, Variant
from skerry.api.meta import LabelSelector, ObjectMeta
from skerry.core import delta, manifest
from skerry.drivers.registry.directory import DirectoryStore
from skerry.drivers.store.sqlite import open_store
from skerry.hub import deltas
from skerry.hub import objects as stored
from skerry.hub.context import HubContext
from skerry.hub.controllers.model_version import ModelVersions
from skerry.hub.objects import Objects
from skerry.kit.clock import SystemClock

NS, REPOSITORY = "default", "default/digits"


def weights_of(seed: int, *, moved: float = 0.0) -> bytes:
    """Return 20,000 numbers, each moved a little; plain bytes to whoever reads models."""
    drawn, moves = random.Random(seed), random.Random(seed + 1)
    return b"".join(struct.pack("<f", drawn.gauss(0, 0.03) + moves.gauss(0, moved)) for _ in range(20_000))


def digest(content: bytes) -> str:
    return f"sha256:{sha256(content).hexdigest()}"


@dataclass
class Hub:
    """A hub's store, registry and controller; `contents` are the model files by version."""

    context: HubContext
    contents: dict[str, bytes] = field(default_factory=dict)

    async def upload(self, content: bytes) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield content

        name = await self.context.artifacts.start_upload(REPOSITORY)
        await self.context.artifacts.append_upload(name, chunks())
        await self.context.artifacts.finish_upload(name, digest(content))

    async def add(self, name: str, content: bytes) -> ModelVersion:
        """Push a version, and have the controller look at it."""
        self.contents[name] = content
        variant = Variant(
            name="onnx-fp32",
            format="onnx",
            precision="fp32",
            needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
            blob=Blob(digest=digest(content), size=len(content)),
            metric=1,
            metric_drop=0,
            error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
            profile=Profile(latency_p50_ms=1, latency_p95_ms=2, peak_memory_bytes=1, runs=1),
        )
        built = manifest.build_variant("digits", name, variant, file="model.onnx")
        index = manifest.build_index("digits", name, [built])
        for blob in (b"golden", content, built.config):
            await self.upload(blob)
        for one in (built.manifest, index):
            await self.context.artifacts.put_manifest(REPOSITORY, one.digest, one.media_type, one.raw)
        await self.context.objects.create(
            ModelVersion(
                metadata=ObjectMeta(name=name, namespace=NS),
                spec=ModelVersionSpec(
                    model="digits",
                    version=name,
                    artifact=Artifact(repository=REPOSITORY, digest=index.digest),
                    signature=ModelSignature(inputs=[], outputs=[]),
                    evaluation=Evaluation(metric="accuracy", baseline=1, samples=1, allowed_drop=0),
                    golden=Golden(blob=Blob(digest=digest(b"golden"), size=6), samples=1),
                ),
            )
        )
        return await self.look(name)

    async def look(self, name: str) -> ModelVersion:
        controller = ModelVersions(self.context)
        item = await self.context.objects.find(ModelVersion, NS, name)
        assert item is not None
        controller._items.observe(f"{NS}/{name}", item, int(item.metadata.resource_version))
        await controller.reconcile((NS, name))
        found = await self.context.objects.find(ModelVersion, NS, name)
        assert found is not None
        assert found.status.phase == "Ready"
        return found

    async def deploy(self, name: str) -> None:
        await self.context.objects.create(
            ModelDeployment(
                metadata=ObjectMeta(name=f"d-{name}", namespace=NS),
                spec=ModelDeploymentSpec(model_version=name, device_selector=LabelSelector()),
            )
        )

    async def read(self, digest_: str) -> bytes:
        return b"".join([chunk async for chunk in self.context.artifacts.read_blob(REPOSITORY, digest_)])


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Hub]:
    async with open_store(directory / "hub.db") as store:
        clock, nothing = SystemClock(), cast(Any, None)
        yield Hub(
            HubContext(
                objects=Objects(store, clock),
                artifacts=DirectoryStore(directory / "artifacts"),
                clock=clock,
                authority=nothing,
                gateway=nothing,
                state_dir=directory,
                hub_url="",
                mqtt_host="",
                mqtt_port=0,
            )
        )


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    async with opened(tmp_path) as hub:
        yield hub


async def test_a_version_that_follows_a_deployed_one_has_a_delta_from_it(hub, tmp_path):
    first = await hub.add("v1", weights_of(1))
    await hub.deploy("v1")
    second = await hub.add("v2", weights_of(1, moved=1e-6))
    assert first.status.deltas == []
    [made] = second.status.deltas
    assert (made.base, made.target) == tuple(one.status.variants[0].blob.digest for one in (first, second))
    assert made.blob.size < 0.6 * len(hub.contents["v2"])

    raw = io.BytesIO(await hub.read(made.blob.digest))
    old = hub.contents["v1"]
    header = delta.read_header(raw.read)
    assert (header.old_digest, header.new_digest) == (made.base, made.target)
    assert b"".join(delta.decode(header, raw.read, lambda at, size: old[at : at + size])) == hub.contents["v2"]
    assert not list(tmp_path.glob("making-delta-*"))


async def test_a_delta_is_a_referrer_of_the_variant_it_leads_to(hub):
    await hub.add("v1", weights_of(1))
    await hub.deploy("v1")
    second = await hub.add("v2", weights_of(1, moved=1e-6))
    [made] = second.status.deltas
    [stored] = await hub.context.artifacts.list_referrers(REPOSITORY, second.status.variants[0].manifest)
    document = manifest.parse(stored.raw, stored.media_type)
    assert document.type == "application/vnd.skerry.delta.v1"
    assert [layer.digest for layer in document.content][1:] == [made.blob.digest]
    assert document.annotations == {
        "dev.skerry.delta.from": made.base,
        "dev.skerry.delta.to": made.target,
        "dev.skerry.delta.encoding": "skerry-delta-v1",
        "dev.skerry.delta.size": str(made.blob.size),
    }


async def test_what_would_save_next_to_nothing_is_not_kept(hub):
    await hub.add("v1", weights_of(1))
    await hub.deploy("v1")
    other = await hub.add("v2", random.Random(2).randbytes(80_000))
    assert other.status.deltas == []
    assert await hub.context.artifacts.list_referrers(REPOSITORY, other.status.variants[0].manifest) == []


async def test_versions_that_nobody_runs_are_no_bases(hub):
    await hub.add("v1", weights_of(1))
    assert (await hub.add("v2", weights_of(1, moved=1e-6))).status.deltas == []


async def test_nothing_is_carried_from_one_namespace_to_another(hub):
    await hub.add("v1", weights_of(1))
    await hub.deploy("v1")

    def elsewhere(item: ModelVersion) -> ModelVersion:
        artifact = msgspec.structs.replace(item.spec.artifact, repository="other/digits")
        return msgspec.structs.replace(item, spec=msgspec.structs.replace(item.spec, artifact=artifact))

    first = await hub.context.objects.find(ModelVersion, NS, "v1")
    await hub.context.artifacts.mount_blob("other/digits", first.status.variants[0].blob.digest, source=REPOSITORY)
    await hub.context.objects.store.update(
        f"modelversions/{NS}/v1", stored.encode(elsewhere(first)), expected=int(first.metadata.resource_version)
    )
    assert (await hub.add("v2", weights_of(1, moved=1e-6))).status.deltas == []


async def test_a_disk_without_room_to_spare_is_left_alone(hub, monkeypatch):
    await hub.add("v1", weights_of(1))
    await hub.deploy("v1")
    monkeypatch.setattr(deltas, "ROOM", 2**40)
    assert (await hub.add("v2", weights_of(1, moved=1e-6))).status.deltas == []


async def test_a_delta_that_cannot_be_made_keeps_no_version_back(hub):
    first = await hub.add("v1", weights_of(1))
    await hub.deploy("v1")
    await hub.context.artifacts.delete_blob(REPOSITORY, first.status.variants[0].blob.digest)
    assert (await hub.add("v2", weights_of(1, moved=1e-6))).status.deltas == []


async def test_time_is_bounded(hub, monkeypatch):
    await hub.add("v1", weights_of(1))
    await hub.deploy("v1")
    monkeypatch.setattr(deltas, "MAKE_SECONDS", 0.0)
    assert (await hub.add("v2", weights_of(1, moved=1e-6))).status.deltas == []


async def test_what_a_killed_hub_left_is_swept(hub, tmp_path):
    left = tmp_path / "making-delta-x"
    left.mkdir()
    (left / "old").write_bytes(b"x")
    deltas.Deltas(hub.context)
    assert not left.exists()


def test_devices_are_told_in_a_form_that_reads_back():
    one = Delta(base=digest(b"1"), target=digest(b"2"), blob=Blob(digest=digest(b"3"), size=3), encoding="x")
    assert msgspec.json.decode(msgspec.json.encode(one), type=Delta) == one
