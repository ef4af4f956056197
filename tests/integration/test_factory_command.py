"""The factory's command on a small ONNX model: steps, the cache, and what fails beside what does not."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from skerry.core import card as cards
from skerry.optimize import graph
from skerry.optimize.__main__ import DONE, ERROR, PARTIAL, run

WIDTH, CLASSES = 64, 8
LIMIT = 300
STARVING = """
import sys

def score(outputs, answers):
    frame = sys._getframe()
    while frame is not None:
        variant = getattr(frame.f_locals.get("job"), "variant", None)
        if variant is not None and variant.name == "onnx-fp16":
            bytearray(64 << 30)
        frame = frame.f_back
    return float((outputs[0].argmax(axis=1) == answers).mean())

score.targets = "classes"
"""


class Site:
    """A directory with a model, data whose answers are the model's own, a recipe, and a cache."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        random = np.random.default_rng(0)
        weights = [random.standard_normal(shape).astype(np.float32) for shape in ((WIDTH, WIDTH), (WIDTH, CLASSES))]
        _write_model(directory / "model.onnx", weights)
        samples = random.standard_normal((300, WIDTH)).astype(np.float32)
        labels = (np.maximum(samples @ weights[0], 0) @ weights[1]).argmax(axis=1).astype(np.int64)
        np.savez(
            directory / "data.npz",
            test_x=samples[:200],
            test_y=labels[:200],
            calibration_x=samples[200:280],
            golden_x=samples[280:],
            golden_y=labels[280:],
        )
        self.recipe: dict[str, Any] = {
            "name": "small",
            "version": "v1",
            "source": {"path": "model.onnx"},
            "data": {"path": "data.npz"},
            "out": "package",
            "runs": 5,
            "allowedDrop": 0.05,
            "variants": ["onnx-fp32", "onnx-int8"],
        }

    @property
    def out(self) -> Path:
        return self.directory / "package"

    def write(self, **changes: Any) -> Path:
        file = self.directory / "optimize.yaml"
        file.write_text(yaml.safe_dump(self.recipe | changes))
        return file

    def make(self, *options: str, cache: str = "cache", **changes: Any) -> tuple[int, list[dict[str, Any]]]:
        stream = io.StringIO()
        given = ["--file", str(self.write(**changes)), "--cache", str(self.directory / cache), "--progress", "json"]
        code = run([*given, *options], stream)
        return code, [json.loads(line) for line in stream.getvalue().splitlines()]

    def card(self) -> cards.EvaluationCard:
        return cards.decode((self.out / "card.json").read_bytes())

    def models(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.glob("*.onnx")}


def _write_model(path: Path, weights: list[Any]) -> None:
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES]),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["hidden"], name="first"),
        helper.make_node("Relu", ["hidden"], ["active"], name="active"),
        helper.make_node("MatMul", ["active", "w1"], ["scores"], name="last"),
    ]
    named = [numpy_helper.from_array(array, f"w{number}") for number, array in enumerate(weights)]
    made = helper.make_graph(nodes, "small", ends[:1], ends[1:], named)
    opset = [helper.make_opsetid("", 20)]
    path.write_bytes(graph.serialise(helper.make_model(made, opset_imports=opset, ir_version=10)))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def test_the_same_is_not_made_twice_and_a_damaged_entry_is_made_again(site: Site) -> None:
    code, events = site.make()
    assert code == DONE
    assert names(events).count("variant.started") == 2
    first, card = site.models(), site.card()
    code, events = site.make(variants=["onnx-fp32", "onnx-int8", "onnx-fp16"])  # one more: it alone is made
    assert code == DONE
    assert names(events)[:4] == ["started", "source.cached", "baseline", "exported"]
    assert [event["variant"] for event in events if event["event"] == "variant.cached"] == ["onnx-fp32", "onnx-int8"]
    assert [event["variant"] for event in events if event["event"] == "variant.started"] == ["onnx-fp16"]
    assert [event["variant"] for event in events if event["event"] == "variant.measuring"] == ["onnx-fp16"]
    assert first.items() <= site.models().items()
    assert site.card().variants[:2] == card.variants
    (entry,) = [path.parent for path in site.directory.glob("cache/variant-*/model-int8.onnx")]
    content = bytearray((entry / "model-int8.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (entry / "model-int8.onnx").write_bytes(content)
    code, events = site.make()
    assert code == DONE
    assert [event["variant"] for event in events if event["event"] == "variant.started"] == ["onnx-int8"]
    assert site.models() == first


@pytest.mark.parametrize("change", ["data.npz", "model.onnx"])
def test_a_changed_file_makes_everything_anew(site: Site, change: str) -> None:
    assert site.make(variants=["onnx-fp32"])[0] == DONE
    if change == "data.npz":
        with np.load(site.directory / "data.npz") as stored:
            arrays = dict(stored)
        np.savez_compressed(site.directory / "data.npz", **arrays)
    else:
        _write_model(site.directory / "model.onnx", [np.eye(WIDTH, dtype=np.float32), np.ones((WIDTH, CLASSES), "f4")])
    code, events = site.make(variants=["onnx-fp32"])
    assert code == DONE
    assert "source.loaded" in names(events)
    assert "variant.started" in names(events)


def test_steps_of_different_machines_come_together_by_their_caches(site: Site) -> None:
    """What the Jobs of a cluster do: each has a cache of its own, and gets those of the steps before it."""
    wanted = ["onnx-fp32", "torchscript-fp32"]
    variants = ["onnx-fp32", {"name": "torchscript-fp32", "recipe": "traced"}]  # of a module, which there is none

    def bring(source: str, target: str) -> None:
        (site.directory / target).mkdir(exist_ok=True)
        for entry in (site.directory / source).iterdir():
            if entry.name != "work" and not (site.directory / target / entry.name).exists():
                entry.rename(site.directory / target / entry.name)

    assert site.make("--step", "import", cache="a", variants=variants)[0] == DONE
    bring("a", "b")
    for step in wanted:
        code, events = site.make("--step", step, cache="b", variants=variants)
        assert code == DONE
        assert "source.cached" in names(events)
    assert not site.out.exists()
    bring("b", "c")
    code, events = site.make("--step", "collect", cache="c", variants=variants)
    assert code == PARTIAL
    assert not {"source.loaded", "variant.started", "variant.measuring"} & set(names(events))
    assert [packaged.variant.name for packaged in site.card().variants] == ["onnx-fp32"]
    code, events = site.make("--step", "onnx-int3", variants=variants)
    assert code == ERROR
    assert "import, onnx-fp32, torchscript-fp32" in events[-1]["sentence"]


def test_a_worker_without_memory_does_not_stop_the_others(site: Site) -> None:
    (site.directory / "metric.py").write_text(STARVING)
    code, _ = site.make("--memory", "4Gi", metric="metric.py:score", variants=["onnx-fp32", "onnx-fp16"])
    assert code == PARTIAL
    (rejected,) = site.card().rejected
    assert rejected.name == "onnx-fp16"
    assert "too little memory" in rejected.reason
    assert "--memory" in rejected.reason
    assert [packaged.variant.name for packaged in site.card().variants] == ["onnx-fp32"]


def test_an_import_without_memory_is_one_sentence(site: Site) -> None:
    code, events = site.make("--memory", "40Mi")
    assert code == ERROR
    assert "memory" in events[-1]["sentence"].lower()
    assert not site.out.exists()


def test_the_card_says_what_devices_and_auditors_ask(site: Site) -> None:
    code, _ = site.make("--plot")
    assert code == DONE
    card = site.card()
    assert (site.out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert card.evaluation is not None
    assert card.evaluation.baseline_interval is not None
    assert card.evaluation.baseline_interval.low < card.evaluation.baseline == 1
    for packaged in card.variants:
        variant = packaged.variant
        assert variant.metric_interval is not None
        assert variant.metric is not None
        assert variant.metric_interval.low < variant.metric <= variant.metric_interval.high
        assert sum(variant.operators.values()) >= 3
        assert variant.profile.engine_version
        assert variant.needs.engine_min_version == "1.18"
    assert card.variants[0].variant.operators == {"MatMul": 2, "Relu": 1}
    assert card.provenance.source_kind == "onnx"
    assert {"model.onnx", "data.npz"} <= set(card.provenance.source_digests)
    assert card.provenance.tools["onnxruntime"] == card.variants[0].variant.profile.engine_version
    statement = json.loads((site.out / "provenance.json").read_bytes())
    digests = {entry["name"]: f"sha256:{entry['digest']['sha256']}" for entry in statement["subject"]}
    assert digests["golden.npz"] == card.golden.blob.digest
    assert {packaged.file: packaged.variant.blob.digest for packaged in card.variants}.items() <= digests.items()


def test_the_command_line_shows_table_and_partial_exit(site: Site) -> None:
    file = site.write(variants=["onnx-fp32", {"name": "torchscript-fp32", "recipe": "traced"}])
    command = [sys.executable, "-m", "skerry.cli", "model", "optimize", "-f", str(file), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == PARTIAL, done.stderr
    assert "FRONT" in done.stdout
    assert "onnx-fp32" in done.stdout
    assert "rejected torchscript-fp32" in done.stdout
    assert "could not be made" in done.stderr
    refused = subprocess.run([*command, "--golden", "0"], capture_output=True, text=True, timeout=LIMIT, check=False)
    assert refused.returncode == 1
    assert "--golden: 0 is out of range" in refused.stderr
