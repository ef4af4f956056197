"""Passes: what they change, and that they change nothing else."""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.unit.optimize.graphs import Builder

from skerry.api.errors import InvalidError, TooLargeError
from skerry.optimize import evaluate, graph
from skerry.optimize.passes import RECIPES, Material, Recipe, half, quantize, ranges, recipes, simplify
from skerry.optimize.recipe import VariantOptions

RANDOM = np.random.default_rng(0)
SAMPLES = RANDOM.standard_normal((64, 24)).astype(np.float32)


def dense(layers: int, *, first_column: float = 1.0) -> bytes:
    """A chain of fully connected layers with seeded weights: float32 [batch, 24] in, [batch, 24] out."""
    nodes, tensors, before = [], [], "input"
    for index in range(layers):
        matrix = (RANDOM.standard_normal((24, 24)) / 5).astype(np.float32)
        if index == 0:
            matrix[0] /= first_column
        tensors.append(numpy_helper.from_array(matrix, f"w{index}"))
        after = "output" if index == layers - 1 else f"h{index}"
        nodes.append(helper.make_node("MatMul", [before, f"w{index}"], [after], name=f"layer{index}"))
        if after != "output":
            nodes.append(helper.make_node("Relu", [after], [f"r{index}"], name=f"relu{index}"))
            before = f"r{index}"
    return model(nodes, tensors)


def model(nodes: list[onnx.NodeProto], tensors: Iterable[onnx.TensorProto] = ()) -> bytes:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 24]) for name in ("input", "output")]
    made = helper.make_model(
        helper.make_graph(nodes, "graph", value[:1], value[1:], list(tensors)),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    return graph.serialise(made)


def build(recipe: Recipe, raw: bytes, out: Path) -> bytes:
    samples = {"input": SAMPLES}
    signature = graph.signature(graph.parse(raw))
    recipe.build(Material(load=lambda: raw, inputs_sample=samples, calibration=samples, signature=signature, out=out))
    return out.read_bytes()


def test_float16_keeps_inputs_and_outputs_and_halves_the_weights() -> None:
    raw = dense(3)
    converted = half.convert(raw)
    assert graph.signature(graph.parse(converted)) == graph.signature(graph.parse(raw))
    kinds = {tensor.data_type for tensor in graph.parse(converted).graph.initializer}
    assert kinds == {TensorProto.FLOAT16}
    expected = evaluate.Runner(raw).predict(SAMPLES)
    assert evaluate.numerical_error(evaluate.Runner(converted).predict(SAMPLES), expected).cosine > 0.9999


def test_float16_can_leave_sensitive_operators_in_float32() -> None:
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["h"], name="layer"),
        helper.make_node("Exp", ["h"], ["output"], name="exp"),
    ]
    raw = model(nodes, [numpy_helper.from_array(np.eye(24, dtype=np.float32) * 12, "w")])
    for keep, kind in ((False, TensorProto.FLOAT16), (True, TensorProto.FLOAT)):
        made = graph.parse(half.convert(raw, keep_sensitive=keep))
        producers = {output: node for node in made.graph.node for output in node.output}
        before = producers[next(node for node in made.graph.node if node.op_type == "Exp").input[0]]
        cast = [attribute.i for attribute in before.attribute if attribute.name == "to"]
        assert cast == ([kind] if keep else [])
        expected = evaluate.Runner(raw).predict(SAMPLES / 8)
        assert (
            evaluate.numerical_error(evaluate.Runner(graph.serialise(made)).predict(SAMPLES / 8), expected).cosine
            > 0.99
        )


@pytest.mark.parametrize("recipe", recipes("onnx", "int8", VariantOptions()), ids=lambda recipe: recipe.name)
def test_every_int8_recipe_makes_a_smaller_model_that_does_nearly_the_same(recipe: Recipe, tmp_path: Path) -> None:
    raw = dense(4)
    quantised = build(recipe, raw, tmp_path / "first")
    assert build(recipe, raw, tmp_path / "second") == quantised
    assert graph.signature(graph.parse(quantised)) == graph.signature(graph.parse(raw))
    weights = {t.name: t for t in graph.parse(quantised).graph.initializer if t.data_type == TensorProto.INT8}
    assert len(weights) >= 2
    assert all(np.abs(numpy_helper.to_array(tensor).astype(int)).max() <= 64 for tensor in weights.values())
    outputs = evaluate.Runner(quantised).predict(SAMPLES)
    assert evaluate.numerical_error(outputs, evaluate.Runner(raw).predict(SAMPLES)).cosine > 0.98


def static(raw: bytes, *, per_channel: bool, exclude: Sequence[str] = ()) -> onnx.ModelProto:
    prepared = quantize.prepare(raw)
    bounds = ranges.measure(prepared, {"input": SAMPLES})
    return graph.parse(quantize.static(prepared, bounds, per_channel=per_channel, exclude=exclude))


def test_per_channel_has_a_scale_per_column() -> None:
    scales = {
        per_channel: max(
            numpy_helper.to_array(tensor).size
            for tensor in static(dense(3), per_channel=per_channel).graph.initializer
            if tensor.name.endswith("_scale")
        )
        for per_channel in (True, False)
    }
    assert scales == {True: 24, False: 1}


def test_float_ends_leave_the_first_and_the_last_layer(tmp_path: Path) -> None:
    (recipe,) = [recipe for recipe in RECIPES["onnx", "int8"] if recipe.name == "static-qdq-float-ends"]
    quantised = graph.parse(build(recipe, dense(4), tmp_path / "out"))
    kept = {tensor.name for tensor in quantised.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    assert {"w0", "w3"} <= kept
    assert not {"w1", "w2"} & kept
    with pytest.raises(InvalidError, match="too few layers"):
        build(recipe, dense(2), tmp_path / "out")


def test_a_model_without_weights_cannot_be_int8(tmp_path: Path) -> None:
    raw = model([helper.make_node("Relu", ["input"], ["output"], name="relu")])
    for precision in ("int8", "int8-dynamic"):
        with pytest.raises(InvalidError, match="no layer whose weights can be int8"):
            build(RECIPES["onnx", precision][0], raw, tmp_path / "out")


def test_simplifying_folds_what_is_constant() -> None:
    nodes = [
        helper.make_node("Add", ["one", "one"], ["two"], name="fold"),
        helper.make_node("Mul", ["input", "two"], ["output"], name="mul"),
    ]
    raw = model(nodes, [numpy_helper.from_array(np.ones(1, np.float32), "one")])
    simplified = simplify.simplify(raw)
    assert [node.op_type for node in graph.parse(simplified).graph.node] == ["Mul"]
    np.testing.assert_array_equal(evaluate.Runner(simplified).predict(SAMPLES)[0], SAMPLES * 2)


def test_serialising_strips_what_exporters_tell_about_this_machine() -> None:
    secret = "/home/somebody/secret"
    inner = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["inner"], doc_string=secret)],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
        doc_string=secret,
    )
    nodes = [
        helper.make_node("If", ["yes"], ["output"], name="if", then_branch=inner, else_branch=inner, doc_string=secret)
    ]
    dirty = graph.parse(model(nodes, [numpy_helper.from_array(np.array(True), "yes")]))
    dirty.doc_string = dirty.graph.doc_string = dirty.graph.input[0].doc_string = secret
    for part in (dirty, dirty.graph, dirty.graph.node[0], dirty.graph.initializer[0]):
        part.metadata_props.append(onnx.StringStringEntryProto(key="pkg.torch.onnx.stack_trace", value=secret))
    assert secret.encode() in dirty.SerializeToString()
    clean = graph.serialise(dirty)
    assert secret.encode() not in clean
    np.testing.assert_array_equal(evaluate.Runner(clean).predict(SAMPLES)[0], SAMPLES)


def test_a_graph_beyond_protobufs_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "MAX_BYTES", 1000)
    with pytest.raises(TooLargeError, match="at most 1000 are possible"):
        dense(1)


def test_signatures_use_the_protocols_words() -> None:
    value_in = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", 7])
    value_out = helper.make_tensor_value_info("seen", TensorProto.BOOL, [None, 7])
    nodes = [helper.make_node("Cast", ["tokens"], ["seen"], to=TensorProto.BOOL)]
    signature = graph.signature(helper.make_model(helper.make_graph(nodes, "g", [value_in], [value_out])))
    assert [(t.name, t.datatype, t.shape) for t in signature.inputs] == [("tokens", "INT64", [-1, 7])]
    assert [(t.name, t.datatype, t.shape) for t in signature.outputs] == [("seen", "BOOL", [-1, 7])]
    value_out.type.tensor_type.elem_type = TensorProto.COMPLEX64
    with pytest.raises(InvalidError, match="tensor seen"):
        graph.signature(helper.make_model(helper.make_graph(nodes, "g", [value_in], [value_out])))


def test_the_oldest_engine_is_known_for_known_graphs_only() -> None:
    known = graph.parse(dense(1))
    assert graph.engine_min_version(known, "1.32.0") == "1.18"
    known.opset_import[0].version = 22
    assert graph.engine_min_version(known, "1.32.0") == "1.32"


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-dynamic", "int4"])
def test_other_processes_make_the_same_bytes(precision: str, tmp_path: Path) -> None:
    raw, source = build_64(), tmp_path / "source.onnx"
    source.write_bytes(raw)
    program = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from skerry.optimize import graph\n"
        "from skerry.optimize.passes import RECIPES, Material\n"
        "raw = Path(sys.argv[1]).read_bytes()\n"
        "x = {'input': np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)}\n"
        "sig = graph.signature(graph.parse(raw))\n"
        "m = Material(load=lambda: raw, inputs_sample=x, calibration=x, signature=sig, out=Path(sys.argv[2]))\n"
        "RECIPES['onnx', sys.argv[3]][0].build(m)\n"
    )
    made = set()
    for seed in ("1", "2"):  # of the order in which sets are walked
        out = tmp_path / seed
        command = [sys.executable, "-c", program, str(source), str(out), precision]
        subprocess.run(command, check=True, timeout=120, env={**os.environ, "PYTHONHASHSEED": seed})
        made.add(out.read_bytes())
    assert len(made) == 1


def build_64() -> bytes:
    built = Builder([64])
    for _ in range(4):
        built.gemm(64, 64)
        built.add("Relu")
    return built.raw([64])


def test_float16_of_a_resize_holds_no_types_of_before() -> None:
    shape = [TensorProto.FLOAT, ["batch", 2, 8, 8]]
    nodes = [
        helper.make_node("Relu", ["input"], ["a"], name="before"),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], name="resize", mode="linear"),
        helper.make_node("Relu", ["b"], ["output"], name="after"),
    ]
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    made = helper.make_graph(
        nodes,
        "upsample",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 2, 4, 4])],
        [helper.make_tensor_value_info("output", *shape)],
        [scales],
    )
    raw = simplify.infer_shapes(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    )
    twice = graph.parse(raw)
    twice.graph.value_info.extend(list(twice.graph.value_info))  # as the simplifier leaves them
    raw = twice.SerializeToString()
    samples = np.random.default_rng(0).random((3, 2, 4, 4), dtype=np.float32)
    expected = evaluate.Runner(raw).predict(samples)
    assert evaluate.numerical_error(evaluate.Runner(half.convert(raw)).predict(samples), expected).cosine > 0.9999
