"""Operator sets: what an old engine can read, and a sentence where it cannot."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.optimize.graphs import Builder

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.optimize import evaluate, graph, runtimes
from skerry.optimize.passes import Material, opset, recipes
from skerry.optimize.recipe import VariantOptions

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
        ("1.15.1", (18, 8)),
        ("1.32", (21, 10)),
        ("2.0", (21, 10)),
    ],
)
def test_the_newest_that_a_runtime_reads(runtime: str, expected: tuple[int, int]) -> None:
    assert runtimes.newest(runtime) == expected


def test_the_table_rises_and_agrees_with_onnx_about_opsets_and_ir_versions() -> None:
    assert list(runtimes.RELEASES) == sorted(runtimes.RELEASES)
    for column in (1, 2):
        assert [row[column] for row in runtimes.RELEASES] == sorted(row[column] for row in runtimes.RELEASES)
    needed = {row[2]: row[1] for row in onnx.helper.VERSION_TABLE}  # opset -> the IR version of the same release
    assert all(ir_version <= needed[version] for _, version, ir_version in runtimes.RELEASES)


@pytest.mark.parametrize("runtime", ["1.8", "1.14", "1.16"])
def test_a_lowered_graph_computes_the_same(runtime: str) -> None:
    model = network()
    lowered = opset.lower(model, runtime)
    assert (graph.opset(lowered), lowered.ir_version) == runtimes.newest(runtime)
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
        runtimes.newest(runtime)


@given(release=st.sampled_from(runtimes.RELEASES), contrib=st.booleans())
def test_the_oldest_reader_and_the_newest_file_belong_together(release, contrib: bool) -> None:
    (major, minor), newest, ir_version = release
    found = runtimes.oldest(newest, ir_version, contrib=contrib)
    assert found == (f"{major}.{minor}" if not contrib or minor >= 16 else "1.16")
    assert runtimes.newest(f"{major}.{minor}") == (newest, ir_version)
    assert runtimes.oldest(99, ir_version) is runtimes.oldest(newest, 99) is None


def test_the_card_names_the_oldest_engine_that_reads_a_lowered_graph() -> None:
    assert graph.engine_min_version(network(), "1.32.0") == "1.18"
    assert graph.engine_min_version(opset.lower(network(), "1.16"), "1.32.0") == "1.16"


def test_4_bits_are_refused_for_engines_without_their_kernel(tmp_path: Path) -> None:
    built = Builder([64])
    built.gemm(64, 8)
    raw = built.raw([8])
    rows = {"input": np.zeros((1, 64), np.float32)}
    for oldest, fits in (("1.15", False), ("1.16", True)):
        material = Material(
            load=lambda: raw,
            inputs_sample=rows,
            calibration=rows,
            signature=graph.signature(graph.parse(raw)),
            out=tmp_path / oldest,
            options=VariantOptions(oldest_onnxruntime=oldest),
        )
        (recipe,) = recipes("onnx", "int4", material.options)
        if fits:
            recipe.build(material)
            made = graph.parse(material.out.read_bytes())
            assert graph.engine_min_version(made, "1.32.0") == "1.16"
        else:
            with pytest.raises(UnsupportedError, match=r"oldestOnnxruntime: ONNX Runtime 1\.15 has no kernel"):
                recipe.build(material)
