"""Does a TensorFlow Lite file do the same as the graph it was made from?

Must not live here: the comparison (`passes.agreement`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ai_edge_litert import interpreter

from skerry.api.errors import InvalidError
from skerry.optimize.arrays import Array
from skerry.optimize.foreign import first_line
from skerry.optimize.passes import agreement, tflite_file
from skerry.optimize.passes.material import Inputs
from skerry.optimize.quiet import quiet


def check(content: bytes, raw: bytes, samples: Inputs) -> None:
    """Compare the outputs for one sample and for several. Raises InvalidError that names the output which differs."""
    agreement.check(partial(_answers, content), raw, samples, "LiteRT")


def _answers(content: bytes, feeds: Inputs, names: Sequence[str]) -> list[Array]:
    try:
        with quiet():
            model = interpreter.Interpreter(model_content=content, num_threads=1)
            runner = model.get_signature_runner(tflite_file.SIGNATURE)
            outputs = runner(**feeds)
    except Exception as error:  # the engine's exceptions have no common type
        raise InvalidError(f"LiteRT cannot run it ({first_line(error)})", element="model") from error
    return [outputs[name] for name in names]
