"""Devices that are read with equal parts shared are what they would be without, and take the memory of one."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from skerry.api.kinds.device import (
    Device,
    DeviceStatus,
    EngineFacts,
    Hardware,
    LimitFacts,
    OperatingSystem,
    RunningRevision,
    WorkloadStatus,
)
from skerry.api.meta import Condition, ObjectMeta
from skerry.core.ports import Record
from skerry.hub import objects
from skerry.hub.controllers.sharing import Sharing

AT = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = st.sampled_from(["", "a", "b", "arm64"])

devices = st.builds(
    lambda name, status: Device(metadata=ObjectMeta(name=name, namespace="n", uid=name), status=status),
    st.sampled_from(["d1", "d2", "d3"]),
    st.builds(
        DeviceStatus,
        hardware=st.builds(Hardware, arch=WORDS, cpu_model=WORDS, cores=st.integers(0, 4)),
        os=st.builds(OperatingSystem, family=WORDS),
        limits=st.builds(LimitFacts, reason=WORDS),
        engines=st.lists(st.builds(EngineFacts, name=WORDS, precisions=st.lists(WORDS, max_size=2)), max_size=2),
        runtimes=st.lists(WORDS, max_size=2),
        agent_version=WORDS,
        workloads=st.lists(
            st.builds(
                WorkloadStatus,
                name=WORDS,
                rollout=WORDS,
                revision=st.integers(0, 3),
                variant=WORDS,
                phase=st.just("Running"),
                message=WORDS,
                running=st.none()
                | st.builds(
                    RunningRevision,
                    rollout=WORDS,
                    revision=st.integers(0, 3),
                    model_version=WORDS,
                    variant=WORDS,
                    port=st.just(1),
                    since=st.just(AT),
                ),
            ),
            max_size=2,
        ),
        conditions=st.lists(
            st.builds(
                Condition,
                type=WORDS,
                status=st.just("True"),
                reason=WORDS,
                message=WORDS,
                last_transition_time=st.just(AT),
            ),
            max_size=2,
        ),
    ),
)


def record_of(item: Device, revision: int) -> Record:
    return Record(key=f"devices/n/{item.metadata.name}", value=objects.encode(item), revision=revision, created=1)


@given(found=st.lists(devices, max_size=8), most=st.integers(0, 12))
def test_what_is_read_is_what_is_there(found: list[Device], most: int) -> None:
    sharing = Sharing(most)
    for revision, item in enumerate(found, start=1):
        record = record_of(item, revision)
        assert sharing.read(record) == objects.decode(Device, record)


def test_equal_parts_are_one_object() -> None:
    sharing = Sharing()

    def made(name: str, family: str) -> Device:
        status = DeviceStatus(
            os=OperatingSystem(family=family, kernel="6.6.20+rpt"),
            engines=[EngineFacts(name="onnxruntime")],
            hardware=Hardware(cpu_model="Cortex-A72", storage_free_bytes=len(name)),
        )
        return sharing.read(record_of(Device(metadata=ObjectMeta(name=name, uid=name), status=status), 1))

    one, two, other = made("a", "debian"), made("bc", "debian"), made("d", "alpine")
    assert one.status.os is two.status.os
    assert one.status.engines is two.status.engines is other.status.engines
    assert one.status.hardware.cpu_model is two.status.hardware.cpu_model
    assert other.status.os.family == "alpine"
