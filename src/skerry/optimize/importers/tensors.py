"""What all sources do with tensors: match names, run in batches, check what comes out, describe it as a signature.

A `Reference` is a model that can be run; each importer makes one with its framework. Must not live here: frameworks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from skerry.api.errors import InvalidError, SkerryError
from skerry.api.kinds.tensors import Datatype, ModelSignature, TensorSpec
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import UNNAMED, Inputs, bind
from skerry.optimize.foreign import first_line, raise_if_starved

BATCH = 256
Names = Sequence[str] | Callable[[Inputs], Sequence[str]]
"""Names of inputs, or what tells them for the data's tensors, where a model can do without some inputs."""

_DATATYPES: Mapping[str, Datatype] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A model as its framework runs it."""

    names: Names
    """The inputs, in the order in which the model takes them; empty: as the data names and orders them."""
    run: Callable[[Inputs], Mapping[str, Array]]
    """One batch: inputs by the model's names to outputs by name, in order. May raise whatever its framework raises."""
    fixed: int | None = None
    """The only batch size that the model takes: the last batch is filled up."""
    hint: str = "compare the samples in the data with what the model expects"

    def bound(self, inputs: Inputs) -> Inputs:
        """Return the inputs by the model's names, in its order. Raises InvalidError."""
        names = self.names(inputs) if callable(self.names) else self.names
        return bind(inputs, names, element="data") if names else inputs

    def predict(self, inputs: Inputs) -> dict[str, Array]:
        """Run samples [n, ...]; return every output [n, ...] by name. Raises InvalidError."""
        bound = self.bound(inputs)
        count = len(next(iter(bound.values())))
        most = self.fixed or BATCH
        parts = []
        for start in range(0, count, most):
            batch: Inputs = {name: samples[start : start + most] for name, samples in bound.items()}
            size = min(most, count - start)
            if self.fixed:
                batch = first(batch, most)
            outputs = self._run(batch)
            parts.append({name: output[:size] for name, output in outputs.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def signature(self, inputs: Inputs) -> ModelSignature:
        """Return the tensors of these samples and their outputs, with a free batch. Raises InvalidError."""
        few = first(self.bound(inputs), 2)
        return ModelSignature(inputs=specs(few), outputs=specs(self.predict(few)))

    def _run(self, batch: Inputs) -> Mapping[str, Array]:
        try:
            outputs = self.run(batch)
        except Exception as error:
            raise_if_starved(error)
            if isinstance(error, SkerryError) and error.element:
                raise
            raise InvalidError(
                f"cannot take {_described(batch)} ({first_line(error)})", element="model", hint=self.hint
            ) from error
        size = len(next(iter(batch.values())))
        for output in outputs.values():
            if output.ndim < 1 or len(output) != size:
                raise InvalidError(
                    f"gives an output of shape {list(output.shape)} for {size} samples",
                    element="model",
                    hint="every output needs one entry per sample, samples outermost",
                )
        return outputs


def first(inputs: Inputs, count: int) -> Inputs:
    """Return exactly `count` samples of each tensor, from the start, again from the start when there are fewer."""
    return {name: np.resize(samples[:count], (count, *samples.shape[1:])) for name, samples in inputs.items()}


def freed(signature: ModelSignature, declared: Mapping[str, Sequence[int]]) -> ModelSignature:
    """Return the signature of samples with -1 where the model declares a free dimension (tensor name -> shape)."""
    return ModelSignature(
        inputs=[_freed(spec, declared) for spec in signature.inputs],
        outputs=[_freed(spec, declared) for spec in signature.outputs],
    )


def specs(tensors: Mapping[str, Array]) -> list[TensorSpec]:
    """Describe arrays [n, ...] as tensors with a free batch. Raises InvalidError for types that cannot be served."""
    return [
        TensorSpec(name=name, datatype=datatype(array.dtype.name, element=name), shape=[-1, *array.shape[1:]])
        for name, array in tensors.items()
    ]


def datatype(dtype: str, *, element: str) -> Datatype:
    """Return the Open Inference Protocol's name of a numpy dtype. Raises InvalidError."""
    if dtype not in _DATATYPES:
        raise InvalidError(f"has type {dtype}, which cannot be served", element=f"tensor {element}")
    return _DATATYPES[dtype]


def _described(batch: Inputs) -> str:
    said = [
        f"{'' if name == UNNAMED else f'{name} '}{samples.dtype.name} inputs of shape "
        f"[batch{''.join(f', {size}' for size in samples.shape[1:])}]"
        for name, samples in batch.items()
    ]
    return " and ".join(said)


def _freed(spec: TensorSpec, declared: Mapping[str, Sequence[int]]) -> TensorSpec:
    known = declared.get(spec.name, ())
    if len(known) != len(spec.shape):
        return spec
    sizes = enumerate(zip(spec.shape, known, strict=True))
    shape = [-1 if axis == 0 or declared_size < 0 else size for axis, (size, declared_size) in sizes]
    return TensorSpec(name=spec.name, datatype=spec.datatype, shape=shape)
