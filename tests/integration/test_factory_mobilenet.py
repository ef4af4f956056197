"""A real architecture at its real size, MobileNetV2 at 224 x 224, through the ONNX passes within bounded memory."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

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


def test_every_precision_is_made_within_4_gb(exported: Path, tmp_path: Path) -> None:
    # A process of its own: this one has torch and the fixture's memory in it.
    done = subprocess.run(
        [sys.executable, peak.__file__, str(exported), str(tmp_path), *RECIPES],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    made = told["made"]
    assert told["peak"] < 4e9
    size = {name: entry["size"] for name, entry in made.items()}
    error = {name: entry["error"] for name, entry in made.items()}
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
    assert made[searched]["float layers"]
    assert 1 <= int(made[searched]["files judged"]) <= 4
