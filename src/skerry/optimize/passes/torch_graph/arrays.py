"""Operators on whole arrays: matrix products, reductions, changes of shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from skerry.optimize.passes.examined import Array
from skerry.optimize.passes.torch_graph.steps import Node

REDUCTIONS: Mapping[str, Callable[..., Any]] = {
    "ReduceL1": lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep, dtype=x.dtype),
    "ReduceL2": lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keep)),
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceMin": torch.amin,
    "ReduceProd": lambda x, axes, keep: _product(x, axes, keep=keep),
    "ReduceSum": lambda x, axes, keep: torch.sum(x, axes, keep, dtype=x.dtype),
    "ReduceSumSquare": lambda x, axes, keep: torch.sum(x * x, axes, keep, dtype=x.dtype),
}


def gemm(node: Node) -> None:
    """Gemm: a linear layer where weights and bias are constant."""
    alpha, beta = float(node.attribute("alpha", 1.0)), float(node.attribute("beta", 1.0))
    weights, bias = node.known(1, "weights") * np.float32(alpha), None
    if node.attribute("transA", 0):
        raise node.unsupported("transposes its input")
    matrix = weights if node.attribute("transB", 0) else weights.T
    if node.has(2):
        given = node.known(2, "bias") * np.float32(beta)
        if given.ndim == 2 and len(given) != 1:
            raise node.unsupported("adds a matrix")
        bias = np.broadcast_to(given.reshape(-1), (len(matrix),))
    if node.dtype() != "float32":
        raise node.unsupported(f"multiplies {node.dtype()}")
    connect(node, matrix, bias)


def matmul(node: Node) -> None:
    """MatMul: a linear layer where the right side is a constant matrix."""
    right = node.constant(1)
    if right is not None and right.ndim == 2 and len(node.shape(0).sizes) >= 2 and right.dtype == np.float32:
        connect(node, right.T, None)
    else:
        node.put(torch.matmul, 0, 1)


def reduce(node: Node) -> None:
    """ReduceMean and its kin; the mean of whole pictures is a pooling, which quantisers know."""
    every = list(range(len(node.shape(0).sizes)))
    axes, keep = node.axes(1, default=every), bool(node.attribute("keepdims", 1))
    if node.has(1):
        node.known(1, "axes")
    if not axes:
        if node.attribute("noop_with_empty_axes", 0):
            return node.pass_on()
        axes = every
    if node.kind == "ReduceMean" and axes == [2, 3] and len(every) == 4 and keep:
        return node.put(partial(functional.adaptive_avg_pool2d, output_size=1), 0)
    if node.kind == "ReduceMean" and not node.dtype().startswith("float"):
        raise node.unsupported("averages integers")
    call = REDUCTIONS[node.kind]
    return node.put(lambda value: call(value, axes, keep), 0)


def arg(node: Node) -> None:
    """ArgMax and ArgMin."""
    if node.attribute("select_last_index", 0):
        raise node.unsupported("prefers the last index")
    call = torch.argmax if node.kind == "ArgMax" else torch.argmin
    axis, keep = int(node.attribute("axis", 0)), bool(node.attribute("keepdims", 1))
    node.put(partial(call, dim=axis, keepdim=keep), 0)


def reshape(node: Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same elements in another shape, as the graph's run showed it."""
    shape = node.output_shape()
    if sum(shape.free) > 1:
        raise node.unsupported("has several sizes that grow with the batch")
    sizes = shape.signature
    node.put(lambda value: torch.reshape(value, sizes), 0)


def transpose(node: Node) -> None:
    """Transpose; of one that is transposed already only the whole change is left."""
    rank = len(node.shape(0).sizes)
    order = tuple(int(axis) for axis in node.attribute("perm", range(rank)[::-1]))
    source, before = node.plan.permuted.get(node.value(0), (node.value(0), tuple(range(rank))))
    order = tuple(before[axis] for axis in order)
    if order == tuple(range(rank)):
        return node.plan.same(node.outputs[0], source)
    node.plan.permuted[node.outputs[0]] = source, order
    return node.put(lambda value: value.permute(order), source)


def concat(node: Node) -> None:
    """Concat."""
    axis = int(node.attribute("axis"))
    node.put(lambda *values: torch.cat(values, axis), *range(len(node.inputs)))


def split(node: Node) -> None:
    """Split."""
    axis = int(node.attribute("axis", 0)) % len(node.shape(0).sizes)
    if node.shape(0).free[axis]:
        raise node.unsupported("cuts the batch")
    sizes = [node.output_shape(position).sizes[axis] for position in range(len(node.outputs))]
    if len(sizes) == 1:
        return node.pass_on()
    return node.put(lambda value: torch.split(value, sizes, axis), 0, writes=node.outputs)


def slice_(node: Node) -> None:
    """Slice with constant bounds, forwards; the batch is not cut."""
    before = node.shape(0)
    rank = len(before.sizes)
    starts, ends = node.known(1, "bounds"), node.known(2, "bounds")
    axes = node.known(3, "axes") if node.has(3) else np.arange(len(starts))
    steps = node.known(4, "steps") if node.has(4) else np.ones(len(starts), np.int64)
    cut = [slice(None)] * rank
    for axis, start, stop, step in zip(axes.tolist(), starts.tolist(), ends.tolist(), steps.tolist(), strict=True):
        axis %= rank  # noqa: PLW2901 - counted from 0
        if before.free[axis] or step < 1:
            raise node.unsupported("cuts the batch" if before.free[axis] else "goes backwards")
        cut[axis] = slice(*slice(start, stop, step).indices(before.sizes[axis]))
    where = tuple(cut)
    node.put(lambda value: value[where], 0)


def pad(node: Node) -> None:
    """Pad by constant amounts: with a constant, or with what is there already."""
    mode, rank = node.attribute("mode", "constant"), len(node.shape(0).sizes)
    given: Array = node.known(1, "amounts").reshape(2, -1).T
    axes = node.known(3, "axes").tolist() if node.has(3) else range(rank)
    sizes = [(0, 0)] * rank
    for axis, (before, after) in zip(axes, given.tolist(), strict=True):
        sizes[axis] = int(before), int(after)
    if mode != "constant":
        return _pad_again(node, mode, sizes)
    filler = float(node.known(2, "filler").item()) if node.has(2) else 0.0
    amounts = [amount for pair in sizes[::-1] for amount in pair]
    return node.put(lambda value: functional.pad(value, amounts, value=filler), 0)


def _pad_again(node: Node, mode: Any, sizes: Sequence[tuple[int, int]]) -> None:
    """Pad with what is there already, one dimension after the other; the modes are NumPy's."""
    if any(amount < 0 for pair in sizes for amount in pair):
        raise node.unsupported("cuts and pads at once")
    before, name = node.shape(0), node.value(0)
    for axis, pair in enumerate(sizes):
        if pair == (0, 0):
            continue
        if before.free[axis]:
            raise node.unsupported("pads the batch")
        which = node.held(np.pad(np.arange(before.sizes[axis]), pair, mode=mode), f"padded{axis}")
        made = f"{node.name}::padding{axis}"
        node.put(partial(_picked, axis), name, which, writes=[made])
        name = made
    node.plan.same(node.outputs[0], name)


def _picked(axis: int, value: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    return torch.index_select(value, axis, which)


def gather(node: Node) -> None:
    """Gather along one axis; indices below 0 count from the end."""
    axis = int(node.attribute("axis", 0)) % len(node.shape(0).sizes)
    which = node.constant(1)
    if which is not None and which.ndim == 0:
        index = int(which)
        return node.put(lambda value: torch.select(value, axis, index), 0)
    before = (slice(None),) * axis
    return node.put(lambda value, indices: value[(*before, indices.to(torch.int64))], 0, 1)


def layer_normalization(node: Node) -> None:
    """LayerNormalization over the last dimensions."""
    if any(node.outputs[1:]):
        raise node.unsupported("gives its statistics")
    sizes = list(node.shape(0).sizes)[int(node.attribute("axis", -1)) % len(node.shape(0).sizes) :]
    parts = [node.known(1, "scale"), node.known(2, "bias") if node.has(2) else np.zeros(sizes, node.dtype())]
    held = [node.held(np.broadcast_to(part, sizes), f"part{index}") for index, part in enumerate(parts)]
    epsilon = float(node.attribute("epsilon", 1e-5))
    node.put(lambda value, scale, bias: functional.layer_norm(value, sizes, scale, bias, epsilon), 0, *held)


def connect(node: Node, matrix: Array, bias: Array | None, value: str | int = 0, writes: Sequence[str] = ()) -> None:
    """Put a linear layer of a value; float32 [outputs, inputs] and [outputs]."""
    outputs, inputs = matrix.shape
    make: Any = torch.nn.utils.skip_init
    layer: torch.nn.Linear = make(torch.nn.Linear, inputs, outputs, bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(matrix, np.float32)))
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(np.array(bias, np.float32)))
    node.put_layer(layer, value, writes=writes)


def _product(value: torch.Tensor, axes: Sequence[int], *, keep: bool) -> torch.Tensor:
    for axis in sorted(axes, reverse=True):  # torch multiplies along one at a time
        value = torch.prod(value, axis, keep, dtype=value.dtype)
    return value
