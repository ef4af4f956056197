"""4-bit weights: what is packed is what the engine unpacks; what has no kernel stays."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from tests.unit.optimize.graphs import Builder

from skerry.api.errors import UnsupportedError
from skerry.optimize import evaluate, graph
from skerry.optimize.passes import int4

SAMPLES = np.random.default_rng(0).standard_normal((16, 96)).astype(np.float32)


def unpack(packed: np.ndarray, scales: np.ndarray, rows: int) -> np.ndarray:
    """Return the matrix [K, N] that packed weights mean, by the words of the operator's documentation."""
    columns, blocks, half = packed.shape
    values = np.empty((columns, blocks, 2 * half), np.float32)
    values[..., ::2], values[..., 1::2] = packed & 15, packed >> 4
    return ((values - 8) * scales.reshape(columns, blocks, 1)).reshape(columns, -1)[:, :rows].T


@settings(max_examples=25)
@given(rows=st.integers(1, 70), columns=st.integers(1, 9), block=st.sampled_from([16, 32]), seed=st.integers(0, 99))
def test_no_weight_is_farther_off_than_its_blocks_step(rows: int, columns: int, block: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    matrix[:, 0] = 0
    packed, scales = int4.pack(matrix, block)
    assert packed.shape == (columns, -(-rows // block), block // 2)
    steps = np.abs(scales).reshape(columns, -1).repeat(block, axis=1)[:, :rows].T
    assert (np.abs(unpack(packed, scales, rows) - matrix) <= steps + 1e-6).all()


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_the_engine_computes_with_what_was_packed(block_size: int) -> None:
    built = Builder([96])
    built.gemm(96, 40)
    built.add("MatMul", built.weight("second.weight", 40, 33))
    raw = built.raw([33])
    made = int4.convert(graph.parse(raw), block_size=block_size)
    assert [n.op_type for n in graph.parse(made).graph.node] == ["MatMulNBits", "Add", "MatMulNBits"]
    unpacked = graph.parse(raw)
    for tensor in unpacked.graph.initializer:
        if tensor.name.endswith(".weight"):
            matrix = numpy_helper.to_array(tensor)
            turned = matrix.T if tensor.name.startswith("fc") else matrix
            rounded = unpack(*int4.pack(turned, block_size), len(turned))
            tensor.CopyFrom(
                numpy_helper.from_array(
                    np.ascontiguousarray(rounded.T if tensor.name.startswith("fc") else rounded), tensor.name
                )
            )
    expected = evaluate.Runner(graph.serialise(unpacked)).predict(SAMPLES)
    error = evaluate.numerical_error(evaluate.Runner(made).predict(SAMPLES), expected)
    assert error.max_abs < 1e-4
    assert len(made) < len(raw) / 2


def test_small_matrices_other_operators_and_excluded_layers_stay() -> None:
    built = Builder([96])
    first = built.gemm(96, 16)
    built.gemm(16, 64)  # 16 rows: more scale than weight
    built.gemm(64, 8)
    model = built.model([8])
    made = graph.parse(int4.convert(model, block_size=32, exclude=[f"n_{first}"]))
    assert [node.op_type for node in made.graph.node] == ["Gemm", "Gemm", "MatMulNBits", "Add"]
    assert {"fc0.weight", "fc1.weight"} <= {tensor.name for tensor in made.graph.initializer}
    assert "fc2.weight" not in {tensor.name for tensor in made.graph.initializer}
    onnx.checker.check_model(made)


def test_a_graph_without_matrices_is_refused() -> None:
    built = Builder([2, 4, 4])
    built.conv(2, 3)
    with pytest.raises(UnsupportedError, match="no matrix product with constant weights"):
        int4.convert(built.model([3, 4, 4]), block_size=32)
