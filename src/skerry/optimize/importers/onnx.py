"""ONNX: any valid file, also with weights in files of their own, of an older opset, or with a fixed batch.

Runs through ONNX Runtime. Must not live here: what any ONNX graph has (`graph`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import ModelProto

from skerry.api.errors import InvalidError, TooLargeError, UnsupportedError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.api.kinds.variants import Precision, SourceKind
from skerry.optimize import batching, evaluate, graph
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import Inputs
from skerry.optimize.foreign import first_line
from skerry.optimize.importers import Form, files
from skerry.optimize.importers.tensors import Reference, first, freed
from skerry.optimize.recipe import SourceSpec

OLDEST_OPSET = 13
"""The first with scales per channel; older graphs are converted up."""

_HINT = "name an .onnx file; its external data must lie beside it"
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_SAME = 0.99999
_QUANTISED: Mapping[Precision, frozenset[str]] = {
    "int4": frozenset({"MatMulNBits", "GatherBlockQuantized"}),
    "int8-dynamic": frozenset({"ConvInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger"}),
    "int8": frozenset({"DequantizeLinear", "QGemm", "QLinearConv", "QLinearMatMul", "QuantizeLinear"}),
}
"""Operators that only graphs of that precision have; the first that is found tells."""


class OnnxSource:
    """An ONNX graph in ONNX Runtime."""

    kind: SourceKind = "onnx"
    forms: frozenset[Form] = frozenset({"onnx"})

    def __init__(self, model: ModelProto, digests: Mapping[str, str], *, name: str) -> None:
        self.digests = digests
        self._name = name
        self._model = model
        self._declared = graph.signature(model)
        self._fixed = batching.fixed_batch(self._declared, element=name)
        self._runner = evaluate.Runner(graph.serialise(model))
        self._reference = Reference(
            names=[spec.name for spec in self._declared.inputs],
            run=self._run,
            fixed=self._fixed,
            hint=f"it takes {' and '.join(_described(spec) for spec in self._declared.inputs)}",
        )

    def declared(self) -> Sequence[TensorSpec]:
        """Return the inputs as the file has them, -1 for every dimension that it leaves free."""
        return self._declared.inputs

    def precision(self) -> Precision:
        """Return in what the file computes, by its operators and by what most of its weights are."""
        found = {node.op_type for node in graph.nodes(self._model)}
        for precision, operators in _QUANTISED.items():
            if found & operators:
                return precision
        counted: Counter[int] = Counter()
        for tensor in graph.tensors(self._model):
            counted[tensor.data_type] += math.prod(tensor.dims)
        return "fp16" if counted[onnx.TensorProto.FLOAT16] > counted[onnx.TensorProto.FLOAT] else "fp32"

    def signature(self, inputs: Inputs) -> ModelSignature:
        """See `Source`; dimensions that the file leaves free stay free."""
        declared = {spec.name: spec.shape for spec in (*self._declared.inputs, *self._declared.outputs)}
        return freed(self._reference.signature(inputs), declared)

    def predict(self, inputs: Inputs) -> Sequence[Array]:
        """See `Source`."""
        return list(self._reference.predict(inputs).values())

    def onnx(self, inputs: Inputs, *, opset: int) -> bytes:
        """See `Source`: the file's own graph, converted up to the opset if it is older than 13."""
        model = self._model
        if graph.opset(model) < OLDEST_OPSET:
            model = self._upgraded(model, opset)
        bound = self._reference.bound(inputs)
        if self._fixed is not None:
            model = self._with_free_batch(model, bound)
        made = graph.serialise(batching.with_signature(model, self.signature(inputs)))
        self._check(made, bound)
        return made

    def native(self) -> object:
        """See `Source`."""
        raise UnsupportedError("an ONNX graph has no other form", element=self._name)

    def _run(self, batch: Inputs) -> dict[str, Array]:
        names = [spec.name for spec in self._declared.outputs]
        return dict(zip(names, self._runner.predict(batch, batch=None), strict=True))

    def _upgraded(self, model: ModelProto, opset: int) -> ModelProto:
        try:
            return onnx.version_converter.convert_version(model, max(opset, OLDEST_OPSET))
        except Exception as error:
            raise InvalidError(
                f"opset {graph.opset(model)} cannot be converted to {opset} ({first_line(error)})",
                element=self._name,
                hint=f"export it with opset {OLDEST_OPSET} or newer",
            ) from error

    def _with_free_batch(self, model: ModelProto, inputs: Inputs) -> ModelProto:
        assert self._fixed is not None
        reasons = []
        for way in (batching.free, batching.free_with_reshapes):
            try:
                freed = way(model, self._fixed)
                self._check(graph.serialise(freed), inputs)
            except InvalidError as error:
                reasons.append(error.sentence)
            else:
                return freed
        raise InvalidError(
            f"takes {self._fixed} samples at once, and works with no other number: {'; '.join(dict.fromkeys(reasons))}",
            element=self._name,
            hint="export it with a free batch dimension",
        )

    def _check(self, made: bytes, inputs: Inputs) -> None:
        runner = evaluate.Runner(made)
        for size in (1, 3):
            batch = first(inputs, size)
            error = evaluate.numerical_error(runner.predict(batch), self.predict(batch))
            if error.cosine < _SAME:
                raise InvalidError(f"the converted graph differs from the file's (cosine {error.cosine:.4f})")


def open_source(spec: SourceSpec, *, seed: int) -> OnnxSource:  # noqa: ARG001 - nothing here is left to chance
    """Read an ONNX file and its external data; see `importers.open_source`."""
    path = Path(spec.path)
    raw = files.read(path, hint=_HINT)
    try:
        model = graph.parse(raw)
    except Exception as error:  # protobuf's exceptions have no public root
        raise InvalidError(f"is no ONNX file ({first_line(error)})", element=path.name, hint=_HINT) from error
    if not model.graph.node and not model.graph.output:
        raise InvalidError("is no ONNX file, or an empty one", element=path.name, hint=_HINT)
    digests = {path.name: files.digest(path), **_load_external(model, path)}
    _check_operators(model, path.name)
    graph.put_in_order(model)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise InvalidError(f"is not a valid model ({first_line(error)})", element=path.name, hint=_HINT) from error
    return OnnxSource(model, digests, name=path.name)


def _load_external(model: ModelProto, path: Path) -> dict[str, str]:
    """Load what lies in other files, which must lie in the model's own directory; return their digests."""
    digests: dict[str, str] = {}
    directory, total = path.parent.resolve(), 0
    for tensor in graph.tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        file = directory / location
        if not location or not file.resolve().is_relative_to(directory):
            cause = f'tensor {tensor.name} lies in "{location[:80]}", outside of the model\'s directory'
            raise InvalidError(cause, element=path.name, hint="keep external data beside the model")
        if location not in digests:
            files.check(file, hint=f"{path.name} keeps weights there")
            total += file.stat().st_size
            if total > graph.MAX_BYTES:
                raise TooLargeError(
                    f"{total} bytes of weights, at most {graph.MAX_BYTES} are possible", element=path.name
                )
            digests[location] = files.digest(file)
    if digests:
        try:
            onnx.load_external_data_for_model(model, str(directory))
        except Exception as error:  # a damaged offset or length fails in several ways
            raise InvalidError(f"external data cannot be read ({first_line(error)})", element=path.name) from error
    return digests


def _described(spec: TensorSpec) -> str:
    sizes = ", ".join("any" if size < 0 else str(size) for size in spec.shape[1:])
    return f"{spec.name} as {spec.datatype} [batch{f', {sizes}' if sizes else ''}]"


def _check_operators(model: ModelProto, name: str) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    for node in graph.nodes(model):
        if node.domain not in _DOMAINS and (node.domain, node.op_type) not in own:
            raise InvalidError(
                f"node {node.name or node.output[0]} needs the operator {node.domain}.{node.op_type}, "
                "which ONNX Runtime does not have",
                element=name,
                hint="export it with standard operators",
            )
