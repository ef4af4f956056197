"""Precision of TensorFlow Lite files: float16 weights, dynamic range, full int8; by ai-edge-quantizer.

Inputs and outputs stay float, so the signature stays. Lives here: float32 file in, another precision out. Must not live
here: making the float32 file.
"""

from __future__ import annotations

from typing import Any

from ai_edge_quantizer import algorithm_manager, qtyping, quantizer

from skerry.api.errors import InvalidError
from skerry.optimize.foreign import first_line
from skerry.optimize.passes import tflite_file
from skerry.optimize.passes.material import Inputs, Material, first
from skerry.optimize.quiet import quiet

_OPERATIONS = qtyping.TFLOperationName
_ALGORITHMS = algorithm_manager.AlgorithmName
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "FULLY_CONNECTED", "EMBEDDING_LOOKUP")


def half(content: bytes, material: Material) -> bytes:
    """Return the file with weights in float16; what the engine computes with is its own choice."""
    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
    )
    made = quantizer.Quantizer(content)
    for operation in _WEIGHTED:
        made.update_quantization_recipe(".*", _OPERATIONS(operation), config, _ALGORITHMS.FLOAT_CASTING)
    return _quantise(made, material)


def dynamic(content: bytes, material: Material) -> bytes:
    """Return the file with int8 weights; ranges of activations are found at each run."""
    made = quantizer.Quantizer(content)
    made.add_dynamic_config(".*", _OPERATIONS.ALL_SUPPORTED, 8, _granularity(material, per_channel=True))
    return _quantise(made, material)


def static(content: bytes, material: Material, *, per_channel: bool = True, activation_bits: int = 8) -> bytes:
    """Return the file in int8 between float inputs and outputs; ranges are measured on the calibration inputs."""
    if material.options.calibration not in (None, "min-max"):
        raise InvalidError(
            f"the quantiser of TensorFlow Lite files has no {material.options.calibration}",
            element="option calibration",
            hint="leave it out, or write min-max",
        )
    made = quantizer.Quantizer(content)
    granularity = _granularity(material, per_channel=per_channel)
    made.add_static_config(".*", _OPERATIONS.ALL_SUPPORTED, activation_bits, 8, granularity)
    for end in (_OPERATIONS.INPUT, _OPERATIONS.OUTPUT):
        made.update_quantization_recipe(".*", end, algorithm_key=_ALGORITHMS.NO_QUANTIZE)
    return _quantise(made, material)


def _quantise(made: quantizer.Quantizer, material: Material) -> bytes:
    for layer in material.options.keep_layers:
        made.update_quantization_recipe(layer, _OPERATIONS.ALL_SUPPORTED, algorithm_key=_ALGORITHMS.NO_QUANTIZE)
    samples = first(material.calibration, material.options.calibration_samples)
    with quiet():
        try:
            ranges = None
            if made.need_calibration:
                ranges = made.calibrate({tflite_file.SIGNATURE: _rows(samples)}, num_threads=1)
            content = made.quantize(ranges).quantized_model
        except Exception as error:  # the quantiser's exceptions have no common type
            raise InvalidError(f"cannot be quantised ({first_line(error)})", element="model") from error
    if not content:
        raise InvalidError("has no layer whose precision can be lowered", element="model")
    return bytes(content)


def _granularity(material: Material, *, per_channel: bool) -> Any:
    wanted = material.options.per_channel
    chosen = per_channel if wanted is None else wanted
    return qtyping.QuantGranularity.CHANNELWISE if chosen else qtyping.QuantGranularity.TENSORWISE


def _rows(samples: Inputs) -> list[dict[str, Any]]:
    """Return the samples one by one; a list, because the quantiser goes through it twice."""
    count = min(map(len, samples.values()))
    return [{name: rows[index : index + 1] for name, rows in samples.items()} for index in range(count)]
