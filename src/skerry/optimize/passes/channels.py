"""Structured pruning: channels that matter least are really removed from a graph, which becomes smaller and faster.

A channel can go where only operators that treat each channel by itself (activations, pooling, normalisation, depthwise
convolutions, flattening) lie between the one layer that makes it and the one that uses it; layers are Conv in two
dimensions, Gemm and MatMul. A channel that branches off (a residual connection, an output of the graph) stays. What a
channel matters is the product of two norms: of the weights that make it, and of those that use it. Must not live here:
single weights (`prune`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.optimize import graph
from skerry.optimize.arrays import Array
from skerry.optimize.foreign import first_line
from skerry.optimize.passes import layers, ranges
from skerry.optimize.passes.material import Inputs, first

GROUP = 8
"""Where a layer has twice as many channels, a multiple of this stays: kernels work on so many at once."""

_EACH = frozenset(
    {
        *("Clip", "Dropout", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Relu"),
        *("Selu", "Sigmoid", "Softplus", "Softsign", "Tanh"),
    }
)
"""Operators on each element by itself."""
_SPATIAL = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
"""Operators on each channel's own plane."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Removed:
    """What was removed: layer -> (channels before, channels after), and the numbers of parameters."""

    layers: Mapping[str, tuple[int, int]]
    parameters: tuple[int, int]

    @property
    def summary(self) -> str:
        """One sentence for the card."""
        before, after = (sum(pair[index] for pair in self.layers.values()) for index in (0, 1))
        return (
            f"{before - after} of {before} channels removed in {len(self.layers)} layers; "
            f"{self.parameters[1]} of {self.parameters[0]} parameters left"
        )


@dataclass(slots=True)
class _Chain:
    """A layer's channels on their way to the layer that uses them."""

    maker: onnx.NodeProto
    width: int
    spatial: bool
    """The channel is axis 1, planes follow; else it is the last axis."""
    block: int = 1
    """Neighbouring values of the last axis that belong to one channel, once planes are flattened."""
    cuts: list[tuple[str, int]] = field(default_factory=list)
    """(tensor, axis): what is cut along with the channel, one entry each."""
    uses: tuple[str, int] = ("", 0)
    """The using layer's weights and their axis; `block` entries each."""
    grouped: list[onnx.NodeProto] = field(default_factory=list)
    """Depthwise convolutions on the way."""
    reshaped: list[onnx.NodeProto] = field(default_factory=list)
    """Reshapes that name the flattened size."""


class _Graph:
    """Who makes and who uses each tensor; the constants as arrays."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.users: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                self.users[name].append((node, index))
        self.outputs = {value.name for value in model.graph.output}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        # A tensor that a nested graph uses cannot be followed.
        nested = Counter(name for node in model.graph.node for a in node.attribute for name in _names(a))
        self.hidden = set(nested)

    def own(self, name: str, *, rank: int | None = None) -> bool:
        """Tell whether a constant belongs to one node alone."""
        known = name in self.constants and len(self.users[name]) == 1 and name not in self.hidden
        return known and name not in self.outputs and (rank is None or self.constants[name].ndim == rank)

    def next(self, tensor: str) -> onnx.NodeProto | None:
        """Return the one node that takes a tensor as its first input, if nothing else takes it."""
        users = self.users[tensor]
        if len(users) != 1 or users[0][1] != 0 or tensor in self.outputs or tensor in self.hidden:
            return None
        return users[0][0]


def remove(model: onnx.ModelProto, amount: float, sample: Inputs) -> tuple[bytes, Removed]:
    """Remove about that share of the channels wherever the graph allows; run the result on samples.

    Raises UnsupportedError where it allows none, InvalidError when the result is not sound.
    """
    pruned = onnx.ModelProto()
    pruned.CopyFrom(model)
    layers.name_all(pruned)
    known = _Graph(pruned)
    before = _parameters(known)
    removed: dict[str, tuple[int, int]] = {}
    for node in pruned.graph.node:
        chain = _begin(known, node)
        if chain is not None and _follow(known, chain):
            keep = _kept(known, chain, amount)
            if len(keep) < chain.width:
                _cut(known, chain, keep)
                removed[node.name] = (chain.width, len(keep))
    if not removed:
        cause = "has no layer whose channels only one other layer uses, so that none can be removed"
        raise UnsupportedError(cause, element="model", hint="leave structured pruning out")
    for tensor in pruned.graph.initializer:
        if list(tensor.dims) != list(known.constants[tensor.name].shape) or tensor.data_type == onnx.TensorProto.INT64:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(known.constants[tensor.name]), tensor.name))
    raw = graph.serialise(_checked(pruned, model, sample))
    return raw, Removed(layers=removed, parameters=(before, _parameters(known)))


def _begin(known: _Graph, node: onnx.NodeProto) -> _Chain | None:
    """Return the chain that a layer begins, with the cuts in the layer's own weights."""
    attributes = _attributes(node)
    if node.op_type == "Conv" and attributes.get("group", 1) == 1 and known.own(node.input[1], rank=4):
        axis, spatial = 0, True
    elif node.op_type == "Gemm" and known.own(node.input[1], rank=2):
        axis, spatial = (0 if attributes.get("transB", 0) else 1), False
    elif node.op_type == "MatMul" and known.own(node.input[1], rank=2):
        axis, spatial = 1, False
    else:
        return None
    chain = _Chain(maker=node, width=known.constants[node.input[1]].shape[axis], spatial=spatial)
    chain.cuts.append((node.input[1], axis))
    if len(node.input) > 2 and node.input[2]:
        bias = known.constants.get(node.input[2])
        if bias is None or not known.own(node.input[2]) or bias.shape[-1:] != (chain.width,):
            return None
        chain.cuts.append((node.input[2], bias.ndim - 1))
    return chain


def _follow(known: _Graph, chain: _Chain) -> bool:
    """Go from operator to operator until a layer uses the channels; tell whether one does."""
    tensor = chain.maker.output[0]
    while (node := known.next(tensor)) is not None:
        if _ends(known, chain, node):
            return True
        if not _passes(known, chain, node):
            return False
        if any(known.users[other] or other in known.outputs for other in node.output[1:]):
            return False
        tensor = node.output[0]
    return False


def _ends(known: _Graph, chain: _Chain, node: onnx.NodeProto) -> bool:
    attributes = _attributes(node)
    if node.op_type == "Conv" and chain.spatial and attributes.get("group", 1) == 1:
        axis, rank = 1, 4
    elif node.op_type == "Gemm" and not chain.spatial and not attributes.get("transA", 0):
        axis, rank = (1 if attributes.get("transB", 0) else 0), 2
    elif node.op_type == "MatMul" and not chain.spatial:
        axis, rank = 0, 2
    else:
        return False
    if not known.own(node.input[1], rank=rank):
        return False
    size = known.constants[node.input[1]].shape[axis]
    if size % chain.width or (chain.block == 1 and size != chain.width):
        return False
    chain.block = size // chain.width
    chain.uses = (node.input[1], axis)
    return True


def _passes(known: _Graph, chain: _Chain, node: onnx.NodeProto) -> bool:
    """Tell whether an operator treats each channel by itself, and note what must be cut with it."""
    rest = [name for name in node.input[1:] if name]
    if node.op_type in _EACH:
        return all(name in known.constants and known.constants[name].size == 1 for name in rest)
    if node.op_type in {"Add", "Mul", "Sub", "Div"}:
        return _broadcasts(known, chain, rest[0])
    return chain.spatial and _passes_planes(known, chain, node)


def _passes_planes(known: _Graph, chain: _Chain, node: onnx.NodeProto) -> bool:
    """Do the same for operators on channels that are planes."""
    if node.op_type == "BatchNormalization":
        chain.cuts += [(name, 0) for name in node.input[1:]]
        return all(known.own(name, rank=1) for name in node.input[1:])
    if node.op_type == "ReduceMean":
        return _over_planes(known, chain, node)
    if node.op_type == "Conv":
        return _depthwise(known, chain, node)
    return node.op_type in _SPATIAL or (node.op_type in {"Flatten", "Reshape"} and _flattens(known, chain, node))


def _broadcasts(known: _Graph, chain: _Chain, name: str) -> bool:
    """Take a constant that is one number, or one per channel."""
    constant = known.constants.get(name)
    if constant is None:
        return False
    if constant.size == 1:
        return True
    axis = constant.ndim - (3 if chain.spatial else 1)  # planes have two axes; others were not taken in
    fits = chain.block == 1 and axis >= 0 and constant.shape[axis] == constant.size == chain.width
    if fits and known.own(name):
        chain.cuts.append((name, axis))
        return True
    return False


def _over_planes(known: _Graph, chain: _Chain, node: onnx.NodeProto) -> bool:
    attributes = _attributes(node)
    axes = attributes.get("axes", [])
    if len(node.input) > 1 and node.input[1] in known.constants:
        axes = known.constants[node.input[1]].tolist()
    chain.spatial = bool(attributes.get("keepdims", 1))
    return sorted(axes) in ([2, 3], [-2, -1])


def _depthwise(known: _Graph, chain: _Chain, node: onnx.NodeProto) -> bool:
    if _attributes(node).get("group", 1) != chain.width or not all(known.own(name) for name in node.input[1:] if name):
        return False
    if known.constants[node.input[1]].shape[0] != chain.width:
        return False
    chain.cuts += [(name, 0) for name in node.input[1:] if name]
    chain.grouped.append(node)
    return True


def _flattens(known: _Graph, chain: _Chain, node: onnx.NodeProto) -> bool:
    if node.op_type == "Flatten":
        fits = _attributes(node).get("axis", 1) == 1
    else:
        shape = known.constants.get(node.input[1])
        fits = shape is not None and shape.shape == (2,) and int(shape[1]) != 0
        if shape is not None and fits and shape[1] != -1:
            fits = known.own(node.input[1]) and int(shape[1]) % chain.width == 0
            chain.reshaped.append(node)
    chain.spatial = False
    chain.block = 0  # the using layer tells
    return bool(fits)


def _kept(known: _Graph, chain: _Chain, amount: float) -> Array:
    """Return the channels that stay, in order."""
    name, axis = chain.cuts[0]
    makes = np.moveaxis(known.constants[name], axis, 0).reshape(chain.width, -1)
    name, axis = chain.uses
    uses = np.moveaxis(known.constants[name], axis, 0).reshape(chain.width, -1)
    matters = np.linalg.norm(makes.astype(np.float64), axis=1) * np.linalg.norm(uses.astype(np.float64), axis=1)
    count = max(1, chain.width - int(chain.width * amount))
    if chain.width >= 2 * GROUP:
        count = min(chain.width, -(-count // GROUP) * GROUP)
    return np.sort(np.argsort(-matters, kind="stable")[:count])


def _cut(known: _Graph, chain: _Chain, keep: Array) -> None:
    for name, axis in chain.cuts:
        known.constants[name] = np.take(known.constants[name], keep, axis=axis)
    name, axis = chain.uses
    wide = (keep[:, None] * chain.block + np.arange(chain.block)).reshape(-1)
    known.constants[name] = np.take(known.constants[name], wide, axis=axis)
    for node in chain.grouped:
        for attribute in node.attribute:
            if attribute.name == "group":
                attribute.i = len(keep)
    for node in chain.reshaped:
        shape = known.constants[node.input[1]]
        known.constants[node.input[1]] = np.array([shape[0], len(keep) * chain.block], shape.dtype)


def _checked(pruned: onnx.ModelProto, model: onnx.ModelProto, sample: Inputs) -> onnx.ModelProto:
    """Infer the shapes anew and run both graphs: the same tensors must come out, all of them finite."""
    del pruned.graph.value_info[:]
    try:
        onnx.checker.check_model(pruned)
        inferred = onnx.shape_inference.infer_shapes(pruned, check_type=True, strict_mode=True)
    except Exception as error:  # the checker and the inference share no exception type
        raise InvalidError(f"does not fit together without the channels ({first_line(error)})") from error
    feeds = dict(first(sample, 2))
    theirs, ours = (ranges.session(either).run(None, feeds) for either in (model, inferred))
    if [array.shape for array in theirs] != [array.shape for array in ours]:
        raise InvalidError("gives outputs of other shapes without the channels")
    if not all(np.isfinite(array).all() for array in ours):
        raise InvalidError("gives outputs that are not finite without the channels", hint="prune less")
    return inferred


def _parameters(known: _Graph) -> int:
    return sum(array.size for array in known.constants.values() if array.dtype.kind == "f")


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _names(attribute: onnx.AttributeProto) -> Sequence[str]:
    inner = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
    nodes = [node for each in inner for node in each.node]
    return [name for n in nodes for name in n.input] + [name for n in nodes for a in n.attribute for name in _names(a)]
