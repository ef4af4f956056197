"""Operator sets: what an old engine can read, and a sentence where it cannot."""

import numpy as np
import onnx
import pytest
from tests.unit.optimize.graphs import Builder

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.optimize import evaluate, graph
from skerry.optimize.passes import opset

SAMPLES = np.random.default_rng(0).standard_normal((5, 2, 8, 8)).astype(np.float32)


def network() -> onnx.ModelProto:
    built = Builder([2, 8, 8])
    built.conv(2, 4)
    built.add("Relu")
    built.add("ReduceMean", built.constant("axes", np.array([2, 3])), keepdims=0)
    built.gemm(4, 3)
    return built.model([3])


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ("1.7", (13, 7)),
        ("1.10.2", (15, 8)),
        ("1.16", (19, 9)),
        ("1.18.1", (21, 10)),
        ("1.19", (21, 10)),
        ("2.0", (23, 11)),
    ],
)
def test_the_newest_that_a_runtime_reads(runtime: str, expected: tuple[int, int]) -> None:
    assert opset.readable_by(runtime) == expected


def test_the_table_rises_and_agrees_with_onnx_about_opsets_and_ir_versions() -> None:
    assert list(opset.OLDEST) == sorted(opset.OLDEST)
    for column in (1, 2):
        assert [row[column] for row in opset.OLDEST] == sorted(row[column] for row in opset.OLDEST)
    needed = {row[2]: row[1] for row in onnx.helper.VERSION_TABLE}  # opset -> the IR version of the same release
    assert all(ir_version <= needed[version] for _, version, ir_version in opset.OLDEST)


@pytest.mark.parametrize("runtime", ["1.8", "1.14", "1.16"])
def test_a_lowered_graph_computes_the_same(runtime: str) -> None:
    model = network()
    lowered = opset.lower(model, runtime)
    assert (opset.of(lowered), lowered.ir_version) == opset.readable_by(runtime)
    expected = evaluate.Runner(graph.serialise(model)).predict(SAMPLES)
    found = evaluate.Runner(graph.serialise(lowered)).predict(SAMPLES)
    assert evaluate.numerical_error(found, expected).max_abs < 1e-5
    assert graph.signature(lowered) == graph.signature(model)


def test_a_runtime_that_reads_the_graph_changes_nothing() -> None:
    model = network()
    assert opset.lower(model, "1.20") is model


def test_what_cannot_be_lowered_is_named() -> None:
    built = Builder([2, 8, 8])
    built.add("Gelu")
    with pytest.raises(UnsupportedError) as caught:
        opset.lower(built.model([2, 8, 8]), "1.10")
    assert caught.value.sentence.startswith("operator Gelu: cannot be written in opset 15; ")


@pytest.mark.parametrize(("runtime", "error"), [("new", InvalidError), ("1", InvalidError), ("1.2", UnsupportedError)])
def test_versions_that_mean_nothing(runtime: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="oldestOnnxruntime"):
        opset.readable_by(runtime)
