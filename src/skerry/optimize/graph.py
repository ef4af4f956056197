"""ONNX graphs as bytes: parse, clean, serialise, describe.

Lives here: what is true of any ONNX file, whatever made it. Must not live here: transformations (`passes`).
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Iterator

import onnx

from skerry.api.errors import InvalidError, TooLargeError
from skerry.api.kinds.tensors import Datatype, ModelSignature, TensorSpec
from skerry.optimize import runtimes

MAX_BYTES = 2**31 - 1
"""Protobuf's limit for one message; larger models need external data, which is not written yet."""

_DATATYPES: dict[int, Datatype] = {
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.DOUBLE: "FP64",
}


def parse(raw: bytes) -> onnx.ModelProto:
    """Parse a serialised model."""
    return onnx.load_model_from_string(raw)


def serialise(model: onnx.ModelProto) -> bytes:
    """Return the same bytes for the same model, without metadata (exporters put paths of this machine there).

    Raises TooLargeError beyond protobuf's 2 GiB.
    """
    _clean(model)
    if model.ByteSize() > MAX_BYTES:
        raise TooLargeError(f"the ONNX graph has {model.ByteSize()} bytes, at most {MAX_BYTES} are possible")
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw


def signature(model: onnx.ModelProto) -> ModelSignature:
    """Return the model's tensors as the Open Inference Protocol names them. Raises InvalidError for other types."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    return ModelSignature(inputs=[_spec(value) for value in inputs], outputs=[_spec(v) for v in model.graph.output])


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators that the model is written in."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Walk all nodes: of the graph, of its branches and loops, and of local functions."""
    yield from _nodes(model.graph.node)
    for function in model.functions:
        yield from _nodes(function.node)


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Walk all constant tensors, wherever they are kept."""
    yield from model.graph.initializer
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from inner.initializer


def put_in_order(model: onnx.ModelProto) -> None:
    """Let each of the graph's nodes follow what it needs, as the specification asks; quantisers leave other orders.

    A graph that is in order, or goes in a circle, stays as it is.
    """
    listed = list(model.graph.node)
    maker = {name: place for place, node in enumerate(listed) for name in node.output if name}
    needs = {place: {maker[name] for name in _used(node) if name in maker} for place, node in enumerate(listed)}
    if all(other < place for place, others in needs.items() for other in others):
        return
    try:
        order = list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError:
        return
    kept = [onnx.NodeProto.FromString(listed[place].SerializeToString()) for place in order]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _used(outer: onnx.NodeProto) -> Iterator[str]:
    for node in _nodes([outer]):
        yield from node.input


def engine_min_version(model: onnx.ModelProto, installed: str) -> str:
    """Return the oldest ONNX Runtime known to read the model, or the one it was evaluated with."""
    contrib = any(entry.domain == "com.microsoft" for entry in model.opset_import)
    known = runtimes.oldest(opset(model), model.ir_version, contrib=contrib)
    return known or ".".join(installed.split(".")[:2])


def _nodes(outer: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in outer:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner.node)


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    datatype = _DATATYPES.get(tensor.elem_type)
    if datatype is None:
        raise InvalidError("has a type that cannot be served", element=f"tensor {value.name}")
    shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    return TensorSpec(name=value.name, datatype=datatype, shape=shape)


def _clean(model: onnx.ModelProto) -> None:
    _clear([model])
    _clean_graph(model.graph)
    for function in model.functions:
        _clear([function, *function.node, *function.value_info])


def _clean_graph(graph: onnx.GraphProto) -> None:
    _clear([graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer])
    for node in graph.node:
        for attribute in node.attribute:
            _clear([attribute])
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _clean_graph(inner)


def _clear(parts: Iterable[object]) -> None:
    for part in parts:
        for field in ("doc_string", "metadata_props"):
            if field in part.DESCRIPTOR.fields_by_name:  # type: ignore[attr-defined]
                part.ClearField(field)  # type: ignore[attr-defined]
