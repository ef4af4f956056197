"""TensorFlow Lite files: passed through as they are, and run by LiteRT to be judged and measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.api.kinds.variants import Precision, SourceKind
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import Inputs
from skerry.optimize.foreign import first_line
from skerry.optimize.importers import Form, files
from skerry.optimize.importers.tensors import Reference, datatype, first, freed
from skerry.optimize.recipe import SourceSpec

_HINT = "name a .tflite file"
_MAGIC = b"TFL3"
_DECORATION = re.compile(r"^serving_default_|:\d+$")
"""What converters put around the tensors' names."""


class TfliteSource:
    """A `.tflite` file in LiteRT."""

    kind: SourceKind = "tflite"
    forms: frozenset[Form] = frozenset({"tflite"})

    def __init__(self, content: bytes, digests: Mapping[str, str], *, name: str) -> None:
        self.digests = digests
        self._content = content
        self._name = name
        self._interpreter = self._open(OpResolverType.AUTO)
        self._inputs = _tensors(self._interpreter, "inputs", self._interpreter.get_input_details())
        self._outputs = _tensors(self._interpreter, "outputs", self._interpreter.get_output_details())
        shapes = {tensor: _shape(detail) for tensor, detail in self._inputs.items()}
        for tensor, shape in shapes.items():
            if not shape:
                cause = f"input {tensor} has no dimensions, so that it cannot hold samples"
                raise InvalidError(cause, element=name, hint="convert it with the samples along the first dimension")
        self._free = {**shapes, **{tensor: _shape(detail) for tensor, detail in self._outputs.items()}}
        batch = next(iter(shapes.values()))[0]
        self._reference = Reference(names=list(self._inputs), run=self._run, fixed=None if batch < 1 else batch)

    def declared(self) -> Sequence[TensorSpec]:
        """Return the inputs as the file has them, -1 for every dimension that it leaves free."""
        return [
            TensorSpec(
                name=name,
                datatype=datatype(np.dtype(detail["dtype"]).name, element=name),
                shape=[size if size > 0 else -1 for size in _shape(detail)],
            )
            for name, detail in self._inputs.items()
        ]

    def precision(self) -> Precision:
        """Return in what the file computes: what most of its numbers are; with whole activations int8, else dynamic."""
        numbers: Counter[str] = Counter()
        tensors: Counter[str] = Counter()
        for detail in self._interpreter.get_tensor_details():
            name = np.dtype(detail["dtype"]).name
            numbers[name] += int(np.prod(detail["shape"], dtype=np.int64))
            tensors[name] += 1
        if numbers["int8"] > numbers["float32"] or tensors["int8"] > tensors["float32"]:
            return "int8" if tensors["int8"] > tensors["float32"] else "int8-dynamic"
        return "fp16" if numbers["float16"] > numbers["float32"] / 2 else "fp32"

    def signature(self, inputs: Inputs) -> ModelSignature:
        """See `Source`; dimensions that the file leaves free stay free."""
        self._check_portable(inputs)
        return freed(self._reference.signature(inputs), self._free)

    def predict(self, inputs: Inputs) -> Sequence[Array]:
        """See `Source`."""
        return list(self._reference.predict(inputs).values())

    def onnx(self, inputs: Inputs, *, opset: int) -> bytes:  # noqa: ARG002 - the protocol's
        """See `Source`: there is none."""
        raise UnsupportedError(
            "a .tflite file does not become ONNX", element=self._name, hint="start from the model it was made of"
        )

    def native(self) -> bytes:
        """See `Source`: the file's bytes."""
        return self._content

    def _open(self, operators: OpResolverType) -> Interpreter:
        try:
            interpreter = Interpreter(
                model_content=self._content, num_threads=1, experimental_op_resolver_type=operators
            )
            interpreter.allocate_tensors()
        except Exception as error:  # LiteRT raises ValueError and RuntimeError, for missing operators too
            raise InvalidError(
                f"LiteRT cannot load it ({first_line(error)})", element=self._name, hint=_HINT
            ) from error
        return interpreter

    def _check_portable(self, inputs: Inputs) -> None:
        """Refuse a file that gives other answers without XNNPACK, which answers even where variables were lost."""
        one = self._reference.bound(first(inputs, self._reference.fixed or 1))
        expected = list(self._reference.predict(one).values())
        plain = self._open(OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
        try:
            outputs = list(self._answer(plain, one).values())
            same = all(
                np.allclose(o, e, rtol=0.05, atol=0.05 * np.abs(e).max())
                for o, e in zip(outputs, expected, strict=True)
            )
        except RuntimeError as error:
            cause = f"runs with XNNPACK alone, and then on stray memory ({first_line(error)})"
            raise InvalidError(cause, element=self._name, hint="convert it with its variables as constants") from error
        if not same:
            cause = "gives other answers without XNNPACK"
            raise InvalidError(cause, element=self._name, hint="convert it again, and compare it with the model")

    def _run(self, batch: Inputs) -> dict[str, Array]:
        return self._answer(self._interpreter, batch)

    def _answer(self, interpreter: Interpreter, batch: Inputs) -> dict[str, Array]:
        resized = False
        sizes = {detail["index"]: detail["shape"].tolist() for detail in interpreter.get_input_details()}
        for name, samples in batch.items():
            index = self._inputs[name]["index"]
            if list(samples.shape) != sizes[index]:
                interpreter.resize_tensor_input(index, samples.shape, strict=True)
                resized = True
        if resized:
            interpreter.allocate_tensors()
        for name, samples in batch.items():
            interpreter.set_tensor(self._inputs[name]["index"], np.ascontiguousarray(samples))
        interpreter.invoke()
        return {name: interpreter.get_tensor(detail["index"]) for name, detail in self._outputs.items()}


def open_source(spec: SourceSpec, *, seed: int) -> TfliteSource:  # noqa: ARG001 - nothing here is left to chance
    """Read a `.tflite` file; see `importers.open_source`."""
    path = Path(spec.path)
    content = files.read(path, hint=_HINT)
    if content[4:8] != _MAGIC:
        raise InvalidError("is no TensorFlow Lite file", element=path.name, hint=_HINT)
    return TfliteSource(content, {path.name: files.digest(path)}, name=path.name)


def _tensors(interpreter: Any, side: str, details: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the tensors by name, in the file's order: by the signature's names where there is one."""
    signatures = interpreter.get_signature_list()
    if len(signatures) == 1:
        (key,) = signatures
        runner = interpreter.get_signature_runner(key)
        named = runner.get_input_details() if side == "inputs" else runner.get_output_details()
        by_index = {detail["index"]: name for name, detail in named.items()}
        if len(by_index) == len(details) and all(detail["index"] in by_index for detail in details):
            return {by_index[detail["index"]]: detail for detail in details}
    plain = [_DECORATION.sub("", _DECORATION.sub("", detail["name"])) for detail in details]
    if len(set(plain)) < len(plain) or not all(plain):
        plain = [f"{side[:-1]}_{place}" for place in range(len(details))]
    return dict(zip(plain, details, strict=True))


def _shape(detail: Mapping[str, Any]) -> list[int]:
    return [int(size) for size in detail["shape_signature"]]
