"""int4: weights of matrix products in 4 bits, in blocks with one scale each; activations stay float32.

Made for `com.microsoft.MatMulNBits` (the contrib operators' documentation has its layout):
B is uint8 [N, blocks, blockSize / 2], low half first, a block runs along K; scales are float32 [N * blocks]; a weight
is (q - 8) * scale. Must not live here: any other operator, for which the engine has no such kernel.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

from skerry.api.errors import UnsupportedError
from skerry.optimize import graph
from skerry.optimize.arrays import Array

DOMAIN = "com.microsoft"
LEAST_ONNXRUNTIME = "1.16"
"""The first release that has the operator."""
ZERO = 8
"""The stored value that means 0."""
LEAST_ROWS = 32
"""Matrices with fewer rows than this have more scale than weight; they stay as they are."""


def convert(model: onnx.ModelProto, *, block_size: int, exclude: Collection[str] = ()) -> bytes:
    """Put the constant matrices of MatMul and Gemm into 4 bits. Raises UnsupportedError when there is none."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    weights = {tensor.name: tensor for tensor in made.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    changed = 0
    for node in made.graph.node:
        matrix = None if node.name in exclude else _matrix(node, weights)
        if matrix is None:
            nodes.append(node)
            continue
        changed += 1
        nodes.extend(_replace(made.graph, node, matrix, block_size))
    if not changed:
        cause = "has no matrix product with constant weights, which is all that 4 bits are for"
        raise UnsupportedError(cause, element="model", hint="leave int4 out of --variants")
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    _drop_unused(made.graph)
    if all(entry.domain != DOMAIN for entry in made.opset_import):
        made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return graph.serialise(made)


def pack(matrix: Array, block_size: int) -> tuple[Array, Array]:
    """Round a float matrix [K, N] to 4 bits: (uint8 [N, blocks, blockSize / 2], float32 scales [N * blocks])."""
    rows, columns = matrix.shape
    blocks = -(-rows // block_size)
    padded = np.zeros((columns, blocks * block_size), np.float32)
    padded[:, :rows] = matrix.T
    grouped = padded.reshape(columns, blocks, block_size)
    # The end that is farther from 0 becomes -8: one step more than +7 can hold.
    extreme = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=2, keepdims=True), axis=2)
    scales = (extreme / -ZERO).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(scales == 0, 0, np.rint(grouped / scales))
    values = (np.clip(steps, -ZERO, ZERO - 1) + ZERO).astype(np.uint8)
    return values[..., ::2] | (values[..., 1::2] << 4), scales.reshape(-1)


def _matrix(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> Array | None:
    """Return the constant matrix [K, N] that a node multiplies with, None when 4 bits are not for it."""
    if node.op_type not in {"Gemm", "MatMul"} or node.domain not in {"", "ai.onnx"} or node.input[1] not in weights:
        return None
    tensor = weights[node.input[1]]
    if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != 2:
        return None
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
        return None
    matrix: Array = numpy_helper.to_array(tensor)
    matrix = matrix.T if attributes.get("transB", 0) else matrix
    return matrix if len(matrix) >= LEAST_ROWS else None


def _replace(target: onnx.GraphProto, node: onnx.NodeProto, matrix: Array, block_size: int) -> list[onnx.NodeProto]:
    packed, scales = pack(matrix, block_size)
    names = [f"{node.name}.int4", f"{node.name}.scales"]
    target.initializer.extend(numpy_helper.from_array(a, name) for a, name in zip((packed, scales), names, strict=True))
    biased = node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] != ""
    product = f"{node.name}.product" if biased else node.output[0]
    nodes = [
        helper.make_node(
            "MatMulNBits",
            [node.input[0], *names],
            [product],
            name=node.name,
            domain=DOMAIN,
            K=len(matrix),
            N=matrix.shape[1],
            bits=4,
            block_size=block_size,
        )
    ]
    if biased:
        nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}.bias"))
    return nodes


def _drop_unused(target: onnx.GraphProto) -> None:
    used = {name for node in target.node for name in node.input} | {value.name for value in target.output}
    kept = [tensor for tensor in target.initializer if tensor.name in used]
    del target.initializer[:]
    target.initializer.extend(kept)
