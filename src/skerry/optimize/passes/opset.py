"""Operator sets: lower a graph to what the oldest ONNX Runtime of a fleet can read, or raise one that is too old.

Source of the table: ONNX Runtime's compatibility page (onnxruntime.ai/docs/reference/compatibility.html, "ONNX opset
support") and ONNX' own table of versions (onnx.helper.VERSION_TABLE). An engine reads every older opset too.
"""

from __future__ import annotations

import re

import onnx
from onnx import version_converter

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.optimize.foreign import first_line

OLDEST: tuple[tuple[tuple[int, int], int, int], ...] = (
    ((1, 7), 13, 7),
    ((1, 8), 14, 7),
    ((1, 9), 15, 8),
    ((1, 11), 16, 8),
    ((1, 12), 17, 8),
    ((1, 14), 18, 8),
    ((1, 15), 19, 8),
    ((1, 16), 19, 9),
    ((1, 17), 20, 9),
    ((1, 18), 21, 10),
    ((1, 21), 22, 10),
    ((1, 22), 23, 11),
)
"""(first ONNX Runtime, newest opset it reads, newest IR version it reads), oldest first."""

_DOMAINS = ("", "ai.onnx")
_NO_WAY = re.compile(r"No (?:Adapter \w+ Version \S+ for|Previous Version of) (\w+)")
"""How the converter says which operator it cannot write otherwise."""


def of(model: onnx.ModelProto) -> int:
    """Return the graph's opset of ONNX' own domain; 0 when it names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in _DOMAINS), default=0)


def readable_by(runtime: str) -> tuple[int, int]:
    """Return the newest opset and IR version that an ONNX Runtime reads: `1.16` -> (19, 9). Raises InvalidError."""
    parts = runtime.split(".")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts[:2]):
        raise InvalidError(f'"{runtime[:40]}" is not a version', element="oldestOnnxruntime", hint="write it as 1.16")
    version = (int(parts[0]), int(parts[1]))
    known = [(opset, ir) for first, opset, ir in OLDEST if first <= version]
    if not known:
        oldest = ".".join(map(str, OLDEST[0][0]))
        raise UnsupportedError(f"ONNX Runtime {runtime} is too old", element="oldestOnnxruntime", hint=f"use {oldest}")
    return known[-1]


def lower(model: onnx.ModelProto, runtime: str) -> onnx.ModelProto:
    """Return the graph as an ONNX Runtime of that version reads it; the same one if it already does.

    Raises UnsupportedError naming the operator that cannot be expressed.
    """
    newest, ir_version = readable_by(runtime)
    if of(model) > newest:
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
