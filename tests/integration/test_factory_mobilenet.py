"""A real architecture at its real size, MobileNetV2 at 224 x 224, to every format within bounded memory."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import mobilenet_v2, peak

from skerry.optimize import graph
from skerry.optimize.passes import simplify

ROOT = Path(__file__).parents[2]
RECIPES = (
    "fp32/exported",
    "fp16/float16",
    peak.ALL_INT8,
    "int8/static-qdq-percentile",
    "int8/static-qdq-sensitivity",
    "int4/weights-int4",
)
OTHERS = (
    ("tflite/fp32/graph", "tflite/int8/graph-static-per-channel"),
    ("executorch/fp32/xnnpack", "executorch/int8/xnnpack-per-channel"),
    ("executorch/fp32/graph-xnnpack", "executorch/int8/graph-xnnpack-per-channel"),
    ("torchscript/fp32/traced", "torchscript/int8-dynamic/dynamic-linear"),
    ("torchscript/fp32/graph-traced", "torchscript/int8-dynamic/graph-dynamic-linear"),
)
"""Full precision and int8; TensorFlow Lite's are made of the graph whatever the source is."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mobilenet") / "model.onnx"
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            mobilenet_v2.build_model(),
            (torch.from_numpy(mobilenet_v2.samples(2)),),
            dynamo=True,
            verbose=False,
            input_names=["input"],
            output_names=["output"],
            opset_version=20,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
        )
    assert program is not None
    path.write_bytes(simplify.simplify(graph.serialise(program.model_proto)))
    return path


def made(exported: Path, out: Path, names: Sequence[str]) -> Mapping[str, Any]:
    """Make variants in a process of its own, since this one has torch and the fixture's memory in it."""
    done = subprocess.run(
        [sys.executable, peak.__file__, str(exported), str(out), *names],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["peak"] < 4e9
    variants: dict[str, Any] = told["made"]
    assert set(variants) == set(names)
    return variants


def test_every_precision_of_onnx_is_made_within_4_gb(exported: Path, tmp_path: Path) -> None:
    variants = made(exported, tmp_path, RECIPES)
    size = {name: entry["size"] for name, entry in variants.items()}
    error = {name: entry["error"] for name, entry in variants.items()}
    full = size["fp32/exported"]
    assert error["fp32/exported"] == 0
    assert size["fp16/float16"] < 0.55 * full
    assert size[peak.ALL_INT8] < 0.3 * full
    assert size["int4/weights-int4"] < 0.75 * full  # the convolutions stay
    assert error["fp16/float16"] < 1e-3
    assert max(error.values()) < 0.02
    searched = "int8/static-qdq-sensitivity"
    assert error[searched] < error[peak.ALL_INT8]
    assert size[searched] < 0.5 * full
    assert variants[searched]["float layers"]
    assert 1 <= int(variants[searched]["files judged"]) <= 4


def test_the_other_formats_are_made_of_the_module_and_of_the_graph_within_4_gb(exported: Path, tmp_path: Path) -> None:
    variants = made(exported, tmp_path, [name for pair in OTHERS for name in pair])
    for full, small in OTHERS:
        assert variants[full]["error"] < 1e-6
        assert variants[small]["error"] < 0.02
        share = 0.8 if "dynamic" in small else 0.3  # TorchScript's convolutions stay
        assert variants[small]["size"] < share * variants[full]["size"]
