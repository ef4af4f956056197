"""One ONNX node on its way to TensorFlow Lite: its attributes, its inputs in the wanted layout, its outputs.

Must not live here: what an operator means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from skerry.api.errors import UnsupportedError
from skerry.optimize.passes.lower.network import TO_LAST, TO_PLAIN, Array, Network, Shape, Value


@dataclass(kw_only=True, slots=True)
class Translation:
    """What is known of the graph, and what of it is in the network already."""

    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    constants: Mapping[str, Array]
    """Tensors that do not depend on the inputs."""
    readers: Mapping[str, int]
    """How often each tensor is read; the model's outputs count."""
    network: Network = field(default_factory=Network)
    plain: dict[str, Value] = field(default_factory=dict)
    last: dict[str, Value] = field(default_factory=dict)
    opset: int = 0


class Node:
    """A node with all that its translation needs."""

    def __init__(self, proto: onnx.NodeProto, of: Translation) -> None:
        self.kind: str = proto.op_type
        self.inputs: Sequence[str] = list(proto.input)
        self.outputs: Sequence[str] = list(proto.output)
        self.net = of.network
        self._name = proto.name or self.outputs[0]
        self._attributes = {item.name: onnx.helper.get_attribute_value(item) for item in proto.attribute}
        self._of = of

    @property
    def opset(self) -> int:
        """The graph's operator set."""
        return self._of.opset

    def unsupported(self, cause: str) -> UnsupportedError:
        """Return the error that names this node."""
        return UnsupportedError(
            f"{cause}, which has no counterpart in TensorFlow Lite here",
            element=f"node {self._name} ({self.kind})",
            hint="the litert-torch toolchain converts more operators of PyTorch models, Keras models take another way",
        )

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute, text as str."""
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, position: int) -> bool:
        """Tell whether there is an input at a position."""
        return position < len(self.inputs) and bool(self.inputs[position])

    def shape(self, position: int) -> Shape:
        """Return the shape of an input."""
        return self._of.shapes[self.inputs[position]]

    def output_shape(self, position: int = 0) -> Shape:
        """Return the shape of an output."""
        return self._of.shapes[self.outputs[position]]

    def dtype(self, position: int = 0) -> str:
        """Return the type of an output."""
        return self._of.dtypes[self.outputs[position]]

    def constant(self, position: int) -> Array | None:
        """Return an input's value when it does not depend on the model's inputs."""
        return self._of.constants.get(self.inputs[position]) if self.has(position) else None

    def known(self, position: int, what: str) -> Array:
        """Return an input that must be constant. Raises UnsupportedError."""
        value = self.constant(position)
        if value is None:
            raise self.unsupported(f"computes its {what}")
        return value

    def axes(self, position: int, default: Sequence[int] = ()) -> list[int]:
        """Return the axes that are given as an input or an attribute, counted from 0."""
        given = self.constant(position)
        axes = self.attribute("axes") if given is None else given.tolist()
        rank = len(self.shape(0).sizes)
        return sorted(int(axis) % rank for axis in (default if axes is None else axes))

    def plain(self, position: int) -> Value:
        """Return an input in ONNX's order of dimensions."""
        name = self.inputs[position]
        if name not in self._of.plain:
            if name in self._of.constants:
                self._of.plain[name] = self.net.constant(self._of.constants[name], name)
            else:
                self._of.plain[name] = self.net.transposed(self._of.last[name], TO_PLAIN, name=f"{name}:plain")
        return self._of.plain[name]

    def last(self, position: int) -> Value:
        """Return an image input with channels last."""
        name = self.inputs[position]
        if name not in self._of.last:
            if name in self._of.constants:
                images = _as_image(self._of.constants[name])
                self._of.last[name] = self.net.constant(np.ascontiguousarray(images.transpose(TO_LAST)), f"{name}:last")
            else:
                self._of.last[name] = self.net.transposed(self._of.plain[name], TO_LAST, name=f"{name}:last")
        return self._of.last[name]

    def is_last(self) -> bool:
        """Tell whether to compute with channels last: all inputs are images, and one is there in that order only."""
        computed = [name for name in self.inputs if name and name not in self._of.constants]
        images = all(len(self._of.shapes[name].sizes) == 4 for name in computed)
        return images and any(name in self._of.last and name not in self._of.plain for name in computed)

    def only_reader(self, position: int) -> bool:
        """Tell whether nothing else reads an input."""
        return self._of.readers[self.inputs[position]] == 1

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
        if source in self._of.constants and target not in self._of.plain:
            self._of.plain[target] = self.plain(position)


def _as_image(array: Array) -> Array:
    """Return an array with leading dimensions of one, so that it has four."""
    return array.reshape((1,) * (4 - array.ndim) + array.shape)
