"""Precision of TensorFlow Lite files: float16 weights, dynamic range, int8, int4 weights; by ai-edge-quantizer.

Inputs and outputs stay float, so the signature stays. Lives here: float32 file in, another precision out. Must not live
here: making the float32 file.
"""

from __future__ import annotations

import re
from typing import Any

from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer, recipe_manager
from ai_edge_quantizer.utils import qsv_utils

from skerry.api.errors import InvalidError
from skerry.optimize.foreign import first_line
from skerry.optimize.passes import tflite_file
from skerry.optimize.passes.material import Inputs, Material, first
from skerry.optimize.quiet import quiet

_OPERATIONS = qtyping.TFLOperationName
_ALGORITHMS = algorithm_manager.AlgorithmName
_GRANULARITY = qtyping.QuantGranularity
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "FULLY_CONNECTED", "EMBEDDING_LOOKUP")


def half(content: bytes, material: Material) -> bytes:
    """Return the file with weights in float16; what the engine computes with is its own choice."""
    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
    )
    plan = recipe_manager.RecipeManager()
    for operation in _WEIGHTED:
        plan.add_quantization_config(".*", _OPERATIONS(operation), config, _ALGORITHMS.FLOAT_CASTING)
    return _quantise(content, plan, material)


def dynamic(content: bytes, material: Material) -> bytes:
    """Return the file with int8 weights; ranges of activations are found at each run."""
    plan = recipe_manager.RecipeManager()
    plan.add_dynamic_config(".*", _OPERATIONS.ALL_SUPPORTED, 8, _granularity(material, per_channel=True))
    return _quantise(content, plan, material)


def four_bits(content: bytes, material: Material, *, in_blocks: bool = True) -> bytes:
    """Return the file with constant matrices in 4 bits; ranges of activations are found at each run.

    A block of weights has one scale, or all that make an output. Raises InvalidError when there is no such matrix, or
    its rows are not whole blocks.
    """
    size = material.options.block_size
    granularity = getattr(_GRANULARITY, f"BLOCKWISE_{size}", None) if in_blocks else _GRANULARITY.CHANNELWISE
    if granularity is None:
        raise InvalidError(f"TensorFlow Lite has no blocks of {size}", element="option blockSize", hint="write 32")
    plan = recipe_manager.RecipeManager()
    plan.add_dynamic_config(".*", _OPERATIONS.FULLY_CONNECTED, 4, granularity)
    made = _quantise(content, plan, material)
    if not tflite_file.has_int4_weights(made):
        raise InvalidError("has no constant matrix for 4 bits", element="model", hint="leave tflite-int4 out")
    return made


def static(
    content: bytes, material: Material, *, per_channel: bool = True, activation_bits: int = 8, averaged: bool = False
) -> bytes:
    """Return the file in int8 between float inputs and outputs; ranges are measured on the calibration inputs.

    Ranges are minimum and maximum of all samples, or a moving average of each sample's: outliers count less.
    """
    if material.options.calibration not in {None, "min-max"}:
        raise InvalidError(
            f"the quantiser of TensorFlow Lite files has no {material.options.calibration}",
            element="option calibration",
            hint="leave it out, or write min-max",
        )
    plan = recipe_manager.RecipeManager()
    granularity = _granularity(material, per_channel=per_channel)
    plan.add_static_config(".*", _OPERATIONS.ALL_SUPPORTED, activation_bits, 8, granularity)
    for end in (_OPERATIONS.INPUT, _OPERATIONS.OUTPUT):
        plan.add_quantization_config(".*", end, algorithm_key=_ALGORITHMS.NO_QUANTIZE)
    return _quantise(content, plan, material, averaged=averaged)


def _quantise(
    content: bytes, plan: recipe_manager.RecipeManager, material: Material, *, averaged: bool = False
) -> bytes:
    for layer in material.options.keep_layers:
        plan.add_quantization_config(re.escape(layer), _OPERATIONS.ALL_SUPPORTED, algorithm_key=_ALGORITHMS.NO_QUANTIZE)
    update = qsv_utils.moving_average_update if averaged else qsv_utils.min_max_update
    with quiet():
        try:
            ranges = None
            if plan.need_calibration():
                calibrating = calibrator.Calibrator(content, num_threads=1, qsv_update_func=update)
                samples = first(material.calibration, material.options.calibration_samples)
                calibrating.calibrate({tflite_file.SIGNATURE: _rows(samples)}, plan)
                ranges = calibrating.get_model_qsvs()
            made = quantizer.Quantizer(content, plan.get_quantization_recipe()).quantize(ranges).quantized_model
        except Exception as error:  # the quantiser's exceptions have no common type
            raise InvalidError(f"cannot be quantised ({first_line(error)})", element="model") from error
    if not made:
        raise InvalidError("has no layer whose precision can be lowered", element="model")
    return bytes(made)


def _granularity(material: Material, *, per_channel: bool) -> Any:
    wanted = material.options.per_channel
    chosen = per_channel if wanted is None else wanted
    return qtyping.QuantGranularity.CHANNELWISE if chosen else qtyping.QuantGranularity.TENSORWISE


def _rows(samples: Inputs) -> list[dict[str, Any]]:
    """Return the samples one by one; a list, because the quantiser goes through it twice."""
    count = min(map(len, samples.values()))
    return [{name: rows[index : index + 1] for name, rows in samples.items()} for index in range(count)]
