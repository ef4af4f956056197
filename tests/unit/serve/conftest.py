"""Small models, made on the spot from a seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from skerry.api.kinds.tensors import Datatype, ModelSignature, TensorSpec

ONNX_TYPES: dict[Datatype, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def spec(name: str, datatype: Datatype, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=list(shape))


def save(graph: onnx.GraphProto, path: Path) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture
def digits(tmp_path: Path) -> tuple[Path, ModelSignature]:
    """A convolution and a dense layer, FP32 [-1, 1, 8, 8] to [-1, 10]."""
    random = np.random.default_rng(11)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "c", "b"], ["x"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Flatten", ["y"], ["z"]),
        helper.make_node("Gemm", ["z", "d", "e"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])],
        [weight("c", 4, 1, 3, 3), weight("b", 4), weight("d", 256, 10), weight("e", 10)],
    )
    signature = ModelSignature(inputs=[spec("image", "FP32", -1, 1, 8, 8)], outputs=[spec("scores", "FP32", -1, 10)])
    return save(graph, tmp_path / "digits.onnx"), signature


@pytest.fixture
def identity(tmp_path: Path) -> Callable[[Datatype], tuple[Path, ModelSignature]]:
    """Make a model that gives back what it takes, in any datatype, of shape [-1, 2]."""

    def make(datatype: Datatype) -> tuple[Path, ModelSignature]:
        kind = ONNX_TYPES[datatype]
        graph = helper.make_graph(
            [helper.make_node("Identity", ["a"], ["b"])],
            "identity",
            [helper.make_tensor_value_info("a", kind, ["n", 2])],
            [helper.make_tensor_value_info("b", kind, ["n", 2])],
        )
        signature = ModelSignature(inputs=[spec("a", datatype, -1, 2)], outputs=[spec("b", datatype, -1, 2)])
        return save(graph, tmp_path / f"{datatype}.onnx"), signature

    return make
