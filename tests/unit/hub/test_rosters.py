"""Rosters brought up to date by what was touched are those that are read anew, whatever happened in between."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.api.kinds.device import Device, DeviceStatus, EngineFacts, Hardware, WorkloadStatus
from skerry.api.kinds.device_class import DeviceClass, DeviceClassSpec, DeviceClassStatus, VariantCost
from skerry.api.kinds.model_deployment import Constraints, ModelDeployment, ModelDeploymentSpec
from skerry.api.kinds.model_version import Artifact, ModelVersion, ModelVersionSpec, ModelVersionStatus
from skerry.api.kinds.rollout import Rollout, RolloutSpec
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Evaluation, Golden, NumericalError, Profile, Requirements, Variant
from skerry.api.meta import Condition, LabelSelector, ObjectMeta
from skerry.core import classes, placement
from skerry.core.desired import Assignment, DesiredRecord
from skerry.core.ports import Store
from skerry.hub.controllers.fleet import Key, same_substance
from skerry.hub.controllers.rosters import Rosters

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
NS, NAME, MIB = "default", "digits", 1024 * 1024
UIDS = ("a", "b", "c", "d")
SITES = ("lab", "shop")


def blob(letter: str) -> Blob:
    return Blob(digest=f"sha256:{letter * 64}", size=10)


def variant(precision: Any, letter: str, latency: float) -> Variant:
    return Variant(
        name=f"onnx-{precision}",
        format="onnx",
        precision=precision,
        needs=Requirements(engine="onnxruntime", precision=precision, memory_bytes=10 * MIB),
        blob=blob(letter),
        metric=0.98,
        metric_drop=0,
        error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
        profile=Profile(latency_p50_ms=1, latency_p95_ms=latency, peak_memory_bytes=10 * MIB, runs=1),
    )


VARIANTS = [variant("fp32", "a", 4.0), variant("int8", "b", 1.0)]


def model(revision: int, *, ready: bool = True) -> ModelVersion:
    return ModelVersion(
        metadata=ObjectMeta(name="v1", namespace=NS, uid="model", resource_version=str(revision)),
        spec=ModelVersionSpec(
            model=NAME,
            version="v1",
            artifact=Artifact(repository="default/digits", digest=blob("c").digest),
            signature=ModelSignature(inputs=[], outputs=[]),
            evaluation=Evaluation(metric="accuracy", baseline=0.98, samples=100, allowed_drop=0.01),
            golden=Golden(blob=blob("d"), samples=64),
        ),
        status=ModelVersionStatus(phase="Ready" if ready else "Pending", variants=VARIANTS),
    )


def deployment(site: str) -> ModelDeployment:
    spec = ModelDeploymentSpec(
        model_version="v1",
        device_selector=LabelSelector(match_labels={"site": site}),
        constraints=Constraints(max_latency="3ms"),
    )
    return ModelDeployment(metadata=ObjectMeta(name=NAME, namespace=NS, uid="deployment", generation=1), spec=spec)


def rollout(number: int) -> Rollout:
    return Rollout(
        metadata=ObjectMeta(name=f"{NAME}-{number}", namespace=NS, uid=f"rollout-{number}"),
        spec=RolloutSpec(
            deployment=NAME, deployment_uid="deployment", revision=number, template=deployment("lab").spec
        ),
    )


def device(uid: str, site: str, cores: int, version: int, *, awaits: bool, running: bool) -> Device:
    condition = Condition(
        type="AwaitingReconciliation",
        status="True" if awaits else "False",
        reason="HubIsBehind",
        message="",
        last_transition_time=NOW,
    )
    report = WorkloadStatus(
        name=NAME, rollout=f"{NAME}-1", revision=1, variant="onnx-int8", phase="Running" if running else "Probing"
    )
    return Device(
        metadata=ObjectMeta(name=f"till-{uid}", namespace=NS, uid=uid, labels={"site": site}),
        status=DeviceStatus(
            phase="Online",
            hardware=Hardware(arch="amd64", cores=cores, memory_bytes=100 * MIB),
            engines=[EngineFacts(name="onnxruntime", version="1.24.0", precisions=["int8", "fp32"])],
            observed_manifest_version=version,
            workloads=[report],
            conditions=[condition],
        ),
    )


def record(uid: str, held: int, version: int) -> DesiredRecord:
    """`held`: which rollout it is assigned to, or 0."""
    assignments = []
    if held:
        workload = placement.build_workload(rollout(held), model(1), VARIANTS[1])
        assignments = [Assignment(workload=workload, deployment_uid="deployment", wave=0, reason="", assigned_at=NOW)]
    return DesiredRecord(uid=uid, namespace=NS, device=f"till-{uid}", assignments=assignments, manifest_version=version)


def class_of(cores: int, latency: float | None) -> DeviceClass:
    signature = classes.signature_of(device("a", "lab", cores, 0, awaits=False, running=False).status)
    assert signature is not None
    cost = VariantCost(
        digest=VARIANTS[1].blob.digest,
        threads=1,
        variant="onnx-int8",
        model_version="v1",
        latency_p50_ms=latency,
        latency_p95_ms=latency,
        peak_memory_bytes=MIB,
        devices=1,
    )
    return DeviceClass(
        metadata=ObjectMeta(name=classes.name_of(signature), namespace=NS),
        spec=DeviceClassSpec(arch=signature.arch),
        status=DeviceClassStatus(variants=[] if latency is None else [cost]),
    )


Deed = Callable[[Rosters, int], None]


def _devices(*drawn: Any) -> Deed:
    uid, site, cores, version, awaits, running = drawn
    made = device(uid, site, cores, version, awaits=awaits, running=running)
    return lambda rosters, at: rosters.fleet.devices.observe(f"{NS}/till-{uid}", made, at)


def _records(uid: str, held: int, version: int) -> Deed:
    return lambda rosters, at: rosters.fleet.records.observe(uid, record(uid, held, version), at)


def _classes(cores: int, latency: float | None) -> Deed:
    made = class_of(cores, latency)
    return lambda rosters, at: rosters.fleet.classes.observe(f"{NS}/{made.metadata.name}", made, at)


UID, CORES, VERSION = st.sampled_from(UIDS), st.sampled_from((1, 4)), st.integers(0, 3)
DEEDS = st.one_of(
    st.builds(_devices, UID, st.sampled_from(SITES), CORES, VERSION, st.booleans(), st.booleans()),
    st.builds(_records, UID, st.integers(0, 2), VERSION),
    st.builds(_classes, CORES, st.sampled_from((None, 1.0, 9.0))),
    UID.map(lambda uid: lambda rosters, _: rosters.fleet.devices.forget(f"{NS}/till-{uid}")),
    UID.map(lambda uid: lambda rosters, _: rosters.fleet.records.forget(uid)),
    st.booleans().map(
        lambda ready: lambda rosters, at: rosters.fleet.models.observe(f"{NS}/v1", model(at, ready=ready), at)
    ),
    st.just(lambda rosters, _: rosters.fleet.deployments.forget(f"{NS}/{NAME}")),
    st.sampled_from(SITES).map(
        lambda site: lambda rosters, at: rosters.fleet.deployments.observe(f"{NS}/{NAME}", deployment(site), at)
    ),
)
LOOKS = st.tuples(st.integers(1, 2), st.booleans())
"""Which rollout is looked at, and whether there is one before it."""


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.lists(DEEDS, max_size=5), LOOKS), min_size=3, max_size=10))
def test_what_was_touched_is_all_that_has_to_be_read_again(story: list[tuple[list[Deed], tuple[int, bool]]]) -> None:
    concerned: list[Key] = []
    rosters = Rosters(cast("Store", None), concerned.append)  # nothing is listed or watched here
    revisions = itertools.count(1)
    rosters.fleet.deployments.observe(f"{NS}/{NAME}", deployment("lab"), next(revisions))
    rosters.fleet.models.observe(f"{NS}/v1", model(1), next(revisions))
    for number, uid in enumerate(UIDS):
        known = device(uid, SITES[number % 2], 1 + 3 * (number // 2), 0, awaits=False, running=False)
        rosters.fleet.devices.observe(f"{NS}/till-{uid}", known, next(revisions))
    for before, (looked, returns) in story:
        for deed in before:
            deed(rosters, next(revisions))
        found = rosters.fleet.deployments.get(f"{NS}/{NAME}")
        if found is None:
            continue
        newest, previous = rollout(looked), rollout(1) if returns and looked > 1 else None
        kept = {member.uid: member for member in rosters.of(found, newest, previous, None)}
        anew = {member.uid: member for member in rosters.once(found, newest, previous)}
        assert kept == anew


@given(st.data())
def test_a_change_that_makes_no_other_member_is_not_told(data: st.DataObject) -> None:
    drawn = (*data.draw(st.tuples(UID, st.sampled_from(SITES), CORES, VERSION, st.booleans(), st.booleans())),)
    made = device(*drawn[:4], awaits=drawn[4], running=drawn[5])
    seen = msgspec.structs.replace(made, status=msgspec.structs.replace(made.status, last_seen=NOW))
    assert same_substance(made, seen)
    other = msgspec.structs.replace(made, status=msgspec.structs.replace(made.status, phase="Offline"))
    assert not same_substance(made, other)
    awaits = device(*drawn[:4], awaits=not drawn[4], running=drawn[5])
    assert not same_substance(made, awaits)
