"""TensorFlow Lite files from Keras models, by TensorFlow's own converter.

Inputs and outputs stay float, so the signature stays. Must not live here: other sources, or the file's names
(`tflite_file`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.optimize.foreign import first_line
from skerry.optimize.passes.material import Material, first
from skerry.optimize.quiet import quiet

_OPERATOR = re.compile(r"'(tf\.\w+)' op|ops?: ((?:Flex)?[A-Z]\w+)")


def plain(model: Any, _material: Material) -> bytes:
    """Return the float32 file. Raises UnsupportedError that names an operator which TensorFlow Lite lacks."""
    return _convert(tf.lite.TFLiteConverter.from_keras_model(model))


def half(model: Any, _material: Material) -> bytes:
    """Return the file with weights in float16. Raises UnsupportedError."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return _convert(converter)


def dynamic(model: Any, _material: Material) -> bytes:
    """Return the file with int8 weights, ranges of activations found at each run. Raises UnsupportedError."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return _convert(converter)


def static(model: Any, material: Material) -> bytes:
    """Return the file in int8, ranges measured on the calibration inputs. Raises UnsupportedError, InvalidError."""
    if material.options.calibration not in {None, "min-max"}:
        raise InvalidError(
            f"TensorFlow's converter has no {material.options.calibration}",
            element="option calibration",
            hint="leave it out, or write min-max",
        )
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: _samples(model, material)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return _convert(converter)


def _samples(model: Any, material: Material) -> Iterator[list[Any]]:
    samples = first(material.calibration, material.options.calibration_samples)
    ordered = [samples[name] for name in _order(model, list(samples))]
    for index in range(min(map(len, ordered))):
        yield [np.ascontiguousarray(rows[index : index + 1]) for rows in ordered]


def _order(model: Any, names: list[str]) -> list[str]:
    """Return our names in the order of the model's own inputs, by name where they agree."""
    own = [tensor.name.split(":")[0] for tensor in model.inputs]
    return own if set(own) == set(names) else names


def _convert(converter: Any) -> bytes:
    try:
        with quiet():
            return bytes(converter.convert())
    except Exception as error:  # the converter's exceptions have no common type
        found = _OPERATOR.search(str(error))
        name = next(filter(None, found.groups())) if found else ""
        raise UnsupportedError(
            "is not among TensorFlow Lite's operators" if name else f"cannot be converted ({first_line(error)})",
            element=f"operator {name}" if name else "model",
            hint="replace it by layers that TensorFlow Lite has, or take another format",
        ) from error
