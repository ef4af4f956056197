"""Operators that order, repeat, sum along and regroup the elements of arrays."""

from __future__ import annotations

from math import prod

import onnx
import torch
from onnx import numpy_helper

from skerry.optimize.passes.examined import Shape
from skerry.optimize.passes.torch_graph.steps import Node, dtype_of


def top_k(node: Node) -> None:
    """TopK of a constant number, sorted."""
    count, axis = int(node.known(1, "number").item()), int(node.attribute("axis", -1))
    largest = bool(node.attribute("largest", 1))
    node.put(lambda value: torch.topk(value, count, axis, largest=largest), 0, writes=node.outputs)


def cumulative_sum(node: Node) -> None:
    """CumSum, from either end, with or without the element itself."""
    axis = int(node.known(1, "axis").item())
    reverse, exclusive = bool(node.attribute("reverse", 0)), bool(node.attribute("exclusive", 0))

    def call(value: torch.Tensor) -> torch.Tensor:
        given = torch.flip(value, [axis]) if reverse else value
        made = torch.cumsum(given, axis, dtype=value.dtype)
        made = made - given if exclusive else made
        return torch.flip(made, [axis]) if reverse else made

    node.put(call, 0)


def tile(node: Node) -> None:
    """Tile by constant numbers."""
    repeats = [int(count) for count in node.known(1, "repeats").tolist()]
    if any(free and count != 1 for free, count in zip(node.shape(0).free, repeats, strict=True)):
        raise node.unsupported("repeats the batch")
    node.put(lambda value: value.repeat(repeats), 0)


def expand(node: Node) -> None:
    """Expand, also of one thing to each sample of the batch."""
    before, after = node.shape(0), node.output_shape()
    free = (*(False,) * (len(after.free) - len(before.free)), *before.free)
    if not any(grown and not was for grown, was in zip(after.free, free, strict=True)):
        sizes = after.signature
        return node.put(lambda value: value.expand(sizes), 0)
    if node.dtype() == "bool":
        raise node.unsupported("repeats truth values for each sample of the batch")
    return node.put(torch.add, 0, _filled(node, after, 0))


def constant_of_shape(node: Node) -> None:
    """ConstantOfShape that grows with the batch; any other is a constant already."""
    value = node.attribute("value")
    filler = 0.0 if value is None else _number(value)
    node.put(lambda made: made, _filled(node, node.output_shape(), filler))


def einsum(node: Node) -> None:
    """Einsum."""
    equation = str(node.attribute("equation"))
    node.put(lambda *values: torch.einsum(equation, *values), *range(len(node.inputs)))


def depth_to_space(node: Node) -> None:
    """DepthToSpace: channels into pixels, in either order."""
    block, (batch, channels, height, width) = int(node.attribute("blocksize")), node.shape(0).signature
    inner = channels // block**2
    if node.attribute("mode", "DCR") == "DCR":
        parts, order = (batch, block, block, inner, height, width), (0, 3, 4, 1, 5, 2)
    else:
        parts, order = (batch, inner, block, block, height, width), (0, 1, 4, 2, 5, 3)
    after = node.output_shape().signature
    node.put(lambda value: torch.reshape(torch.reshape(value, parts).permute(order), after), 0)


def space_to_depth(node: Node) -> None:
    """SpaceToDepth: pixels into channels."""
    block, (batch, channels, height, width) = int(node.attribute("blocksize")), node.shape(0).signature
    parts, after = (batch, channels, height // block, block, width // block, block), node.output_shape().signature
    node.put(lambda value: torch.reshape(torch.reshape(value, parts).permute(0, 3, 5, 1, 2, 4), after), 0)


def _filled(node: Node, shape: Shape, filler: float) -> str:
    """Make an array of one number, of the output's type, with as many entries as the batch has; return its name.

    One size may grow with the batch, as the batch does.
    """
    batch = node.plan.batch
    if batch is None or sum(shape.free) != 1 or shape.sizes[shape.free.index(True)] != 1:
        raise node.unsupported("makes something of another size for each batch")
    dtype, name = dtype_of(node.dtype()), f"{node.name}::filled"
    rest = prod(node.facts.shapes[batch].sizes[1:])
    single, sizes = [-1 if free else 1 for free in shape.free], shape.signature

    def call(value: torch.Tensor) -> torch.Tensor:
        one = torch.reshape(value, (-1, rest))[:, :1]
        return torch.reshape(torch.full_like(one, filler, dtype=dtype), single).expand(sizes)

    node.put(call, batch, writes=[name])
    return name


def _number(tensor: onnx.TensorProto) -> float:
    return float(numpy_helper.to_array(tensor).item())
