"""Whether two models gave the same outcome for one request, and how far apart they are.

Lives here: the comparison of two sets of outputs; the same rule as the agent's for golden samples (`agent.probes`).
Must not live here: where they come from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

TOLERANCE = 1e-2
"""A value agrees when it is off by at most this share of the other one, or by this much where that is below 1."""
_BIGGEST = sys.float_info.max


def compare(ours: Sequence[Array], theirs: Sequence[Array]) -> tuple[bool, float]:
    """Return whether all outputs agree, and the largest difference of two numbers.

    Floating-point outputs of rank 2 with several columns are scores: they agree where every row's arg-max is the same.
    All others agree value by value: within `TOLERANCE`; strings and booleans by equality. NaN agrees with NaN, an
    infinity with itself. Other shapes, datatypes or numbers of outputs agree with nothing.
    """
    if len(ours) != len(theirs):
        return False, 0.0
    agrees, worst = True, 0.0
    for mine, other in zip(ours, theirs, strict=True):
        if mine.shape != other.shape or mine.dtype.kind != other.dtype.kind:
            agrees = False
            continue
        if mine.dtype.kind not in "fiu":
            agrees = agrees and bool(np.array_equal(mine, other))
            continue
        left, right = mine.astype(np.float64), other.astype(np.float64)
        differences = _differences(left, right)
        worst = max(worst, float(differences.max(initial=0.0)))
        agrees = agrees and _agree(left, right, differences, scores=mine.dtype.kind == "f")
    return agrees, worst


def _agree(mine: Array, other: Array, differences: Array, *, scores: bool) -> bool:
    if scores and mine.ndim == 2 and mine.shape[1] > 1:
        return bool(np.array_equal(mine.argmax(axis=1), other.argmax(axis=1)))
    with np.errstate(invalid="ignore"):
        allowed = TOLERANCE * np.maximum(1.0, np.abs(mine))
        return bool((differences <= np.where(np.isfinite(allowed), allowed, 0.0)).all())


def _differences(mine: Array, other: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        found = np.abs(mine - other)
    same = (mine == other) | (np.isnan(mine) & np.isnan(other))
    return np.where(same, 0.0, np.where(np.isfinite(found), found, _BIGGEST))
