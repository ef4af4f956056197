"""Progress: JSON lines a program can rely on, text for people."""

import io
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.optimize import progress


@settings(deadline=None)
@given(st.text(), st.one_of(st.none(), st.integers(-(2**53), 2**53), st.text(), st.lists(st.text())))
def test_every_event_is_exactly_one_line_of_json(name: str, value: Any) -> None:
    stream = io.StringIO()
    progress.json_lines(stream)(name, some_value=value)
    assert stream.getvalue().count("\n") == 1
    assert json.loads(stream.getvalue()) == {"event": name, "someValue": value}


def test_text_names_the_variant_and_its_figures() -> None:
    stream = io.StringIO()
    tell = progress.text_lines(stream)
    tell(
        "variant.done",
        variant="onnx-int8",
        recipe="static-qdq-per-channel",
        size=2048,
        metric_name="accuracy",
        metric=0.9925,
        metric_drop=0.0025,
        latency_p50_ms=0.08,
        latency_p95_ms=0.11,
        peak_memory_bytes=64 * 1024**2,
    )
    tell("variant.started", variant="onnx-int8")
    tell("error", sentence="data.npz: is missing")
    line, error = stream.getvalue().splitlines()
    for figure in ("onnx-int8", "2.0 KiB", "accuracy 0.9925", "0.08 ms", "64.0 MiB", "static-qdq-per-channel"):
        assert figure in line
    assert error == "error: data.npz: is missing"
