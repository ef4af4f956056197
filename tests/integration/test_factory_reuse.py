"""What the factory takes from its cache is what it would make: files that a recipe does not name count as well."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml

from skerry.optimize.__main__ import DONE, run

MODEL = """
import torch
from helper import SCALE

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x) * SCALE

def build_model():
    return Net()
"""
TUNE = """
import torch
from amounts import SHIFT

def fine_tune(module, amount):
    with torch.no_grad():
        module.linear.bias.add_(SHIFT)
"""
PARTS = ("test", "calibration", "golden")
TUNED = {"name": "onnx-fp32-pruned10", "pruning": {"sparsity": 0.1, "fineTune": "tuning/tune.py:fine_tune"}}


class Net(torch.nn.Module):
    """The module of MODEL."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def make(directory: Path, **changes: Any) -> list[dict[str, Any]]:
    """Run the factory on a directory's recipe, with the cache beside it; return its events."""
    recipe = {
        "name": "small",
        "version": "v1",
        "source": {"path": "model.py:build_model", "weights": "w.pt"},
        "data": {"path": "data.npz"},
        "out": "package",
        "metric": "mae",
        "allowedDrop": 100,
        "runs": 5,
        "variants": ["onnx-fp32"],
    }
    file = directory / "optimize.yaml"
    file.write_text(yaml.safe_dump(recipe | changes))
    stream = io.StringIO()
    cache = directory.parent / "cache"
    assert run(["--file", str(file), "--cache", str(cache), "--progress", "json"], stream) == DONE, stream.getvalue()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def names(events: list[dict[str, Any]]) -> set[str]:
    return {event["event"] for event in events}


def baseline(events: list[dict[str, Any]]) -> float:
    return next(float(event["metric"]) for event in events if event["event"] == "baseline")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    directory = tmp_path / "a"
    (directory / "tuning").mkdir(parents=True)
    (directory / "model.py").write_text(MODEL)
    (directory / "helper.py").write_text("SCALE = 1.0\n")
    (directory / "tuning" / "tune.py").write_text(TUNE)
    (directory / "tuning" / "amounts.py").write_text("SHIFT = 0.0\n")
    torch.save(Net().state_dict(), directory / "w.pt")
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {f"{part}_x": random.standard_normal((40, 4)).astype(np.float32) for part in PARTS}
    answers = np.zeros((40, 2), np.float32)
    np.savez(directory / "data.npz", **arrays, test_y=answers, golden_y=answers)
    return directory


def test_a_copied_directory_is_judged_by_its_own_imports(site: Path) -> None:
    before = baseline(make(site))
    copy = site.with_name("b")
    shutil.copytree(site, copy)
    assert names(make(copy)) >= {"source.cached", "variant.cached"}  # wherever it lies, it is the same
    (copy / "helper.py").write_text("SCALE = 10.0\n")
    events = make(copy)
    assert names(events) >= {"source.loaded", "variant.started"}
    assert baseline(events) == pytest.approx(10 * before, rel=1e-4)
    assert baseline(make(site)) == pytest.approx(before)


def test_what_fine_tuning_imports_counts(site: Path) -> None:
    def metric(events: list[dict[str, Any]]) -> float:
        return next(float(event["metric"]) for event in events if event["event"] == "variant.done")

    before = metric(make(site, variants=[TUNED]))
    assert "variant.cached" in names(make(site, variants=[TUNED]))
    (site / "tuning" / "amounts.py").write_text("SHIFT = 5.0\n")
    events = make(site, variants=[TUNED])
    assert names(events) >= {"source.cached", "variant.started", "variant.measuring"}
    assert metric(events) > before + 1


def test_weights_beside_a_graph_count(site: Path) -> None:
    import onnx.helper as made

    def write(value: float) -> None:
        weights = onnx.numpy_helper.from_array(np.full((4, 2), value, np.float32), "w")
        ends = [
            made.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", width])
            for name, width in (("x", 4), ("y", 2))
        ]
        graph = made.make_graph([made.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weights])
        model = made.make_model(graph, opset_imports=[made.make_opsetid("", 20)], ir_version=10)
        (site / "m.bin").unlink(missing_ok=True)
        onnx.save_model(model, site / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)

    write(1.0)
    graph = (site / "m.onnx").read_bytes()
    before = baseline(make(site, source={"path": "m.onnx"}))
    assert names(make(site, source={"path": "m.onnx"})) >= {"source.cached", "variant.cached"}
    write(3.0)
    assert (site / "m.onnx").read_bytes() == graph
    events = make(site, source={"path": "m.onnx"})
    assert names(events) >= {"source.loaded", "variant.started"}
    assert baseline(events) == pytest.approx(3 * before, rel=1e-4)
