"""What a model accepts: a request held against its signature, with a sentence for whatever does not fit.

Lives here: names, datatypes and shapes. Must not live here: tensor data, JSON, HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from skerry.api.errors import BadRequestError, InvalidError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.serve.limits import MAX_ELEMENTS, MAX_RANK, MAX_TENSORS

_SHOWN = 100
"""Characters of a name from outside that a sentence repeats."""


class SignatureCheck:
    """The checks for one signature."""

    def __init__(self, signature: ModelSignature) -> None:
        for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
            names = {spec.name for spec in specs}
            if not specs or len(names) != len(specs) or len(specs) > MAX_TENSORS:
                raise InvalidError(f"needs 1 to {MAX_TENSORS} {kind}s with names of their own", element="signature")
            for spec in specs:
                if len(spec.shape) > MAX_RANK or any(size < 1 and size != -1 for size in spec.shape):
                    raise InvalidError(f"{spec.shape} is not a shape", element=f'{kind} "{spec.name}"')
        self._inputs = {spec.name: spec for spec in signature.inputs}
        self._outputs = {spec.name: spec for spec in signature.outputs}

    def accept_input(self, name: str, datatype: str, shape: Sequence[int]) -> None:
        """Accept one input tensor's description. Raises BadRequestError."""
        spec = self._inputs.get(name)
        if spec is None:
            raise BadRequestError(
                f"the model has no such input, but {_listed(self._inputs)}", element=f'input "{name[:_SHOWN]}"'
            )
        if datatype != spec.datatype:
            raise BadRequestError(
                f"has datatype {datatype[:_SHOWN]}, the model takes {spec.datatype}", element=f'input "{name}"'
            )
        if not _fits(shape, spec):
            raise BadRequestError(
                f"has shape {list(shape)}, the model takes {spec.shape}",
                element=f'input "{name}"',
                hint="-1 stands for any size from 1" if -1 in spec.shape else "",
            )

    def accept_inputs(self, names: Sequence[str]) -> None:
        """Accept the whole set of inputs. Raises BadRequestError."""
        if len(set(names)) != len(names):
            raise BadRequestError("the same input is given twice", element="inputs")
        missing = [name for name in self._inputs if name not in names]
        if missing:
            raise BadRequestError(f"the model also needs {_listed(missing)}", element="inputs")

    def outputs(self, wanted: Sequence[str]) -> Sequence[str]:
        """Return the outputs to compute; all when none is asked for. Raises BadRequestError."""
        if len(set(wanted)) != len(wanted):
            raise BadRequestError("the same output is asked for twice", element="outputs")
        for name in wanted:
            if name not in self._outputs:
                raise BadRequestError(
                    f"the model has no such output, but {_listed(self._outputs)}", element=f'output "{name[:_SHOWN]}"'
                )
        return list(wanted or self._outputs)


def _fits(shape: Sequence[int], spec: TensorSpec) -> bool:
    if len(shape) != len(spec.shape):
        return False
    size = 1
    for given, taken in zip(shape, spec.shape, strict=True):
        if given < 1 or taken not in (given, -1):
            return False
        size *= given
    return size <= MAX_ELEMENTS


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
