"""Kinds of machines: what is found once for many devices is what would be found for each."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.core.rollout_world import MIB, make_model

from skerry.api.kinds.device import DeviceFacts, DeviceStatus, EngineFacts, Hardware
from skerry.api.kinds.model_deployment import Constraints, ModelDeploymentSpec, ResourceList, Resources
from skerry.api.kinds.rollout import Rollout, RolloutSpec
from skerry.api.meta import LabelSelector, ObjectMeta
from skerry.core import kinds, placement
from skerry.core.desired import Assignment, DesiredRecord
from skerry.core.kinds import Fits, Kinds
from skerry.core.placement import Cost

MODEL = make_model("v1")
VARIANTS = [
    msgspec.structs.replace(
        MODEL.status.variants[0],
        name=f"onnx-{number}",
        needs=msgspec.structs.replace(MODEL.status.variants[0].needs, memory_bytes=(number + 1) * 20 * MIB),
    )
    for number in range(3)
]
SPEC = ModelDeploymentSpec(
    model_version="v1", device_selector=LabelSelector(), constraints=Constraints(max_latency="3ms")
)
ASKING = msgspec.structs.replace(SPEC, resources=Resources(requests=ResourceList(memory="30Mi", cpu="500m")))


def held(name: str, template: ModelDeploymentSpec) -> Assignment:
    item = Rollout(
        metadata=ObjectMeta(name=f"{name}-1", namespace="default", uid=name),
        spec=RolloutSpec(deployment=name, deployment_uid=name, revision=1, template=template),
    )
    workload = placement.build_workload(item, MODEL, VARIANTS[0])
    now = datetime(2026, 11, 23, tzinfo=UTC)
    return Assignment(workload=workload, deployment_uid=name, wave=0, reason="", assigned_at=now)


HELD = [held(name, template) for name in ("digits", "other", "third") for template in (SPEC, ASKING)]
ENGINES = st.builds(
    EngineFacts,
    name=st.sampled_from(["onnxruntime", "litert"]),
    version=st.sampled_from(["", "1.30.0"]),
    precisions=st.sampled_from([[], ["fp32"], ["int8"]]),
)
FACTS = st.builds(
    DeviceFacts,
    hardware=st.builds(
        Hardware,
        arch=st.sampled_from(["", "amd64", "arm64"]),
        memory_bytes=st.sampled_from([0, 50 * MIB, 100 * MIB]),
        cores=st.sampled_from([0, 1, 4]),
    ),
    engines=st.lists(ENGINES, max_size=2),
    runtimes=st.sampled_from([[], ["process"], ["process", "podman"]]),
)
RECORDS = st.one_of(
    st.none(),
    st.builds(
        DesiredRecord,
        uid=st.just("u"),
        namespace=st.just("default"),
        device=st.just("till"),
        assignments=st.lists(st.sampled_from(HELD), max_size=3, unique_by=lambda item: item.workload.name),
    ),
)
COSTS: list[dict[str, Cost]] = [
    {},
    {f"onnx-{n}": Cost(latency_p95_ms=n + 1, peak_memory_bytes=MIB, measured_on="one") for n in range(3)},
    {"onnx-0": Cost(latency_p95_ms=9, peak_memory_bytes=MIB, measured_on="two", failure="it crashed")},
]


@settings(deadline=None)
@given(devices=st.lists(st.tuples(FACTS, RECORDS, st.sampled_from(COSTS)), max_size=12))
def test_what_is_found_for_a_kind_is_what_is_found_for_each(
    devices: list[tuple[DeviceFacts, DesiredRecord | None, dict[str, Cost]]],
) -> None:
    known, fits = Kinds(), {id(spec): Fits(VARIANTS, spec) for spec in (SPEC, ASKING)}
    for _ in range(2):
        for facts, record, measured in devices:
            machine = placement.machine_of(facts, record, "digits")
            kind = known.of(facts, record, "digits")
            assert kind.machine == machine
            for spec in (SPEC, ASKING):
                assert fits[id(spec)].place(kind, measured) == placement.place(machine, VARIANTS, spec, measured)
    again = [known.of(facts, record, "digits") for facts, record, _ in devices]
    assert all(one is not other or one.machine == other.machine for one in again for other in again)


def test_equal_devices_are_of_one_kind_and_the_kinds_kept_are_bounded(monkeypatch) -> None:
    monkeypatch.setattr(kinds, "MAX_KINDS", 3)
    known = Kinds()

    def device(memory: int) -> DeviceStatus:
        return DeviceStatus(hardware=Hardware(arch="amd64", memory_bytes=memory), engines=[EngineFacts(name="onnx")])

    assert known.of(device(1)) is known.of(device(1))
    for memory in range(10):
        known.of(device(memory))
        assert len(known) <= 3
