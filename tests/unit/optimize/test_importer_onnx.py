"""ONNX files as sources: any opset, batch and place of weights; what is not one is said to be none."""

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from skerry.api.errors import InvalidError, NotFoundError, SkerryError, UnsupportedError
from skerry.optimize import evaluate, graph, importers
from skerry.optimize.importers import Source
from skerry.optimize.recipe import SourceSpec

RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.standard_normal((12, 3)).astype(np.float32)
SAMPLES = RANDOM.random((7, 12), dtype=np.float32)
FLOAT = TensorProto.FLOAT


def value(name: str, *shape: int | str, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    tensors: list[onnx.TensorProto] | None = None,
    opset: int = 20,
) -> onnx.ModelProto:
    made = helper.make_graph(nodes, "graph", inputs, outputs, tensors or [])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def linear(batch: int | str = "n", opset: int = 20) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["scores"], name="layer")]
    tensors = [numpy_helper.from_array(WEIGHTS, "w")]
    return model(nodes, [value("x", batch, 12)], [value("scores", batch, 3)], tensors, opset)


def opened(made: onnx.ModelProto, path: Path) -> Source:
    path.write_bytes(made.SerializeToString())
    return importers.open_source(SourceSpec(path=str(path)))


def shapes(source: Source, inputs: dict[str, np.ndarray]) -> list[tuple[str, str, list[int]]]:
    signature = source.signature(inputs)
    return [(spec.name, spec.datatype, spec.shape) for spec in (*signature.inputs, *signature.outputs)]


def same_as_graph(source: Source, inputs: dict[str, np.ndarray]) -> None:
    raw = source.onnx(inputs, opset=20)
    assert graph.signature(graph.parse(raw)) == source.signature(inputs)
    for ours, theirs in zip(evaluate.Runner(raw).predict(inputs), source.predict(inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_an_unnamed_tensor_takes_the_name_of_the_only_input(tmp_path: Path) -> None:
    source = opened(linear(), tmp_path / "m.onnx")
    assert shapes(source, {"input": SAMPLES}) == [("x", "FP32", [-1, 12]), ("scores", "FP32", [-1, 3])]
    np.testing.assert_allclose(source.predict({"input": SAMPLES})[0], SAMPLES @ WEIGHTS, rtol=1e-5)
    same_as_graph(source, {"x": SAMPLES})
    assert (source.kind, source.forms, set(source.digests)) == ("onnx", frozenset({"onnx"}), {"m.onnx"})


def test_several_inputs_go_by_name_whatever_their_order(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sub", ["a", "b"], ["difference"]), helper.make_node("Mul", ["a", "b"], ["product"])]
    made = model(
        nodes, [value("a", "n", 4), value("b", "n", 4)], [value("difference", "n", 4), value("product", "n", 4)]
    )
    source = opened(made, tmp_path / "m.onnx")
    a, b = (RANDOM.random((5, 4), dtype=np.float32) for _ in range(2))
    difference, product = source.predict({"b": b, "a": a})
    np.testing.assert_allclose(difference, a - b)
    np.testing.assert_allclose(product, a * b)
    assert [spec[0] for spec in shapes(source, {"b": b, "a": a})] == ["a", "b", "difference", "product"]
    same_as_graph(source, {"a": a, "b": b})
    with pytest.raises(InvalidError, match="has a, c as inputs, but the model takes a, b"):
        source.predict({"a": a, "c": b})


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_freed(tmp_path: Path, batch: int) -> None:
    source = opened(linear(batch=batch), tmp_path / "m.onnx")
    assert shapes(source, {"input": SAMPLES})[0] == ("x", "FP32", [-1, 12])
    np.testing.assert_allclose(source.predict({"x": SAMPLES})[0], SAMPLES @ WEIGHTS, rtol=1e-5)
    same_as_graph(source, {"x": SAMPLES})


def test_a_reshape_that_writes_the_batch_as_a_number_is_freed_too(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "w"], ["scores"], name="layer"),
    ]
    tensors = [numpy_helper.from_array(np.array([1, 12]), "shape"), numpy_helper.from_array(WEIGHTS, "w")]
    source = opened(model(nodes, [value("x", 1, 3, 4)], [value("scores", 1, 3)], tensors), tmp_path / "m.onnx")
    same_as_graph(source, {"x": SAMPLES.reshape(7, 3, 4)})


def test_a_graph_that_lives_on_its_batch_says_so(tmp_path: Path) -> None:
    """The mean over the batch is another one for other batches, so that freeing it would change the answers."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["scores"]),
    ]
    tensors = [numpy_helper.from_array(np.array([0]), "axes")]
    source = opened(model(nodes, [value("x", 2, 12)], [value("scores", 2, 12)], tensors), tmp_path / "m.onnx")
    with pytest.raises(InvalidError, match=r"m\.onnx: takes 2 samples at once") as caught:
        source.onnx({"x": SAMPLES}, opset=20)
    assert "free batch" in caught.value.hint


def test_dimensions_that_the_file_leaves_free_stay_free(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    source = opened(model(nodes, [value("x", "n", "length")], [value("y", "n", "length")]), tmp_path / "m.onnx")
    assert [spec[2] for spec in shapes(source, {"x": SAMPLES})] == [[-1, -1], [-1, -1]]
    same_as_graph(source, {"x": SAMPLES})


def test_an_old_opset_is_converted_up(tmp_path: Path) -> None:
    nodes = [helper.make_node("Softmax", ["x"], ["y"], axis=1)]
    source = opened(model(nodes, [value("x", "n", 12)], [value("y", "n", 12)], opset=9), tmp_path / "m.onnx")
    same_as_graph(source, {"x": SAMPLES})
    assert graph.opset(graph.parse(source.onnx({"x": SAMPLES}, opset=17))) == 17


def test_weights_may_lie_beside_the_file(tmp_path: Path) -> None:
    onnx.save_model(linear(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    source = importers.open_source(SourceSpec(path=str(tmp_path / "m.onnx")))
    np.testing.assert_allclose(source.predict({"x": SAMPLES})[0], SAMPLES @ WEIGHTS, rtol=1e-5)
    assert set(source.digests) == {"m.onnx", "m.data"}
    same_as_graph(source, {"x": SAMPLES})
    (tmp_path / "m.data").unlink()
    with pytest.raises(NotFoundError, match=r"m\.data: no such file"):
        importers.open_source(SourceSpec(path=str(tmp_path / "m.onnx")))


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "link", ""])
def test_weights_elsewhere_are_not_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(WEIGHTS.tobytes())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link").symlink_to(tmp_path / "secret")
    made = linear()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    with pytest.raises(InvalidError, match=r"m\.onnx: tensor w lies in .* outside of the model's directory"):
        opened(made, tmp_path / "model" / "m.onnx")


def test_paths_of_the_machine_that_exported_it_are_stripped(tmp_path: Path) -> None:
    made = linear()
    made.graph.node[0].doc_string = "/home/somebody/model.py"
    assert b"somebody" not in opened(made, tmp_path / "m.onnx").onnx({"x": SAMPLES}, opset=20)


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, b"PK\x03\x04", os.urandom(64)])
def test_bytes_that_are_no_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(SkerryError, match=r"m\.onnx: ") as caught:
        importers.open_source(SourceSpec(path=str(tmp_path / "m.onnx")))
    assert "\n" not in caught.value.sentence


def test_operators_and_graphs_that_cannot_run_are_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Magic", ["x"], ["y"], name="trick", domain="my.domain")]
    made = model(nodes, [value("x", "n", 4)], [value("y", "n", 4)])
    made.opset_import.append(helper.make_opsetid("my.domain", 1))
    with pytest.raises(InvalidError, match=r"node trick needs the operator my\.domain\.Magic"):
        opened(made, tmp_path / "m.onnx")
    nodes = [helper.make_node("Relu", ["nowhere"], ["y"], name="lost")]
    with pytest.raises(InvalidError, match="is not a valid model"):
        opened(model(nodes, [value("x", "n", 4)], [value("y", "n", 4)]), tmp_path / "m.onnx")
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    with pytest.raises(InvalidError, match="input x has no dimensions"):
        opened(model(nodes, [value("x")], [value("y")]), tmp_path / "m.onnx")


def test_samples_that_do_not_fit_are_described(tmp_path: Path) -> None:
    source = opened(linear(), tmp_path / "m.onnx")
    with pytest.raises(InvalidError, match=r"float32 inputs of shape \[batch, 5\]"):
        source.predict({"x": SAMPLES[:, :5]})
    with pytest.raises(InvalidError, match="cannot take x uint8 inputs"):
        source.predict({"x": SAMPLES.astype(np.uint8)})


def test_a_path_tells_the_kind_or_what_it_could_be(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(InvalidError, match=r"model\.bin: does not say by its name"):
        importers.kind_of(SourceSpec(path=str(tmp_path / "model.bin")))
    with pytest.raises(InvalidError, match=r"holds no saved_model\.pb"):
        importers.kind_of(SourceSpec(path=str(tmp_path)))
    with pytest.raises(NotFoundError):
        importers.kind_of(SourceSpec(path=str(tmp_path / "absent")))
    assert importers.kind_of(SourceSpec(path="some/model.py:build")) == "pytorch"
    assert importers.kind_of(SourceSpec(path="m.pt2")) == "torch-export"
    assert importers.kind_of(SourceSpec(path="m.pt")) == "torchscript"


def test_a_framework_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "skerry.optimize.importers.tflite", raising=False)
    for module in ("ai_edge_litert", "ai_edge_litert.interpreter"):
        monkeypatch.setitem(sys.modules, module, None)  # as Python marks what cannot be imported
    with pytest.raises(UnsupportedError, match=r"ai_edge_litert.* is not installed; pip install 'skerry\[factory\]'"):
        importers.open_source(SourceSpec(path="m.tflite"))
