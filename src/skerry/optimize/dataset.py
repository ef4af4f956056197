"""The data a model is judged with: an `.npz` archive or a directory of `.npy` files, read strictly.

| array in the archive | file in the directory | shape | meaning |
|---|---|---|---|
| `test_x` | `test/x.npy` | [n, ...] | the test set: judges every variant |
| `test_y` | `test/y.npy` | [n, ...] | its true answers, see `metrics` |
| `calibration_x` | `calibration/x.npy` | [m, ...] | typical inputs, from which 8-bit ranges are measured |
| `golden_x` | `golden/x.npy` | [k, ...] | golden samples: shipped with the model, run on every device |
| `golden_y` | `golden/y.npy` | [k, ...] | their true answers |

A model with several inputs has one array per tensor: `test_x.<tensor>`, `test/x.<tensor>.npy`. Lives here: the layout
and its checks. Must not live here: containers (`arrays`), anything that needs the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from skerry.api.errors import InvalidError, TooLargeError
from skerry.optimize import arrays
from skerry.optimize.arrays import Array, Container

Inputs = Mapping[str, Array]
"""Tensor name -> samples along axis 0, in the order in which the model takes them."""
Targets = Literal["classes", "values"]
"""`classes`: one int64 class number per sample, counted from 0. `values`: numbers of any shape, samples outermost."""

UNNAMED = "input"
"""What the tensor of a model with one input is called until the model says its name."""
MAX_SAMPLES = 10_000_000
MAX_TENSORS = 64
INPUT_DTYPES = ("float32", "uint8", "int8", "int32", "int64", "bool")
TARGET_DTYPES = ("float32", "float64", "uint8", "int32", "int64", "bool")
SETS = ("test", "calibration", "golden")
_LAYOUT = (
    "give test_x, calibration_x, golden_x, test_y and golden_y, written with numpy.savez, "
    "or a directory with test/x.npy and so on"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Samples and their true answers."""

    inputs: Inputs
    targets: Array
    """[n, ...]: what it means depends on the metric."""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """The checked arrays of one data set; see the module's table for shapes."""

    name: str
    """The file's or directory's name, as errors and provenance say it."""
    digest: str
    """sha256, hex: of the file, or of the sorted list of the directory's files and their digests."""
    test: Split
    calibration: Inputs
    golden: Split

    def element(self, array: str) -> str:
        """Return how an error names one of the arrays."""
        return f"{self.name}, array {array}"

    def with_golden(self, count: int, *, seed: int) -> Dataset:
        """Keep at most `count` golden samples, chosen by the seed, in the order of the file."""
        if count >= len(self.golden):
            return self
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self.golden))[:count])
        inputs = {name: samples[chosen] for name, samples in self.golden.inputs.items()}
        return replace(self, golden=Split(inputs=inputs, targets=self.golden.targets[chosen]))

    def bound_to(self, names: Sequence[str]) -> Dataset:
        """Give the tensors the model's names and order. Raises InvalidError when they are others."""
        return replace(
            self,
            test=replace(self.test, inputs=bind(self.test.inputs, names, element=self.name)),
            calibration=bind(self.calibration, names, element=self.name),
            golden=replace(self.golden, inputs=bind(self.golden.inputs, names, element=self.name)),
        )


def bind(inputs: Inputs, names: Sequence[str], *, element: str) -> Inputs:
    """Return the tensors in the model's order, an unnamed one under the model's name. Raises InvalidError."""
    if list(inputs) == list(names):
        return inputs
    if len(names) == 1 and list(inputs) == [UNNAMED]:
        return {names[0]: inputs[UNNAMED]}
    if set(inputs) != set(names):
        raise InvalidError(
            f"has {_some(inputs)} as inputs, but the model takes {_some(names)}",
            element=element,
            hint="name the arrays test_x.<tensor> after the model's inputs",
        )
    return {name: inputs[name] for name in names}


def load(path: Path, *, targets: Targets = "classes") -> Dataset:
    """Read and check the arrays. Raises NotFoundError, InvalidError, TooLargeError; pickled objects are never read."""
    container = arrays.open_container(path, hint=_LAYOUT)
    wanted = {f"{part}_x": _tensors(container, f"{part}_x") for part in SETS}
    names = [name for tensors in wanted.values() for name in tensors.values()]
    for name in (*names, "test_y", "golden_y"):
        if name not in container.entries:
            raise InvalidError("is missing", element=f"{container.name}, array {name}", hint=_LAYOUT)
    chosen = {name: container.entries[name] for name in (*names, "test_y", "golden_y")}
    arrays.check_sizes(chosen)
    values = {name: arrays.read(entry, hint=_LAYOUT) for name, entry in chosen.items()}
    elements = {name: entry.element for name, entry in chosen.items()}
    inputs = {part: {tensor: values[name] for tensor, name in wanted[part].items()} for part in wanted}
    for part, tensors in wanted.items():
        for tensor, name in tensors.items():
            _check_input(elements[name], values[name], inputs["test_x"].get(tensor), tensor)
        _check_same_samples(inputs[part], elements[next(iter(tensors.values()))])
        if list(inputs[part]) != list(inputs["test_x"]):
            raise InvalidError(
                f"{part} has {_some(inputs[part])} as tensors, test_x has {_some(inputs['test_x'])}",
                element=container.name,
                hint="give each set the same tensors",
            )
    for name, part in (("test_y", "test_x"), ("golden_y", "golden_x")):
        samples = len(next(iter(inputs[part].values())))
        (_check_classes if targets == "classes" else _check_values)(elements[name], values[name], samples, part)
    if values["golden_y"].shape[1:] != values["test_y"].shape[1:] or values["golden_y"].dtype != values["test_y"].dtype:
        raise InvalidError(
            f"answers are {_describe(values['golden_y'])}, those of test_y are {_describe(values['test_y'])}",
            element=elements["golden_y"],
        )
    return Dataset(
        name=container.name,
        digest=container.digest(),
        test=Split(inputs=inputs["test_x"], targets=values["test_y"]),
        calibration=inputs["calibration_x"],
        golden=Split(inputs=inputs["golden_x"], targets=values["golden_y"]),
    )


def _tensors(container: Container, part: str) -> dict[str, str]:
    """Return tensor -> array name; of a set that has no tensor names, the one that it must have."""
    named = {name.removeprefix(f"{part}."): name for name in sorted(container.entries) if name.startswith(f"{part}.")}
    if named and part in container.entries:
        raise InvalidError(
            f"there is {part} and {next(iter(named.values()))}", element=container.name, hint="name all tensors or none"
        )
    if len(named) > MAX_TENSORS:
        raise TooLargeError(f"{part} has more than {MAX_TENSORS} tensors", element=container.name)
    return named or {UNNAMED: part}


def _check_input(element: str, array: Array, like: Array | None, tensor: str) -> None:
    if array.dtype.name not in INPUT_DTYPES:
        raise InvalidError(
            f"is {array.dtype.name}",
            element=element,
            hint=f"inputs are {' or '.join(INPUT_DTYPES)}; convert with .astype('float32')",
        )
    if array.ndim < 1 or array.size == 0 or (tensor == UNNAMED and array.ndim < 2):
        raise InvalidError(
            f"has shape {list(array.shape)}", element=element, hint="give at least one sample, with samples outermost"
        )
    if len(array) > MAX_SAMPLES:
        raise TooLargeError(f"{len(array)} samples are more than {MAX_SAMPLES}", element=element)
    if like is not None and (array.dtype != like.dtype or array.shape[1:] != like.shape[1:]):
        raise InvalidError(
            f"samples are {_describe(array)}, those of test_x are {_describe(like)}",
            element=element,
            hint="prepare all inputs in the same way",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidError("holds NaN or infinite values", element=element, hint="clean the data first")


def _check_same_samples(inputs: Inputs, element: str) -> None:
    counts = {name: len(samples) for name, samples in inputs.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InvalidError(f"the tensors have different numbers of samples ({said})", element=element)


def _check_classes(element: str, array: Array, samples: int, of: str) -> None:
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


def _check_values(element: str, array: Array, samples: int, of: str) -> None:
    if array.dtype.name not in TARGET_DTYPES:
        hint = f"answers are {' or '.join(TARGET_DTYPES)}"
        raise InvalidError(f"is {array.dtype.name}", element=element, hint=hint)
    if array.ndim < 1 or len(array) != samples or array.size == 0:
        raise InvalidError(
            f"has shape {list(array.shape)}, but {of} has {samples} samples",
            element=element,
            hint="give one answer per sample, samples outermost",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidError("holds NaN or infinite values", element=element, hint="clean the data first")


def _describe(array: Array) -> str:
    return f"{array.dtype.name} {list(array.shape[1:])}"


def _some(names: Sequence[str] | Inputs) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(name[:80] for name in list(names)[:8]) or "nothing") + more
