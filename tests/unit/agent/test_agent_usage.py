from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.agent.usage import Counters, Reading, parse_cpu, parse_memory, parse_metrics, sample
from skerry.serve.metrics import Metrics

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def page(metrics: Metrics) -> bytes:
    return metrics.render(in_flight=0, ready=True, load_seconds=0.1)


def test_what_the_server_prints_is_read_back() -> None:
    metrics = Metrics(model='di"gits', version="v1")
    before = parse_metrics(page(metrics))
    assert (before.requests, before.errors) == (0, 0)
    for _ in range(18):
        metrics.finished("ok", 0.003)
    metrics.finished("failed", 0.2)
    metrics.finished("bad_request", 0.0001)
    after = parse_metrics(page(metrics))
    taken = sample(Reading(servers={"d": before}), Reading(servers={"d": after}), NOW)
    [workload] = taken.workloads
    assert (workload.requests, workload.errors, workload.latency_p95_ms) == (20, 1, 5.0)
    again = sample(Reading(servers={"d": after}), Reading(servers={"d": after}), NOW).workloads[0]
    assert (again.requests, again.errors, again.latency_p95_ms) == (0, 0, None)


def test_a_new_server_is_counted_from_nothing() -> None:
    old = Counters(started=b"1.0", requests=100, errors=3, buckets=((0.1, 90), (float("inf"), 100)))
    new = Counters(started=b"2.0", requests=120, errors=5, buckets=((0.1, 120), (float("inf"), 120)))
    [workload] = sample(Reading(servers={"d": old}), Reading(servers={"d": new}), NOW).workloads
    assert (workload.requests, workload.errors, workload.latency_p95_ms) == (120, 5, 100.0)


def test_the_last_bucket_has_no_bound_of_its_own() -> None:
    counters = Counters(buckets=((1.0, 0), (10.0, 0), (float("inf"), 4)), requests=4)
    assert sample(Reading(), Reading(servers={"d": counters}), NOW).workloads[0].latency_p95_ms == 10_000.0


@given(st.lists(st.floats(0, 20), min_size=1, max_size=60))
def test_the_percentile_is_never_less_than_the_truth_up_to_the_last_bound(seconds: list[float]) -> None:
    metrics = Metrics(model="m", version="v")
    for value in seconds:
        metrics.finished("ok", value)
    found = sample(Reading(), Reading(servers={"d": parse_metrics(page(metrics))}), NOW).workloads[0].latency_p95_ms
    ordered = sorted(seconds)
    truth = ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * 95 // 100) - 1))]
    assert found is not None
    assert found >= min(truth, 10.0) * 1000 - 1e-6


def test_the_kernels_figures() -> None:
    assert parse_cpu("cpu  10 0 10 70 10 0 0 0 5 5\ncpu0 1 1 1 1\n") == (20.0, 100.0)
    assert parse_memory("MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:  40 kB\n") == 60 * 1024
    used = sample(Reading(busy=20, total=100), Reading(busy=50, total=200, memory_bytes=7), NOW)
    assert (used.cpu, used.memory_bytes) == (0.3, 7)


@given(st.binary(max_size=400), st.text(max_size=200))
def test_nonsense_is_nothing(raw: bytes, text: str) -> None:
    assert parse_metrics(raw) == Counters()
    assert parse_cpu(text) == (0.0, 0.0)
    assert parse_memory(text) == 0


@pytest.mark.parametrize("reading", [Reading(busy=9, total=9), Reading(busy=-5, total=50), Reading(busy=90, total=50)])
def test_a_share_is_a_share(reading: Reading) -> None:
    assert 0.0 <= sample(Reading(busy=5, total=10), reading, NOW).cpu <= 1.0
