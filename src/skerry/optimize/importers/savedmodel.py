"""TensorFlow SavedModels: the serving signature, run by TensorFlow, exported by tf2onnx.

A SavedModel is a program. It is looked for operators that do more than compute before it is loaded, because loading
runs its initialisers. Must not live here: how TensorFlow's functions become ONNX (`tensorflow_onnx`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from skerry.api.errors import ForbiddenError, InvalidError, NotFoundError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import SourceKind
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import Inputs
from skerry.optimize.foreign import first_line, raise_if_starved
from skerry.optimize.importers import Form, files, tensorflow_onnx
from skerry.optimize.importers.savedmodel_operators import NUMERIC, SAVING
from skerry.optimize.importers.tensors import Reference, freed
from skerry.optimize.recipe import SourceSpec

GRAPH = "saved_model.pb"
_HINT = "name a directory that tf.saved_model.save or model.export wrote"
_SERVING = "serving_default"
_DOES = {
    "PyFunc": "calls Python",
    "PyFuncStateless": "calls Python",
    "EagerPyFunc": "calls Python",
    "WriteFile": "writes a file",
    "ReadFile": "reads a file",
    "SaveV2": "writes a file",
    "MergeV2Checkpoints": "writes a file",
    "RestoreV2": "reads a file",
    "PrintV2": "may write a file",
    "TextLineDataset": "reads files",
    "CacheDataset": "may write files",
    "CacheDatasetV2": "may write files",
    "InitializeTableFromTextFileV2": "reads a file",
}
"""What is said of operators that people meet; any other that is none of `NUMERIC` is refused as well."""


class SavedModelSource:
    """The serving signature of a SavedModel."""

    kind: SourceKind = "savedmodel"
    forms: frozenset[Form] = frozenset({"keras", "onnx"})

    def __init__(self, loaded: Any, digests: Mapping[str, str], *, name: str) -> None:
        self.digests = digests
        self._loaded = loaded  # it holds the variables
        self._function = _serving(loaded, name)
        self._specs = _inputs(self._function, name)
        outputs = self._function.structured_outputs
        self._outputs = sorted(outputs, key=_by_name)
        self._free = {
            name: [-1 if size is None else size for size in spec.shape]
            for name, spec in (*self._specs.items(), *outputs.items())
            if spec.shape.rank is not None
        }
        self._reference = Reference(
            names=list(self._specs),
            run=self._run,
            fixed=tensorflow_onnx.fixed_batch(tuple(spec.shape) for spec in self._specs.values()),
            hint="compare the samples in the data with the serving signature",
        )

    def signature(self, inputs: Inputs) -> ModelSignature:
        """See `Source`; dimensions that the signature leaves free stay free."""
        return freed(self._reference.signature(inputs), self._free)

    def predict(self, inputs: Inputs) -> Sequence[Array]:
        """See `Source`."""
        return list(self._reference.predict(inputs).values())

    def onnx(self, inputs: Inputs, *, opset: int) -> bytes:
        """See `Source`."""
        return tensorflow_onnx.export(
            lambda *tensors: self._call(dict(zip(self._specs, tensors, strict=True))),
            [tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in self._specs.items()],
            reference=self._reference,
            signature=self.signature(inputs),
            inputs=self._reference.bound(inputs),
            opset=opset,
        )

    def native(self) -> Any:
        """See `Source`: a keras.Model around the signature."""
        given = [
            keras.Input(spec.shape[1:], batch_size=spec.shape[0], dtype=spec.dtype.name, name=name)
            for name, spec in self._specs.items()
        ]
        layer = _Signature(self._loaded, lambda tensors: self._call(dict(zip(self._specs, tensors, strict=True))))
        return keras.Model(given[0] if len(given) == 1 else given, layer(given))

    def _run(self, batch: Inputs) -> dict[str, Array]:
        outputs = self._call({name: tf.constant(samples) for name, samples in batch.items()})
        return {name: output.numpy() for name, output in outputs.items()}

    def _call(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        outputs = self._function(**tensors)
        return {name: outputs[name] for name in self._outputs}


class _Signature(keras.layers.Layer):  # type: ignore[misc]
    """A layer that calls a function of a loaded SavedModel."""

    def __init__(self, loaded: Any, function: Any) -> None:
        super().__init__(trainable=False)
        self._loaded = loaded
        self._function = function

    def call(self, inputs: Any) -> Any:
        """Call it."""
        return self._function(inputs)


def open_source(spec: SourceSpec, *, seed: int) -> SavedModelSource:
    """Read a SavedModel directory; see `importers.open_source`."""
    path = Path(spec.path)
    if not path.is_dir():
        raise NotFoundError("no such directory", element=spec.path, hint=_HINT)
    raw = files.read(path / GRAPH, hint=_HINT)
    digests = files.tree_digests(path)
    try:
        graph = saved_model_pb2.SavedModel.FromString(raw)
    except DecodeError as error:
        raise InvalidError("is no SavedModel", element=f"{path.name}/{GRAPH}", hint=_HINT) from error
    if not graph.meta_graphs:
        raise InvalidError("is no SavedModel, or an empty one", element=f"{path.name}/{GRAPH}", hint=_HINT)
    if not spec.allow_code:
        _check_operators(graph, path.name)
    tf.random.set_seed(seed)
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:  # TensorFlow has no common exception type
        raise_if_starved(error)
        raise InvalidError(f"cannot be loaded ({first_line(error)})", element=path.name, hint=_HINT) from error
    return SavedModelSource(loaded, digests, name=path.name)


def _check_operators(graph: Any, name: str) -> None:
    """Refuse operators that do more than compute, in whatever function. Raises ForbiddenError."""
    for meta in graph.meta_graphs:
        savers = _savers(meta)
        own = {
            f.signature.name for f in meta.graph_def.library.function if op_def_registry.get(f.signature.name) is None
        }
        for where, node in _nodes(meta.graph_def):
            allowed = NUMERIC | own | (SAVING if where in savers else frozenset())
            if refused := next((operator for operator in _callees(node) if operator not in allowed), None):
                does = _DOES.get(refused, "is none of the operators that only compute")
                raise ForbiddenError(
                    f"node {node.name} of {where or 'the graph'} ({refused}) {does}; it was not run",
                    element=name,
                    hint="export the model without it, or agree to run it with --allow-code",
                )


def _savers(meta: Any) -> set[str]:
    """Return the functions that write the variables, and that nothing else calls."""
    functions = {function.signature.name: function for function in meta.graph_def.library.function}
    named = {meta.saver_def.save_tensor_name.rpartition(":")[0], meta.saver_def.restore_op_name}
    saving = [callee for node in meta.graph_def.node if node.name in named for callee in _callees(node)]
    others = [callee for node in meta.graph_def.node if node.name not in named for callee in _callees(node)]
    return _reached(saving, functions) - _reached([*others, *meta.object_graph_def.concrete_functions], functions)


def _reached(names: Sequence[str], functions: Mapping[str, Any]) -> set[str]:
    """Return these functions and those that they call, directly or through others."""
    found: set[str] = set()
    todo = [name for name in names if name in functions]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo.extend(c for node in functions[name].node_def for c in _callees(node) if c in functions)
    return found


def _callees(node: Any) -> list[str]:
    """Return the functions a node calls: those its attributes name, and its own operator, which may be a function."""
    return [*_named(node.attr), node.op]


def _named(attributes: Any) -> Iterator[str]:
    for value in attributes.values():
        functions = [*([value.func] if value.HasField("func") else []), *value.list.func]
        for function in functions:
            yield function.name
            yield from _named(function.attr)


def _nodes(graph: Any) -> Iterator[tuple[str, Any]]:
    for node in graph.node:
        yield "", node
    for function in graph.library.function:
        for node in function.node_def:
            yield function.signature.name, node


def _serving(loaded: Any, name: str) -> Any:
    signatures = dict(loaded.signatures)
    if _SERVING in signatures:
        return signatures[_SERVING]
    if len(signatures) == 1:
        return next(iter(signatures.values()))
    said = ", ".join(sorted(signatures)) or "none"
    raise InvalidError(f"has no signature {_SERVING} (signatures: {said})", element=name, hint="export it with one")


def _inputs(function: Any, name: str) -> dict[str, Any]:
    given = function.structured_input_signature[1]
    specs = {tensor: given[tensor] for tensor in sorted(given, key=_by_name)}
    for tensor, spec in specs.items():
        if spec.shape.rank is None or spec.shape.rank == 0:
            raise InvalidError(
                f"input {tensor} has the shape {spec.shape}, so that it cannot hold samples",
                element=name,
                hint="export it with the samples along the first dimension of every input",
            )
    return specs


def _by_name(tensor: str) -> list[tuple[int, str]]:
    """Sort output_2 before output_10: a SavedModel's file keeps no order of its tensors."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", tensor)]
