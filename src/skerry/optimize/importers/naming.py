"""One order and one set of names for the same ONNX graph.

Exporters number their nodes as they meet them, and some meet them in the order of a hash table, which is another one in
each process. Equal graphs must have equal digests. Must not live here: anything that changes what a graph does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

_COUNTER = re.compile(r"(__\d+)+$")


def canonical(model: ModelProto) -> ModelProto:
    """Return the graph with its nodes in the order of the outputs' needs, and names that depend on that order alone.

    Inputs and outputs keep their names. A node is called what the exporter called it, without counters. Nodes that no
    output needs are left out.
    """
    made = ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    nodes = [_copied(node) for node in _ordered(graph)]
    kept = {value.name for value in (*graph.input, *graph.output)}
    renamed = {name: name for name in kept}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    used: list[TensorProto] = []
    taken: dict[str, int] = {}
    for node in nodes:
        node.name = _unique(_COUNTER.sub("", node.name) or node.op_type, taken)
        for place, name in enumerate(_needs(node)):
            if name in initializers and name not in renamed:
                renamed[name] = f"{node.name}.{place}"
                tensor = TensorProto()
                tensor.CopyFrom(initializers[name])
                tensor.name = renamed[name]
                used.append(tensor)
        for place, name in enumerate(node.output):
            if name and name not in renamed:
                renamed[name] = f"{node.name}:{place}"
        _rename(node, renamed)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*used, *(tensor for name, tensor in initializers.items() if name in kept)])
    graph.name = "model"
    return made


def _ordered(graph: GraphProto) -> Iterator[NodeProto]:
    """Walk the nodes so that each comes after those it needs, beginning with what the first output needs."""
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    done: set[int] = set()
    stack = [(producers[value.name], False) for value in reversed(graph.output) if value.name in producers]
    while stack:
        index, ready = stack.pop()
        if index in done:
            continue
        if ready:
            done.add(index)
            yield graph.node[index]
            continue
        stack.append((index, True))
        needs = [producers[name] for name in _needs(graph.node[index]) if name in producers]
        stack.extend((need, False) for need in reversed(needs) if need not in done)


def _needs(node: NodeProto) -> Iterator[str]:
    """Walk the values a node reads: its inputs, and what its branches and loops take from outside."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = {value.name for value in inner.input} | {tensor.name for tensor in inner.initializer}
            own |= {name for one in inner.node for name in one.output}
            for one in inner.node:
                yield from (name for name in _needs(one) if name not in own)
            yield from (value.name for value in inner.output if value.name not in own)


def _rename(node: NodeProto, renamed: dict[str, str]) -> None:
    for names in (node.input, node.output):
        for place, name in enumerate(names):
            names[place] = renamed.get(name, name)
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for one in inner.node:
                _rename(one, renamed)
            for value in inner.output:
                value.name = renamed.get(value.name, value.name)


def _unique(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}_{taken[name]}"


def _copied(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
