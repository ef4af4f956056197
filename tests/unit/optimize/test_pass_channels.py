"""Structured pruning: what is removed is really gone, what must stay stays, and the rest computes as before."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.unit.optimize.graphs import Builder

from skerry.api.errors import UnsupportedError
from skerry.optimize import evaluate, graph
from skerry.optimize.passes import channels

PICTURES = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)
ROWS = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)


def shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}


def silence(model: onnx.ModelProto, name: str, dead: list[int]) -> None:
    """Set some entries of axis 0 to zero: channels that do nothing."""
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    array = numpy_helper.to_array(tensor).copy()
    array[dead] = 0
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def vgg(*, depthwise: bool = False, flatten: str = "Flatten") -> onnx.ModelProto:
    """Convolutions, normalisation, pooling, flattening, fully connected layers: one chain from end to end."""
    built = Builder([3, 8, 8])
    built.conv(3, 12)
    parts = {"scale": 1.5, "shift": 0.25, "mean": 0.0, "var": 2.0}
    built.add(
        "BatchNormalization", *(built.constant(k, np.full(12, v, np.float32)) for k, v in parts.items()), epsilon=1e-5
    )
    built.add("Relu")
    if depthwise:
        built.conv(12, 12, group=12)
        built.add("Clip", built.constant("low", np.float32(0)), built.constant("high", np.float32(6)))
    built.conv(12, 10)
    built.add("Mul", built.constant("gain", np.linspace(1, 2, 10, dtype=np.float32).reshape(10, 1, 1)))
    built.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    if flatten == "Flatten":
        built.add("Flatten")
    else:
        built.add("Reshape", built.constant("shape", np.array([-1, 160])), allowzero=1)
    built.gemm(160, 14)
    built.add("Relu")
    built.gemm(14, 5)
    return built.model([5])


@pytest.mark.parametrize("flatten", ["Flatten", "Reshape"])
@pytest.mark.parametrize("depthwise", [False, True])
def test_every_layer_of_a_chain_loses_its_channels(flatten: str, depthwise: bool) -> None:
    model = vgg(depthwise=depthwise, flatten=flatten)
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    last, fully = convolutions[-1], next(n for n in model.graph.node if n.op_type == "Gemm")
    raw, removed = channels.remove(model, 0.5, {"input": PICTURES})
    assert removed.layers[last.name] == (10, 5)
    assert removed.layers[fully.name] == (14, 7)
    assert removed.layers[convolutions[0].name] == (12, 6)
    pruned = graph.parse(raw)
    assert shapes(pruned)[last.input[1]][0] == 5
    assert shapes(pruned)[fully.input[1]] == [7, 80]
    assert graph.signature(pruned) == graph.signature(model)
    assert len(raw) < model.ByteSize() / 1.8
    assert removed.parameters[1] == sum(np.prod(d) for n, d in shapes(pruned).items() if n != "shape")
    if depthwise:
        assert shapes(pruned)[convolutions[1].input[1]][:2] == [6, 1]
        (group,) = [
            a.i for n in pruned.graph.node if n.name == convolutions[1].name for a in n.attribute if a.name == "group"
        ]
        assert group == 6


@pytest.mark.parametrize("flatten", ["Flatten", "Reshape"])
def test_channels_that_do_nothing_go_first_and_the_answers_stay(flatten: str) -> None:
    model = vgg(depthwise=True, flatten=flatten)
    layers = [node for node in model.graph.node if node.op_type in {"Conv", "Gemm"}]
    for node, width in zip(layers, (12, 12, 10, 14), strict=False):
        for name in node.input[1:]:
            silence(model, name, list(range(1, width, 2)))
    silence(model, "shift", list(range(1, 12, 2)))
    raw, removed = channels.remove(model, 0.5, {"input": PICTURES})
    assert [pair for _, pair in sorted(removed.layers.items())] == [(12, 6), (10, 5), (14, 7)]
    ours, theirs = evaluate.Runner(raw).predict(PICTURES), evaluate.Runner(graph.serialise(model)).predict(PICTURES)
    assert evaluate.numerical_error(ours, theirs).max_abs < 1e-5


def test_what_is_left_computes_exactly_as_before() -> None:
    built = Builder([20])
    built.gemm(20, 16)
    built.add("Relu")
    built.gemm(16, 4)
    model = built.model([4])
    for name in ("fc0.weight", "fc0.bias"):
        silence(model, name, [0, 3, 5, 6, 9, 11, 14, 15])
    raw, removed = channels.remove(model, 0.5, {"input": ROWS})
    assert removed.layers == {"n_gemm0": (16, 8)}
    ours, theirs = evaluate.Runner(raw).predict(ROWS), evaluate.Runner(graph.serialise(model)).predict(ROWS)
    assert evaluate.numerical_error(ours, theirs).max_abs < 1e-6
    assert "8 of 16 channels removed in 1 layers" in removed.summary


def test_a_multiple_of_eight_stays_where_there_are_many() -> None:
    built = Builder([20])
    built.gemm(20, 40)
    built.gemm(40, 4)
    assert channels.remove(built.model([4]), 0.3, {"input": ROWS})[1].layers == {"n_gemm0": (40, 32)}
    assert channels.remove(built.model([4]), 0.99, {"input": ROWS})[1].layers == {"n_gemm0": (40, 8)}


def test_branches_and_outputs_keep_their_channels() -> None:
    built = Builder([3, 8, 8])
    before = built.conv(3, 6)
    built.conv(6, 8)  # only this one's channels are used once
    built.add("Relu")
    inner = built.conv(8, 6)
    built.add("Add", before, first=inner)
    built.conv(6, 2)
    model = built.model([2, 8, 8])
    raw, removed = channels.remove(model, 0.5, {"input": PICTURES})
    assert removed.layers == {"n_conv1": (8, 4)}
    assert evaluate.Runner(raw).predict(PICTURES)[0].shape == (6, 2, 8, 8)


def test_shared_weights_and_operators_across_channels_stop_it() -> None:
    shared = Builder([20])
    weight = shared.weight("w", 20, 20)
    shared.add("MatMul", weight)
    shared.add("Relu")
    shared.add("MatMul", weight)
    across = Builder([20])
    across.gemm(20, 16)
    across.add("Softmax", axis=1)
    across.gemm(16, 4)
    planes = Builder([3, 8, 8])
    planes.conv(3, 8)
    planes.add("Transpose", perm=[0, 1, 3, 2])
    planes.conv(8, 2)
    for built, out, samples in ((shared, [20], ROWS), (across, [4], ROWS), (planes, [2, 8, 8], PICTURES)):
        with pytest.raises(UnsupportedError, match="none can be removed"):
            channels.remove(built.model(out), 0.5, {"input": samples})


@pytest.mark.parametrize("keepdims", [0, 1])
def test_global_pooling_is_passed(keepdims: int) -> None:
    built = Builder([3, 8, 8])
    built.conv(3, 8)
    built.add("ReduceMean", built.constant("axes", np.array([2, 3])), keepdims=keepdims)
    if keepdims:
        built.add("Reshape", built.constant("shape", np.array([-1, 8])))
    built.gemm(8, 2)
    raw, removed = channels.remove(built.model([2]), 0.5, {"input": PICTURES})
    assert removed.layers == {"n_conv0": (8, 4)}
    assert evaluate.Runner(raw).predict(PICTURES)[0].shape == (6, 2)


def test_the_same_graph_gives_the_same_bytes() -> None:
    made = {channels.remove(vgg(), 0.4, {"input": PICTURES})[0] for _ in range(3)}
    assert len(made) == 1
