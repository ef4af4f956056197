"""One ONNX node on its way to TensorFlow Lite: its attributes, its inputs in the wanted layout, its outputs.

Must not live here: what an operator means.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx

from skerry.optimize.passes.examined import Array, Facts, GraphNode
from skerry.optimize.passes.lower.network import TO_LAST, TO_PLAIN, Network, Value


@dataclass(kw_only=True, slots=True)
class Translation:
    """What is known of the graph, and what of it is in the network already."""

    facts: Facts
    network: Network = field(default_factory=Network)
    plain: dict[str, Value] = field(default_factory=dict)
    last: dict[str, Value] = field(default_factory=dict)


class Node(GraphNode):
    """A node with all that its translation needs."""

    target = "TensorFlow Lite"
    hint = "the litert-torch toolchain converts more operators of PyTorch models, Keras models take another way"

    def __init__(self, proto: onnx.NodeProto, of: Translation) -> None:
        super().__init__(proto, of.facts)
        self.net = of.network
        self._of = of

    def plain(self, position: int) -> Value:
        """Return an input in ONNX's order of dimensions."""
        name = self.inputs[position]
        if name not in self._of.plain:
            if name in self.facts.constants:
                self._of.plain[name] = self.net.constant(self.facts.constants[name], name)
            else:
                self._of.plain[name] = self.net.transposed(self._of.last[name], TO_PLAIN, name=f"{name}:plain")
        return self._of.plain[name]

    def last(self, position: int) -> Value:
        """Return an image input with channels last."""
        name = self.inputs[position]
        if name not in self._of.last:
            if name in self.facts.constants:
                images = _as_image(self.facts.constants[name])
                self._of.last[name] = self.net.constant(np.ascontiguousarray(images.transpose(TO_LAST)), f"{name}:last")
            else:
                self._of.last[name] = self.net.transposed(self._of.plain[name], TO_LAST, name=f"{name}:last")
        return self._of.last[name]

    def is_last(self) -> bool:
        """Tell whether to compute with channels last: all inputs are images, and one is there in that order only."""
        computed = [name for name in self.inputs if name and name not in self.facts.constants]
        images = all(len(self.facts.shapes[name].sizes) == 4 for name in computed)
        return images and any(name in self._of.last and name not in self._of.plain for name in computed)

    def give_plain(self, value: Value, position: int = 0) -> None:
        """Say which tensor holds an output, in ONNX's order."""
        self._of.plain[self.outputs[position]] = value

    def give_last(self, value: Value, position: int = 0) -> None:
        """Say which tensor holds an output, channels last."""
        self._of.last[self.outputs[position]] = value

    def pass_on(self, position: int = 0) -> None:
        """Let the output be the input, in whatever order that is there."""
        source, target = self.inputs[position], self.outputs[0]
        for kept in (self._of.plain, self._of.last):
            if source in kept:
                kept[target] = kept[source]
        if source in self.facts.constants and target not in self._of.plain:
            self._of.plain[target] = self.plain(position)


def _as_image(array: Array) -> Array:
    """Return an array with leading dimensions of one, so that it has four."""
    return array.reshape((1,) * (4 - array.ndim) + array.shape)
