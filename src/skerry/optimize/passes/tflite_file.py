"""TensorFlow Lite files as bytes: read, name their tensors as the model's signature does, hold them against it, write.

The schema comes with ai-edge-litert. Lives here: what is true of any such file, whatever made it. Must not live here:
making one (`tflite_keras`, `lower`, the toolchain) or changing its precision (`tflite_quantise`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from skerry.api.errors import InvalidError, SkerryError, TooLargeError
from skerry.api.kinds.tensors import Datatype, ModelSignature, TensorSpec
from skerry.optimize.foreign import first_line

MAX_BYTES = 2**31 - 1
"""What offsets in a flatbuffer can reach."""
SIGNATURE = "serving_default"
"""TensorFlow's name for the one signature of a served model."""
IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
_ALIGNMENT = 16
"""Bytes; of `Buffer.data` in the schema."""

_DATATYPES: dict[int, Datatype] = {
    schema.TensorType.BOOL: "BOOL",
    schema.TensorType.FLOAT16: "FP16",
    schema.TensorType.FLOAT32: "FP32",
    schema.TensorType.FLOAT64: "FP64",
    schema.TensorType.INT8: "INT8",
    schema.TensorType.INT16: "INT16",
    schema.TensorType.INT32: "INT32",
    schema.TensorType.INT64: "INT64",
    schema.TensorType.UINT8: "UINT8",
    schema.TensorType.UINT16: "UINT16",
    schema.TensorType.UINT32: "UINT32",
    schema.TensorType.UINT64: "UINT64",
}
TYPES = {datatype: number for number, datatype in _DATATYPES.items()}
"""The file's number for each datatype of the protocol."""
_LAST_NUMBER = re.compile(r"(\d+)(?=\D*$)")


def read(content: bytes) -> Any:
    """Return the file as a `ModelT`. Raises InvalidError for what is no TensorFlow Lite file."""
    if content[4:8] != IDENTIFIER:
        raise InvalidError("is not a TensorFlow Lite file", element="model", hint="such files begin with TFL3")
    with _reading():
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        for buffer in model.buffers:
            _take_in(buffer, content)
        _check_indices(model)
    return model


@contextmanager
def _reading() -> Iterator[None]:
    """Make a sentence of whatever a damaged file leads to."""
    try:
        yield
    except SkerryError:
        raise
    except Exception as error:  # flatbuffers and the code it generates check nothing
        raise InvalidError(f"is damaged ({first_line(error)})", element="model") from error


def _check_indices(model: Any) -> None:
    graph, definitions = model.subgraphs[0], model.signatureDefs or []
    named = [entry for one in definitions[:1] for entry in (*(one.inputs or []), *(one.outputs or []))]
    used = [*graph.inputs, *graph.outputs, *(entry.tensorIndex for entry in named)]
    if not all(0 <= index < len(graph.tensors) for index in used):
        raise InvalidError("is damaged (an index leads nowhere)", element="model")


def _take_in(buffer: Any, content: bytes) -> None:
    """Bring in what lies behind the flatbuffer: large files keep their weights there, at an offset."""
    if buffer.offset > 1:
        if buffer.offset + buffer.size > len(content):
            raise ValueError("weights lie beyond the end")
        buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
    buffer.offset = buffer.size = 0


class _Builder(flatbuffers.Builder):  # type: ignore[misc]
    """Aligns weights as the schema wants it, which the generated code does not see to."""

    def CreateNumpyVector(self, values: Any) -> Any:  # noqa: N802 - flatbuffers' name
        self.Prep(_ALIGNMENT, values.nbytes)
        return super().CreateNumpyVector(values)


def write(model: Any) -> bytes:
    """Return a `ModelT` as a file. Raises TooLargeError beyond what a flatbuffer can hold."""
    size = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    if size > MAX_BYTES:
        raise TooLargeError(f"has {size} bytes of weights, a TensorFlow Lite file holds {MAX_BYTES}", element="model")
    builder = _Builder(size + 65_536)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def signature(model: Any) -> ModelSignature:
    """Return the tensors of a file, names and order as its signature has them, else as its first graph does."""
    with _reading():
        graph = model.subgraphs[0]
        inputs, outputs = _ends(model)
        return ModelSignature(
            inputs=[_spec(graph.tensors[index], name) for name, index in inputs],
            outputs=[_spec(graph.tensors[index], name) for name, index in outputs],
        )


def renamed(content: bytes, wanted: ModelSignature) -> bytes:
    """Return the file with its tensors named and ordered as wanted.

    Tensors are told by their names where the file has these names, else by position; shape and datatype must agree.
    Raises InvalidError that names the tensor which does not.
    """
    model = read(content)
    with _reading():
        _rename(model, wanted)
        return write(model)


def _rename(model: Any, wanted: ModelSignature) -> None:
    graph = model.subgraphs[0]
    inputs, outputs = _ends(model)
    pairs = [
        ("input", _matched(inputs, wanted.inputs, "input")),
        ("output", _matched(outputs, wanted.outputs, "output")),
    ]
    for kind, matched in pairs:
        for spec, index in matched:
            _check(kind, spec, _spec(graph.tensors[index], spec.name))
            graph.tensors[index].name = spec.name.encode()
    _set_apart(graph, {index for _, matched in pairs for _, index in matched})
    graph.inputs = [index for _, index in pairs[0][1]]
    graph.outputs = [index for _, index in pairs[1][1]]
    model.signatureDefs = [signature_of(pairs[0][1], pairs[1][1])]


def has_int8_weights(content: bytes) -> bool:
    """Tell whether any constant tensor of more than one value is int8."""
    return _has_weights(content, schema.TensorType.INT8)


def has_int4_weights(content: bytes) -> bool:
    """Tell whether any constant tensor is int4."""
    return _has_weights(content, schema.TensorType.INT4)


def _has_weights(content: bytes, kind: int) -> bool:
    model = read(content)
    with _reading():
        return any(
            tensor.type == kind and model.buffers[tensor.buffer].data is not None
            for graph in model.subgraphs
            for tensor in graph.tensors
        )


def signature_of(inputs: Sequence[tuple[TensorSpec, int]], outputs: Sequence[tuple[TensorSpec, int]]) -> Any:
    """Return the `SignatureDefT` of these tensors (by index) of the first graph."""
    made = schema.SignatureDefT()
    made.signatureKey = SIGNATURE.encode()
    made.subgraphIndex = 0
    made.inputs = [_entry(spec, index) for spec, index in inputs]
    made.outputs = [_entry(spec, index) for spec, index in outputs]
    return made


def _set_apart(graph: Any, ends: set[int]) -> None:
    """Rename inner tensors that have the name of an input or output: tools tell tensors by their names."""
    taken = {graph.tensors[index].name for index in ends}
    for index, tensor in enumerate(graph.tensors):
        if index not in ends and tensor.name in taken:
            tensor.name = b"%s:inner%d" % (tensor.name, index)


def _entry(spec: TensorSpec, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = spec.name.encode(), index
    return entry


def _ends(model: Any) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return inputs and outputs as (name, index); outputs by the number in their names, as Keras counts them."""
    graph = model.subgraphs[0]
    definitions = model.signatureDefs or []
    if definitions and len(definitions[0].inputs or []) == len(graph.inputs):
        inputs = [(entry.name.decode(), entry.tensorIndex) for entry in definitions[0].inputs or []]
        outputs = [(entry.name.decode(), entry.tensorIndex) for entry in definitions[0].outputs or []]
        numbers = [_LAST_NUMBER.search(name) for name, _ in outputs]
        if all(numbers):
            outputs = [pair for _, pair in sorted(zip(map(_number, outputs), outputs, strict=True))]
        return inputs, outputs
    return _named(graph, graph.inputs), _named(graph, graph.outputs)


def _number(pair: tuple[str, int]) -> int:
    found = _LAST_NUMBER.search(pair[0])
    return int(found.group(1)) if found else 0


def _named(graph: Any, indices: Sequence[int]) -> list[tuple[str, int]]:
    return [((graph.tensors[index].name or b"").decode(errors="replace"), int(index)) for index in indices]


def _matched(found: Sequence[tuple[str, int]], wanted: Sequence[TensorSpec], kind: str) -> list[tuple[TensorSpec, int]]:
    if len(found) != len(wanted):
        raise InvalidError(f"has {len(found)} {kind}s, the signature has {len(wanted)}", element="model")
    by_name = dict(found)
    if set(by_name) == {spec.name for spec in wanted}:
        return [(spec, by_name[spec.name]) for spec in wanted]
    return [(spec, index) for spec, (_, index) in zip(wanted, found, strict=True)]


def _spec(tensor: Any, name: str) -> TensorSpec:
    datatype = _DATATYPES.get(tensor.type)
    if datatype is None:
        raise InvalidError("has a type that cannot be served", element=f"tensor {name}")
    free = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    return TensorSpec(name=name, datatype=datatype, shape=[int(size) for size in (free if free is not None else [])])


def _check(kind: str, wanted: TensorSpec, found: TensorSpec) -> None:
    same_shape = len(wanted.shape) == len(found.shape) and all(
        a == b or -1 in (a, b) for a, b in zip(wanted.shape, found.shape, strict=True)
    )
    if wanted.datatype != found.datatype or not same_shape:
        raise InvalidError(
            f"is {found.datatype} {found.shape} in the file, {wanted.datatype} {wanted.shape} in the model",
            element=f"{kind} {wanted.name}",
        )
