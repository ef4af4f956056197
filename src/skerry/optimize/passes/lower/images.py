"""Operators on images: convolution, pooling, resizing. All compute with channels last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from skerry.optimize.passes.examined import Array, Shape
from skerry.optimize.passes.lower.context import Node
from skerry.optimize.passes.lower.network import TO_LAST, Value

_NONE = schema.ActivationFunctionType.NONE


def convolution(node: Node) -> None:
    """Conv with constant weights, on images; grouped and depthwise too."""
    weights = node.known(1, "weights").astype(np.float32)
    if weights.ndim != 4:
        raise node.unsupported(f"convolves over {weights.ndim - 2} dimensions")
    groups, channels = int(node.attribute("group", 1)), node.shape(0).sizes[1]
    strides, dilations = _two(node, "strides"), _two(node, "dilations")
    image, padding = _padded(node, weights.shape[2:], strides, dilations, filler=0.0)
    bias = node.constant(2)
    if node.has(2) and bias is None:
        raise node.unsupported("computes its bias")
    vector = node.net.constant(np.zeros(len(weights), np.float32) if bias is None else bias, f"{node.inputs[1]}:bias")
    depthwise = groups == channels and groups > 1
    options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
    options.padding, options.fusedActivationFunction = padding, _NONE
    options.strideH, options.strideW = strides
    options.dilationHFactor, options.dilationWFactor = dilations
    if depthwise:
        options.depthMultiplier = len(weights) // channels
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    kernel = node.net.constant(np.ascontiguousarray(weights.transpose(order)), node.inputs[1])
    kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    shape = node.output_shape().permuted(TO_LAST)
    node.give_last(node.net.put(kind, [image, kernel, vector], shape, name=node.outputs[0], options=options))


def max_pool(node: Node) -> None:
    """MaxPool on images."""
    if len(node.outputs) > 1:
        raise node.unsupported("gives indices")
    if any(size != 1 for size in _two(node, "dilations")):
        raise node.unsupported("is dilated")
    lowest = 0.0 if node.net.is_activated(node.last(0)) else float(np.finfo(np.float32).min)
    _pool(node, "MAX_POOL_2D", filler=lowest)


def average_pool(node: Node) -> None:
    """AveragePool on images; with padding that does not count only where TensorFlow Lite pads alike."""
    if any(size != 1 for size in _two(node, "dilations")):
        raise node.unsupported("is dilated")
    counted = bool(node.attribute("count_include_pad", 0))
    _pool(node, "AVERAGE_POOL_2D", filler=0.0 if counted else None, own=not counted)


def global_average_pool(node: Node) -> None:
    """GlobalAveragePool on images."""
    if len(node.shape(0).sizes) != 4:
        raise node.unsupported("does not work on images")
    options = schema.ReducerOptionsT()
    options.keepDims = True
    inputs = [node.last(0), node.net.integers([1, 2])]
    shape = node.output_shape().permuted(TO_LAST)
    node.give_last(node.net.put("MEAN", inputs, shape, name=node.outputs[0], options=options))


def resize(node: Node) -> None:
    """Resize of height and width: nearest or bilinear, as PyTorch and TensorFlow do it."""
    mode, way = node.attribute("mode", "nearest"), node.attribute("coordinate_transformation_mode", "half_pixel")
    before, after = node.shape(0), node.output_shape()
    if len(after.sizes) != 4 or before.sizes[:2] != after.sizes[:2]:
        raise node.unsupported("resizes more than height and width")
    nearest = mode == "nearest" and way == "asymmetric" and node.attribute("nearest_mode") == "floor"
    bilinear = mode == "linear" and way in {"half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"}
    if not (nearest or bilinear):
        raise node.unsupported(f"resizes in the mode {mode}, {way}")
    options = schema.ResizeNearestNeighborOptionsT() if nearest else schema.ResizeBilinearOptionsT()
    options.alignCorners, options.halfPixelCenters = way == "align_corners", way.endswith("half_pixel")
    kind = "RESIZE_NEAREST_NEIGHBOR" if nearest else "RESIZE_BILINEAR"
    inputs = [node.last(0), node.net.integers(after.sizes[2:])]
    node.give_last(node.net.put(kind, inputs, after.permuted(TO_LAST), name=node.outputs[0], options=options))


def batch_normalization(node: Node) -> None:
    """BatchNormalization that no convolution has taken in: a product and a sum per channel."""
    scale, offset, mean, variance = (node.known(i, "parameters").astype(np.float64) for i in range(1, 5))
    factor = scale / np.sqrt(variance + float(node.attribute("epsilon", 1e-5)))
    constants = (factor.astype(np.float32), (offset - mean * factor).astype(np.float32))
    images = len(node.shape(0).sizes) == 4
    if not images and len(node.shape(0).sizes) != 2:
        raise node.unsupported("normalises neither images nor vectors")
    value = node.last(0) if images else node.plain(0)
    for kind, constant in zip(("MUL", "ADD"), constants, strict=True):
        options = schema.MulOptionsT() if kind == "MUL" else schema.AddOptionsT()
        options.fusedActivationFunction = _NONE
        inputs = [value, node.net.constant(constant, f"{node.inputs[1]}:{kind}")]
        value = node.net.put(kind, inputs, value.shape, name=f"{node.outputs[0]}:{kind}", options=options)
    (node.give_last if images else node.give_plain)(value)


def _pool(node: Node, kind: str, *, filler: float | None, own: bool = True) -> None:
    window, strides = _two(node, "kernel_shape"), _two(node, "strides")
    image, padding = _padded(node, window, strides, (1, 1), filler=filler, own=own)
    options = schema.Pool2DOptionsT()
    options.padding, options.fusedActivationFunction = padding, _NONE
    options.strideH, options.strideW = strides
    options.filterHeight, options.filterWidth = window
    shape = node.output_shape().permuted(TO_LAST)
    node.give_last(node.net.put(kind, [image], shape, name=node.outputs[0], options=options))


def _two(node: Node, name: str) -> tuple[int, int]:
    values = node.attribute(name, (1, 1))
    if len(values) != 2:
        raise node.unsupported(f"works over {len(values)} dimensions")
    return int(values[0]), int(values[1])


def _padded(
    node: Node,
    window: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    *,
    filler: float | None,
    own: bool = True,
) -> tuple[Value, int]:
    """Return the image, padded if need be, and the padding that is left to the operator.

    `filler` is None where what is padded must not count: only the operator's own padding will do then. Where it must
    count, `own` is False.
    """
    amounts = [_amounts(node, axis, int(window[axis]), strides[axis], dilations[axis]) for axis in range(len(window))]
    image = node.last(0)
    if all(amount == (0, 0) for amount, _ in amounts):
        return image, schema.Padding.VALID
    if own and all(amount == same for amount, same in amounts):
        return image, schema.Padding.SAME
    if filler is None:
        raise node.unsupported("averages without its padding, and is not padded evenly")
    sizes = np.zeros((4, 2), np.int32)
    sizes[1], sizes[2] = (amount for amount, _ in amounts)
    return pad(node, image, sizes, filler=filler), schema.Padding.VALID


def pad(node: Node, value: Value, sizes: Array, *, filler: float) -> Value:
    """Pad a value, (before, after) for each dimension."""
    grown = Shape(
        tuple(size + int(before + after) for size, (before, after) in zip(value.shape.sizes, sizes, strict=True)),
        value.shape.free,
    )
    inputs = [value, node.net.constant(sizes.astype(np.int32), "padding")]
    name = f"{node.outputs[0]}:padded"
    if filler == 0.0:
        return node.net.put("PAD", inputs, grown, name=name, options=schema.PadOptionsT())
    inputs.append(node.net.constant(np.array([filler], value.dtype), "filler"))
    return node.net.put("PADV2", inputs, grown, name=name, options=schema.PadV2OptionsT())


def _amounts(node: Node, axis: int, window: int, stride: int, dilation: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the padding of one axis, (before, after), and what TensorFlow's SAME would be.

    What lies behind follows from the output's size: automatic padding and rounding up need no case of their own.
    """
    given, wanted = node.shape(0).sizes[2 + axis], node.output_shape().sizes[2 + axis]
    needed = max((wanted - 1) * stride + (window - 1) * dilation + 1 - given, 0)
    automatic = node.attribute("auto_pad", "NOTSET")
    pads = node.attribute("pads", (0, 0, 0, 0))
    before = {"SAME_UPPER": needed // 2, "SAME_LOWER": needed - needed // 2, "VALID": 0}.get(automatic, int(pads[axis]))
    same = (needed // 2, needed - needed // 2) if wanted == -(-given // stride) else (-1, -1)
    return (before, max(needed - before, 0)), same
