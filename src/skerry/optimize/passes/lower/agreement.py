"""Does a TensorFlow Lite file do the same as the graph it was made from? Both are run, on real samples.

Must not live here: how good the model is; the factory judges that.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
from ai_edge_litert import interpreter

from skerry.api.errors import InvalidError
from skerry.optimize.foreign import first_line
from skerry.optimize.passes import tflite_file
from skerry.optimize.passes.lower.network import Array
from skerry.optimize.passes.material import Inputs
from skerry.optimize.quiet import quiet

_BATCHES = (1, 3)
_TOLERANCE = 1e-3
"""Of the largest output: two engines add in different orders."""


def check(content: bytes, raw: bytes, samples: Inputs) -> None:
    """Compare the outputs for one sample and for several. Raises InvalidError that names the output which differs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for batch in _BATCHES:
        feeds = {name: rows[np.arange(batch) % len(rows)] for name, rows in samples.items()}
        expected = session.run(names, feeds)
        for name, theirs, ours in zip(names, expected, _run(content, feeds, names), strict=True):
            _compare(name, ours, theirs, batch)


def _run(content: bytes, feeds: Inputs, names: list[str]) -> list[Array]:
    try:
        with quiet():
            model = interpreter.Interpreter(model_content=content, num_threads=1)
            runner = model.get_signature_runner(tflite_file.SIGNATURE)
            outputs = runner(**feeds)
    except Exception as error:  # the engine's exceptions have no common type
        raise InvalidError(f"LiteRT cannot run it ({first_line(error)})", element="model") from error
    return [outputs[name] for name in names]


def _compare(name: str, ours: Array, theirs: Array, batch: int) -> None:
    limit = _TOLERANCE * max(1.0, float(np.abs(theirs.astype(np.float64)).max(initial=0.0)))
    if ours.shape != theirs.shape:
        raise InvalidError(
            f"has shape {list(ours.shape)} in LiteRT, {list(theirs.shape)} in ONNX Runtime, for {batch} samples",
            element=f"output {name}",
        )
    distance = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0)
    if not distance <= limit:
        raise InvalidError(
            f"differs by {distance:.3g} between LiteRT and ONNX Runtime, for {batch} samples", element=f"output {name}"
        )
