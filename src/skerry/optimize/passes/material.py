"""What every pass is given and every format's table is made of: `Material` in, a file out, `Recipe` its name.

Modules of formats import from here, not from the package, which imports them. Must not live here: heavy libraries, nor
any format's own matters.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from skerry.api.kinds.tensors import ModelSignature
from skerry.optimize.dataset import Inputs
from skerry.optimize.recipe import VariantOptions

__all__ = ["Form", "Inputs", "Material", "Recipe", "first"]

Form = Literal["onnx", "torch", "keras", "tflite", "torchscript"]
"""What a recipe starts from: a serialised graph (bytes), a module in evaluation mode, a Keras model, a file (bytes)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """All that a recipe may use to make one variant."""

    load: Callable[[], Any]
    """Gives the model in the recipe's form; pruned already where the options say so."""
    inputs_sample: Inputs
    """A few real samples, for tracing and for checking what was made."""
    calibration: Inputs
    """Samples from which ranges are measured."""
    signature: ModelSignature
    """The source model's tensors; the variant must keep them. The batch dimension is -1."""
    out: Path
    """The file to write."""
    options: VariantOptions = field(default_factory=VariantOptions)
    seed: int = 0
    drop: Callable[[Path], float] | None = None
    """Judges a file on the test set: how much of the metric it loses, positive is worse. For recipes that search."""
    allowed_drop: float = 0.0
    """What `drop` may be at most."""
    detail: MutableMapping[str, str] = field(default_factory=dict)
    """What the recipe has to say for the card: which layers it kept, what that cost."""


def _always(_options: VariantOptions) -> bool:
    return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One way to make a variant."""

    name: str
    """As the card records it."""
    form: Form
    build: Callable[[Material], None]
    """Writes `material.out`. Raises SkerryError; whatever else libraries raise, the caller turns into a sentence."""
    requires: tuple[str, ...] = ()
    """Distributions that must be installed."""
    extra: str = ""
    """The extra of ours that installs them: `executorch` for `skerry[executorch]`."""
    toolchain: str = ""
    """The environment of its own it runs in; empty is this one."""

    loads: tuple[str, ...] = ()
    """Modules that `build` imports and that take long: a process with nothing else to do imports them ahead."""

    asked: Callable[[VariantOptions], bool] = _always
    """Whether a variant with these options wants it."""

    def missing(self) -> tuple[str, ...]:
        """Return the distributions it needs that are not installed here."""
        return tuple(name for name in self.requires if not _installed(name))


def first(inputs: Inputs, count: int) -> Inputs:
    """Return the first `count` samples of each tensor; fewer when there are fewer."""
    return {name: np.ascontiguousarray(samples[:count]) for name, samples in inputs.items()}


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
