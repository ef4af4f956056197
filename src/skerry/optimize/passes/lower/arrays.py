"""Operators on whole arrays: matrix products, reductions, changes of shape. They compute in ONNX's own order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from skerry.optimize.passes.examined import Array, Shape
from skerry.optimize.passes.lower import images
from skerry.optimize.passes.lower.context import Node
from skerry.optimize.passes.lower.network import TO_LAST, Value

_NONE = schema.ActivationFunctionType.NONE
REDUCTIONS: Mapping[str, str] = {
    "ReduceMax": "REDUCE_MAX",
    "ReduceMean": "MEAN",
    "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
    "ReduceSum": "SUM",
}


def gemm(node: Node) -> None:
    """Gemm with constant weights and bias: a fully connected layer."""
    weights = node.known(1, "weights") * np.float32(node.attribute("alpha", 1.0))
    if node.attribute("transA", 0):
        raise node.unsupported("transposes its input")
    matrix = weights if node.attribute("transB", 0) else weights.T
    bias = node.known(2, "bias") * np.float32(node.attribute("beta", 1.0)) if node.has(2) else np.zeros(1, np.float32)
    if bias.ndim == 2 and len(bias) != 1:
        raise node.unsupported("adds a matrix")
    _connect(node, matrix, np.broadcast_to(bias.reshape(-1), (len(matrix),)))


def matmul(node: Node) -> None:
    """MatMul: a fully connected layer where the right side is a constant matrix, else a product of batches."""
    right = node.constant(1)
    if right is not None and right.ndim == 2 and len(node.shape(0).sizes) >= 2:
        return _connect(node, right.T, None)
    if min(len(node.shape(i).sizes) for i in (0, 1)) < 2:
        raise node.unsupported("multiplies a vector")
    options = schema.BatchMatMulOptionsT()
    inputs = [node.plain(0), node.plain(1)]
    made = node.net.put("BATCH_MATMUL", inputs, node.output_shape(), name=node.outputs[0], options=options)
    return node.give_plain(made)


def reduce(node: Node) -> None:
    """ReduceMean and its kin."""
    axes = node.axes(1, default=range(len(node.shape(0).sizes)))
    options = schema.ReducerOptionsT()
    keep = options.keepDims = bool(node.attribute("keepdims", 1))
    shape = node.output_shape()
    if node.is_last() and keep:
        inputs = [node.last(0), node.net.integers([TO_LAST.index(axis) for axis in axes])]
        shape = shape.permuted(TO_LAST)
        made = node.net.put(REDUCTIONS[node.kind], inputs, shape, name=node.outputs[0], options=options)
        return node.give_last(made)
    inputs = [node.plain(0), node.net.integers(axes)]
    return node.give_plain(node.net.put(REDUCTIONS[node.kind], inputs, shape, name=node.outputs[0], options=options))


def arg_max(node: Node) -> None:
    """ArgMax."""
    if node.attribute("select_last_index", 0):
        raise node.unsupported("prefers the last index")
    axis = int(node.attribute("axis", 0)) % len(node.shape(0).sizes)
    options = schema.ArgMaxOptionsT()
    options.outputType = schema.TensorType.INT64
    before = node.shape(0)
    kept = [i for i in range(len(before.sizes)) if i != axis]
    inputs = [node.plain(0), node.net.integers([axis])]
    shape = before.permuted(kept)
    made = node.net.put("ARG_MAX", inputs, shape, name=node.outputs[0], dtype="int64", options=options)
    if node.attribute("keepdims", 1):
        made = _reshape(node, made, node.output_shape())
    node.give_plain(made)


def reshape(node: Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same elements in another shape, as the graph's run showed it."""
    node.give_plain(_reshape(node, node.plain(0), node.output_shape()))


def transpose(node: Node) -> None:
    """Transpose."""
    rank = len(node.shape(0).sizes)
    order = [int(axis) for axis in node.attribute("perm", range(rank)[::-1])]
    node.give_plain(node.net.transposed(node.plain(0), order, name=node.outputs[0]))


def concat(node: Node) -> None:
    """Concat."""
    rank = len(node.output_shape().sizes)
    axis = int(node.attribute("axis")) % rank
    options = schema.ConcatenationOptionsT()
    options.fusedActivationFunction = _NONE
    last = node.is_last() and all(node.constant(i) is None for i in range(len(node.inputs)))
    options.axis = TO_LAST.index(axis) if last else axis
    read = node.last if last else node.plain
    shape = node.output_shape().permuted(TO_LAST) if last else node.output_shape()
    inputs = [read(position) for position in range(len(node.inputs))]
    made = node.net.put("CONCATENATION", inputs, shape, name=node.outputs[0], options=options)
    (node.give_last if last else node.give_plain)(made)


def split(node: Node) -> None:
    """Split."""
    axis = int(node.attribute("axis", 0)) % len(node.shape(0).sizes)
    shapes = [node.output_shape(position) for position in range(len(node.outputs))]
    value = node.plain(0)
    outputs = [node.net.tensor(name, shape, value.dtype) for name, shape in zip(node.outputs, shapes, strict=True)]
    options = schema.SplitVOptionsT()
    options.numSplits = len(outputs)
    sizes = node.net.integers([shape.sizes[axis] for shape in shapes])
    node.net.put_many("SPLIT_V", [value, sizes, node.net.constant(np.array(axis, np.int32))], outputs, options=options)
    for position, output in enumerate(outputs):
        node.give_plain(output, position)


def slice_(node: Node) -> None:
    """Slice with constant bounds; the batch is not cut."""
    before = node.shape(0)
    rank = len(before.sizes)
    starts, ends = node.known(1, "bounds"), node.known(2, "bounds")
    axes = node.known(3, "axes") if node.has(3) else np.arange(len(starts))
    steps = node.known(4, "steps") if node.has(4) else np.ones(len(starts), np.int64)
    begin, end, stride = [0] * rank, list(before.sizes), [1] * rank
    whole = (1 << rank) - 1
    for axis, start, stop, step in zip(axes.tolist(), starts.tolist(), ends.tolist(), steps.tolist(), strict=True):
        axis %= rank  # noqa: PLW2901 - counted from 0
        if before.free[axis] or step < 1:
            raise node.unsupported("cuts the batch" if before.free[axis] else "goes backwards")
        begin[axis], end[axis], _ = slice(start, stop, step).indices(before.sizes[axis])
        stride[axis] = step
        whole &= ~(1 << axis)
    options = schema.StridedSliceOptionsT()
    options.beginMask = options.endMask = whole
    inputs = [node.plain(0), node.net.integers(begin), node.net.integers(end), node.net.integers(stride)]
    made = node.net.put("STRIDED_SLICE", inputs, node.output_shape(), name=node.outputs[0], options=options)
    node.give_plain(made)


def pad(node: Node) -> None:
    """Pad with a constant, by constant amounts."""
    mode = node.attribute("mode", "constant")
    if mode != "constant" or node.has(3):
        raise node.unsupported(f"pads in the mode {mode}" if mode != "constant" else "names the axes it pads")
    amounts = np.asarray(node.attribute("pads") if node.opset < 11 else node.known(1, "amounts"))
    given = node.attribute("value", 0.0) if node.opset < 11 else node.constant(2)
    filler = float(given) if given is not None else 0.0
    sizes: Array = amounts.reshape(2, -1).T
    if (sizes < 0).any():
        raise node.unsupported("cuts off instead of padding")
    if node.is_last():
        node.give_last(images.pad(node, node.last(0), sizes[list(TO_LAST)], filler=filler))
    else:
        node.give_plain(images.pad(node, node.plain(0), sizes, filler=filler))


def gather(node: Node) -> None:
    """Gather along one axis."""
    options = schema.GatherOptionsT()
    options.axis = int(node.attribute("axis", 0)) % len(node.shape(0).sizes)
    inputs = [node.plain(0), node.plain(1)]
    made = node.net.put(
        "GATHER", inputs, node.output_shape(), name=node.outputs[0], dtype=node.dtype(), options=options
    )
    node.give_plain(made)


def layer_normalization(node: Node) -> None:
    """LayerNormalization over the last dimension, from its parts."""
    value, rank = node.plain(0), len(node.shape(0).sizes)
    if int(node.attribute("axis", -1)) % rank != rank - 1 or len(node.outputs) > 1:
        raise node.unsupported("goes over more than the last dimension, or gives its statistics")
    narrow = Shape((*value.shape.sizes[:-1], 1), (*value.shape.free[:-1], False))
    mean = _mean(node, value, narrow)
    centred = _arithmetic(node, "SUB", value, mean, value.shape)
    variance = _mean(node, _arithmetic(node, "MUL", centred, centred, value.shape), narrow)
    epsilon = node.net.constant(np.array(node.attribute("epsilon", 1e-5), np.float32))
    name = f"{node.outputs[0]}:rsqrt"
    scale = node.net.put("RSQRT", [_arithmetic(node, "ADD", variance, epsilon, narrow)], narrow, name=name)
    made = _arithmetic(node, "MUL", centred, scale, value.shape)
    made = _arithmetic(node, "MUL", made, node.plain(1), value.shape)
    node.give_plain(_arithmetic(node, "ADD", made, node.plain(2), value.shape) if node.has(2) else made)


def _mean(node: Node, value: Value, shape: Shape) -> Value:
    options = schema.ReducerOptionsT()
    options.keepDims = True
    inputs = [value, node.net.integers([len(shape.sizes) - 1])]
    return node.net.put("MEAN", inputs, shape, name=f"{node.outputs[0]}:mean", options=options)


def _arithmetic(node: Node, kind: str, one: Value, other: Value, shape: Shape) -> Value:
    options = {"ADD": schema.AddOptionsT, "SUB": schema.SubOptionsT, "MUL": schema.MulOptionsT}[kind]()
    options.fusedActivationFunction = _NONE
    return node.net.put(kind, [one, other], shape, name=f"{node.outputs[0]}:{kind}", options=options)


def _connect(node: Node, matrix: Array, bias: Array | None) -> None:
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = _NONE
    options.keepNumDims = len(node.shape(0).sizes) > 2
    weights = node.net.constant(np.ascontiguousarray(matrix, np.float32), node.inputs[1])
    vector = np.zeros(len(matrix), np.float32) if bias is None else np.ascontiguousarray(bias, np.float32)
    inputs = [node.plain(0), weights, node.net.constant(vector, f"{node.inputs[1]}:bias")]
    shape = node.output_shape()
    node.give_plain(node.net.put("FULLY_CONNECTED", inputs, shape, name=node.outputs[0], options=options))


def _reshape(node: Node, value: Value, shape: Shape) -> Value:
    if sum(shape.free) > 1:
        raise node.unsupported("has several sizes that grow with the batch")
    return node.net.reshaped(value, shape, name=node.outputs[0])
