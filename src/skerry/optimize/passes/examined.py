"""What is known of an ONNX graph before it is translated, and one node as a translation reads it.

The graph is run twice, with one sample and with two: that tells every tensor's shape, and which sizes grow with the
batch. Lives here: what translations to other formats (`lower`, `torch_graph`) need alike. Must not live here: what an
operator means in any of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.optimize.foreign import first_line, raise_if_starved

Array = npt.NDArray[Any]
STANDARD = frozenset({"", "ai.onnx"})
"""Names of the domain of ONNX's own operators."""
_SHAPE_INPUTS = {
    **dict.fromkeys(("Expand", "Reshape", "Split", "Squeeze", "Unsqueeze"), (1,)),
    "ConstantOfShape": (0,),
    "Resize": (1, 2, 3),
}
"""Inputs that only say a shape, which the run has shown."""
_RANDOM = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomUniform"})
_MOST_CONSTANT = 64 * 1024**2
_DATATYPES = {"FP32": "float32", "FP16": "float16", "FP64": "float64", "BOOL": "bool"}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes for a batch of one, and which of them grow with the batch."""

    sizes: tuple[int, ...]
    free: tuple[bool, ...]

    @classmethod
    def fixed(cls, sizes: Sequence[int]) -> Shape:
        """Return a shape that does not depend on the batch."""
        return cls(tuple(map(int, sizes)), (False,) * len(sizes))

    def permuted(self, order: Sequence[int]) -> Shape:
        """Return the shape with its dimensions in another order."""
        return Shape(tuple(self.sizes[i] for i in order), tuple(self.free[i] for i in order))

    @property
    def signature(self) -> list[int]:
        """Sizes, -1 where they grow with the batch."""
        return [-1 if free else size for size, free in zip(self.sizes, self.free, strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What two runs of a graph have shown."""

    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    """NumPy's names."""
    constants: Mapping[str, Array]
    """Tensors that do not depend on the inputs."""
    readers: Mapping[str, int]
    """How often each tensor is read; the model's outputs count."""
    opset: int


class GraphNode:
    """A node with what is known of its attributes and inputs; translations add how they write it."""

    target: ClassVar[str]
    """What graphs are translated to, as people call it."""
    hint: ClassVar[str]
    """What to do about a node that has no counterpart there."""

    def __init__(self, proto: onnx.NodeProto, facts: Facts) -> None:
        self.kind: str = proto.op_type if proto.domain in STANDARD else f"{proto.domain}.{proto.op_type}"
        self.inputs: Sequence[str] = list(proto.input)
        self.outputs: Sequence[str] = list(proto.output)
        self.name: str = proto.name or self.outputs[0]
        self.facts = facts
        self._attributes = {item.name: onnx.helper.get_attribute_value(item) for item in proto.attribute}

    @property
    def opset(self) -> int:
        """The graph's operator set."""
        return self.facts.opset

    def unsupported(self, cause: str) -> UnsupportedError:
        """Return the error that names this node."""
        return UnsupportedError(
            f"{cause}, which has no counterpart in {self.target} here",
            element=f"node {self.name} ({self.kind})",
            hint=self.hint,
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
        return self.facts.shapes[self.inputs[position]]

    def output_shape(self, position: int = 0) -> Shape:
        """Return the shape of an output."""
        return self.facts.shapes[self.outputs[position]]

    def dtype(self, position: int = 0) -> str:
        """Return the type of an output."""
        return self.facts.dtypes[self.outputs[position]]

    def constant(self, position: int) -> Array | None:
        """Return an input's value when it does not depend on the model's inputs."""
        return self.facts.constants.get(self.inputs[position]) if self.has(position) else None

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

    def only_reader(self, position: int) -> bool:
        """Tell whether nothing else reads an input."""
        return self.facts.readers[self.inputs[position]] == 1


def parse(raw: bytes, signature: ModelSignature) -> onnx.ModelProto:
    """Parse a serialised graph. Raises InvalidError when its inputs are not those of the signature."""
    model = onnx.load_model_from_string(raw)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name for value in model.graph.input if value.name not in constants}
    if {spec.name for spec in signature.inputs} != inputs:
        raise InvalidError("has other inputs than the signature", element="model")
    return model


def to_translate(model: onnx.ModelProto, facts: Facts) -> Iterator[onnx.NodeProto]:
    """Walk the nodes that the outputs depend on, apart from those that only make shapes or constants."""
    needed = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            skipped = _SHAPE_INPUTS.get(node.op_type, ())
            needed.update(name for position, name in enumerate(node.input) if name and position not in skipped)
    for node in model.graph.node:
        if needed.intersection(node.output) and not set(filter(None, node.output)) <= set(facts.constants):
            yield node


def examine(model: onnx.ModelProto, signature: ModelSignature) -> Facts:
    """Run the graph with one sample and with two, and note shapes, types and what does not depend on the inputs.

    Raises UnsupportedError for a size that is open besides the batch or a rank that changes with it, InvalidError when
    the graph does not run.
    """
    fixed = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    steady, shaped = _independent(model, fixed)
    names = [name for node in model.graph.node for name in node.output if name]
    one, two = (_run(model, names, signature, batch) for batch in (1, 2))
    shapes = {name: Shape.fixed(array.shape) for name, array in fixed.items()}
    dtypes = {name: array.dtype.name for name, array in fixed.items()}
    constants = dict(fixed)
    for (name, first), (_, second) in zip(one, two, strict=True):
        if first.ndim != second.ndim:
            raise UnsupportedError("changes its rank with the batch", element=f"tensor {name}")
        shapes[name] = Shape(first.shape, tuple(a != b for a, b in zip(first.shape, second.shape, strict=True)))
        dtypes[name] = first.dtype.name
        is_constant = name in steady or (name in shaped and np.array_equal(first, second))
        if is_constant and first.nbytes <= _MOST_CONSTANT:
            constants[name] = first
    for spec in signature.inputs:
        shapes[spec.name] = Shape(tuple(abs(size) for size in spec.shape), tuple(size < 0 for size in spec.shape))
        dtypes[spec.name] = _dtype(spec)
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers.update(value.name for value in model.graph.output)
    opset = max(entry.version for entry in model.opset_import if entry.domain in STANDARD)
    return Facts(shapes=shapes, dtypes=dtypes, constants=constants, readers=readers, opset=opset)


def _independent(model: onnx.ModelProto, fixed: Mapping[str, Array]) -> tuple[set[str], set[str]]:
    """Return the tensors that no input reaches, and those that inputs reach by their shapes alone."""
    steady, shaped = set(fixed), set(fixed)
    for node in model.graph.node:
        if node.op_type in _RANDOM or any(attribute.HasField("g") for attribute in node.attribute):
            continue  # a branch may read anything
        if all(name in steady for name in node.input if name):
            steady.update(node.output)
        if node.op_type in {"Shape", "Size"} or all(name in shaped for name in node.input if name):
            shaped.update(node.output)
    return steady, shaped


def _run(
    model: onnx.ModelProto, names: Sequence[str], signature: ModelSignature, batch: int
) -> Iterator[tuple[str, Array]]:
    """Return all tensors of a run on zeros, with this many samples."""
    widened = onnx.ModelProto()
    widened.CopyFrom(model)
    del widened.graph.output[:]
    widened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    feeds = {spec.name: np.zeros(_sizes(spec, batch), _dtype(spec)) for spec in signature.inputs}
    try:
        session = onnxruntime.InferenceSession(widened.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(names, feeds)
    except Exception as error:  # the engine's exception types have no public root
        raise_if_starved(error)
        raise InvalidError(f"cannot be run for {batch} samples ({first_line(error)})", element="model") from error
    return zip(names, values, strict=True)


def _sizes(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    if any(size < 0 for size in spec.shape[1:]):
        raise UnsupportedError(
            f"has shape {spec.shape}; a file that is made from a graph leaves the batch open and nothing else",
            element=f"tensor {spec.name}",
            hint="fix the size when the model is exported",
        )
    return tuple(batch if size < 0 else size for size in spec.shape)


def _dtype(spec: TensorSpec) -> str:
    return _DATATYPES.get(spec.datatype, spec.datatype.lower())
