"""A module under construction: its steps, the constants it holds, and the ONNX node that becomes the next step.

Must not live here: what an ONNX operator means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

from skerry.optimize.passes.examined import Array, Facts, GraphNode


@dataclass(frozen=True, slots=True)
class Step:
    """A call: a function, or the name of a layer, from named values to named values."""

    call: Callable[..., Any] | str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


class Graph(torch.nn.Module):
    """A graph as a module: positional tensors in, a tensor or a tuple of tensors out."""

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str], steps: Sequence[Step], plan: Plan) -> None:
        super().__init__()
        self.layers: Mapping[str, str] = dict(plan.layers)
        """Node -> the layer that it became."""
        self._inputs, self._outputs, self._steps = tuple(inputs), tuple(outputs), tuple(steps)
        self._constants: dict[str, str] = {}
        for name, module in plan.modules.items():
            self.add_module(name, module)
        used = {*outputs, *(name for step in steps for name in step.reads)}
        for index, (name, tensor) in enumerate(plan.constants.items()):
            if name in used:
                self._constants[name] = f"constant_{index}"
                self.register_buffer(f"constant_{index}", tensor)

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Run the steps in their order."""
        values: dict[str, Any] = dict(zip(self._inputs, inputs, strict=True))
        values.update((name, getattr(self, held)) for name, held in self._constants.items())
        for step in self._steps:
            call = getattr(self, step.call) if isinstance(step.call, str) else step.call
            made = call(*(values[name] for name in step.reads))
            values.update(zip(step.writes, made if len(step.writes) > 1 else (made,), strict=True))
        outputs = tuple(values[name] for name in self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs


class Plan:
    """The module as far as it is built."""

    def __init__(self, facts: Facts, inputs: Sequence[str] = ()) -> None:
        self.facts = facts
        self.batch = next((name for name in inputs if facts.shapes[name].free[:1] == (True,)), None)
        """An input that has the batch in front, for what depends on nothing but the batch's size."""
        self.modules: dict[str, torch.nn.Module] = {}
        self.layers: dict[str, str] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.made_by: dict[str, Step] = {}
        self.permuted: dict[str, tuple[str, tuple[int, ...]]] = {}
        """What is nothing but another tensor with its dimensions in another order."""
        self._steps: list[Step] = []
        self._same: dict[str, str] = {}

    def value(self, name: str) -> str:
        """Return the name under which a tensor's value is there, a constant among the constants."""
        while name in self._same:
            name = self._same[name]
        if name in self.facts.constants and name not in self.constants:
            self.constants[name] = tensor_of(self.facts.constants[name])
        return name

    def put(self, step: Step) -> None:
        """Add a step."""
        self._steps.append(step)
        self.made_by.update(dict.fromkeys(step.writes, step))

    def same(self, name: str, other: str) -> None:
        """Say that a tensor is another one."""
        self._same[name] = other

    def finished(self, inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
        """Return the module, without the steps that nothing needs."""
        ends = [self.value(name) for name in outputs]
        needed, steps = set(ends), []
        for step in reversed(self._steps):
            if needed.intersection(step.writes):
                steps.append(step)
                needed.update(step.reads)
        return Graph(inputs, ends, steps[::-1], self)


class Node(GraphNode):
    """A node with all that its translation needs."""

    target = "PyTorch"
    hint = "take onnx or tflite for this model, or export it with other operators"

    def __init__(self, proto: onnx.NodeProto, plan: Plan) -> None:
        super().__init__(proto, plan.facts)
        self.plan = plan

    def value(self, position: int) -> str:
        """Return the name under which an input's value is there."""
        return self.plan.value(self.inputs[position])

    def held(self, array: Array, what: str) -> str:
        """Hold a constant of this node's own; return its name."""
        name = f"{self.name}::{what}"
        self.plan.constants[name] = tensor_of(array)
        return name

    def put(self, call: Callable[..., Any] | str, *reads: str | int, writes: Sequence[str] = ()) -> None:
        """Let a function give the first output, or what is named; what it reads are values, or positions of inputs."""
        names = tuple(self.value(each) if isinstance(each, int) else each for each in reads)
        self.plan.put(Step(call, names, tuple(writes or self.outputs[:1])))

    def put_layer(self, module: torch.nn.Module, *reads: str | int, writes: Sequence[str] = ()) -> None:
        """Let a layer with weights give the first output, or what is named."""
        name = f"layer_{len(self.plan.modules)}"
        self.plan.modules[name] = module
        self.plan.layers[self.name] = name
        self.put(name, *reads, writes=writes)

    def as_float(self, position: int) -> str:
        """Return the name of an input's value in float32."""
        if self.facts.dtypes[self.inputs[position]] == "float32":
            return self.value(position)
        name = f"{self.name}::float{position}"
        self.put(lambda value: value.to(torch.float32), position, writes=[name])
        return name

    def pass_on(self) -> None:
        """Let the output be the input."""
        if any(self.facts.readers[name] for name in self.outputs[1:] if name):
            raise self.unsupported("gives more than one output")
        self.plan.same(self.outputs[0], self.value(0))


def tensor_of(array: Array) -> torch.Tensor:
    """Return a copy of an array as a tensor."""
    return torch.from_numpy(np.array(array, order="C"))


def dtype_of(name: str) -> torch.dtype:
    """Return torch's type by NumPy's name."""
    return torch.from_numpy(np.zeros(0, name)).dtype
