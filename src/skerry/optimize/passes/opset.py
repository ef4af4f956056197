"""Operator sets: lower a graph to what the oldest ONNX Runtime of a fleet can read, or raise one that is too old.

Must not live here: which engine reads what (`runtimes`).
"""

from __future__ import annotations

import re

import onnx
from onnx import version_converter

from skerry.api.errors import UnsupportedError
from skerry.optimize import graph, runtimes
from skerry.optimize.foreign import first_line

_NO_WAY = re.compile(r"No (?:Adapter \w+ Version \S+ for|Previous Version of) (\w+)")
"""How the converter says which operator it cannot write otherwise."""


def lower(model: onnx.ModelProto, runtime: str) -> onnx.ModelProto:
    """Return the graph as an ONNX Runtime of that version reads it; the same one if it already does.

    Raises UnsupportedError naming the operator that cannot be expressed.
    """
    newest, ir_version = runtimes.newest(runtime)
    if graph.opset(model) > newest:
        model = convert(model, newest)
    if model.ir_version > ir_version:
        lowered = onnx.ModelProto()
        lowered.CopyFrom(model)
        lowered.ir_version = ir_version
        model = lowered
    return model


def convert(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return the graph in another opset, checked by ONNX' own checker. Raises UnsupportedError."""
    try:
        converted = version_converter.convert_version(model, opset)
        onnx.checker.check_model(converted, full_check=True)
    except Exception as error:  # the converter and the checker share no exception type
        operator = _NO_WAY.search(str(error))
        raise UnsupportedError(
            f"cannot be written in opset {opset}{'' if operator else f' ({first_line(error)})'}",
            element=f"operator {operator[1]}" if operator else "model",
            hint="name a newer oldestOnnxruntime, or leave it out",
        ) from error
    return converted
