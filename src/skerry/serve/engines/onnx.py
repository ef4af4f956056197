"""ONNX Runtime on the CPU, set for small devices: no spinning threads, as many threads as asked for and no more.

Lives here: sessions, their options, ONNX Runtime's types and errors. Must not live here: the wire.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

from skerry.api.errors import InvalidError, NotFoundError, SkerryError, UnavailableError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec

if TYPE_CHECKING:
    from skerry.serve.engines import Array, Engine

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_OUT_OF_MEMORY = re.compile(r"bad_alloc|failed to allocate|out of memory", re.IGNORECASE)


class OnnxEngine:
    """Loads `.onnx` files into ONNX Runtime."""

    platform = "onnx_onnxv1"
    version: str = ort.__version__

    def load(self, file: Path, signature: ModelSignature, *, threads: int) -> OnnxModel:
        """Load a model; `threads` is exactly how many may compute at once. Raises InvalidError, NotFoundError."""
        if not file.is_file():
            raise NotFoundError("no such file", element=str(file))
        try:
            session = ort.InferenceSession(str(file), _options(threads), providers=["CPUExecutionProvider"])
        except MemoryError as error:
            raise UnavailableError("not enough memory to load it", element=str(file)) from error
        except Exception as error:
            raise _translated(error, str(file), "is not a model that ONNX Runtime can load") from error
        _check("input", session.get_inputs(), signature.inputs, file)
        _check("output", session.get_outputs(), signature.outputs, file)
        return OnnxModel(session)


class OnnxModel:
    """One session."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session: ort.InferenceSession | None = session

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]:
        """Run the session. Raises InvalidError, UnavailableError, SkerryError."""
        if self._session is None:
            raise UnavailableError("the model is unloaded")
        try:
            result: Sequence[Array] = self._session.run(list(outputs), dict(inputs))
        except MemoryError as error:
            raise UnavailableError("not enough memory for this request", hint="send a smaller batch") from error
        except Exception as error:
            raise _translated(error, "", "the model failed on this input") from error
        return result

    def unload(self) -> None:
        """Free the session."""
        self._session = None


def engine() -> Engine:
    """Return this engine."""
    return OnnxEngine()


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _check(kind: str, nodes: Sequence[ort.NodeArg], specs: Sequence[TensorSpec], file: Path) -> None:
    """Hold the file against the signature: a server that cannot keep its word must not become ready."""
    found = {node.name: node for node in nodes}
    for spec in specs:
        node = found.get(spec.name)
        if node is None:
            raise InvalidError(f'has no {kind} "{spec.name}", but {sorted(found)}', element=str(file))
        datatype = _DATATYPES.get(node.type, node.type)
        if datatype != spec.datatype:
            raise InvalidError(
                f'{kind} "{spec.name}" is {datatype}, the signature says {spec.datatype}', element=str(file)
            )
        shape = [size if isinstance(size, int) else -1 for size in node.shape]
        agree = len(shape) == len(spec.shape) and all(
            a == b or -1 in (a, b) for a, b in zip(shape, spec.shape, strict=True)
        )
        if not agree:
            raise InvalidError(
                f'{kind} "{spec.name}" has shape {shape}, the signature says {spec.shape}', element=str(file)
            )
    if kind == "input" and len(found) != len(specs):
        extra = sorted(set(found) - {spec.name for spec in specs})
        raise InvalidError(f"takes inputs the signature does not have: {extra}", element=str(file))


def _translated(error: Exception, element: str, cause: str) -> SkerryError:
    text = _PREFIX.sub("", str(error).splitlines()[0] if str(error) else type(error).__name__)[:500]
    if _OUT_OF_MEMORY.search(text):
        return UnavailableError("not enough memory", element=element)
    faults = ("InvalidArgument", "InvalidProtobuf", "InvalidGraph", "NoModel", "NotImplemented")
    if type(error).__name__ in faults or element:
        return InvalidError(f"{cause} ({text})", element=element)
    return SkerryError(f"{cause} ({text})", element=element)
