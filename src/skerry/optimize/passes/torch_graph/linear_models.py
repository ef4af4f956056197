"""Operators of ONNX's own set for classical models (ai.onnx.ml) that are matrix products and scalings.

Must not live here: trees, text, vectors of text; they have no counterpart among a network's layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from skerry.optimize.passes.torch_graph import arrays
from skerry.optimize.passes.torch_graph.steps import Node, Step

_TRANSFORMS: Mapping[str, Callable[..., Any] | None] = {
    "NONE": None,
    "LOGISTIC": torch.sigmoid,
    "SOFTMAX": partial(torch.softmax, dim=-1),
}
_SMALLEST = 1e-30
"""A row of nothing but zeros stays one."""


def scaler(node: Node) -> None:
    """Scaler: a difference and a product per feature."""
    parts = [np.array(node.attribute(name, [default]), np.float32) for name, default in (("offset", 0), ("scale", 1))]
    held = [node.held(part, f"part{index}") for index, part in enumerate(parts)]
    node.put(lambda value, offset, scale: (value.to(torch.float32) - offset) * scale, 0, *held)


def linear(node: Node) -> None:
    """LinearClassifier, its scores only, and LinearRegressor: a linear layer and what becomes of its sums."""
    position = 1 if node.kind.endswith("Classifier") else 0
    if position and node.facts.readers[node.outputs[0]]:
        raise node.unsupported("gives labels")
    way = node.attribute("post_transform", "NONE")
    if way not in _TRANSFORMS:
        raise node.unsupported(f"has the post_transform {way}")
    features, classes = node.shape(0).sizes[-1], node.output_shape(position).sizes[-1]
    matrix = np.array(node.attribute("coefficients"), np.float32).reshape(-1, features)
    if len(matrix) != classes:
        raise node.unsupported(f"gives {classes} scores by {len(matrix)} sums")
    bias = np.array(node.attribute("intercepts", [0.0] * classes), np.float32)
    transform = _TRANSFORMS[way]
    sums = node.outputs[position] if transform is None else f"{node.name}::sums"
    arrays.connect(node, matrix, bias, node.as_float(0), writes=[sums])
    if transform is not None:
        node.plan.put(Step(transform, (sums,), (node.outputs[position],)))


def normalizer(node: Node) -> None:
    """Normalizer: each row by the sum of its sizes, or by its length."""
    norm = node.attribute("norm", "MAX")
    if norm not in {"L1", "L2"}:
        raise node.unsupported(f"divides by the norm {norm}")
    power = 1 if norm == "L1" else 2
    node.put(
        lambda value: value / torch.clamp(torch.linalg.vector_norm(value, power, -1, keepdim=True), min=_SMALLEST),
        node.as_float(0),
    )
