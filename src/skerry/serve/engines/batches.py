"""Requests of any number of samples through a file that takes so many at a time: in pieces, put together again.

Lives here: cutting, filling up, joining. Must not live here: an engine; it gives the function that runs one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skerry.api.errors import InvalidError, SkerryError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec

Array = npt.NDArray[np.generic]
_Run = Callable[[Sequence[Array]], Sequence[Array]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batches:
    """How many samples one run takes."""

    size: int
    """At most so many."""
    exact: bool
    """Exactly so many: a smaller piece is filled up with its last sample, whose further answers are dropped."""

    def run(
        self, arrays: Sequence[Array], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], run: _Run
    ) -> Sequence[Array]:
        """Run all samples; arrays and specs belong together by position. Raises InvalidError, and what `run` raises.

        Tensors whose first dimension the signature fixes are no batch: as inputs they go into every piece whole.
        """
        batched = [_is_batched(spec) for spec in inputs]
        count = _count(arrays, inputs, batched)
        if count == self.size or (count < self.size and not self.exact):
            return run(arrays)
        for spec in outputs:
            if not _is_batched(spec):
                raise InvalidError(
                    f"{count} samples do not go through a file that takes {self.size} at a time, since output "
                    f'"{spec.name}" is no batch',
                    element="request",
                )
        parts: list[list[Array]] = [[] for _ in outputs]
        for start in range(0, count, self.size):
            piece = [self._piece(array, start) if cut else array for array, cut in zip(arrays, batched, strict=True)]
            kept = min(self.size, count - start)
            for part, found in zip(parts, run(piece), strict=True):
                if len(found) < kept:
                    raise SkerryError(f"the model gave {len(found)} answers to {self.size} samples")
                part.append(found[:kept])
        return [np.concatenate(part) for part in parts]

    def _piece(self, array: Array, start: int) -> Array:
        piece = array[start : start + self.size]
        missing = self.size - len(piece)
        if missing and self.exact:
            piece = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)])
        return piece


def fixed_batch(signature: ModelSignature, shapes: Sequence[Sequence[int]]) -> Batches | None:
    """Return how to run a file whose inputs have these shapes, in the signature's order; None: any number at once.

    Raises InvalidError when its inputs fix different numbers.
    """
    sizes = {
        shape[0]
        for spec, shape in zip(signature.inputs, shapes, strict=True)
        if _is_batched(spec) and shape and shape[0] != -1
    }
    if len(sizes) > 1:
        raise InvalidError(f"its inputs take different batches: {sorted(sizes)}")
    return Batches(size=sizes.pop(), exact=True) if sizes else None


def _is_batched(spec: TensorSpec) -> bool:
    return bool(spec.shape) and spec.shape[0] == -1


def _count(arrays: Sequence[Array], inputs: Sequence[TensorSpec], batched: Sequence[bool]) -> int:
    counts = {spec.name: len(array) for array, spec, cut in zip(arrays, inputs, batched, strict=True) if cut}
    if len(set(counts.values())) > 1:
        raise InvalidError(f"the inputs have different numbers of samples: {counts}", element="request")
    return next(iter(counts.values()), 1)
