"""Placement: the variant that fits and measures best, and the sentence that says why."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import InvalidError
from skerry.api.kinds.device import DeviceFacts, EngineFacts, Hardware
from skerry.api.kinds.model_deployment import (
    Constraints,
    ModelDeploymentSpec,
    ResourceList,
    Resources,
    Serving,
)
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec
from skerry.api.kinds.rollout import Rollout, RolloutSpec
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Evaluation, Golden, NumericalError, Profile, Requirements, Variant
from skerry.api.meta import LabelSelector, ObjectMeta
from skerry.core import desired, placement
from skerry.core.desired import DesiredRecord
from skerry.core.engines import ENGINES
from skerry.core.messages import MAX_WORKLOADS
from skerry.core.placement import Cost, Engine, Machine

MIB = 1024 * 1024
BLOB = Blob(digest="sha256:" + "a" * 64, size=1)
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def variant(
    name: str = "onnx-fp32",
    *,
    latency: float = 2.0,
    memory: float = 40,
    metric: float = 0.98,
    drop: float | None = None,
    version: str = "",
    architectures: tuple[str, ...] = (),
) -> Variant:
    made, _, precision = name.partition("-")
    return msgspec.convert(
        {
            "name": name,
            "format": made,
            "precision": precision,
            "needs": Requirements(
                engine=next(one.name for one in ENGINES.values() if one.format == made),
                engine_min_version=version,
                precision=precision,  # type: ignore[arg-type]
                architectures=list(architectures),
                memory_bytes=int(memory * MIB),
            ),
            "blob": BLOB,
            "metric": metric,
            "metricDrop": 1 - metric if drop is None else drop,
            "error": NumericalError(max_abs=0, mean_abs=0, cosine=1),
            "profile": Profile(
                latency_p50_ms=latency / 2, latency_p95_ms=latency, peak_memory_bytes=int(memory * MIB), runs=1
            ),
        },
        Variant,
    )


def machine(*, memory: float = 100, version: str = "1.26.0", precisions: tuple[str, ...] = (), **more: int) -> Machine:
    engine = Engine(name="onnxruntime", version=version, precisions=precisions)
    return Machine(arch="amd64", memory_bytes=int(memory * MIB), engines=(engine,), runtimes=("process",), **more)


def spec(limit: str | None = None, **constraints: object) -> ModelDeploymentSpec:
    return ModelDeploymentSpec(
        model_version="v1",
        device_selector=LabelSelector(),
        constraints=Constraints(**constraints),  # type: ignore[arg-type]
        resources=Resources(limits=ResourceList(memory=limit)),
    )


def reasons(found: placement.Placement) -> dict[str, str]:
    return {candidate.variant: candidate.reason for candidate in found.candidates}


THREE = [
    variant("onnx-fp32", latency=2.0, memory=88.1, metric=0.985),
    variant("onnx-fp16", latency=2.1, memory=60, metric=0.984),
    variant("onnx-int8", latency=1.0, memory=50, metric=0.98),
]


def test_the_fastest_that_fits_is_taken_and_the_others_say_why_not() -> None:
    found = placement.place(machine(memory=72), THREE, spec())
    assert found.variant is not None
    assert found.variant.name == "onnx-int8"
    assert [c.taken for c in found.candidates] == [True, False, False]
    assert reasons(found) == {
        "onnx-int8": "onnx-int8 is the best of 2 that fit: p95 1 ms and 50.0 MiB, measured in the factory",
        "onnx-fp16": "fits, but its p95 2.1 ms is slower than onnx-int8's 1 ms",
        "onnx-fp32": "onnx-fp32 needs 88.1 MiB, the device gives workloads 72.0 MiB",
    }


def test_latencies_within_a_tenth_count_as_equal_then_memory_metric_and_name_decide() -> None:
    close = [variant("onnx-fp32", latency=1.0, memory=80), variant("onnx-fp16", latency=1.1, memory=60)]
    found = placement.place(machine(), close, spec())
    assert found.variant is not None
    assert found.variant.name == "onnx-fp16"
    assert reasons(found)["onnx-fp32"] == "fits and is as fast as onnx-fp16, but needs 80.0 MiB, onnx-fp16 60.0 MiB"
    apart = [variant("onnx-fp32", latency=1.0, memory=80), variant("onnx-fp16", latency=1.11, memory=60)]
    taken = placement.place(machine(), apart, spec()).variant
    assert taken is not None
    assert taken.name == "onnx-fp32"
    better = [variant("onnx-fp32", metric=0.99), variant("onnx-fp16", metric=0.98)]
    found = placement.place(machine(), better, spec())
    assert found.variant == better[0]
    assert reasons(found)["onnx-fp16"] == "fits and costs what onnx-fp32 costs, but reaches 0.98, not 0.99"
    errors = [variant("onnx-fp32", metric=3.2, drop=0.1), variant("onnx-fp16", metric=3.5, drop=0.4)]
    found = placement.place(machine(), errors, spec())
    assert found.variant == errors[0]  # of an error less is better, and the drop says so
    equal = placement.place(machine(), [variant("onnx-int8"), variant("onnx-fp16")], spec())
    assert equal.variant is not None
    assert equal.variant.name == "onnx-fp16"
    assert reasons(equal)["onnx-int8"] == "fits and is equal to onnx-fp16; the name decides"


def test_measurements_of_the_class_come_before_the_factorys() -> None:
    measured = {
        "onnx-int8": Cost(latency_p95_ms=9.0, peak_memory_bytes=55 * MIB, measured_on="pi-4"),
        "onnx-fp32": Cost(latency_p95_ms=4.0, peak_memory_bytes=90 * MIB, measured_on="pi-4"),
    }
    found = placement.place(machine(), [THREE[0], THREE[2]], spec(), measured)
    assert found.variant is not None
    assert found.variant.name == "onnx-fp32"
    assert found.reason == "onnx-fp32 is the best of 2 that fit: p95 4 ms and 90.0 MiB, measured on class pi-4"
    assert [c.measured_on for c in found.candidates] == ["pi-4", "pi-4"]


@pytest.mark.parametrize(
    ("device", "wish", "reason"),
    [
        (machine(version="1.24"), spec(), "engine onnxruntime 1.24 is older than 1.26"),
        (machine(version=""), spec(), "engine onnxruntime has an unknown version, 1.26 is needed"),
        (machine(precisions=("fp16", "int8")), spec(), "engine onnxruntime runs only fp16, int8 here"),
        (Machine(arch="amd64", memory_bytes=MIB), spec(), "engine onnxruntime is not on the device"),
        (machine(), spec(max_latency="1500us"), "p95 2 ms is above the limit 1.5 ms"),
        (machine(), spec(min_accuracy=0.99), "accuracy 0.98 is below the limit 0.99"),
        (machine(), spec(max_memory="32Mi"), "onnx-fp32 needs 40.0 MiB, the deployment allows 32.0 MiB"),
        (machine(), spec("32Mi"), "onnx-fp32 needs 40.0 MiB, its memory limit is 32.0 MiB"),
        (
            machine(memory=72, taken_bytes=42 * MIB),
            spec(),
            "onnx-fp32 needs 40.0 MiB, the device gives workloads 72.0 MiB and 30.0 MiB of that are left",
        ),
        (
            machine(),
            spec(precisions=["int8"]),
            "precision fp32 is not among those the deployment allows (int8)",
        ),
        (
            machine(),
            spec(engines=["litert"]),
            "engine onnxruntime is not among those the deployment allows (litert)",
        ),
        (
            Machine(arch="arm64", memory_bytes=100 * MIB),
            spec(),
            "onnx-fp32 is made for amd64, the device is arm64",
        ),
        (
            Machine(arch="amd64", memory_bytes=100 * MIB, runtimes=("podman",)),
            msgspec.structs.replace(spec(), runtime="process"),
            "runtime process is not on the device (podman)",
        ),
    ],
)
def test_why_a_variant_does_not_fit(device: Machine, wish: ModelDeploymentSpec, reason: str) -> None:
    found = placement.place(device, [variant(version="1.26", architectures=("amd64",))], wish)
    assert found.variant is None
    assert found.candidates[0].reason == reason
    named = reason if reason.startswith("onnx-fp32") else f"onnx-fp32: {reason}"
    assert found.reason == f"no variant fits: {named}"


@pytest.mark.parametrize(
    ("has", "needs", "fits"),
    [
        ("1.26.0", "1.26", True),
        ("1.26", "1.26.0", True),
        ("1.100", "1.26", True),
        ("1.26.0+cpu", "1.26", True),
        ("1.25.9", "1.26", False),
        ("rubbish", "1.26", False),
        ("9" * 1000, "1.26", True),
    ],
)
def test_versions_compare_as_numbers(has: str, needs: str, fits: bool) -> None:
    assert (placement.place(machine(version=has), [variant(version=needs)], spec()).variant is not None) == fits


def test_what_is_not_there_is_said_plainly() -> None:
    assert placement.place(Machine(), THREE, spec()).reason == "the device has not reported its hardware yet"
    assert placement.place(machine(), [], spec()).reason == "the model version has no variants"
    full = placement.place(machine(workloads=MAX_WORKLOADS), THREE, spec())
    assert full.reason == f"the device already has {MAX_WORKLOADS} workloads"
    many = [variant(f"onnx-{p}", memory=200) for p in ("fp32", "fp16", "int8", "int8-dynamic", "int4")]
    assert placement.place(machine(), many, spec()).reason.endswith("; and 1 more")


FORMATS = [
    variant("onnx-int8", latency=1.0, memory=70),
    variant("tflite-int8", latency=1.5, memory=55, version="2.3"),
    variant("executorch-int8", latency=0.5, memory=230, version="1.5.0"),
    variant("torchscript-fp32", latency=3.0, memory=240),
]


def with_engines(memory: float, **versions: str) -> Machine:
    engines = tuple(Engine(name=name, version=version, precisions=()) for name, version in versions.items())
    return Machine(arch="amd64", memory_bytes=int(memory * MIB), engines=engines, runtimes=("process",))


@pytest.mark.parametrize(
    ("device", "taken"),
    [
        (with_engines(300, litert="2.3.0"), "tflite-int8"),
        (with_engines(300, torchscript="2.13.0+cpu"), "torchscript-fp32"),
        (with_engines(300, onnxruntime="1.32.0", litert="2.3.0"), "onnx-int8"),
        (with_engines(60, onnxruntime="1.32.0", litert="2.3.0"), "tflite-int8"),
        (with_engines(300, onnxruntime="1.32.0", litert="2.3.0", executorch="1.5.1"), "executorch-int8"),
        (with_engines(300, litert="2.3.0", executorch="1.4.2"), "tflite-int8"),
        (with_engines(300, executorch="1.4.2"), None),
    ],
)
def test_a_device_with_several_engines_takes_what_measures_best_of_all_formats(
    device: Machine, taken: str | None
) -> None:
    found = placement.place(device, FORMATS, spec())
    assert (found.variant.name if found.variant else None) == taken


def test_what_was_measured_on_the_class_decides_between_engines_too() -> None:
    device = with_engines(300, onnxruntime="1.32.0", litert="2.3.0")
    costs = {
        "onnx-int8": Cost(latency_p95_ms=9.0, peak_memory_bytes=70 * MIB, measured_on="arm"),
        "tflite-int8": Cost(latency_p95_ms=4.0, peak_memory_bytes=50 * MIB, measured_on="arm"),
    }
    found = placement.place(device, FORMATS, spec(), costs)
    assert found.variant is not None
    assert found.variant.name == "tflite-int8", "ONNX is quicker in the factory, not here"
    assert reasons(found)["onnx-int8"] == "fits, but its p95 9 ms is slower than tflite-int8's 4 ms"
    assert reasons(found)["executorch-int8"] == "engine executorch is not on the device"
    only = placement.place(device, FORMATS, spec(engines=["onnxruntime"]), costs)
    assert only.variant is not None
    assert only.variant.name == "onnx-int8", "where the deployment allows no other engine"


def test_a_limit_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(InvalidError, match="12Q"):
        placement.place(machine(), THREE, spec("12Q"))


def make_rollout(name: str, template: ModelDeploymentSpec) -> Rollout:
    return Rollout(
        metadata=ObjectMeta(name=f"{name}-1", namespace="default"),
        spec=RolloutSpec(deployment=name, deployment_uid="u", revision=1, template=template),
    )


MODEL = ModelVersion(
    metadata=ObjectMeta(name="digits-v1", namespace="default"),
    spec=ModelVersionSpec(
        model="digits",
        version="v1",
        artifact=Artifact(repository="default/digits", digest=BLOB.digest),
        signature=ModelSignature(inputs=[], outputs=[]),
        evaluation=Evaluation(metric="accuracy", baseline=0.98, samples=1, allowed_drop=0),
        golden=Golden(blob=BLOB, samples=64),
    ),
)


def test_the_workload_carries_everything_a_device_needs() -> None:
    template = msgspec.structs.replace(spec("64Mi"), serving=Serving(port=8080, threads=2))
    found = placement.place(machine(), THREE, template)
    built = placement.build_assignment(make_rollout("digits", template), MODEL, found, wave=2, now=NOW)
    workload = built.workload
    assert (workload.name, workload.rollout, workload.revision) == ("digits", "digits-1", 1)
    assert (workload.model, workload.model_version, workload.version) == ("digits", "digits-v1", "v1")
    assert (workload.variant, workload.blob, workload.golden) == ("onnx-int8", BLOB, BLOB)
    assert (workload.serving.port, workload.serving.threads) == (8080, 2)
    assert workload.memory_limit_bytes == 64 * MIB
    assert workload.repository == "default/digits"
    assert (built.wave, built.assigned_at, built.reason) == (2, NOW, found.reason)
    with pytest.raises(ValueError, match="no variants"):
        placement.build_assignment(
            make_rollout("digits", template), MODEL, placement.place(machine(), [], template), wave=0, now=NOW
        )


def test_memory_of_other_deployments_on_the_device_counts_and_its_own_does_not() -> None:
    facts = DeviceFacts(
        hardware=Hardware(arch="amd64", memory_bytes=100 * MIB),
        engines=[EngineFacts(name="onnxruntime", version="1.26")],
    )
    record = DesiredRecord(uid="d", namespace="default", device="till")
    for name in ("digits", "other"):
        found = placement.place(placement.machine_of(facts, record, name), [THREE[1]], spec("64Mi"))
        if found.variant is not None:
            built = placement.build_assignment(make_rollout(name, spec()), MODEL, found, wave=0, now=NOW)
            record = desired.assign(record, built)
    assert [a.workload.name for a in record.assignments] == ["digits"], "60 MiB and 60 MiB are more than 100 MiB"
    assert placement.machine_of(facts, record, "digits").taken_bytes == 0
    assert placement.machine_of(facts, record, "other").taken_bytes == 60 * MIB
    assert placement.machine_of(facts, record, "other").workloads == 1


VARIANTS = st.lists(
    st.builds(
        variant,
        st.sampled_from(["onnx-fp32", "onnx-fp16", "onnx-int8", "onnx-int8-dynamic", "onnx-int4"]),
        latency=st.floats(0.1, 50),
        memory=st.floats(1, 200),
        metric=st.floats(0, 1),
        version=st.sampled_from(["", "1.20", "1.30"]),
        architectures=st.sampled_from([(), ("amd64",), ("arm64",)]),
    ),
    unique_by=lambda item: item.name,
    max_size=5,
)
WISHES = st.builds(
    spec,
    st.sampled_from([None, "64Mi", "150Mi"]),
    max_latency=st.sampled_from([None, "5ms", "30ms"]),
    min_accuracy=st.sampled_from([None, 0.3, 0.9]),
    max_memory=st.sampled_from([None, "80Mi"]),
    precisions=st.sampled_from([[], ["int8", "fp32"]]),
)
MACHINES = st.builds(
    machine,
    memory=st.floats(1, 250),
    version=st.sampled_from(["", "1.20", "1.26.1", "2"]),
    precisions=st.sampled_from([(), ("int8",), ("fp32", "fp16")]),
    taken_bytes=st.integers(0, 100 * MIB),
)


@given(variants=VARIANTS, wish=WISHES, device=MACHINES, seed=st.integers())
def test_the_one_taken_always_fits_and_the_order_of_variants_does_not_matter(
    variants: list[Variant], wish: ModelDeploymentSpec, device: Machine, seed: int
) -> None:
    found = placement.place(device, variants, wish)
    shuffled = list(variants)
    random.Random(seed).shuffle(shuffled)
    assert placement.place(device, shuffled, wish) == found
    assert sorted(c.variant for c in found.candidates) == sorted(v.name for v in variants)
    assert sum(c.taken for c in found.candidates) == (found.variant is not None)
    assert found.reason
    if found.variant is None:
        assert all(not c.reason.startswith("fits") for c in found.candidates)
        return
    taken, limits = found.variant, wish.constraints
    assert taken.needs.memory_bytes <= device.memory_bytes - device.taken_bytes
    assert not taken.needs.architectures or "amd64" in taken.needs.architectures
    assert not device.engines[0].precisions or taken.precision in device.engines[0].precisions
    assert not limits.precisions or taken.precision in limits.precisions
    if limits.min_accuracy is not None:
        assert taken.metric is not None
        assert taken.metric >= limits.min_accuracy
    assert limits.max_latency is None or taken.profile.latency_p95_ms <= float(limits.max_latency.removesuffix("ms"))
    fitting = [c for c in found.candidates if c.taken or c.reason.startswith("fits")]
    fastest = min(c.latency_p95_ms for c in fitting if c.latency_p95_ms is not None)
    assert taken.profile.latency_p95_ms <= fastest * (1 + placement.LATENCY_TOLERANCE)
