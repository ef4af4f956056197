"""LiteRT (TensorFlow Lite) on the CPU, through XNNPACK where it has the operator: small, and quick to start.

Lives here: interpreters, their tensors' sizes, LiteRT's types and errors. Must not live here: the wire.

A file whose batch is open is resized to the request; one with a fixed batch, or one that turns out to be unable to
change, is run in pieces. Source: ai_edge_litert.interpreter.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from skerry.api.errors import InvalidError, NotFoundError, SkerryError, UnavailableError
from skerry.api.kinds.tensors import ModelSignature
from skerry.serve.engines.batches import Batches, fixed_batch
from skerry.serve.engines.binding import FileTensor, accept, bind

if TYPE_CHECKING:
    from skerry.serve.engines import Array, Engine

_DATATYPES = {
    np.dtype(kind): name
    for kind, name in {
        "?": "BOOL",
        "u1": "UINT8",
        "u2": "UINT16",
        "u4": "UINT32",
        "u8": "UINT64",
        "i1": "INT8",
        "i2": "INT16",
        "i4": "INT32",
        "i8": "INT64",
        "f2": "FP16",
        "f4": "FP32",
        "f8": "FP64",
    }.items()
}
_DECORATION = re.compile(r"^serving_default_|:\d+$")
_OUT_OF_MEMORY = re.compile(r"bad_alloc|failed to allocate|out of memory|cannot allocate", re.IGNORECASE)


class LitertEngine:
    """Loads `.tflite` files into LiteRT."""

    platform = "tensorflow_lite"

    def __init__(self) -> None:
        self.version = importlib.metadata.version("ai-edge-litert")

    def load(self, file: Path, signature: ModelSignature, *, threads: int) -> LitertModel:
        """Load a model. Raises InvalidError, NotFoundError, UnavailableError."""
        if not file.is_file():
            raise NotFoundError("no such file", element=str(file))
        return LitertModel(file, signature, threads)


class LitertModel:
    """One interpreter, sized for the request before."""

    def __init__(self, file: Path, signature: ModelSignature, threads: int) -> None:
        self._file = file
        self._threads = threads
        self._inputs = signature.inputs
        self._outputs = signature.outputs
        interpreter = self._open()
        names = _names(interpreter)
        takes, gives = interpreter.get_input_details(), interpreter.get_output_details()
        into = bind("input", [_described(one, names) for one in takes], signature.inputs, file)
        out = bind("output", [_described(one, names) for one in gives], signature.outputs, file)
        self._into = [takes[place]["index"] for place in into]
        self._from = {spec.name: gives[place]["index"] for spec, place in zip(signature.outputs, out, strict=True)}
        self._shapes = [_shape(takes[place]) for place in into]
        try:
            self._batches = fixed_batch(signature, self._shapes)
        except InvalidError as error:
            raise InvalidError(error.cause, element=str(file)) from error
        self._interpreter: Interpreter | None = interpreter
        self._sizes: list[tuple[int, ...]] | None = None

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]:
        """Run it. Raises InvalidError, UnavailableError, SkerryError."""
        if self._interpreter is None:
            raise UnavailableError("the model is unloaded")
        arrays = [np.asarray(inputs[spec.name]) for spec in self._inputs]
        for array, shape, spec in zip(arrays, self._shapes, self._inputs, strict=True):
            accept(array, shape, spec)
        if self._batches is None and any(array.ndim and len(array) > 1 for array in arrays):
            failure = self._resize(arrays)
            if failure is not None and not _OUT_OF_MEMORY.search(str(failure)):
                self._batches = Batches(size=1, exact=True)  # its batch is open by its own word only
        if self._batches is None:
            return self._run(arrays, outputs)
        wanted = {spec.name: spec for spec in self._outputs}
        return self._batches.run(
            arrays, self._inputs, [wanted[name] for name in outputs], lambda piece: self._run(piece, outputs)
        )

    def unload(self) -> None:
        """Free the interpreter."""
        self._interpreter = None

    def _open(self) -> Interpreter:
        try:
            return Interpreter(model_path=str(self._file), num_threads=self._threads)
        except MemoryError as error:
            raise UnavailableError("not enough memory to load it", element=str(self._file)) from error
        except Exception as error:
            raise _translated(error, str(self._file), "is not a model that LiteRT can load") from error

    def _run(self, arrays: Sequence[Array], outputs: Sequence[str]) -> Sequence[Array]:
        failure = self._resize(arrays)
        if failure is not None:
            raise _translated(failure, "", "the model failed on this input") from failure
        interpreter = self._ready
        try:
            for index, array in zip(self._into, arrays, strict=True):
                interpreter.set_tensor(index, array)
            interpreter.invoke()
            return [interpreter.get_tensor(self._from[name]) for name in outputs]
        except MemoryError as error:
            raise UnavailableError("not enough memory for this request", hint="send a smaller batch") from error
        except (RuntimeError, ValueError) as error:
            raise _translated(error, "", "the model failed on this input") from error

    @property
    def _ready(self) -> Interpreter:
        if self._interpreter is None:
            raise UnavailableError("the model is unloaded")
        return self._interpreter

    def _resize(self, arrays: Sequence[Array]) -> Exception | None:
        """Give the open dimensions the request's sizes, if they have others; return why the file cannot take them."""
        sizes = [array.shape for array in arrays]
        if sizes == self._sizes:
            return None
        self._sizes = None
        interpreter = self._ready
        try:
            for index, size, shape in zip(self._into, sizes, self._shapes, strict=True):
                if -1 in shape:
                    interpreter.resize_tensor_input(index, size, strict=True)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            self._interpreter = self._open()  # what failed to prepare stays unusable
            return error
        self._sizes = sizes
        return None


def engine() -> Engine:
    """Return this engine."""
    return LitertEngine()


def _names(interpreter: Interpreter) -> Mapping[int, str]:
    """Return the names of the file's one signature by tensor; none where it has no signature, or several."""
    signatures: Mapping[str, Mapping[str, Mapping[str, int]]] = interpreter._get_full_signature_list()  # noqa: SLF001
    found = signatures.get("serving_default") or (next(iter(signatures.values())) if len(signatures) == 1 else {})
    return {index: name for side in ("inputs", "outputs") for name, index in found.get(side, {}).items()}


def _described(details: Mapping[str, Any], names: Mapping[int, str]) -> FileTensor:
    kind = np.dtype(details["dtype"])
    name = names.get(details["index"]) or _DECORATION.sub("", details["name"])
    return FileTensor(name=name, datatype=_DATATYPES.get(kind, str(kind)), shape=_shape(details))


def _shape(details: Mapping[str, Any]) -> list[int]:
    """Return a tensor's dimensions, -1 where open; a file without open ones may leave the signature out."""
    open_ones: list[int] = details["shape_signature"].tolist()
    sizes: list[int] = details["shape"].tolist()
    return open_ones if len(open_ones) == len(sizes) else sizes


def _translated(error: Exception, element: str, cause: str) -> SkerryError:
    text = " ".join(str(error).split())[:500] or type(error).__name__
    if _OUT_OF_MEMORY.search(text):
        return UnavailableError("not enough memory", element=element)
    return InvalidError(f"{cause} ({text})", element=element)
