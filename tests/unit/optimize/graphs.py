"""Small ONNX graphs with seeded weights, written by hand, for tests of passes."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from skerry.optimize import graph

BATCH = "batch"


class Builder:
    """Collects nodes and weights, then gives a checked model; float32 [batch, ...] in and out."""

    def __init__(self, shape: Sequence[int], *, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.last = "input"

    def weight(self, name: str, *shape: int) -> str:
        """Add float32 weights that keep the size of values about the same."""
        scale = 1 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        return self.constant(name, (self.random.standard_normal(shape) * scale).astype(np.float32))

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add a constant."""
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, *more: str, first: str | None = None, outputs: int = 1, **attributes) -> str:
        """Add a node that takes the last output (or `first`) and then `more`; return its output."""
        name = f"{operator.lower()}{len(self.nodes)}"
        made = [name, *(f"{name}.{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(operator, [first or self.last, *more], made, name=f"n_{name}", **attributes))
        self.last = name
        return name

    def conv(self, before: int, after: int, *, size: int = 3, group: int = 1) -> str:
        """Add a convolution with a bias that keeps the planes' size."""
        index = len(self.nodes)
        weight = self.weight(f"conv{index}.weight", after, before // group, size, size)
        bias = self.weight(f"conv{index}.bias", after)
        return self.add("Conv", weight, bias, group=group, pads=[size // 2] * 4)

    def gemm(self, before: int, after: int) -> str:
        """Add a fully connected layer as PyTorch exports it."""
        index = len(self.nodes)
        weight, bias = self.weight(f"fc{index}.weight", after, before), self.weight(f"fc{index}.bias", after)
        return self.add("Gemm", weight, bias, transB=1)

    def model(self, out: Sequence[int], *, opset: int = 20, ir_version: int = 10) -> onnx.ModelProto:
        """Return the model, with the last node's output as its only one."""
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape])
            for name, shape in (("input", self.shape), ("output", out))
        ]
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        nodes[-1].output[0] = "output"
        made = helper.make_model(
            helper.make_graph(nodes, "graph", values[:1], values[1:], self.tensors),
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=ir_version,
        )
        onnx.checker.check_model(made, full_check=True)
        return made

    def raw(self, out: Sequence[int]) -> bytes:
        """Return the serialised model."""
        return graph.serialise(self.model(out))
