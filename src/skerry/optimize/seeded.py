"""Inputs for a model that came without data: drawn by a seed from what the graph says of its tensors.

They show whether a device computes what the model computes, and what that costs; of accuracy they say nothing. Pure.
Must not live here: running models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from skerry.api.errors import InvalidError, TooLargeError, UnsupportedError
from skerry.api.kinds.tensors import Datatype, TensorSpec
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import Inputs

FREE_SIZES = (16, 224)
"""What is tried where the graph leaves a dimension open besides the batch: a short sequence, a small picture."""
MAX_SAMPLE_BYTES = 64 * 2**20
"""Of one sample; a graph that wants more is not fed blindly."""
MAX_BYTES = 32 * 2**20
"""Of all samples together, where one is smaller: they travel with the model."""

_DTYPES: Mapping[Datatype, str] = {
    "FP32": "float32",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


def draws(declared: Sequence[TensorSpec], count: int, *, seed: int) -> Iterator[Inputs]:
    """Return the inputs to try, one after the other until the model takes them: at most `count` samples [n, ...] each.

    Floating point numbers are normal; bytes are uniform; other integers are 0 or 1, which masks and tokens can all be.
    Raises InvalidError for a model without inputs, UnsupportedError for types that have no samples, TooLargeError.
    """
    if not declared:
        raise InvalidError("takes no inputs", element="model")
    for spec in declared:
        if spec.datatype not in _DTYPES:
            raise UnsupportedError(
                f"is {spec.datatype}", element=f"input {spec.name}", hint=f"known are {', '.join(_DTYPES)}"
            )
    free = any(size < 0 for spec in declared for size in spec.shape[1:])
    for size in FREE_SIZES if free else FREE_SIZES[:1]:
        shapes = {spec.name: [size if known < 0 else known for known in spec.shape[1:]] for spec in declared}
        each = sum(math.prod(shapes[spec.name]) * np.dtype(_DTYPES[spec.datatype]).itemsize for spec in declared)
        if each > MAX_SAMPLE_BYTES:
            raise TooLargeError(
                f"one sample of its inputs has {each} bytes, more than {MAX_SAMPLE_BYTES}",
                element="model",
                hint="give samples with --data",
            )
        samples = max(1, min(count, MAX_BYTES // max(each, 1)))
        generator = np.random.default_rng(seed)
        yield {spec.name: _drawn(generator, spec, [samples, *shapes[spec.name]]) for spec in declared}


def _drawn(generator: np.random.Generator, spec: TensorSpec, shape: Sequence[int]) -> Array:
    dtype = np.dtype(_DTYPES[spec.datatype])
    if dtype.kind == "f":
        return generator.standard_normal(shape, dtype=np.float32)
    if dtype.itemsize == 1 and dtype.kind != "b":
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max + 1, shape, dtype=dtype)
    return generator.integers(0, 2, shape).astype(dtype)
