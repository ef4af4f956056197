"""PyTorch: a builder function and its weights, run by torch, exported to ONNX.

The builder's file is code that the user named, and is run. The weights are data, and nothing in them is ever run.
"""

from __future__ import annotations

import inspect
import io
import pickle
import warnings
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skerry.api.errors import InvalidError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import SourceKind
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import Inputs
from skerry.optimize.foreign import first_line
from skerry.optimize.importers import Form, files, pickles, torch_onnx
from skerry.optimize.importers.tensors import Names, Reference, first
from skerry.optimize.recipe import SourceSpec
from skerry.optimize.user_code import UserFunction, load_function

_BUILDER_HINT = "name a Python file and a function in it that returns the torch.nn.Module, as in model.py:build_model"
_WEIGHTS_HINT = "save them with torch.save(model.state_dict(), path)"


class TorchSource:
    """A model that torch runs, in evaluation mode with its trained weights."""

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        kind: SourceKind,
        forms: frozenset[Form],
        digests: Mapping[str, str],
        names: Names,
        ways: Sequence[torch_onnx.Way],
        fixed_batch: int | None = None,
    ) -> None:
        self.kind = kind
        self.forms = forms
        self.digests = digests
        self._module = module
        self._ways = ways
        self._reference = Reference(
            names=names,
            run=self._run,
            fixed=fixed_batch,
            hint="compare the samples in the data with what forward() expects",
        )

    def signature(self, inputs: Inputs) -> ModelSignature:
        """See `Source`."""
        return self._reference.signature(inputs)

    def predict(self, inputs: Inputs) -> list[Array]:
        """See `Source`."""
        return list(self._reference.predict(inputs).values())

    def onnx(self, inputs: Inputs, *, opset: int) -> bytes:
        """See `Source`."""
        bound = self._reference.bound(inputs)
        example = first(bound, 2)  # of a batch of one, torch.export would make a constant
        tensors = tuple(_to_torch(samples) for samples in example.values())
        wanted = torch_onnx.Wanted(
            inputs=list(bound), outputs=list(self._reference.predict(example)), examples=tensors, opset=opset
        )
        return torch_onnx.export(self._module, wanted, self._ways, self._reference, bound)

    def native(self) -> torch.nn.Module:
        """See `Source`: the module itself."""
        return self._module

    def _run(self, batch: Inputs) -> dict[str, Array]:
        with torch.no_grad():
            output = self._module(*(_to_torch(samples) for samples in batch.values()))
        return {name: _to_numpy(value) for name, value in _flatten(output).items()}


def open_source(spec: SourceSpec, *, seed: int) -> TorchSource:
    """Build the module that `file.py:function` describes and load its weights; see `importers.open_source`."""
    if not spec.weights:
        raise InvalidError("needs weights", element=spec.path, hint=_WEIGHTS_HINT)
    return load(spec.path, Path(spec.weights), seed=seed)


def load(builder: str, weights: Path, *, seed: int) -> TorchSource:
    """Build the module that `file.py:function` describes and load its weights.

    Raises NotFoundError, InvalidError, TooLargeError; the element says which of the two files is meant.
    """
    content_hint = _WEIGHTS_HINT
    if not builder.rpartition(":")[0] or not builder.rpartition(":")[2].isidentifier():
        raise InvalidError("is not a builder", element=builder, hint=_BUILDER_HINT)
    torch.manual_seed(seed)
    function = load_function(builder, hint=_BUILDER_HINT)
    content = files.read(weights, hint=content_hint)
    module = _build(function)
    _load_weights(module, content, name=weights.name, builder=function.element.rpartition(":")[2])
    return TorchSource(
        module.eval().requires_grad_(requires_grad=False),
        kind="pytorch",
        forms=frozenset({"torch", "onnx"}),
        digests={function.path.name: function.digest, weights.name: sha256(content).hexdigest()},
        names=_parameters(module),
        ways=(torch_onnx.by_trace, torch_onnx.by_program, torch_onnx.by_script),
    )


def _build(function: UserFunction) -> torch.nn.Module:
    module = function()
    if not isinstance(module, torch.nn.Module):
        hint = "return the model itself; the weights are loaded afterwards"
        cause = f"returned {type(module).__name__}, not a torch.nn.Module"
        raise InvalidError(cause, element=function.element, hint=hint)
    return module


def _parameters(module: torch.nn.Module) -> Names:
    """Return the names that inputs must have: forward()'s, as many as the data has tensors or as it needs.

    A model with one input leaves its name to the data.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p for p in parameters if p.kind in kinds]
    names = [p.name for p in positional]
    needed = sum(p.default is inspect.Parameter.empty for p in positional)

    def of(inputs: Inputs) -> Sequence[str]:
        if len(inputs) == 1 and needed < 2 and not set(inputs) & set(names[1:]):
            return []
        return names[: max(needed, min(len(inputs), len(names)), 1)]

    if any(p.kind == inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return names if len(names) > 1 else []  # what *inputs takes has no names
    return of


def _load_weights(module: torch.nn.Module, content: bytes, *, name: str, builder: str) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = pickles.found_in(content)
        cause = f"holds more than tensors{found}, or is no PyTorch file; code in it is never run"
        raise InvalidError(cause, element=name, hint=_WEIGHTS_HINT) from error
    except Exception as error:  # torch.load has no documented set of exceptions for what is no weights file
        raise InvalidError(
            f"cannot be read as weights ({first_line(error)})", element=name, hint=_WEIGHTS_HINT
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InvalidError("is not a state dict (tensor name -> tensor)", element=name, hint=_WEIGHTS_HINT)
    misfits = _misfits(module.state_dict(), state)
    if misfits:
        raise InvalidError(
            f"the weights do not fit the model: {misfits}", element=name, hint=f"train what {builder} returns"
        )
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidError(f"the weights do not fit the model: {first_line(error)}", element=name) from error
    not_finite = [key for key, parameter in module.named_parameters() if not parameter.isfinite().all()]
    if not_finite:
        raise InvalidError(f"{_some(not_finite)} holds NaN or infinite values", element=name, hint="train it again")


def _misfits(wanted: Mapping[str, Any], given: Mapping[str, torch.Tensor]) -> str:
    missing = [key for key in wanted if key not in given]
    unknown = [key for key in given if key not in wanted]
    shapes = [
        f"{key} is {list(given[key].shape)} instead of {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in given and isinstance(tensor, torch.Tensor) and given[key].shape != tensor.shape
    ]
    found = [
        f"missing {_some(missing)}" if missing else "",
        f"unknown {_some(unknown)}" if unknown else "",
        _some(shapes) if shapes else "",
    ]
    return "; ".join(filter(None, found))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(str(name)[:80] for name in names[:3]) + more


def _flatten(output: Any) -> dict[str, torch.Tensor]:
    """Return the outputs by name, in order: a tensor, a tuple or list of tensors, or a dict of tensors."""
    if isinstance(output, torch.Tensor):
        return {"output": output}
    named: dict[str, Any] = {}
    if isinstance(output, Mapping):
        named = {str(key): value for key, value in output.items()}
    elif isinstance(output, (tuple, list)):
        named = {f"output_{index}": value for index, value in enumerate(output)}
    if not named or not all(isinstance(value, torch.Tensor) for value in named.values()):
        raise InvalidError(
            f"gives {type(output).__name__} as its output",
            element="model",
            hint="return a tensor, or a tuple or dict of tensors",
        )
    return named


def _to_torch(samples: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(samples))


def _to_numpy(output: torch.Tensor) -> Array:
    try:
        array: Array = output.detach().numpy()
    except (TypeError, RuntimeError) as error:
        hint = "return dense tensors on the CPU, float32 or integers"
        raise InvalidError(
            f"gives outputs that numpy cannot hold ({output.dtype})", element="model", hint=hint
        ) from error
    return array
