"""ONNX graphs to PyTorch modules, operator by operator: the way of other frameworks' models to PyTorch's formats.

The graph is run first, which tells every tensor's shape (`examined`). Then each node becomes a step of a module
(`steps`): layers with weights become torch's own, so that quantisers know them. Shapes are numbers but for the batch,
so that the module can be traced and exported. Operators that are not in `OPERATORS` are refused by name. Must not live
here: formats and precisions (`pte`, `trace`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
import onnx
import torch

from skerry.api.kinds.tensors import ModelSignature
from skerry.optimize.arrays import Array
from skerry.optimize.passes import agreement, examined, layers
from skerry.optimize.passes.material import Inputs, Material
from skerry.optimize.passes.torch_graph import arrays, elements, images, linear_models, sequences
from skerry.optimize.passes.torch_graph.steps import Graph, Node, Plan

OPERATORS: Mapping[str, Callable[[Node], None]] = {
    **dict.fromkeys(elements.UNARY, elements.unary),
    **dict.fromkeys(elements.BINARY, elements.binary),
    **dict.fromkeys(arrays.REDUCTIONS, arrays.reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), arrays.reshape),
    **dict.fromkeys(("Identity", "Dropout"), Node.pass_on),
    "ArgMax": arrays.arg,
    "ArgMin": arrays.arg,
    "AveragePool": images.average_pool,
    "BatchNormalization": images.batch_normalization,
    "Cast": elements.cast,
    "Clip": elements.clip,
    "Concat": arrays.concat,
    "ConstantOfShape": sequences.constant_of_shape,
    "Conv": images.convolution,
    "ConvTranspose": images.transposed_convolution,
    "CumSum": sequences.cumulative_sum,
    "DepthToSpace": sequences.depth_to_space,
    "Div": elements.divide,
    "Einsum": sequences.einsum,
    "Elu": elements.elu,
    "Expand": sequences.expand,
    "Gather": arrays.gather,
    "Gelu": elements.gelu,
    "Gemm": arrays.gemm,
    "GlobalAveragePool": images.global_average_pool,
    "GlobalMaxPool": images.global_max_pool,
    "GroupNormalization": images.group_normalization,
    "HardSigmoid": elements.hard_sigmoid,
    "InstanceNormalization": images.instance_normalization,
    "LayerNormalization": arrays.layer_normalization,
    "LeakyRelu": elements.leaky_relu,
    "LogSoftmax": elements.softmax,
    "MatMul": arrays.matmul,
    "MaxPool": images.max_pool,
    "PRelu": elements.prelu,
    "Pad": arrays.pad,
    "Resize": images.resize,
    "Slice": arrays.slice_,
    "Softmax": elements.softmax,
    "SpaceToDepth": sequences.space_to_depth,
    "Split": arrays.split,
    "Tile": sequences.tile,
    "TopK": sequences.top_k,
    "Transpose": arrays.transpose,
    "Where": elements.where,
    "ai.onnx.ml.LinearClassifier": linear_models.linear,
    "ai.onnx.ml.LinearRegressor": linear_models.linear,
    "ai.onnx.ml.Normalizer": linear_models.normalizer,
    "ai.onnx.ml.Scaler": linear_models.scaler,
}
"""What each ONNX operator becomes; those of other sets than ONNX's first with the set's name."""
_TYPES = frozenset({"bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8"})
_OLDEST = 13


def to_module(raw: bytes, signature: ModelSignature) -> Graph:
    """Return a serialised graph as a module in evaluation mode: the signature's tensors in and out, by position.

    Raises UnsupportedError that names the node it cannot translate, or the tensor with a size that is not fixed.
    """
    model = examined.parse(raw, signature)
    layers.name_all(model)
    facts = examined.examine(model, signature)
    plan = Plan(facts, [spec.name for spec in signature.inputs])
    for proto in examined.to_translate(model, facts):
        node = Node(proto, plan)
        translate = OPERATORS.get(node.kind)
        if translate is None:
            raise node.unsupported("is an operator")
        _check_types(node)
        if facts.opset < _OLDEST:
            raise node.unsupported(f"is of operator set {facts.opset}, before {_OLDEST}")
        translate(node)
    graph = plan.finished([spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs])
    return graph.eval().requires_grad_(requires_grad=False)


def as_torch(material: Material) -> Material:
    """Return the material with its graph as a module that was compared with it, for the recipes of PyTorch's formats.

    Raises UnsupportedError, InvalidError.
    """
    raw = material.load()
    module = to_module(raw, material.signature)

    def answers(feeds: Inputs, names: Sequence[str]) -> list[Array]:
        with torch.no_grad():
            outputs = module(
                *(torch.from_numpy(np.ascontiguousarray(feeds[s.name])) for s in material.signature.inputs)
            )
        flat = outputs if isinstance(outputs, tuple) else (outputs,)
        named = dict(zip((spec.name for spec in material.signature.outputs), flat, strict=True))
        return [named[name].numpy() for name in names]

    agreement.check(answers, raw, material.inputs_sample, "PyTorch")
    model = onnx.load_model_from_string(raw)
    layers.name_all(model)
    kept = [
        module.layers[name] for name in layers.matching(model, material.options.keep_layers) if name in module.layers
    ]
    return replace(material, load=lambda: module, options=msgspec.structs.replace(material.options, keep_layers=kept))


def _check_types(node: Node) -> None:
    for name in (*node.inputs, *(name for name in node.outputs if node.facts.readers[name])):
        if name in node.facts.dtypes and node.facts.dtypes[name] not in _TYPES:
            raise node.unsupported(f"has a tensor of {node.facts.dtypes[name]}")
