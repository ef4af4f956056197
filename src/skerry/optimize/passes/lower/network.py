"""A TensorFlow Lite network under construction: tensors, constants and operators, and the layout each tensor is in.

ONNX keeps images as [batch, channels, height, width], TensorFlow Lite computes on [batch, height, width, channels].
Every ONNX tensor is kept in its own order (`plain`), channels last (`last`), or both; a transposition is put in only
where an operator asks for the order that is not there. Must not live here: what an ONNX operator means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from skerry.api.kinds.tensors import ModelSignature
from skerry.optimize.passes import tflite_file
from skerry.optimize.passes.examined import Array, Shape

TO_LAST, TO_PLAIN = (0, 2, 3, 1), (0, 3, 1, 2)
"""Permutations of an image's dimensions."""

TENSOR_TYPES: Mapping[str, int] = {
    "bool": schema.TensorType.BOOL,
    "float16": schema.TensorType.FLOAT16,
    "float32": schema.TensorType.FLOAT32,
    "float64": schema.TensorType.FLOAT64,
    "int8": schema.TensorType.INT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "uint8": schema.TensorType.UINT8,
    "uint32": schema.TensorType.UINT32,
}
_FUSABLE = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "DIV"})


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of the network."""

    index: int
    shape: Shape
    dtype: str
    """NumPy's name."""


class Network:
    """The network as far as it is built."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [schema.BufferT()]
        self._codes: dict[str, int] = {}
        self._operators: list[tuple[str, Any]] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._producers: dict[int, int] = {}
        self._names: dict[str, int] = {}

    def tensor(self, name: str, shape: Shape, dtype: str) -> Value:
        """Add a tensor that is computed or given."""
        return self._add(name, shape, dtype, buffer=0)

    def constant(self, array: Array, name: str = "constant") -> Value:
        """Add a constant, or return the one that is there with the same content."""
        array = np.asarray(array, order="C")
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(key[2], np.uint8)
            self._buffers.append(buffer)
            shape = Shape.fixed(array.shape)
            self._constants[key] = self._add(name, shape, array.dtype.name, buffer=len(self._buffers) - 1)
        return self._constants[key]

    def integers(self, values: Sequence[int]) -> Value:
        """Add a constant vector of int32, as shapes, axes and paddings are."""
        return self.constant(np.array(values, np.int32), "integers")

    def put(
        self,
        kind: str,
        inputs: Sequence[Value | None],
        shape: Shape,
        *,
        name: str,
        dtype: str = "",
        options: Any = None,
    ) -> Value:
        """Add an operator with one output; None stands for an input that is left out."""
        given = next(value for value in inputs if value is not None)
        output = self.tensor(name, shape, dtype or given.dtype)
        self.put_many(kind, inputs, [output], options=options)
        return output

    def put_many(
        self, kind: str, inputs: Sequence[Value | None], outputs: Sequence[Value], *, options: Any = None
    ) -> None:
        """Add an operator whose outputs are there already."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes.setdefault(kind, len(self._codes))
        operator.inputs = [-1 if value is None else value.index for value in inputs]
        operator.outputs = [value.index for value in outputs]
        if options is not None:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            operator.builtinOptions = options
        for value in outputs:
            self._producers[value.index] = len(self._operators)
        self._operators.append((kind, operator))

    def transposed(self, value: Value, order: Sequence[int], *, name: str) -> Value:
        """Add a transposition."""
        inputs = [value, self.integers(order)]
        options = schema.TransposeOptionsT()
        return self.put("TRANSPOSE", inputs, value.shape.permuted(order), name=name, options=options)

    def reshaped(self, value: Value, shape: Shape, *, name: str) -> Value:
        """Add a change of shape; at most one of the sizes may grow with the batch."""
        options = schema.ReshapeOptionsT()
        options.newShape = shape.signature
        return self.put("RESHAPE", [value, self.integers(shape.signature)], shape, name=name, options=options)

    def fuse(self, value: Value, activation: int) -> bool:
        """Let the operator that computes a value apply an activation too; False when it cannot."""
        made_by = self._producers.get(value.index)
        if made_by is None:
            return False
        kind, operator = self._operators[made_by]
        none = schema.ActivationFunctionType.NONE
        if kind not in _FUSABLE or operator.builtinOptions.fusedActivationFunction != none:
            return False
        operator.builtinOptions.fusedActivationFunction = activation
        return True

    def is_activated(self, value: Value) -> bool:
        """Tell whether a value cannot be negative, because its operator ends with a ReLU."""
        made_by = self._producers.get(value.index)
        if made_by is None:
            return False
        kind, operator = self._operators[made_by]
        relu = (schema.ActivationFunctionType.RELU, schema.ActivationFunctionType.RELU6)
        if kind in _FUSABLE:
            return operator.builtinOptions.fusedActivationFunction in relu
        return kind in {"RELU", "RELU6", "LOGISTIC"}

    def finished(self, signature: ModelSignature, inputs: Sequence[Value], outputs: Sequence[Value]) -> bytes:
        """Return the file. Raises TooLargeError."""
        graph = schema.SubGraphT()
        graph.name = b"main"
        graph.tensors = self._tensors
        graph.operators = [operator for _, operator in self._operators]
        graph.inputs = [value.index for value in inputs]
        graph.outputs = [value.index for value in outputs]
        model = schema.ModelT()
        model.version = tflite_file.SCHEMA_VERSION
        model.description = b"skerry"
        model.operatorCodes = [_code(kind) for kind in self._codes]
        model.subgraphs = [graph]
        model.buffers = self._buffers
        pairs = [
            [(spec, value.index) for spec, value in zip(specs, values, strict=True)]
            for specs, values in ((signature.inputs, inputs), (signature.outputs, outputs))
        ]
        model.signatureDefs = [tflite_file.signature_of(*pairs)]
        return tflite_file.write(model)

    def _add(self, name: str, shape: Shape, dtype: str, *, buffer: int) -> Value:
        tensor = schema.TensorT()
        tensor.name = self._unique(name).encode()
        tensor.shape = list(shape.sizes)
        tensor.shapeSignature = shape.signature if any(shape.free) else None
        tensor.type = TENSOR_TYPES[dtype]
        tensor.buffer = buffer
        tensor.hasRank = True
        self._tensors.append(tensor)
        return Value(len(self._tensors) - 1, shape, dtype)

    def _unique(self, name: str) -> str:
        count = self._names[name] = self._names.get(name, 0) + 1
        return name if count == 1 else f"{name}:{count}"


def _code(kind: str) -> Any:
    code = schema.OperatorCodeT()
    number = getattr(schema.BuiltinOperator, kind)
    code.builtinCode = number
    code.deprecatedBuiltinCode = min(number, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
    code.version = 1
    return code
