"""What a variant is worth: run through ONNX Runtime on the test set, compared with the source on golden samples.

Lives here: running and comparing. Must not live here: costs (`profile`) and the verdict (`factory`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime

from skerry.api.errors import InvalidError
from skerry.api.kinds.variants import NumericalError
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import UNNAMED, Inputs, bind
from skerry.optimize.foreign import first_line

BATCH = 64


class Runner:
    """One serialised model in ONNX Runtime, in this process, on the CPU. Raises InvalidError if it cannot be loaded."""

    def __init__(self, model: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the engine's exception types have no public root
            raise InvalidError(f"ONNX Runtime cannot load it ({first_line(error)})") from error
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]

    def predict(self, samples: Array | Inputs, *, batch: int | None = BATCH) -> list[Array]:
        """Run samples [n, ...] in batches (None: all at once); return every output [n, ...]. Raises InvalidError.

        An array alone, or an unnamed tensor, goes to the only input; tensors go by name.
        """
        inputs = {UNNAMED: samples} if isinstance(samples, np.ndarray) else samples
        feeds = bind(inputs, self._inputs, element="data")
        count = len(next(iter(feeds.values())))
        size = batch or count
        parts = []
        for start in range(0, count, size):
            try:
                parts.append(self._session.run(None, {k: v[start : start + size] for k, v in feeds.items()}))
            except Exception as error:  # the engine's exception types have no public root
                raise InvalidError(f"ONNX Runtime cannot run it ({first_line(error)})") from error
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def numerical_error(outputs: Sequence[Array], expected: Sequence[Array]) -> NumericalError:
    """Compare all outputs, taken as one vector each. Raises InvalidError when their shapes differ or one is not finite.

    The cosine of two zero vectors counts as 1, of one as 0.
    """
    if [o.shape for o in outputs] != [e.shape for e in expected]:
        shapes = [list(o.shape) for o in outputs], [list(e.shape) for e in expected]
        raise InvalidError(f"gives outputs of shape {shapes[0]}, the source model's are {shapes[1]}")
    ours, theirs = _vector(outputs), _vector(expected)
    if not np.isfinite(ours).all():
        raise InvalidError("gives outputs that are not finite")
    distance = np.abs(ours - theirs)
    lengths = float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))
    if all(lengths):
        cosine = float(np.clip(np.dot(ours / lengths[0], theirs / lengths[1]), -1, 1))
    else:
        cosine = 0.0 if any(lengths) else 1.0
    return NumericalError(max_abs=float(distance.max()), mean_abs=float(distance.mean()), cosine=cosine)


def _vector(arrays: Sequence[Array]) -> Array:
    return np.concatenate([array.astype(np.float64).ravel() for array in arrays])
