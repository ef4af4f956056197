"""What a variant's worker is expected to take: by what its recipes load for this source."""

from pathlib import Path

import pytest

from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Interval
from skerry.optimize import bounds, jobs, passes

GIB = 2**30


def facts(*forms: str, peak: int = 3 * GIB) -> jobs.Facts:
    return jobs.Facts(
        kind="keras",
        digests={},
        forms=list(forms),
        signature=ModelSignature(inputs=[], outputs=[]),
        metric="accuracy",
        higher_is_better=True,
        baseline=1.0,
        interval=Interval(low=1.0, high=1.0),
        samples=1,
        golden_samples=1,
        graph_bytes=1000,
        source_bytes=10,
        peak_bytes=peak,
    )


@pytest.mark.parametrize(
    ("variant", "forms", "expected"),
    [
        ("onnx-int8", ("keras", "onnx"), GIB // 2),
        ("tflite-int8", ("onnx",), GIB // 2),
        ("tflite-int8", ("keras", "onnx"), 3 * GIB),
        ("executorch-fp32", ("keras", "onnx"), GIB),
        ("executorch-int8", ("onnx",), GIB),
        ("torchscript-int8-dynamic", ("onnx",), GIB),
        ("torchscript-fp32", ("torch", "onnx"), 3 * GIB),
        ("torchscript-fp32", ("torchscript", "onnx"), GIB),
    ],
)
def test_the_base_is_what_the_recipes_that_fit_load(
    variant: str, forms: tuple[str, ...], expected: int, tmp_path: Path
) -> None:
    recipes = passes.RECIPES[jobs.parse_name(variant)]
    (tmp_path / jobs.TEST_FILE).write_bytes(bytes(100))
    (tmp_path / jobs.CALIBRATION_FILE).write_bytes(bytes(10))
    assert bounds.need(tmp_path, facts(*forms), recipes) == expected + 4 * 1000 + 2 * 110


def test_pytorch_takes_its_part_where_the_import_did_not_show_it(tmp_path: Path) -> None:
    recipes = passes.RECIPES["executorch", "int8"]
    assert bounds.need(tmp_path, facts("torch", "onnx", peak=300 * 2**20), recipes) == GIB + 4000
