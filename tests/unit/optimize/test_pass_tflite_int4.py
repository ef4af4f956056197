"""TensorFlow Lite files with 4-bit matrices: run by the engine, smaller, near the graph; clear where there is none."""

from pathlib import Path

import numpy as np
import pytest
from tests.unit.optimize.graphs import Builder

from skerry.api.errors import InvalidError
from skerry.optimize import evaluate, graph
from skerry.optimize.passes import Material, recipes, tflite_file
from skerry.optimize.recipe import VariantOptions
from skerry.serve import engines


def dense() -> bytes:
    builder = Builder((256,))
    for before, after in ((256, 512), (512, 128)):
        builder.gemm(before, after)
        builder.add("Relu")
    builder.gemm(128, 10)
    return builder.raw((10,))


def make(raw: bytes, out: Path, recipe: str = "graph-weights-int4", **options: int) -> Material:
    signature = graph.signature(graph.parse(raw))
    samples = {
        spec.name: np.random.default_rng(1).standard_normal((6, *spec.shape[1:])).astype(np.float32)
        for spec in signature.inputs
    }
    given = Material(
        load=lambda: raw,
        inputs_sample=samples,
        calibration=samples,
        signature=signature,
        out=out,
        options=VariantOptions(recipe=recipe, **options),  # type: ignore[arg-type]
    )
    (chosen,) = recipes("tflite", "int4", given.options)
    chosen.build(given)
    return given


@pytest.mark.parametrize("block", [32, 128])
def test_matrices_are_kept_in_four_bits(block: int, tmp_path: Path) -> None:
    raw = dense()
    made = make(raw, tmp_path / "m.tflite", block_size=block)
    content = made.out.read_bytes()
    assert tflite_file.has_int4_weights(content)
    assert len(content) < len(raw) / 6
    assert tflite_file.signature(tflite_file.read(content)) == made.signature
    model = engines.open_engine("litert").load(made.out, made.signature, threads=1)
    for count in (1, 5):
        inputs = {"input": made.inputs_sample["input"][:count]}
        expected = evaluate.Runner(raw).predict(inputs)
        assert evaluate.numerical_error(model.infer(inputs, ["output"]), expected).cosine > 0.98


def test_what_has_no_such_matrix_or_no_such_blocks_is_refused(tmp_path: Path) -> None:
    convolution = Builder((4, 9, 7))
    convolution.conv(4, 6)
    with pytest.raises(InvalidError, match="leave tflite-int4 out"):
        make(convolution.raw((6, 9, 7)), tmp_path / "m.tflite")
    with pytest.raises(InvalidError, match="has no blocks of 16"):
        make(dense(), tmp_path / "m.tflite", block_size=16)
    assert not (tmp_path / "m.tflite").exists()


def test_rows_that_are_not_whole_blocks_have_one_scale_each(tmp_path: Path) -> None:
    builder = Builder((48,))
    builder.gemm(48, 10)
    raw = builder.raw((10,))
    with pytest.raises(InvalidError, match=r"fc0\.weight.*not divisible"):
        make(raw, tmp_path / "m.tflite")
    made = make(raw, tmp_path / "m.tflite", "graph-weights-int4-per-channel")
    model = engines.open_engine("litert").load(made.out, made.signature, threads=1)
    answers = model.infer(made.inputs_sample, ["output"])
    assert evaluate.numerical_error(answers, evaluate.Runner(raw).predict(made.inputs_sample)).cosine > 0.98
