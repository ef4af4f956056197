"""The data a model is judged with: `data.npz`, read strictly.

| array | dtype | shape | meaning |
|---|---|---|---|
| `test_x` | float32, uint8, int8, int32 or int64 | [n, ...] | the test set: judges every variant |
| `test_y` | int64 | [n] | its true classes, counted from 0 |
| `calibration_x` | as `test_x` | [m, ...] | typical inputs, from which 8-bit ranges are measured |
| `golden_x` | as `test_x` | [k, ...] | golden samples: shipped with the model, run on every device |
| `golden_y` | int64 | [k] | their true classes |

Lives here: the layout and its checks. Must not live here: anything that needs the model.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skerry.api.errors import InvalidError, NotFoundError, TooLargeError
from skerry.optimize.foreign import first_line

Array = npt.NDArray[Any]

MAX_DATA_BYTES = 8 * 1024**3
INPUTS = ("test_x", "calibration_x", "golden_x")
LABELS = {"test_y": "test_x", "golden_y": "golden_x"}
INPUT_DTYPES = ("float32", "uint8", "int8", "int32", "int64")
_UNREADABLE = (
    EOFError,
    MemoryError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What zipfile and numpy raise for damaged, encrypted or absurd archives."""
_LAYOUT = f"the file needs {', '.join(INPUTS)} and {', '.join(LABELS)}, written with numpy.savez"


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """The checked arrays of one `data.npz`; see the module's table for shapes and dtypes."""

    name: str
    """The file's name, as errors and provenance say it."""
    digest: str
    """sha256 of the file, hex."""
    test_x: Array
    test_y: Array
    calibration_x: Array
    golden_x: Array
    golden_y: Array

    def element(self, array: str) -> str:
        """Return how an error names one of the arrays."""
        return f"{self.name}, array {array}"

    def with_golden(self, count: int, *, seed: int) -> Dataset:
        """Keep at most `count` golden samples, chosen by the seed, in the order of the file."""
        if count >= len(self.golden_x):
            return self
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self.golden_x))[:count])
        return replace(self, golden_x=self.golden_x[chosen], golden_y=self.golden_y[chosen])


def load(path: Path) -> Dataset:
    """Read and check the arrays. Raises NotFoundError, InvalidError, TooLargeError; pickled objects are never read."""
    if not path.is_file():
        raise NotFoundError("no such file", element=str(path), hint=_LAYOUT)
    if not zipfile.is_zipfile(path):
        raise InvalidError("is not an .npz archive", element=path.name, hint=_LAYOUT)
    arrays = {name: _read(path, name) for name in (*INPUTS, *LABELS)}
    for name in INPUTS:
        _check_input(path.name, name, arrays[name], arrays["test_x"])
    for name, samples in LABELS.items():
        _check_labels(path.name, name, arrays[name], len(arrays[samples]), samples)
    with path.open("rb") as file:
        digest = _digest(file)
    return Dataset(name=path.name, digest=digest, **arrays)


def _digest(file: Any) -> str:
    state = sha256()
    while chunk := file.read(1 << 20):
        state.update(chunk)
    return state.hexdigest()


def _read(path: Path, name: str) -> Array:
    element = f"{path.name}, array {name}"
    try:
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo(f"{name}.npy").file_size
            if size > MAX_DATA_BYTES:
                raise TooLargeError(f"{size} bytes are more than {MAX_DATA_BYTES}", element=element)
            with archive.open(f"{name}.npy") as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
            return array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    except KeyError:
        raise InvalidError("is missing", element=element, hint=_LAYOUT) from None
    except _UNREADABLE as error:
        if "allow_pickle" in str(error):
            cause, hint = "holds Python objects, which are never read", "save plain numeric arrays"
        else:
            cause, hint = f"cannot be read ({first_line(error)})", _LAYOUT
        raise InvalidError(cause, element=element, hint=hint) from None


def _check_input(file: str, name: str, array: Array, like: Array) -> None:
    element = f"{file}, array {name}"
    if array.dtype.name not in INPUT_DTYPES:
        raise InvalidError(
            f"is {array.dtype.name}",
            element=element,
            hint=f"inputs are {' or '.join(INPUT_DTYPES)}; convert with .astype('float32')",
        )
    if array.ndim < 2 or array.size == 0:
        raise InvalidError(
            f"has shape {list(array.shape)}", element=element, hint="give at least one sample, with samples outermost"
        )
    if array.dtype != like.dtype or array.shape[1:] != like.shape[1:]:
        raise InvalidError(
            f"samples are {_describe(array)}, those of test_x are {_describe(like)}",
            element=element,
            hint="prepare all inputs in the same way",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidError("holds NaN or infinite values", element=element, hint="clean the data first")


def _check_labels(file: str, name: str, array: Array, samples: int, of: str) -> None:
    element = f"{file}, array {name}"
    if array.dtype != np.int64:
        raise InvalidError(f"is {array.dtype.name}", element=element, hint="labels are int64 class numbers")
    if array.shape != (samples,):
        raise InvalidError(
            f"has shape {list(array.shape)}, but {of} has {samples} samples",
            element=element,
            hint="give one label per sample, in one dimension",
        )
    if array.min() < 0:
        raise InvalidError("holds negative labels", element=element, hint="count the classes from 0")


def _describe(array: Array) -> str:
    return f"{array.dtype.name} {list(array.shape[1:])}"
