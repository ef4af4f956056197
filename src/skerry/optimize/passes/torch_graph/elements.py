"""Operators on elements: arithmetic, comparisons, activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import torch
from torch.nn import functional

from skerry.optimize.passes.torch_graph.steps import Node, dtype_of

UNARY: Mapping[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": functional.hardswish,
    "Log": torch.log,
    "Mish": functional.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": functional.relu,
    "Round": torch.round,
    "Selu": functional.selu,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}
BINARY: Mapping[str, Callable[..., Any]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Pow": torch.pow,
    "Sub": torch.sub,
    "Sum": torch.add,
    "Xor": torch.logical_xor,
}


def unary(node: Node) -> None:
    """An operator of one input without parameters."""
    node.put(UNARY[node.kind], 0)


def binary(node: Node) -> None:
    """An operator of two inputs that are broadcast; Min, Max and Sum of several, two by two."""
    if node.kind == "Add" and _take_in_bias(node):
        return
    call, count, dtype = BINARY[node.kind], len(node.inputs), dtype_of(node.dtype())
    if node.kind == "Pow":
        node.put(lambda one, other: torch.pow(one, other).to(dtype), 0, 1)
    elif count == 2:
        node.put(call, 0, 1)
    else:
        node.put(lambda *values: reduce(call, values), *range(count))


def divide(node: Node) -> None:
    """Div: of integers without the rest."""
    whole = not node.dtype().startswith("float")
    node.put(partial(torch.div, rounding_mode="trunc") if whole else torch.div, 0, 1)


def clip(node: Node) -> None:
    """Clip with constant bounds; quantisers know hardtanh and relu as activations."""
    low, high = node.constant(1), node.constant(2)
    if (node.has(1) and low is None) or (node.has(2) and high is None):
        raise node.unsupported("computes its bounds")
    bounds = [None if bound is None else bound.item() for bound in (low, high)]
    if bounds == [None, None]:
        node.pass_on()
    elif bounds == [0, None]:
        node.put(functional.relu, 0)
    elif node.dtype() == "float32" and low is not None and high is not None and low < high:
        node.put(partial(functional.hardtanh, min_val=low.item(), max_val=high.item()), 0)
    else:
        node.put(partial(torch.clamp, min=bounds[0], max=bounds[1]), 0)


def leaky_relu(node: Node) -> None:
    """LeakyRelu."""
    node.put(partial(functional.leaky_relu, negative_slope=float(node.attribute("alpha", 0.01))), 0)


def prelu(node: Node) -> None:
    """PRelu: a slope for what is below 0, for each channel or element."""
    node.put(lambda value, slope: torch.where(value < 0, value * slope, value), 0, 1)


def elu(node: Node) -> None:
    """Elu."""
    node.put(partial(functional.elu, alpha=float(node.attribute("alpha", 1.0))), 0)


def gelu(node: Node) -> None:
    """Gelu, exact or by tanh."""
    node.put(partial(functional.gelu, approximate=node.attribute("approximate", "none")), 0)


def hard_sigmoid(node: Node) -> None:
    """HardSigmoid: a line between 0 and 1."""
    alpha, beta = float(node.attribute("alpha", 0.2)), float(node.attribute("beta", 0.5))
    node.put(lambda value: torch.clamp(value * alpha + beta, 0.0, 1.0), 0)


def cast(node: Node) -> None:
    """Cast."""
    dtype = dtype_of(node.dtype())
    node.put(lambda value: value.to(dtype), 0)


def where(node: Node) -> None:
    """Where."""
    node.put(torch.where, 0, 1, 2)


def softmax(node: Node) -> None:
    """Softmax and LogSoftmax."""
    call = functional.softmax if node.kind == "Softmax" else functional.log_softmax
    node.put(partial(call, dim=int(node.attribute("axis", -1))), 0)


def _take_in_bias(node: Node) -> bool:
    """Give a sum with a constant vector to the linear layer before, when only this node reads that; tell whether."""
    for made, added in ((0, 1), (1, 0)):
        step, bias = node.plan.made_by.get(node.value(made)), node.constant(added)
        if step is None or bias is None or not isinstance(step.call, str) or not node.only_reader(made):
            continue
        layer = node.plan.modules[step.call]
        if not isinstance(layer, torch.nn.Linear) or layer.bias is not None or bias.ndim == 0:
            continue
        if bias.ndim <= len(node.shape(made).sizes) and bias.shape == (*(1,) * (bias.ndim - 1), layer.out_features):
            layer.bias = torch.nn.Parameter(torch.from_numpy(bias.reshape(-1).copy()), requires_grad=False)
            node.plan.same(node.outputs[0], node.value(made))
            return True
    return False
