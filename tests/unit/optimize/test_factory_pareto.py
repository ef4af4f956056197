"""The Pareto front, its picture, and the provenance of what is in a package."""

import json
import struct
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import (
    Blob,
    Evaluation,
    Golden,
    Interval,
    NumericalError,
    Profile,
    Requirements,
    Variant,
)
from skerry.core import card as cards
from skerry.core import pareto as fronts
from skerry.core.card import EvaluationCard, PackagedVariant, Provenance
from skerry.optimize import capabilities, pareto, provenance
from skerry.optimize.recipe import DataSpec, Optimization, SourceSpec


def variant(name: str, drop: float, latency: float, size: int = 1000) -> Variant:
    return Variant(
        name=name,
        format="tflite" if name.startswith("tflite") else "onnx",
        precision="fp32",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=1),
        blob=Blob(digest=f"sha256:{'0' * 64}", size=size),
        metric=0.9 - drop,
        metric_interval=Interval(low=0.85 - drop, high=0.95 - drop),
        metric_drop=drop,
        error=NumericalError(max_abs=0, mean_abs=0, cosine=1),
        profile=Profile(latency_p50_ms=latency, latency_p95_ms=latency, peak_memory_bytes=1, runs=1),
    )


def card(*variants: Variant) -> EvaluationCard:
    return EvaluationCard(
        model="m",
        version="v1",
        signature=ModelSignature(inputs=[], outputs=[]),
        evaluation=Evaluation(metric="accuracy", baseline=0.9, samples=100, allowed_drop=0.5),
        golden=Golden(blob=Blob(digest=f"sha256:{'1' * 64}", size=1), samples=1),
        variants=[PackagedVariant(variant=v, file=f"{v.name}.bin") for v in variants],
        provenance=Provenance(
            source_kind="pytorch", source_digests={"w.pt": "2" * 64}, tools={"torch": "2.13.0", "python": "3.11"}
        ),
    )


POINTS = st.lists(
    st.tuples(st.sampled_from([-0.1, 0.0, 0.1, 0.2]), st.sampled_from([1.0, 2.0, 3.0])), min_size=1, max_size=8
)


@given(POINTS)
def test_who_is_off_the_front_is_beaten_by_one_on_it(points: list[tuple[float, float]]) -> None:
    variants = [variant(str(number), *point) for number, point in enumerate(points)]
    front = fronts.front(variants)
    assert front
    for number, (drop, latency) in enumerate(points):
        better = [
            (d, t)
            for other, (d, t) in enumerate(points)
            if str(other) in front and d <= drop and t <= latency and (d, t) != (drop, latency)
        ]
        assert bool(better) == (str(number) not in front)


def test_the_picture_is_one_and_the_same_each_time() -> None:
    shown = card(variant("onnx-fp32", 0, 2, 4000), variant("tflite-fp32", 0.02, 1), variant("onnx-int8", 0.1, 3))
    drawn = pareto.draw(shown)
    width, height = struct.unpack(">II", drawn[16:24])
    assert drawn.startswith(b"\x89PNG")
    assert width > 800
    assert height > 500
    assert pareto.draw(shown) == drawn
    assert pareto.draw(card(variant("onnx-fp32", 0, 2))) != drawn


def test_without_matplotlib_a_sentence_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import msgspec; from skerry.core import card; from skerry.optimize import pareto\n"
        "from skerry.api.errors import UnsupportedError\n"
        "try: pareto.draw(card.decode(sys.stdin.buffer.read()))\n"
        "except UnsupportedError as error: print(error.sentence)\n"
    )
    raw = cards.encode(card(variant("onnx-fp32", 0, 2)))
    done = subprocess.run([sys.executable, "-c", code], input=raw, capture_output=True, check=True, timeout=60)
    assert b"matplotlib" in done.stdout
    assert b"skerry[plot]" in done.stdout


def test_provenance_is_an_in_toto_statement_without_a_path_of_this_machine() -> None:
    wanted = Optimization(
        name="m",
        version="v1",
        source=SourceSpec(path="/home/me/model.py:build", weights="/home/me/w.pt"),
        data=DataSpec(path="/home/me/data.npz"),
        out="/home/me/out",
        seed=7,
    )
    raw = provenance.encode(card(variant("onnx-fp32", 0, 2)), wanted, started=0, finished=61.5)
    assert b"/home/me" not in raw
    found: dict[str, Any] = json.loads(raw)
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    assert {s["name"]: s["digest"]["sha256"][0] for s in found["subject"]} == {"golden.npz": "1", "onnx-fp32.bin": "0"}
    definition, details = found["predicate"]["buildDefinition"], found["predicate"]["runDetails"]
    assert set(definition) == {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
    assert definition["externalParameters"]["source"] == {"path": "model.py:build", "weights": "w.pt"}
    assert {"name": "w.pt", "digest": {"sha256": "2" * 64}} in definition["resolvedDependencies"]
    assert {"uri": "pkg:pypi/torch@2.13.0"} in definition["resolvedDependencies"]
    assert not any("python" in each.get("uri", "") for each in definition["resolvedDependencies"])
    assert details["builder"]["id"].startswith("https://")
    assert details["metadata"]["startedOn"] == "1970-01-01T00:00:00Z"
    assert details["metadata"]["finishedOn"] == "1970-01-01T00:01:01Z"


def test_the_report_says_what_is_missing_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = capabilities.report()
    assert {line.kind for line in whole.sources} >= {"pytorch", "keras", "onnx", "tflite", "sklearn"}
    onnx = next(line for line in whole.variants if line.variant == "onnx-fp32")
    assert (onnx.recipes, onnx.missing) == (["exported"], [])
    monkeypatch.setattr(capabilities, "_installed", lambda name: name not in {"torch", "ai-edge-litert"})
    found = capabilities.report()
    torch = next(line for line in found.sources if line.kind == "pytorch")
    assert (torch.missing, torch.install) == (["torch"], "pip install 'skerry[torch]'")
    tflite = next(line for line in found.variants if line.variant == "tflite-fp32")
    assert tflite.recipes == []
    assert "ai-edge-litert" in tflite.missing
    assert "skerry[" in tflite.install
    assert msgspec.json.decode(msgspec.json.encode(found), type=capabilities.Report) == found
