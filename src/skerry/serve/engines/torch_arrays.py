"""What the two engines that compute on PyTorch's tensors share: tensors to arrays and back, its errors.

Lives here: types and sentences. Must not live here: how a model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from skerry.api.errors import InvalidError, SkerryError, UnavailableError
from skerry.api.kinds.tensors import TensorSpec

if TYPE_CHECKING:
    from skerry.serve.engines import Array

DATATYPES = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|bad_alloc|out of memory|error 0x21", re.IGNORECASE)
_PREFIX = re.compile(r"^(?:RuntimeError|torch\S*Error): ")


def to_torch(array: Array, name: str) -> torch.Tensor:
    """Return a copy: a model may write into its inputs. Raises InvalidError for what has no tensor form."""
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError as error:
        raise InvalidError("strings are nothing this engine computes with", element=f'input "{name}"') from error


def to_arrays(found: object, outputs: Sequence[TensorSpec]) -> Sequence[Array]:
    """Return what a model gave, held against the signature's outputs by position. Raises SkerryError."""
    given = list(found) if isinstance(found, list | tuple) else [found]
    tensors = [one for one in given if isinstance(one, torch.Tensor)]
    if len(given) != len(outputs) or len(tensors) != len(outputs):
        kinds = [type(one).__name__ for one in given]
        raise SkerryError(f"the model gives {kinds}, the signature says {len(outputs)} tensors")
    for tensor, spec in zip(tensors, outputs, strict=True):
        datatype = DATATYPES.get(tensor.dtype, str(tensor.dtype))
        shape = list(tensor.shape)
        fits = len(shape) == len(spec.shape) and all(b in (a, -1) for a, b in zip(shape, spec.shape, strict=True))
        if datatype != spec.datatype or not fits:
            raise SkerryError(
                f"the model gives {datatype} {shape}, the signature says {spec.datatype} {spec.shape}",
                element=f'output "{spec.name}"',
            )
    return [tensor.detach().cpu().contiguous().numpy() for tensor in tensors]


def translated(error: Exception, element: str, cause: str) -> SkerryError:
    """Return the error as a user reads it; PyTorch's own message without the lines of the code that was traced."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = next((line for line in reversed(lines) if _PREFIX.match(line)), lines[0])
    if _OUT_OF_MEMORY.search(str(error)):
        return UnavailableError("not enough memory", element=element, hint="" if element else "send a smaller batch")
    return InvalidError(f"{cause} ({_PREFIX.sub('', said)[:500]})", element=element)
