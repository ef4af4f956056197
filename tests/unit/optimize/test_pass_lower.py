"""Graphs to TensorFlow Lite, operator by operator: each file is run and compared with ONNX Runtime, batch by batch."""

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.unit.optimize.graphs import Builder

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.optimize import graph
from skerry.optimize.passes import lower, tflite_file
from skerry.optimize.passes.lower import agreement

IMAGE = (4, 9, 7)
VECTOR = (12,)
RANDOM = np.random.default_rng(3)


def lowered(raw: bytes, *, near: float = 0.0) -> bytes:
    """Lower a graph and check the file against it; samples lie around `near`."""
    signature = graph.signature(graph.parse(raw))
    content = lower.to_tflite(raw, signature)
    samples = {
        spec.name: (RANDOM.standard_normal((5, *spec.shape[1:])) + near).astype(np.float32) for spec in signature.inputs
    }
    agreement.check(content, raw, samples)
    assert tflite_file.signature(tflite_file.read(content)) == signature
    return content


def operators(content: bytes) -> list[int]:
    model = tflite_file.read(content)
    return [model.operatorCodes[operator.opcodeIndex].builtinCode for operator in model.subgraphs[0].operators]


def ints(b: Builder, name: str, *values: int) -> str:
    return b.constant(name, np.array(values, np.int64))


IMAGES: dict[str, tuple[Callable[[Builder], object], tuple[int, ...]]] = {
    "conv-same": (lambda b: b.conv(4, 6), (6, 9, 7)),
    "conv-valid-dilated": (lambda b: b.add("Conv", b.weight("w", 6, 4, 3, 3), dilations=[2, 2]), (6, 5, 3)),
    "conv-strided-evenly-padded": (
        lambda b: b.add("Conv", b.weight("w", 6, 4, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
        (6, 5, 4),
    ),
    "conv-strided-padded-as-pytorch": (
        lambda b: b.add("Conv", b.weight("w", 6, 4, 4, 4), strides=[2, 2], pads=[2, 2, 1, 1]),
        (6, 5, 4),
    ),
    "conv-auto-padded": (
        lambda b: b.add("Conv", b.weight("w", 6, 4, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
        (6, 5, 4),
    ),
    "conv-depthwise": (lambda b: b.conv(4, 4, group=4), (4, 9, 7)),
    "conv-depthwise-multiplied": (lambda b: b.conv(4, 8, group=4), (8, 9, 7)),
    "conv-grouped": (lambda b: b.conv(4, 6, group=2), (6, 9, 7)),
    "conv-relu": (lambda b: (b.conv(4, 6), b.add("Relu")), (6, 9, 7)),
    "conv-relu-read-twice": (lambda b: (b.conv(4, 6), b.add("Relu"), b.add("Sub", "conv0")), (6, 9, 7)),
    "max-pool": (lambda b: b.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2]), (4, 4, 3)),
    "max-pool-padded": (
        lambda b: b.add("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        (4, 5, 4),
    ),
    "max-pool-rounded-up": (lambda b: b.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), (4, 5, 4)),
    "max-pool-of-relu": (
        lambda b: (b.conv(4, 6), b.add("Relu"), b.add("MaxPool", kernel_shape=[3, 3], pads=[1, 0, 0, 1])),
        (6, 8, 6),
    ),
    "average-pool": (lambda b: b.add("AveragePool", kernel_shape=[3, 3], strides=[2, 2]), (4, 4, 3)),
    "average-pool-counting-padding": (
        lambda b: b.add("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
        (4, 9, 7),
    ),
    "average-pool-not-counting": (lambda b: b.add("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), (4, 9, 7)),
    "global-average-pool": (lambda b: b.add("GlobalAveragePool"), (4, 1, 1)),
    "batch-normalization": (
        lambda b: b.add(
            "BatchNormalization",
            *(b.constant(name, np.linspace(0.5, 1.5, 4).astype(np.float32)) for name in "sbmv"),
        ),
        IMAGE,
    ),
    "resize-nearest": (
        lambda b: b.add(
            "Resize",
            "",
            b.constant("scales", np.array([1, 1, 2, 2], np.float32)),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        (4, 18, 14),
    ),
    "resize-bilinear": (
        lambda b: b.add("Resize", "", b.constant("scales", np.array([1, 1, 2, 3], np.float32)), mode="linear"),
        (4, 18, 21),
    ),
    "residual": (lambda b: (b.conv(4, 4), b.add("Add", "input"), b.add("Clip", *_bounds(b, 0, 6))), IMAGE),
    "channel-scale": (lambda b: (b.conv(4, 4), b.add("Mul", b.weight("s", 4, 1, 1))), IMAGE),
    "image-scale": (lambda b: (b.conv(4, 4), b.add("Add", b.weight("s", 1, 4, 9, 7))), IMAGE),
    "squeeze-and-excite": (
        lambda b: (
            b.add("ReduceMean", ints(b, "axes", 2, 3)),
            b.add("Conv", b.weight("w", 4, 4, 1, 1)),
            b.add("HardSigmoid", alpha=0.2, beta=0.5),
            b.add("Mul", "input"),
        ),
        IMAGE,
    ),
    "reduce-channels-last": (
        lambda b: (b.conv(4, 6), b.add("ReduceMax", ints(b, "axes", 1), keepdims=0)),
        (9, 7),
    ),
    "concat-channels": (lambda b: (b.conv(4, 6), b.add("Concat", "input", axis=1)), (10, 9, 7)),
    "concat-computed": (
        lambda b: (b.conv(4, 6), b.add("Relu"), b.add("Concat", "conv0", axis=1)),
        (12, 9, 7),
    ),
    "flatten": (lambda b: (b.conv(4, 2), b.add("Flatten"), b.gemm(126, 5)), (5,)),
    "reshape-by-computed-shape": (
        lambda b: (
            b.add("Shape", start=0, end=1),
            b.add("Concat", ints(b, "rest", 4, 63), axis=0),
            b.add("Reshape", b.last, first="input"),
        ),
        (4, 63),
    ),
    "transpose": (lambda b: (b.conv(4, 6), b.add("Transpose", perm=[0, 2, 3, 1])), (9, 7, 6)),
    "pad": (
        lambda b: b.add("Pad", ints(b, "pads", 0, 0, 1, 2, 0, 1, 0, 0), b.constant("v", np.float32(0.5))),
        (5, 10, 9),
    ),
    "slice": (
        lambda b: b.add(
            "Slice", ints(b, "starts", 1, -5), ints(b, "ends", 100, -1), ints(b, "axes", 2, 3), ints(b, "steps", 2, 1)
        ),
        (4, 4, 4),
    ),
    "chain-of-elements": (
        lambda b: (
            b.conv(4, 4),
            b.add("Sigmoid"),
            b.add("Sub", "input"),
            b.add("LeakyRelu", alpha=0.2),
        ),
        IMAGE,
    ),
}

VECTORS: dict[str, tuple[Callable[[Builder], object], tuple[int, ...]]] = {
    "gemm": (lambda b: b.gemm(12, 5), (5,)),
    "gemm-scaled": (lambda b: b.add("Gemm", b.weight("w", 12, 5), b.weight("b", 5), alpha=0.5, beta=2.0), (5,)),
    "matmul": (lambda b: b.add("MatMul", b.weight("w", 12, 5)), (5,)),
    "matmul-of-three": (
        lambda b: (b.add("Reshape", ints(b, "to", 0, 3, 4)), b.add("MatMul", b.weight("w", 4, 5))),
        (3, 5),
    ),
    "attention": (
        lambda b: (
            b.add("Reshape", ints(b, "to", 0, 3, 4)),
            b.add("Transpose", perm=[0, 2, 1]),
            b.add("MatMul", b.last, first="reshape0"),
            b.add("Softmax", axis=-1),
            b.add("MatMul", "reshape0"),
        ),
        (3, 4),
    ),
    "layer-normalization": (lambda b: b.add("LayerNormalization", b.weight("s", 12), b.weight("o", 12)), VECTOR),
    "log-softmax": (lambda b: b.add("LogSoftmax", axis=1), VECTOR),
    "split-and-add": (
        lambda b: (b.add("Split", ints(b, "sizes", 5, 5, 2), axis=1, outputs=3), b.add("Add", f"{b.last}.1")),
        (5,),
    ),
    "gather": (lambda b: b.add("Gather", ints(b, "which", 3, 1, 1), axis=1), (3,)),
    "clip-one-side": (lambda b: b.add("Clip", b.constant("low", np.float32(-0.5))), VECTOR),
    "clip-both": (lambda b: b.add("Clip", *_bounds(b, -0.3, 0.7)), VECTOR),
    "where": (
        lambda b: (
            b.add("Greater", b.constant("zero", np.float32(0))),
            b.add("Where", "input", b.constant("other", np.float32(-7)), first=b.last),
        ),
        VECTOR,
    ),
    "unsqueeze-and-squeeze": (
        lambda b: (b.add("Unsqueeze", ints(b, "axis", 1)), b.add("Tanh"), b.add("Squeeze", "axis")),
        VECTOR,
    ),
    "min-of-three": (lambda b: b.add("Min", b.weight("one", 12), b.weight("two", 1)), VECTOR),
    "reciprocal-and-power": (
        lambda b: (b.add("Exp"), b.add("Pow", b.constant("three", np.float32(3))), b.add("Reciprocal")),
        VECTOR,
    ),
    "gelu": (lambda b: b.add("Gelu"), VECTOR),
    "gelu-tanh": (lambda b: b.add("Gelu", approximate="tanh"), VECTOR),
    "normalised-vectors": (
        lambda b: b.add(
            "BatchNormalization",
            *(b.constant(name, np.linspace(0.5, 1.5, 12).astype(np.float32)) for name in "sbmv"),
        ),
        VECTOR,
    ),
}
for _name in ("Abs", "Ceil", "Cos", "Elu", "Floor", "HardSwish", "Neg", "Sign", "Sin", "Identity", "Softmax"):
    VECTORS[_name] = (partial(Builder.add, operator=_name), VECTOR)


def _bounds(b: Builder, low: float, high: float) -> tuple[str, str]:
    return b.constant("low", np.float32(low)), b.constant("high", np.float32(high))


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    build, shape = IMAGES[name]
    builder = Builder(IMAGE)
    build(builder)
    lowered(builder.raw(shape))


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name: str) -> None:
    build, shape = VECTORS[name]
    builder = Builder(VECTOR)
    build(builder)
    lowered(builder.raw(shape))


@pytest.mark.parametrize("name", ["Log", "Sqrt"])
def test_operators_of_positive_numbers(name: str) -> None:
    builder = Builder(VECTOR)
    builder.add(name)
    lowered(builder.raw(VECTOR), near=10.0)


def test_a_chain_of_convolutions_is_transposed_at_its_ends_only() -> None:
    builder = Builder(IMAGE)
    for _ in range(3):
        builder.conv(4, 4)
        builder.add("Relu")
    transpositions = operators(lowered(builder.raw(IMAGE))).count(_code("TRANSPOSE"))
    assert transpositions == 2


def test_activations_are_taken_in_by_the_operator_before() -> None:
    builder = Builder(IMAGE)
    builder.conv(4, 4)
    builder.add("Relu")
    assert _code("RELU") not in operators(lowered(builder.raw(IMAGE)))


def test_several_inputs_and_outputs_keep_names_and_order() -> None:
    nodes = [
        helper.make_node("Sub", ["b", "a"], ["difference"]),
        helper.make_node("Add", ["a", "b"], ["sum"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("b", "a")]
    outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("sum", "difference")]
    model = helper.make_model(
        helper.make_graph(nodes, "two", ends, outs), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    signature = tflite_file.signature(tflite_file.read(lowered(graph.serialise(model))))
    assert [spec.name for spec in signature.inputs] == ["b", "a"]
    assert [spec.name for spec in signature.outputs] == ["sum", "difference"]


def test_the_same_graph_gives_the_same_bytes() -> None:
    builder = Builder(IMAGE)
    builder.conv(4, 4)
    raw = builder.raw(IMAGE)
    assert lowered(raw) == lowered(raw)


def refused(raw: bytes) -> UnsupportedError:
    with pytest.raises(UnsupportedError) as caught:
        lower.to_tflite(raw, graph.signature(graph.parse(raw)))
    return caught.value


def test_an_operator_without_counterpart_is_named_with_its_node() -> None:
    builder = Builder(VECTOR)
    builder.add("Relu")
    builder.add("Erf")
    error = refused(builder.raw(VECTOR))
    assert error.element == "node n_erf1 (Erf)"
    assert "TensorFlow Lite" in error.cause
    assert error.hint


@pytest.mark.parametrize(
    ("build", "shape", "said"),
    [
        (lambda b: b.add("Softmax", axis=1), IMAGE, "another dimension"),
        (
            lambda b: b.add("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
            (4, 5, 4),
            "not padded evenly",
        ),
        (lambda b: b.add("Elu", alpha=0.5), IMAGE, "alpha"),
        (lambda b: b.add("Resize", "", b.constant("s", np.array([1, 1, 2, 2], np.float32))), (4, 18, 14), "resizes"),
    ],
)
def test_what_an_operator_cannot_hold_is_said(build, shape, said) -> None:
    builder = Builder((4, 10, 8) if said == "not padded evenly" else IMAGE)
    build(builder)
    error = refused(builder.raw(shape if said != "not padded evenly" else (4, 5, 4)))
    assert said in error.cause
    assert error.element.startswith("node n_")


def test_a_size_that_is_open_besides_the_batch_is_named() -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "time", 3]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "open", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    error = refused(graph.serialise(model))
    assert error.element == "tensor x"
    assert "[-1, -1, 3]" in error.cause


def test_a_file_that_does_something_else_is_found_out() -> None:
    one, other = Builder(VECTOR, seed=0), Builder(VECTOR, seed=1)
    for builder in (one, other):
        builder.gemm(12, 5)
    raw = one.raw((5,))
    content = lower.to_tflite(other.raw((5,)), graph.signature(graph.parse(raw)))
    with pytest.raises(InvalidError, match="differs by"):
        agreement.check(content, raw, {"input": RANDOM.standard_normal((2, 12)).astype(np.float32)})


def _code(name: str) -> int:
    from ai_edge_litert import schema_py_generated as schema

    return getattr(schema.BuiltinOperator, name)


def test_every_operator_of_the_table_is_tried_above() -> None:
    built: set[str] = set()
    for cases, given in ((IMAGES, IMAGE), (VECTORS, VECTOR)):
        for build, _ in cases.values():
            builder = Builder(given)
            build(builder)
            built.update(node.op_type for node in builder.nodes)
    elsewhere = {"Log", "Sqrt", "Sub"}
    untried = {"And", "Or", "Not", "Equal", "GreaterOrEqual", "Less", "LessOrEqual", "Div", "Max", "Round", "ArgMax"}
    untried |= {"Cast", "Dropout", "ReduceMin", "ReduceProd", "ReduceSum"}
    assert set(lower.OPERATORS) - built - elsewhere == untried


def test_logic_and_reductions() -> None:
    builder = Builder(VECTOR)
    zero, one = builder.constant("zero", np.float32(0)), builder.constant("one", np.float32(1))
    less = builder.add("Less", zero, first="input")
    rest = builder.add("LessOrEqual", one, first="input")
    both = builder.add("And", rest, first=less)
    more = builder.add("GreaterOrEqual", one, first="input")
    either = builder.add("Or", more, first=both)
    equal = builder.add("Equal", one, first="input")
    unequal = builder.add("Not", first=equal)
    all_ = builder.add("And", unequal, first=either)
    number = builder.add("Cast", first=all_, to=onnx.TensorProto.FLOAT)
    rounded = builder.add("Round", first="input")
    builder.add("Max", "input", first=rounded)
    builder.add("Div", builder.constant("two", np.float32(2)))
    builder.add("Add", number)
    builder.add("Dropout")
    kept = builder.last
    axes = ints(builder, "axes", 1)
    parts = [builder.add(name, axes, first=kept) for name in ("ReduceMin", "ReduceProd", "ReduceSum")]
    best = builder.add("ArgMax", first=kept, axis=1)
    builder.add("Cast", first=best, to=onnx.TensorProto.FLOAT)
    builder.add("Concat", *parts, axis=1)
    lowered(builder.raw((4,)))
