"""From TensorFlow functions to ONNX, by tf2onnx, and the check that the graph kept the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf
import tf2onnx
from onnx import ModelProto

from skerry.api.errors import InvalidError
from skerry.api.kinds.tensors import ModelSignature
from skerry.optimize import batching, evaluate, graph
from skerry.optimize.dataset import Inputs
from skerry.optimize.foreign import first_line, raise_if_starved
from skerry.optimize.importers import naming
from skerry.optimize.importers.tensors import Reference, first

NEWEST_OPSET = 18
"""What tf2onnx 1.17 writes at most; any ONNX Runtime that reads a newer one reads this."""
_SAME = 0.999


def fixed_batch(shapes: Iterable[Sequence[int | None]]) -> int | None:
    """Return the first dimension of inputs that fix it."""
    sizes = [shape[0] for shape in shapes if len(shape)]
    return next((size for size in sizes if size is not None), None)


def export(
    function: Callable[..., dict[str, Any]],
    specs: Sequence[Any],
    *,
    reference: Reference,
    signature: ModelSignature,
    inputs: Inputs,
    opset: int,
) -> bytes:
    """Return the function as a graph with the signature's tensors. Raises InvalidError.

    specs: one tf.TensorSpec per input, named. A fixed batch is freed, since a graph has to take any.
    """
    free = [tf.TensorSpec((None, *spec.shape[1:]), spec.dtype, name=spec.name) for spec in specs]
    try:
        with warnings.catch_warnings(action="ignore"):
            model, _ = tf2onnx.convert.from_function(
                tf.function(function, input_signature=free, autograph=False),
                input_signature=free,
                opset=min(opset, NEWEST_OPSET),
            )
        made = graph.serialise(batching.with_signature(naming.canonical(_ordered(model, signature)), signature))
    except InvalidError:
        raise
    except Exception as error:  # tf2onnx has no common exception type
        raise_if_starved(error)
        raise InvalidError(
            f"cannot be exported to ONNX ({first_line(error)})",
            element="model",
            hint="some TensorFlow operators have no counterpart in ONNX; TensorFlow Lite variants do without it",
        ) from error
    _check(made, reference, inputs)
    return made


def _ordered(model: ModelProto, signature: ModelSignature) -> ModelProto:
    """Give inputs and outputs the model's order: tf2onnx sorts them by name."""
    for values, specs in ((model.graph.input, signature.inputs), (model.graph.output, signature.outputs)):
        known = {value.name: value for value in values}
        if set(known) != {spec.name for spec in specs}:
            raise InvalidError(
                f"the exported graph has the tensors {', '.join(known)} instead of {', '.join(s.name for s in specs)}",
                element="model",
            )
        ordered = [known[spec.name] for spec in specs]
        copies = [type(value).FromString(value.SerializeToString()) for value in ordered]
        del values[:]
        values.extend(copies)
    return model


def _check(made: bytes, reference: Reference, inputs: Inputs) -> None:
    runner = evaluate.Runner(made)
    for size in (1, 3):
        batch = first(inputs, size)
        error = evaluate.numerical_error(runner.predict(batch), list(reference.predict(batch).values()))
        if error.cosine < _SAME:
            raise InvalidError(f"the exported graph differs from the model (cosine {error.cosine:.4f}, batch {size})")
