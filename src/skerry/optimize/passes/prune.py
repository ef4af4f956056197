"""Pruning: take weights out of a model before anything else is done with it.

Single weights: the smallest of each layer become zero. The file compresses better, but is neither smaller nor faster in
any engine served here. Whole channels (`channels`): smaller and faster. Lives here: what `PruningSpec` asks for, for
graphs and for PyTorch modules, and the user's fine-tuning. Must not live here: judging it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.optimize import graph
from skerry.optimize.arrays import Array
from skerry.optimize.passes import channels, layers
from skerry.optimize.passes.material import Form, Inputs
from skerry.optimize.recipe import PruningSpec

_TUNE_HINT = "name a Python file and a function(module, amount) in it that trains the module, as in tune.py:fine_tune"


def apply(form: Form, model: Any, spec: PruningSpec, sample: Inputs) -> tuple[Any, Mapping[str, str]]:
    """Return a pruned model of that form (bytes of a graph, or a PyTorch module) and what the card says of it.

    Raises UnsupportedError where the form cannot be pruned so, InvalidError, and what the user's function fails with.
    """
    if form == "torch":
        return _module(model, spec)
    if form != "onnx":
        hint = "prune PyTorch modules or ONNX graphs, or leave pruning out of this variant"
        raise UnsupportedError(f"models in the form {form} cannot be pruned", element="pruning", hint=hint)
    if spec.fine_tune is not None:
        hint = "give a PyTorch source, or leave fineTune out"
        raise UnsupportedError("only a PyTorch module can be trained on", element="pruning.fineTune", hint=hint)
    if spec.structured:
        pruned, removed = channels.remove(graph.parse(model), spec.sparsity, sample)
        return pruned, {"pruning": removed.summary}
    return _weights(graph.parse(model), spec.sparsity)


def smallest_to_zero(weights: Array, amount: float) -> Array:
    """Return a copy with that share of the elements, those of least magnitude, set to zero; ties go by position."""
    pruned = np.array(weights, copy=True)
    order = np.argsort(np.abs(pruned), axis=None, kind="stable")
    pruned.reshape(-1)[order[: int(pruned.size * amount)]] = 0
    return pruned


def _weights(model: onnx.ModelProto, amount: float) -> tuple[bytes, Mapping[str, str]]:
    layers.name_all(model)
    chosen = set(layers.heavy(model))
    named = {name for node in model.graph.node if node.name in chosen for name in node.input}
    zeros = total = 0
    for tensor in model.graph.initializer:
        if tensor.name in named and len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT:
            pruned = smallest_to_zero(numpy_helper.to_array(tensor), amount)
            tensor.CopyFrom(numpy_helper.from_array(pruned, tensor.name))
            zeros, total = zeros + int((pruned == 0).sum()), total + pruned.size
    if not total:
        raise UnsupportedError("has no layer with weights", element="model", hint="leave pruning out")
    return graph.serialise(model), {"pruning": f"{zeros} of {total} weights are zero"}


def _module(module: Any, spec: PruningSpec) -> tuple[Any, Mapping[str, str]]:
    import torch  # noqa: PLC0415 - heavy, and not needed for graphs

    if spec.structured:
        cause = "whole channels are taken out of ONNX graphs alone"
        hint = "set structured for ONNX variants, or leave it out"
        raise UnsupportedError(cause, element="pruning.structured", hint=hint)
    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)  # noqa: SLF001 - torch has no other name for all of them
    pruned = [inner for inner in module.modules() if isinstance(inner, kinds)]
    if not pruned:
        raise UnsupportedError("has no layer with weights", element="model", hint="leave pruning out")
    masks = {}
    with torch.no_grad():
        for inner in pruned:
            inner.weight.copy_(torch.from_numpy(smallest_to_zero(inner.weight.numpy(), spec.sparsity)))
            masks[inner.weight] = (inner.weight != 0).to(inner.weight.dtype)
    if spec.fine_tune is not None:
        module = _fine_tuned(module, spec.fine_tune, spec.sparsity, masks)
    zeros = sum(int((inner.weight == 0).sum()) for inner in pruned)
    total = sum(inner.weight.numel() for inner in pruned)
    said = {"pruning": f"{zeros} of {total} weights are zero"}
    return module, said if spec.fine_tune is None else {**said, "fine-tuned": spec.fine_tune.rpartition("/")[2]}


def _fine_tuned(module: Any, function: str, amount: float, masks: Mapping[Any, Any]) -> Any:
    """Let the user train the module on; what was pruned stays zero, whatever the optimiser does."""
    import torch  # noqa: PLC0415 - heavy

    from skerry.optimize import user_code  # noqa: PLC0415 - only where code is run

    tune = user_code.load_function(function, hint=_TUNE_HINT)
    module.train().requires_grad_(requires_grad=True)
    hooks = [weight.register_hook(mask.mul) for weight, mask in masks.items()]
    try:
        with torch.enable_grad():
            returned = tune(module, amount)
    finally:
        for hook in hooks:
            hook.remove()
    if returned is not None and returned is not module:
        raise InvalidError("returned another module", element=tune.element, hint="train the one it is given, in place")
    with torch.no_grad():
        for weight, mask in masks.items():
            weight.mul_(mask)  # weight decay and momentum do not pass through the hooks
    return module.eval().requires_grad_(requires_grad=False)
