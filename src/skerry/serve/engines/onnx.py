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
from skerry.api.kinds.tensors import ModelSignature
from skerry.serve.engines.batches import Batches, fixed_batch
from skerry.serve.engines.binding import FileTensor, bind

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
        takes = [_tensor(node) for node in session.get_inputs()]
        gives = [_tensor(node) for node in session.get_outputs()]
        into = bind("input", takes, signature.inputs, file, named=True)
        bind("output", gives, signature.outputs, file, named=True)
        try:
            batches = fixed_batch(signature, [takes[place].shape or [] for place in into])
        except InvalidError as error:
            raise InvalidError(error.cause, element=str(file)) from error
        return OnnxModel(session, signature, batches)


class OnnxModel:
    """One session."""

    def __init__(self, session: ort.InferenceSession, signature: ModelSignature, batches: Batches | None) -> None:
        self._session: ort.InferenceSession | None = session
        self._inputs = signature.inputs
        self._outputs = {spec.name: spec for spec in signature.outputs}
        self._batches = batches

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]:
        """Run the session. Raises InvalidError, UnavailableError, SkerryError."""
        if self._batches is None:
            return self._run(inputs, outputs)
        names = [spec.name for spec in self._inputs]
        return self._batches.run(
            [inputs[name] for name in names],
            self._inputs,
            [self._outputs[name] for name in outputs],
            lambda piece: self._run(dict(zip(names, piece, strict=True)), outputs),
        )

    def unload(self) -> None:
        """Free the session."""
        self._session = None

    def _run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]:
        if self._session is None:
            raise UnavailableError("the model is unloaded")
        try:
            result: Sequence[Array] = self._session.run(list(outputs), dict(inputs))
        except MemoryError as error:
            raise UnavailableError("not enough memory for this request", hint="send a smaller batch") from error
        except Exception as error:
            raise _translated(error, "", "the model failed on this input") from error
        return result


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


def _tensor(node: ort.NodeArg) -> FileTensor:
    shape = [size if isinstance(size, int) else -1 for size in node.shape]
    return FileTensor(name=node.name, datatype=_DATATYPES.get(node.type, node.type), shape=shape)


def _translated(error: Exception, element: str, cause: str) -> SkerryError:
    text = _PREFIX.sub("", str(error).splitlines()[0] if str(error) else type(error).__name__)[:500]
    if _OUT_OF_MEMORY.search(text):
        return UnavailableError("not enough memory", element=element)
    faults = ("InvalidArgument", "InvalidProtobuf", "InvalidGraph", "NoModel", "NotImplemented")
    if type(error).__name__ in faults or element:
        return InvalidError(f"{cause} ({text})", element=element)
    return SkerryError(f"{cause} ({text})", element=element)
