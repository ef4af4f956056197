"""Layers: the nodes that have weights, how people name them, and names for nodes that have none.

Must not live here: what a pass does with a layer.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx

from skerry.api.errors import InvalidError

HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights worth quantising and pruning."""


def name_all(model: onnx.ModelProto) -> None:
    """Give every node of the main graph a name of its own, in place; names that are unique already stay."""
    taken = {node.name for node in model.graph.node}
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
        seen.add(node.name)
        taken.add(node.name)


def heavy(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes with weights, in order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type in HEAVY and weights & set(n.input)]


def ends(model: onnx.ModelProto) -> list[str]:
    """Return the first and the last layer, where accuracy is usually lost. Raises InvalidError."""
    names = heavy(model)
    if len(names) < 3:
        raise InvalidError("has too few layers to leave the first and the last in float32")
    return [names[0], names[-1]]


def matching(model: onnx.ModelProto, wanted: Collection[str]) -> list[str]:
    """Return the nodes that names stand for: a node's own name, or a module's (`features.0`: nodes with its weights,
    and those that the tracer saw in it).

    Raises InvalidError for a name that stands for none.
    """
    found: list[str] = []
    constants = {tensor.name for tensor in model.graph.initializer}
    for name in wanted:
        meant = [
            node.name
            for node in model.graph.node
            if node.name == name
            or f"{_module(node.name)}.".startswith(f"{name}.")
            or any(t in constants and t.startswith(f"{name}.") for t in node.input)
        ]
        if not meant:
            hint = f"layers are {', '.join(heavy(model)[:8])}, ..."
            raise InvalidError("there is no such layer in the graph", element=f"layer {name[:80]}", hint=hint)
        found += meant
    return list(dict.fromkeys(found))


def _module(node: str) -> str:
    """Return the module that a traced node belongs to: `/block/layers/layers.0/Conv` -> `block.layers.0`."""
    path, before = "", ""
    for scope in node.split("/")[1:-1]:
        # a container's child is called by the container's own name and its number
        path += scope.removeprefix(before) if before and scope.startswith(f"{before}.") else f".{scope}"
        before = scope
    return path.removeprefix(".")
