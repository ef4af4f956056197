"""Devices, variants and rollouts for the tests of classes, benchmarks and refusals."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import msgspec

from skerry.api.kinds.device import (
    Device,
    DeviceSpec,
    DeviceStatus,
    EngineFacts,
    Hardware,
    Measurement,
    Network,
)
from skerry.api.kinds.model_deployment import Constraints, ModelDeploymentSpec, PlacementPolicy, Serving
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec, ModelVersionStatus
from skerry.api.kinds.rollout import Rollout, RolloutSpec
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Evaluation, Golden, Variant
from skerry.api.meta import LabelSelector, ObjectMeta

MIB = 1024 * 1024
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def blob(text: str) -> Blob:
    return Blob(digest=f"sha256:{sha256(text.encode()).hexdigest()}", size=len(text))


def variant(name: str, *, latency: float = 2.0, memory: int = 40, metric: float = 0.98) -> Variant:
    precision = name.partition("-")[2]
    plain: dict[str, Any] = {
        "name": name,
        "format": "onnx",
        "precision": precision,
        "needs": {"engine": "onnxruntime", "precision": precision, "memoryBytes": memory * MIB},
        "blob": msgspec.to_builtins(blob(name)),
        "metric": metric,
        "metricDrop": 0,
        "error": {"maxAbs": 0, "meanAbs": 0, "cosine": 1},
        "profile": {"latencyP50Ms": latency / 2, "latencyP95Ms": latency, "peakMemoryBytes": memory * MIB, "runs": 1},
    }
    return msgspec.convert(plain, Variant)


VARIANTS = (variant("onnx-fp32", latency=4), variant("onnx-fp16", latency=3), variant("onnx-int8", latency=1))


def model(*variants: Variant) -> ModelVersion:
    return ModelVersion(
        metadata=ObjectMeta(name="v1", namespace="default", resource_version="1"),
        spec=ModelVersionSpec(
            model="digits",
            version="1",
            artifact=Artifact(repository="default/digits", digest=blob("index").digest),
            signature=ModelSignature(inputs=[], outputs=[]),
            evaluation=Evaluation(metric="accuracy", baseline=1, samples=1, allowed_drop=0),
            golden=Golden(blob=blob("golden"), samples=8),
        ),
        status=ModelVersionStatus(phase="Ready", variants=list(variants or VARIANTS)),
    )


def rollout(name: str = "digits-1", *, threads: int = 1, **constraints: Any) -> Rollout:
    template = ModelDeploymentSpec(
        model_version="v1",
        device_selector=LabelSelector(),
        constraints=Constraints(**constraints),
        serving=Serving(threads=threads),
        placement=PlacementPolicy(benchmark=True),
    )
    return Rollout(
        metadata=ObjectMeta(name=name, namespace="default", uid=f"u-{name}"),
        spec=RolloutSpec(deployment="digits", deployment_uid="dep", revision=1, template=template),
    )


def status(*, memory: int = 512, cores: int = 4, cpu: str = "Cortex-A72", **changes: Any) -> DeviceStatus:
    plain = DeviceStatus(
        phase="Online",
        hardware=Hardware(arch="arm64", cpu_model=cpu, cores=cores, memory_bytes=memory * MIB),
        engines=[EngineFacts(name="onnxruntime", version="1.26.0")],
        runtimes=["process"],
        network=Network(kind="ethernet"),
    )
    return msgspec.structs.replace(plain, **changes)


def device(name: str, *, cordoned: bool = False, **changes: Any) -> Device:
    return Device(
        metadata=ObjectMeta(name=name, namespace="default", uid=f"u-{name}"),
        spec=DeviceSpec(cordoned=cordoned),
        status=status(**changes),
    )


def measured(p95: float = 2.0, *, memory: int = 40, samples: int = 8, error: float = 0.01) -> Measurement:
    return Measurement(
        samples=samples,
        accuracy=1.0,
        agreement=1.0,
        max_abs_error=error,
        latency_p50_ms=min(p95 / 2, p95),
        latency_p95_ms=p95,
        peak_memory_bytes=memory * MIB,
    )
