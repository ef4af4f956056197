"""int8: static quantisation to QDQ form, activation ranges measured on calibration inputs.

Activations are uint8, weights are int8 kept to 7 bits (`reduce_range`): x86 kernels without VNNI saturate on full
8-bit products, and the device that runs this is not known here.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from onnxruntime import quantization

from skerry.api.errors import InvalidError
from skerry.optimize import graph
from skerry.optimize.dataset import Array

BATCH = 32
MAX_SAMPLES = 512
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights worth quantising."""


def build(
    *, per_channel: bool, percentile: float | None = None, float_ends: bool = False
) -> Callable[[bytes, Array], bytes]:
    """Return a pass (graph, calibration inputs) -> graph.

    Ranges are minimum and maximum, or without the tails beyond `percentile`. `float_ends` leaves the first and the
    last layer in float32, where the accuracy is usually lost.
    """

    def quantise(raw: bytes, calibration: Array) -> bytes:
        model = graph.parse(raw)
        options: dict[str, Any] = {}
        if percentile is not None:
            options["calibrate_method"] = quantization.CalibrationMethod.Percentile
            options["extra_options"] = {"CalibPercentile": percentile}
        if float_ends:
            options["nodes_to_exclude"] = _ends(model)
        return _quantise(model, calibration[:MAX_SAMPLES], per_channel=per_channel, **options)

    return quantise


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Hands calibration inputs to the calibrator, in batches."""

    def __init__(self, tensor: str, samples: Array) -> None:
        batches = (samples[start : start + BATCH] for start in range(0, len(samples), BATCH))
        self._feeds: Iterator[dict[str, Array]] = ({tensor: batch} for batch in batches)

    def get_next(self) -> dict[str, Array] | None:
        """Return the next feed, None at the end."""
        return next(self._feeds, None)


def _quantise(model: onnx.ModelProto, calibration: Array, **options: Any) -> bytes:
    tensor = graph.signature(model).inputs[0].name
    with tempfile.TemporaryDirectory(prefix="skerry-int8-") as directory, contextlib.redirect_stdout(io.StringIO()):
        path = Path(directory) / "model.onnx"
        quantization.quantize_static(
            model,
            path,
            _Reader(tensor, calibration),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            reduce_range=True,
            **options,
        )
        quantised = graph.parse(path.read_bytes())
    weights = {tensor.name for tensor in quantised.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    if not any(node.op_type == "DequantizeLinear" and node.input[0] in weights for node in quantised.graph.node):
        raise InvalidError("has no layer whose weights can be int8", hint="leave int8 out of --variants")
    return graph.serialise(quantised)


def _ends(model: onnx.ModelProto) -> list[str]:
    heavy = [node.name for node in model.graph.node if node.op_type in HEAVY]
    if len(heavy) < 3:
        raise InvalidError("has too few layers to leave the first and the last in float32")
    return [heavy[0], heavy[-1]]
