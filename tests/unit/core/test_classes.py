"""Device classes: equal signatures for equal hardware, medians that one liar does not move, learning once."""

from __future__ import annotations

import math
import re
from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.core.class_world import MIB, NOW, VARIANTS, measured, model, rollout, status

from skerry.api.kinds.device import DeviceStatus, EngineFacts, Hardware, Measurement
from skerry.api.kinds.device_class import DeviceClass, DeviceClassStatus, Source
from skerry.api.meta import NAME_PATTERN, ObjectMeta
from skerry.core import benchmarks, classes
from skerry.core.classes import Finding, Served

WORKLOAD = benchmarks.workload_of(rollout(), model(), VARIANTS[0])
EMPTY = DeviceClassStatus()


def finding(
    uid: str, found: Measurement | None, *, failure: str = "", source: Source = "benchmark", threads: int = 1
) -> Finding:
    serving = msgspec.structs.replace(WORKLOAD.serving, threads=threads)
    workload = msgspec.convert(msgspec.structs.replace(WORKLOAD, serving=serving), Served, from_attributes=True)
    return Finding(device=uid, uid=uid, source=source, workload=workload, measurement=found, failure=failure)


def engines(*names: str) -> list[EngineFacts]:
    return [EngineFacts(name=name, version="1", precisions=["int8", "fp32"]) for name in names]


# --- signatures -----------------------------------------------------------------------------------------------------


def test_equal_hardware_is_one_class_whatever_the_order_it_is_told_in() -> None:
    one = status(engines=engines("onnxruntime", "litert"), cpu="Cortex-A72  r0p3 ", memory=3700)
    two = [EngineFacts(name=e.name, version=e.version, precisions=e.precisions[::-1]) for e in one.engines[::-1]]
    other = status(engines=[*two, two[0]], cpu=" Cortex-A72 r0p3", memory=3950)
    assert classes.class_name_of(one) == classes.class_name_of(other)
    assert classes.class_name_of(one).startswith("arm64-4c-4gi-")


@pytest.mark.parametrize(
    "changes",
    [
        {"memory": 1024},
        {"cores": 8},
        {"cpu": "Cortex-A53"},
        {"engines": [EngineFacts(name="onnxruntime", version="1.27.0")]},
        {"engines": [EngineFacts(name="onnxruntime", version="1.26.0", precisions=["int8"])]},
        {"hardware": Hardware(arch="arm64", memory_bytes=512 * MIB, cores=4, accelerators=["hailo"])},
    ],
)
def test_whatever_bears_on_the_cost_makes_another_class(changes: dict[str, object]) -> None:
    assert classes.class_name_of(status(**changes)) != classes.class_name_of(status())  # type: ignore[arg-type]


def test_what_does_not_bear_on_it_makes_none() -> None:
    moved = status(boot_id="other", workloads=[], agent_version="9")
    full = msgspec.structs.replace(moved.hardware, storage_free_bytes=1, storage_bytes=2)
    assert classes.class_name_of(msgspec.structs.replace(moved, hardware=full)) == classes.class_name_of(status())
    assert classes.class_name_of(DeviceStatus()) == ""


@given(st.text(max_size=500), st.text(max_size=500), st.integers(), st.integers(), st.lists(st.text(), max_size=20))
def test_whatever_a_device_says_gives_a_name_that_can_be_stored(
    arch: str, cpu: str, cores: int, memory: int, extras: list[str]
) -> None:
    said = Hardware(arch=arch, cpu_model=cpu, cores=cores, memory_bytes=memory, accelerators=extras)
    name = classes.class_name_of(DeviceStatus(hardware=said, engines=engines(*extras)))
    assert not name or (len(name) <= 63 and re.match(NAME_PATTERN, name))


@given(st.integers(min_value=1 << 20, max_value=1 << 48))
def test_memory_is_rounded_by_a_quarter_at_most_and_rounding_is_stable(size: int) -> None:
    rounded = classes.round_memory(size)
    assert abs(rounded - size) * 4 <= size
    assert classes.round_memory(rounded) == rounded
    assert rounded.bit_count() <= 2


def test_sizes_as_they_are_sold() -> None:
    gib = 1 << 30
    sold = {0.92: 1, 1.85: 2, 3.7: 4, 3.9: 4, 5.8: 6, 7.6: 8, 15.5: 16, 31.2: 32}
    assert {said: classes.round_memory(int(said * gib)) / gib for said in sold} == sold


# --- learning -------------------------------------------------------------------------------------------------------


def test_the_first_device_is_believed_and_three_outvote_one_liar() -> None:
    first = classes.learn(EMPTY, [finding("a", measured(10))], NOW)
    [cost] = first.variants
    assert (cost.latency_p95_ms, cost.devices, cost.samples, cost.source, first.measured) == (10, 1, 8, "benchmark", 1)
    assert (cost.digest, cost.variant, cost.model_version) == (VARIANTS[0].blob.digest, "onnx-fp32", "v1")
    lied = classes.learn(first, [finding("b", measured(0.001, memory=1)), finding("c", measured(12))], NOW)
    [cost] = lied.variants
    assert (cost.latency_p95_ms, cost.peak_memory_bytes) == (10, 40 * MIB)


@given(
    st.lists(st.floats(min_value=1, max_value=100), min_size=3, max_size=9),
    st.one_of(st.floats(min_value=0, max_value=1e6), st.just(0.0)),
    st.integers(min_value=0),
)
def test_one_liar_cannot_move_the_median_beyond_the_honest(honest: list[float], lie: float, place: int) -> None:
    found = [finding(f"d{n}", measured(p95)) for n, p95 in enumerate(honest[:8])]
    found.insert(place % (len(found) + 1), finding("liar", measured(lie)))
    [cost] = classes.learn(EMPTY, found, NOW).variants
    assert cost.latency_p95_ms is not None
    assert min(honest[:8]) <= cost.latency_p95_ms <= max(honest[:8])


def test_of_two_the_worse_counts() -> None:
    [cost] = classes.learn(EMPTY, [finding("a", measured(1)), finding("b", measured(3))], NOW).variants
    assert cost.latency_p95_ms == 3


def test_a_device_counts_once_with_its_newest_word_and_an_install_does_not_replace_its_benchmark() -> None:
    known = classes.learn(EMPTY, [finding("a", measured(1)), finding("a", measured(2))], NOW)
    assert [(o.uid, o.measurement) for o in known.variants[0].observations] == [("a", measured(2))]
    assert classes.learn(known, [finding("a", measured(9), source="install")], NOW) is known
    assert classes.learn(known, [finding("a", None, failure="it broke")], NOW) is known


@given(st.lists(st.tuples(st.sampled_from("abcdefghijklmnop"), st.floats(min_value=0, max_value=100)), max_size=40))
def test_learning_twice_is_learning_once_and_what_is_kept_is_bounded(words: list[tuple[str, float]]) -> None:
    found = [finding(uid, measured(p95)) for uid, p95 in dict(words).items()]
    once = classes.learn(EMPTY, found, NOW)
    assert classes.learn(once, found, NOW) is once
    assert all(len(cost.observations) <= classes.MAX_OBSERVATIONS for cost in once.variants)


def test_enough_observations_follow_the_fleet_slowly() -> None:
    full = classes.learn(EMPTY, [finding(f"d{n}", measured(n + 1)) for n in range(classes.MAX_OBSERVATIONS)], NOW)
    late = finding("late", measured(50))
    assert classes.learn(full, [late], NOW + classes.REFRESH - timedelta(seconds=1)) is full
    later = classes.learn(full, [late], NOW + classes.REFRESH)
    assert later.variants[0].observations[0].uid == "late"
    assert len(later.variants[0].observations) == classes.MAX_OBSERVATIONS


@pytest.mark.parametrize(
    "absurd",
    [
        {"latency_p95_ms": math.nan},
        {"latency_p95_ms": -1.0},
        {"latency_p95_ms": math.inf},
        {"latency_p50_ms": 99.0},
        {"peak_memory_bytes": 0},
        {"peak_memory_bytes": 1 << 60},
        {"samples": 0},
        {"samples": -5},
        {"max_abs_error": math.nan},
    ],
)
def test_absurd_numbers_are_no_measurement(absurd: dict[str, float]) -> None:
    said = msgspec.structs.replace(measured(), **absurd)
    [cost] = classes.learn(EMPTY, [finding("a", said)], NOW).variants
    assert (cost.devices, cost.latency_p95_ms) == (0, None)
    assert cost.failure
    [cost] = classes.learn(DeviceClassStatus(variants=[cost]), [finding("b", measured(5))], NOW).variants
    assert (cost.devices, cost.latency_p95_ms, cost.failure) == (1, 5, "")


def test_threads_are_another_way_to_serve() -> None:
    known = classes.learn(EMPTY, [finding("a", measured(10)), finding("a", measured(4), threads=4)], NOW)
    item = DeviceClass(metadata=ObjectMeta(name="pi"), status=known)
    assert classes.costs_of(item, VARIANTS, threads=4)["onnx-fp32"].latency_p95_ms == 4
    assert classes.costs_of(item, VARIANTS, threads=1)["onnx-fp32"].latency_p95_ms == 10
    assert classes.costs_of(item, VARIANTS, threads=2) == {}


def test_the_least_recently_learnt_variants_are_dropped() -> None:
    known = EMPTY
    for number in range(classes.MAX_VARIANTS + 1):
        known = classes.learn(known, [finding("a", measured(1), threads=number)], NOW + timedelta(seconds=number))
    assert {cost.threads for cost in known.variants} == set(range(1, classes.MAX_VARIANTS + 1))
