"""Does a translation do the same as the graph it was made from? Both are run, on real samples, for several batches.

Must not live here: how a translation is run; how good the model is, which the factory judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime

from skerry.api.errors import InvalidError
from skerry.optimize.arrays import Array
from skerry.optimize.passes.material import Inputs

Answers = Callable[[Inputs, Sequence[str]], Sequence[Array]]
BATCHES = (1, 3)
_TOLERANCE = 1e-3
"""Of the largest output: two engines add in different orders."""


def check(
    answers: Callable[[Inputs, Sequence[str]], Sequence[Array]], raw: bytes, samples: Inputs, engine: str
) -> None:
    """Compare the outputs for one sample and for several; `answers` gives the named ones of the translation.

    Raises InvalidError that names the output which differs, and the engine.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for batch in BATCHES:
        feeds = {name: rows[np.arange(batch) % len(rows)] for name, rows in samples.items()}
        expected = session.run(names, feeds)
        for name, theirs, ours in zip(names, expected, answers(feeds, names), strict=True):
            _compare(name, ours, theirs, f"for {batch} samples", engine)


def _compare(name: str, ours: Array, theirs: Array, when: str, engine: str) -> None:
    if ours.shape != theirs.shape:
        raise InvalidError(
            f"has shape {list(ours.shape)} in {engine}, {list(theirs.shape)} in ONNX Runtime, {when}",
            element=f"output {name}",
        )
    limit = _TOLERANCE * max(1.0, float(np.abs(theirs.astype(np.float64)).max(initial=0.0)))
    distance = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0)
    if not distance <= limit:
        raise InvalidError(
            f"differs by {distance:.3g} between {engine} and ONNX Runtime, {when}", element=f"output {name}"
        )
