"""ONNX graphs to TensorFlow Lite files, operator by operator: no converter, no framework, any batch size.

The graph is run twice, with one sample and with two: that tells every tensor's shape, and which sizes grow with the
batch. Then each node is translated (`images`, `elements`, `arrays`) into a network (`network`). Operators that are not
in `OPERATORS` are refused by name; other ways to such a file are in `litert`. Float32 models. Must not live here:
precisions (`tflite_quantise`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.optimize.foreign import first_line
from skerry.optimize.passes.lower import arrays, elements, images
from skerry.optimize.passes.lower.context import Node, Translation
from skerry.optimize.passes.lower.network import TENSOR_TYPES, Array, Shape

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

_SHAPE_INPUTS = {"Reshape": (1,), "Resize": (1, 2, 3), "Squeeze": (1,), "Unsqueeze": (1,), "Split": (1,)}
"""Inputs that only say a shape, which the run has shown."""
_MOST_CONSTANT = 64 * 1024**2
_DATATYPES = {"FP32": "float32", "FP16": "float16", "FP64": "float64", "BOOL": "bool"}


def to_tflite(raw: bytes, signature: ModelSignature) -> bytes:
    """Return a serialised graph as a TensorFlow Lite file with the same tensors.

    Raises UnsupportedError that names the node it cannot translate, or the tensor with a size that is not fixed.
    """
    model = onnx.load_model_from_string(raw)
    if {spec.name for spec in signature.inputs} != {value.name for value in _inputs(model)}:
        raise InvalidError("has other inputs than the signature", element="model")
    needed = _needed(model)
    of = _examined(model, signature)
    network = of.network
    for spec in signature.inputs:
        of.plain[spec.name] = network.tensor(spec.name, of.shapes[spec.name], of.dtypes[spec.name])
    for proto in model.graph.node:
        if not needed.intersection(proto.output) or set(proto.output) <= set(of.constants):
            continue
        node = Node(proto, of)
        translate = OPERATORS.get(proto.op_type) if proto.domain in {"", "ai.onnx"} else None
        if translate is None:
            raise node.unsupported("is an operator")
        _check_types(node, proto, of)
        translate(node)
    sink = Node(onnx.helper.make_node("Identity", [spec.name for spec in signature.outputs], ["end"]), of)
    outputs = [sink.plain(position) for position in range(len(signature.outputs))]
    return network.finished(signature, [of.plain[spec.name] for spec in signature.inputs], outputs)


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _needed(model: onnx.ModelProto) -> set[str]:
    """Return the tensors that the outputs depend on, apart from shapes."""
    needed = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            skipped = _SHAPE_INPUTS.get(node.op_type, ())
            needed.update(name for position, name in enumerate(node.input) if name and position not in skipped)
    return needed


def _examined(model: onnx.ModelProto, signature: ModelSignature) -> Translation:
    """Run the graph with one sample and with two, and note shapes, types and what does not depend on the inputs."""
    fixed = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    steady = set(fixed)
    for node in model.graph.node:
        if all(name in steady for name in node.input if name):
            steady.update(node.output)
    names = [name for node in model.graph.node for name in node.output if name]
    one, two = (_run(model, names, signature, batch) for batch in (1, 2))
    shapes = {name: Shape.fixed(array.shape) for name, array in fixed.items()}
    dtypes = {name: array.dtype.name for name, array in fixed.items()}
    constants = dict(fixed)
    for (name, first), (_, second) in zip(one, two, strict=True):
        if first.ndim != second.ndim:
            raise UnsupportedError("changes its rank with the batch", element=f"tensor {name}")
        shapes[name] = Shape(first.shape, tuple(a != b for a, b in zip(first.shape, second.shape, strict=True)))
        dtypes[name] = first.dtype.name
        if name in steady and first.nbytes <= _MOST_CONSTANT:
            constants[name] = first
    for spec in signature.inputs:
        shapes[spec.name] = Shape(tuple(abs(size) for size in spec.shape), tuple(size < 0 for size in spec.shape))
        dtypes[spec.name] = _dtype(spec)
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers.update(value.name for value in model.graph.output)
    opset = max(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    return Translation(shapes=shapes, dtypes=dtypes, constants=constants, readers=readers, opset=opset)


def _run(
    model: onnx.ModelProto, names: Sequence[str], signature: ModelSignature, batch: int
) -> Iterator[tuple[str, Array]]:
    """Return all tensors of a run on zeros, with this many samples."""
    widened = onnx.ModelProto()
    widened.CopyFrom(model)
    del widened.graph.output[:]
    widened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    feeds = {spec.name: np.zeros(_sizes(spec, batch), _dtype(spec)) for spec in signature.inputs}
    try:
        session = onnxruntime.InferenceSession(widened.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(names, feeds)
    except Exception as error:  # the engine's exception types have no public root
        raise InvalidError(f"cannot be run for {batch} samples ({first_line(error)})", element="model") from error
    return zip(names, values, strict=True)


def _sizes(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    if any(size < 0 for size in spec.shape[1:]):
        raise UnsupportedError(
            f"has shape {spec.shape}; a TensorFlow Lite file from a graph leaves the batch open and nothing else",
            element=f"tensor {spec.name}",
            hint="fix the size when the model is exported",
        )
    return tuple(batch if size < 0 else size for size in spec.shape)


def _dtype(spec: TensorSpec) -> str:
    return _DATATYPES.get(spec.datatype, spec.datatype.lower())


def _check_types(node: Node, proto: onnx.NodeProto, of: Translation) -> None:
    for name in (*proto.input, *proto.output):
        if name in of.dtypes and of.dtypes[name] not in TENSOR_TYPES:
            raise node.unsupported(f"has a tensor of {of.dtypes[name]}")
