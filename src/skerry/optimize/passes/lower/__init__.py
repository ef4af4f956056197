"""ONNX graphs to TensorFlow Lite files, operator by operator: no converter, no framework, any batch size.

The graph is run first, which tells every tensor's shape (`examined`). Then each node is translated (`images`,
`elements`, `arrays`) into a network (`network`). Operators that are not in `OPERATORS` are refused by name; other ways
to such a file are in `litert`. Float32 models. Must not live here: precisions (`tflite_quantise`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from skerry.api.kinds.tensors import ModelSignature
from skerry.optimize.passes import examined
from skerry.optimize.passes.lower import arrays, elements, images
from skerry.optimize.passes.lower.context import Node, Translation
from skerry.optimize.passes.lower.network import TENSOR_TYPES

OPERATORS: Mapping[str, Callable[[Node], None]] = {
    **dict.fromkeys(elements.UNARY, elements.unary),
    **dict.fromkeys(elements.BINARY, elements.binary),
    **dict.fromkeys(arrays.REDUCTIONS, arrays.reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), arrays.reshape),
    **dict.fromkeys(("Identity", "Dropout"), Node.pass_on),
    "ArgMax": arrays.arg_max,
    "AveragePool": images.average_pool,
    "BatchNormalization": images.batch_normalization,
    "Cast": elements.cast,
    "Clip": elements.clip,
    "Concat": arrays.concat,
    "Conv": images.convolution,
    "Gather": arrays.gather,
    "Gelu": elements.gelu,
    "Gemm": arrays.gemm,
    "GlobalAveragePool": images.global_average_pool,
    "HardSigmoid": elements.hard_sigmoid,
    "LayerNormalization": arrays.layer_normalization,
    "LeakyRelu": elements.leaky_relu,
    "LogSoftmax": elements.softmax,
    "MatMul": arrays.matmul,
    "MaxPool": images.max_pool,
    "Pad": arrays.pad,
    "Reciprocal": elements.reciprocal,
    "Relu": elements.relu,
    "Resize": images.resize,
    "Slice": arrays.slice_,
    "Softmax": elements.softmax,
    "Split": arrays.split,
    "Transpose": arrays.transpose,
    "Where": elements.where,
}
"""What each ONNX operator becomes."""


def to_tflite(raw: bytes, signature: ModelSignature) -> bytes:
    """Return a serialised graph as a TensorFlow Lite file with the same tensors.

    Raises UnsupportedError that names the node it cannot translate, or the tensor with a size that is not fixed.
    """
    model = examined.parse(raw, signature)
    of = Translation(facts=examined.examine(model, signature))
    network = of.network
    for spec in signature.inputs:
        of.plain[spec.name] = network.tensor(spec.name, of.facts.shapes[spec.name], of.facts.dtypes[spec.name])
    for proto in examined.to_translate(model, of.facts):
        node = Node(proto, of)
        translate = OPERATORS.get(proto.op_type) if proto.domain in examined.STANDARD else None
        if translate is None:
            raise node.unsupported("is an operator")
        _check_types(node, proto, of)
        translate(node)
    sink = Node(onnx.helper.make_node("Identity", [spec.name for spec in signature.outputs], ["end"]), of)
    outputs = [sink.plain(position) for position in range(len(signature.outputs))]
    return network.finished(signature, [of.plain[spec.name] for spec in signature.inputs], outputs)


def _check_types(node: Node, proto: onnx.NodeProto, of: Translation) -> None:
    for name in (*proto.input, *proto.output):
        if name in of.facts.dtypes and of.facts.dtypes[name] not in TENSOR_TYPES:
            raise node.unsupported(f"has a tensor of {of.facts.dtypes[name]}")
