"""int8: static quantisation to QDQ form with calibrated ranges, or dynamic with ranges found while the model runs.

Activations are uint8, weights are int8 kept to 7 bits (`reduce_range`): x86 kernels without VNNI saturate on full
8-bit products, and the device that runs this is not known here. Must not live here: which layers stay out of it because
they lose too much (`sensitivity`).
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization import quant_utils, registry

from skerry.api.errors import InvalidError
from skerry.optimize import graph
from skerry.optimize.passes import layers, opset
from skerry.optimize.passes.ranges import Range

LEAST_OPSET = 13
"""Scales per channel need it (ONNX, DequantizeLinear-13)."""
OPERATORS = tuple(sorted({*registry.QDQRegistry, *registry.QLinearOpsRegistry}))

_HINT = "leave int8 out of --variants"


def prepare(raw: bytes) -> onnx.ModelProto:
    """Return the graph as quantisation needs it: new enough, every node named, shapes inferred. Raises InvalidError."""
    model = graph.parse(raw)
    if graph.opset(model) < LEAST_OPSET:
        model = opset.convert(model, LEAST_OPSET)
    layers.name_all(model)
    model = onnx.shape_inference.infer_shapes(model)
    quant_utils.add_infer_metadata(model)  # or the quantiser would infer again, through the disk
    return model


def static(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    *,
    per_channel: bool,
    exclude: Collection[str] = (),
    only: Collection[str] = (),
) -> bytes:
    """Quantise weights and activations of a prepared graph; nodes are left out, or chosen, by name.

    Raises InvalidError when no weights are left to quantise.
    """
    return graph.serialise(_with_weights(quantised(model, ranges, per_channel=per_channel, exclude=exclude, only=only)))


def quantised(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    *,
    per_channel: bool,
    exclude: Collection[str] = (),
    only: Collection[str] = (),
) -> onnx.ModelProto:
    """Do what `static` does, whether or not there are weights among it."""
    given = onnx.ModelProto()
    given.CopyFrom(model)
    data = {name: (np.array(low, np.float32), np.array(high, np.float32)) for name, (low, high) in ranges.items()}
    with _quiet():
        quantiser = quantization.QDQQuantizer(
            given,
            per_channel,
            True,  # reduce_range
            quantization.QuantType.QInt8,
            quantization.QuantType.QUInt8,
            quantization.TensorsData(quantization.CalibrationMethod.MinMax, data),
            sorted(only),
            sorted(exclude),
            OPERATORS,
            {},
        )
        made: onnx.ModelProto = quantiser.quantize_model()
    return made


def dynamic(model: onnx.ModelProto, *, operators: Collection[str], exclude: Collection[str] = ()) -> bytes:
    """Quantise the weights of some operators of a prepared graph; activations are quantised anew for each run."""
    with tempfile.TemporaryDirectory(prefix="skerry-int8-") as directory, _quiet():
        path = Path(directory) / "model.onnx"
        quantization.quantize_dynamic(
            model,
            path,
            op_types_to_quantize=sorted(operators),
            nodes_to_exclude=sorted(exclude),
            per_channel=True,
            reduce_range=True,
            weight_type=quantization.QuantType.QInt8,
        )
        quantised = graph.parse(path.read_bytes())
    return graph.serialise(_with_weights(quantised))


def _with_weights(quantised: onnx.ModelProto) -> onnx.ModelProto:
    int8 = {tensor.name for tensor in quantised.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    users = ("ConvInteger", "DequantizeLinear", "DynamicQuantizeLSTM", "MatMulInteger")
    if not any(node.op_type in users and int8 & set(node.input) for node in quantised.graph.node):
        raise InvalidError("has no layer whose weights can be int8", hint=_HINT)
    return quantised


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the quantiser prints and logs away from our own output."""
    root = logging.getLogger()
    before = root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
