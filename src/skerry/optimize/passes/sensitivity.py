"""Sensitivity search: which layers must stay in float32 so that int8 keeps the accuracy, and what that costs.

First each layer is quantised alone and its harm measured: the error of the model's outputs on some calibration samples,
as a share of the outputs' own power. Then the file with the most harmful layers left in float32 is made and judged on
the test set; bisection finds how many. Both are bounded. Bisection takes it that more float32 is never worse; where
that is false it finds a number that suffices, not always the smallest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime

from skerry.api.errors import InvalidError
from skerry.optimize.arrays import Array
from skerry.optimize.passes import quantize, ranges
from skerry.optimize.passes.material import Inputs

MAX_GROUPS = 96
"""Models with more layers are measured in groups of neighbours."""

_PASSING = frozenset({"Clip", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Relu", "Reshape", "Resize", "Slice"})
_MOVING = frozenset({"Split", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that move values, and lose nothing beside what the layers around them lose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The search's end: the best file that was judged."""

    content: bytes
    kept: Sequence[str]
    """Layers in float32, the most harmful first."""
    drop: float
    evaluations: int
    """Files that were made and judged on the test set."""
    size_without: int
    """Bytes of the file with every layer in int8."""
    measured: int
    """Files that were made to rank the layers."""


def rank(model: onnx.ModelProto, bounds: Mapping[str, ranges.Range], samples: Inputs) -> list[tuple[str, ...]]:
    """Return groups of nodes (mostly one each), the most harmful first. Raises InvalidError."""
    reference = _outputs(ranges.session(model), samples)
    harm = {}
    for group in _groups(_candidates(model)):
        alone = quantize.quantised(model, bounds, per_channel=True, only=group)
        harm[group] = _error(_outputs(ranges.session(alone), samples), reference)
    return sorted(harm, key=lambda group: (-harm[group], group))


def search(
    model: onnx.ModelProto,
    bounds: Mapping[str, ranges.Range],
    samples: Inputs,
    *,
    drop: Callable[[bytes], float],
    allowed: float,
    most: int,
) -> Found:
    """Return the file with the fewest layers in float32 that loses no more than is allowed, by bisection.

    `drop` judges a file on the test set; at most `most` layers stay. Where that does not suffice the best file that was
    judged is returned. Raises InvalidError when there is nothing to quantise.
    """
    ranked = rank(model, bounds, samples)
    most = min(most, len(ranked) - 1)
    if most < 1:
        raise InvalidError("has too few layers to leave one of them in float32", element="model")
    judged: dict[int, tuple[float, bytes]] = {}

    def suffices(count: int) -> bool:
        kept = [name for group in ranked[:count] for name in group]
        content = quantize.static(model, bounds, per_channel=True, exclude=kept)
        judged[count] = drop(content), content
        return judged[count][0] <= allowed

    fewest = bisect(suffices, most)
    best = fewest if fewest is not None else min(judged, key=lambda count: (judged[count][0], count))
    lost, content = judged[best]
    return Found(
        content=content,
        kept=[name for group in ranked[:best] for name in group],
        drop=lost,
        evaluations=len(judged),
        size_without=len(quantize.static(model, bounds, per_channel=True)),
        measured=len(ranked),
    )


def bisect(suffices: Callable[[int], bool], most: int) -> int | None:
    """Return the smallest number from 1 to `most` that suffices, None when `most` does not; asks log2(most) + 1 times.

    Asks about no number twice. The answer is one that was asked about and suffices.
    """
    if not suffices(most):
        return None
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if suffices(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _candidates(model: onnx.ModelProto) -> list[str]:
    quiet = _PASSING | _MOVING
    return [n.name for n in model.graph.node if n.op_type in quantize.OPERATORS and n.op_type not in quiet]


def _groups(names: Sequence[str]) -> list[tuple[str, ...]]:
    size = -(-len(names) // MAX_GROUPS) or 1
    return [tuple(names[start : start + size]) for start in range(0, len(names), size)]


def _outputs(engine: onnxruntime.InferenceSession, samples: Inputs) -> Array:
    parts = [engine.run(None, dict(batch)) for batch in ranges.batches(samples, ranges.BATCH)]
    columns = [np.concatenate([array.astype(np.float64).ravel() for array in arrays]) for arrays in parts]
    return np.concatenate(columns)


def _error(outputs: Array, reference: Array) -> float:
    """Share of the reference's power that the difference has."""
    power = float(np.square(reference).sum()) or 1.0
    return float(np.square(outputs - reference).sum()) / power
