"""Operators on elements: arithmetic, comparisons, activations. They keep whatever layout their inputs are in."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from skerry.optimize.passes.examined import Shape
from skerry.optimize.passes.lower.context import Node
from skerry.optimize.passes.lower.network import TO_LAST, Value

_ACTIVATION = schema.ActivationFunctionType
_OPTIONS = {
    "ADD": schema.AddOptionsT,
    "SUB": schema.SubOptionsT,
    "MUL": schema.MulOptionsT,
    "DIV": schema.DivOptionsT,
}
UNARY: Mapping[str, str] = {
    "Abs": "ABS",
    "Ceil": "CEIL",
    "Cos": "COS",
    "Elu": "ELU",
    "Exp": "EXP",
    "Floor": "FLOOR",
    "HardSwish": "HARD_SWISH",
    "Log": "LOG",
    "Neg": "NEG",
    "Not": "LOGICAL_NOT",
    "Round": "ROUND",
    "Sigmoid": "LOGISTIC",
    "Sign": "SIGN",
    "Sin": "SIN",
    "Sqrt": "SQRT",
    "Tanh": "TANH",
}
BINARY: Mapping[str, str] = {
    "Add": "ADD",
    "And": "LOGICAL_AND",
    "Div": "DIV",
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
    "Max": "MAXIMUM",
    "Min": "MINIMUM",
    "Mul": "MUL",
    "Or": "LOGICAL_OR",
    "Pow": "POW",
    "Sub": "SUB",
}


def unary(node: Node) -> None:
    """An operator of one input without parameters."""
    if node.kind == "Elu" and float(node.attribute("alpha", 1.0)) != 1.0:
        raise node.unsupported("has another alpha than 1")
    _apply(node, UNARY[node.kind])


def binary(node: Node) -> None:
    """An operator of two inputs that are broadcast; Min and Max of several, two by two."""
    last = node.is_last()
    read = node.last if last else node.plain
    shape = _shape(node, last)
    value = read(0)
    kind = BINARY[node.kind]
    if len(node.inputs) == 1:
        return node.pass_on()
    for position in range(1, len(node.inputs)):
        value = _binary(node, kind, value, read(position), shape)
    (node.give_last if last else node.give_plain)(value)
    return None


def relu(node: Node) -> None:
    """Relu, taken in by the operator before it where that can."""
    _activate(node, _ACTIVATION.RELU, "RELU")


def clip(node: Node) -> None:
    """Clip; between 0 and 6 it is an activation, else a minimum and a maximum."""
    low = node.attribute("min") if node.opset < 11 else node.constant(1)
    high = node.attribute("max") if node.opset < 11 else node.constant(2)
    if node.opset >= 11 and ((node.has(1) and low is None) or (node.has(2) and high is None)):
        raise node.unsupported("computes its bounds")
    bounds = (None if low is None else float(low), None if high is None else float(high))
    if bounds == (0.0, 6.0):
        return _activate(node, _ACTIVATION.RELU6, "RELU6")
    if bounds == (0.0, None):
        return _activate(node, _ACTIVATION.RELU, "RELU")
    if bounds == (None, None):
        return node.pass_on()
    last = node.is_last()
    value = node.last(0) if last else node.plain(0)
    for kind, bound in (("MAXIMUM", bounds[0]), ("MINIMUM", bounds[1])):
        if bound is not None:
            value = _binary(node, kind, value, node.net.constant(np.array(bound, value.dtype)), value.shape)
    (node.give_last if last else node.give_plain)(value)
    return None


def leaky_relu(node: Node) -> None:
    """LeakyRelu."""
    options = schema.LeakyReluOptionsT()
    options.alpha = float(node.attribute("alpha", 0.01))
    _apply(node, "LEAKY_RELU", options)


def gelu(node: Node) -> None:
    """Gelu, exact or by tanh."""
    options = schema.GeluOptionsT()
    options.approximate = node.attribute("approximate", "none") == "tanh"
    _apply(node, "GELU", options)


def hard_sigmoid(node: Node) -> None:
    """HardSigmoid: a line between 0 and 1."""
    alpha, beta = float(node.attribute("alpha", 0.2)), float(node.attribute("beta", 0.5))
    last = node.is_last()
    value = node.last(0) if last else node.plain(0)
    for kind, number in (("MUL", alpha), ("ADD", beta), ("MAXIMUM", 0.0), ("MINIMUM", 1.0)):
        value = _binary(node, kind, value, node.net.constant(np.array(number, value.dtype)), value.shape)
    (node.give_last if last else node.give_plain)(value)


def reciprocal(node: Node) -> None:
    """Reciprocal: one divided by it."""
    last = node.is_last()
    value = node.last(0) if last else node.plain(0)
    one = node.net.constant(np.array(1, value.dtype))
    (node.give_last if last else node.give_plain)(_binary(node, "DIV", one, value, value.shape))


def cast(node: Node) -> None:
    """Cast."""
    last = node.is_last()
    value = node.last(0) if last else node.plain(0)
    options = schema.CastOptionsT()
    made = node.net.put("CAST", [value], value.shape, name=node.outputs[0], dtype=node.dtype(), options=options)
    (node.give_last if last else node.give_plain)(made)


def where(node: Node) -> None:
    """Where."""
    inputs = [node.plain(position) for position in range(3)]
    shape, options = node.output_shape(), schema.SelectV2OptionsT()
    made = node.net.put("SELECT_V2", inputs, shape, name=node.outputs[0], dtype=node.dtype(), options=options)
    node.give_plain(made)


def softmax(node: Node) -> None:
    """Softmax and LogSoftmax over the last dimension."""
    rank = len(node.shape(0).sizes)
    axis = int(node.attribute("axis", -1 if node.opset >= 13 else 1)) % rank
    if axis != rank - 1:
        raise node.unsupported("goes over another dimension than the last")
    options: object = schema.LogSoftmaxOptionsT()
    if node.kind == "Softmax":
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0  # type: ignore[attr-defined]
    kind = "SOFTMAX" if node.kind == "Softmax" else "LOG_SOFTMAX"
    value = node.plain(0)
    node.give_plain(node.net.put(kind, [value], value.shape, name=node.outputs[0], options=options))


def _activate(node: Node, activation: int, kind: str) -> None:
    last = node.is_last()
    value = node.last(0) if last else node.plain(0)
    if node.only_reader(0) and node.net.fuse(value, activation):
        node.pass_on()
    else:
        _apply(node, kind)


def _apply(node: Node, kind: str, options: object = None) -> None:
    last = node.is_last()
    value = node.last(0) if last else node.plain(0)
    give: Callable[[Value], None] = node.give_last if last else node.give_plain
    give(node.net.put(kind, [value], value.shape, name=node.outputs[0], options=options))


def _binary(node: Node, kind: str, one: Value, other: Value, shape: Shape) -> Value:
    options = _OPTIONS[kind]() if kind in _OPTIONS else None
    if options is not None:
        options.fusedActivationFunction = _ACTIVATION.NONE
    return node.net.put(kind, [one, other], shape, name=node.outputs[0], dtype=node.dtype(), options=options)


def _shape(node: Node, last: bool) -> Shape:
    shape = node.output_shape()
    return shape.permuted(TO_LAST) if last else shape
