"""The metrics page, read by Prometheus' own parser."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse

from skerry.serve.metrics import Metrics
from skerry.serve.shadow import Totals


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    page = metrics.render(in_flight=2, ready=True, load_seconds=0.25).decode()
    return {(s.name, s.labels.get("outcome", s.labels.get("le", ""))): s.value for f in parse(page) for s in f.samples}


def test_what_is_counted_is_shown() -> None:
    metrics = Metrics(model="digits", version="v1")
    for seconds in (0.0004, 0.001, 0.3, 99.0):
        metrics.finished("ok", seconds)
    metrics.finished("too_large", 0.0001)
    metrics.computed(0.002)
    found = samples(metrics)
    assert found["skerry_serve_requests_total", "ok"] == 4
    assert found["skerry_serve_requests_total", "too_large"] == 1
    assert found["skerry_serve_requests_total", "failed"] == 0
    assert found["skerry_serve_request_duration_seconds_bucket", "0.0005"] == 2
    assert found["skerry_serve_request_duration_seconds_bucket", "0.001"] == 3
    assert found["skerry_serve_request_duration_seconds_bucket", "10.0"] == 4
    assert found["skerry_serve_request_duration_seconds_bucket", "+Inf"] == 5
    assert found["skerry_serve_request_duration_seconds_count", ""] == 5
    assert found["skerry_serve_engine_duration_seconds_count", ""] == 1
    assert found["skerry_serve_requests_in_flight", ""] == 2
    assert found["skerry_serve_model_ready", ""] == 1
    assert found["skerry_serve_model_load_seconds", ""] == 0.25


def test_what_shadow_mode_did_is_shown() -> None:
    metrics = Metrics(model="digits", version="v1")
    totals = Totals(mirrored=9, answered=7, agreed=6, errors=1, dropped=3)
    page = metrics.render(in_flight=0, ready=True, load_seconds=0, shadow=totals).decode()
    found = {s.name: (s.value, f.type) for f in parse(page) for s in f.samples if "_shadow_" in s.name}
    assert found == {
        f"skerry_serve_shadow_{name}_total": (value, "counter") for name, value in totals._asdict().items()
    }
    assert samples(metrics)["skerry_serve_shadow_dropped_total", ""] == 0


def test_the_process_is_described() -> None:
    found = samples(Metrics(model="digits", version="v1"))
    assert found["process_resident_memory_bytes", ""] > 1_000_000
    assert found["process_resident_memory_peak_bytes", ""] >= found["process_resident_memory_bytes", ""]
    assert found["process_cpu_seconds_total", ""] > 0
    assert time.time() - 24 * 3600 < found["process_start_time_seconds", ""] < time.time() + 1


@given(st.text(max_size=50), st.text(max_size=50))
def test_names_cannot_break_the_page(model: str, version: str) -> None:
    page = Metrics(model=model, version=version).render(in_flight=0, ready=False, load_seconds=0).decode()
    labels = {tuple(sorted(s.labels.items())) for f in parse(page) for s in f.samples if "model" in s.labels}
    assert {dict(each)["model"] for each in labels} == {model}
    assert {dict(each)["version"] for each in labels} == {version}


def test_the_page_does_not_grow() -> None:
    metrics = Metrics(model="digits", version="v1")
    before = metrics.render(in_flight=0, ready=True, load_seconds=0).count(b"\n")
    for i in range(1000):
        metrics.finished("bad_request", i / 100)
    assert metrics.render(in_flight=0, ready=True, load_seconds=0).count(b"\n") == before
