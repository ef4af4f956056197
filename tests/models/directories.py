"""Directories with a tiny model, in Hugging Face's and MLflow's layouts."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FRONT = "---\nlicense: apache-2.0\npipeline_tag: tabular-classification\ntags: [tiny]\n---\n# Tiny\n\nA tiny model.\n"
WEIGHTS = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)


def graph(input_name: str = "x") -> onnx.ModelProto:
    """Scores of three classes from eight numbers."""
    tensors = [
        helper.make_tensor_value_info(input_name, TensorProto.FLOAT, ["n", 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3]),
    ]
    nodes = [helper.make_node("MatMul", [input_name, "w"], ["y"])]
    made = helper.make_graph(nodes, "tiny", tensors[:1], tensors[1:], [numpy_helper.from_array(WEIGHTS, "w")])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantised() -> onnx.ModelProto:
    """The same with weights in eight bits, and ranges of inputs taken as they come."""
    scale = np.float32(np.abs(WEIGHTS).max() / 127)
    tensors = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3]),
    ]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "scale"], ["both"]),
        helper.make_node("Mul", ["f", "both"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.round(WEIGHTS / scale).astype(np.int8), "w"),
        numpy_helper.from_array(np.array(scale, np.float32), "scale"),
    ]
    made = helper.make_graph(nodes, "tiny", tensors[:1], tensors[1:], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def hugging_face(directory: Path) -> Path:
    """Two graphs, one with its weights beside it, a config and a model card."""
    (directory / "onnx").mkdir(parents=True)
    file = str(directory / "onnx/model.onnx")
    onnx.save(graph(), file, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    onnx.save(quantised(), str(directory / "onnx/model_quantized.onnx"))
    (directory / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    (directory / "README.md").write_text(FRONT)
    return directory


def mlflow(directory: Path) -> Path:
    """What `mlflow.onnx.save_model` leaves, as far as it matters."""
    directory.mkdir(parents=True)
    onnx.save(graph(), str(directory / "model.onnx"))
    (directory / "MLmodel").write_text("flavors:\n  onnx: {data: model.onnx}\n  python_function: {data: model.onnx}\n")
    return directory


def data(file: Path) -> Path:
    """Samples whose labels are what the graph of full precision says."""
    x = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
    y = (x @ WEIGHTS).argmax(axis=1).astype(np.int64)
    np.savez(file, test_x=x, test_y=y, calibration_x=x[:8], golden_x=x[:16], golden_y=y[:16])
    return file
