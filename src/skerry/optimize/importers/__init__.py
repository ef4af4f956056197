"""Where models come from, one module per kind of file, behind one shape: `Source`.

Lives here: reading a trained model, running it as its authors meant it, and giving the forms that recipes start from.
Code in a model's file is never run unless the user agreed to. Importing this package loads no framework; opening a
source loads its own alone. Must not live here: optimisation, or judging what came out.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from skerry.api.errors import InvalidError, NotFoundError, UnsupportedError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import SourceKind
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import Inputs
from skerry.optimize.recipe import SourceSpec

Form = Literal["onnx", "torch", "keras", "tflite", "torchscript"]


class Source(Protocol):
    """A trained model as its own framework runs it: the reference that every variant is compared with."""

    @property
    def kind(self) -> SourceKind:
        """The kind of file it was read from."""
        ...

    @property
    def digests(self) -> Mapping[str, str]:
        """File name -> sha256 of every file it was read from."""
        ...

    @property
    def forms(self) -> frozenset[Form]:
        """What recipes can be given: `onnx` by `onnx()`, all others by `native()`."""
        ...

    def signature(self, inputs: Inputs) -> ModelSignature:
        """Return the tensors with the model's own names, of these samples' shapes and types; the batch is -1.

        Inputs with one unnamed tensor (`dataset.UNNAMED`) fit any model with one input; `Dataset.bound_to` then gives
        all sets the model's names. Raises InvalidError when the model cannot take the samples.
        """
        ...

    def predict(self, inputs: Inputs) -> Sequence[Array]:
        """Run samples [n, ...]; every output is [n, ...]. Raises InvalidError."""
        ...

    def onnx(self, inputs: Inputs, *, opset: int) -> bytes:
        """Return a serialised ONNX graph that takes any batch size, checked against `predict` with these samples.

        Raises InvalidError, UnsupportedError when the kind has no such form.
        """
        ...

    def native(self) -> Any:
        """Return the live model: torch.nn.Module, ScriptModule, keras.Model, or the .tflite file's bytes.

        Raises UnsupportedError when the kind has no such form.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of source: the module that reads it, and what must be installed."""

    module: str
    extra: str
    suffixes: tuple[str, ...]


KINDS: Mapping[SourceKind, Kind] = {
    "pytorch": Kind(module="torch", extra="torch", suffixes=()),
    "torch-export": Kind(module="torch_program", extra="torch", suffixes=(".pt2",)),
    "torchscript": Kind(module="torchscript", extra="torch", suffixes=(".pt", ".ptl", ".pth")),
    "keras": Kind(module="keras", extra="tensorflow", suffixes=(".keras",)),
    "savedmodel": Kind(module="savedmodel", extra="tensorflow", suffixes=()),
    "onnx": Kind(module="onnx", extra="factory", suffixes=(".onnx",)),
    "tflite": Kind(module="tflite", extra="factory", suffixes=(".tflite",)),
    "sklearn": Kind(module="sklearn", extra="sklearn", suffixes=(".skops", ".joblib", ".pkl", ".pickle")),
}


def kind_of(spec: SourceSpec) -> SourceKind:
    """Return the kind that is asked for, or the one that the path's form tells. Raises InvalidError, NotFoundError."""
    if spec.kind is not None:
        return spec.kind
    if spec.path.rpartition(":")[0].endswith(".py"):
        return "pytorch"
    path = Path(spec.path)
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "savedmodel"
        raise InvalidError("holds no saved_model.pb", element=path.name, hint="name a SavedModel directory or a file")
    for kind, known in KINDS.items():
        if path.suffix in known.suffixes:
            return kind
    if not path.exists():
        raise NotFoundError("no such file", element=spec.path)
    endings = ", ".join(suffix for known in KINDS.values() for suffix in known.suffixes)
    raise InvalidError(
        "does not say by its name what kind of model it is",
        element=path.name,
        hint=f"known are FILE.py:FUNCTION, SavedModel directories and {endings}; or say the kind",
    )


def open_source(spec: SourceSpec, *, seed: int = 0) -> Source:
    """Read a trained model.

    Raises NotFoundError, InvalidError, TooLargeError, ForbiddenError when its file carries code that the user did not
    agree to run, UnsupportedError when its framework is not installed.
    """
    kind = kind_of(spec)
    try:
        module = importlib.import_module(f"{__name__}.{KINDS[kind].module}")
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("skerry."):
            raise
        hint = f"pip install 'skerry[{KINDS[kind].extra}]'"
        raise UnsupportedError(f"{error.name} is not installed", element=f"source {kind}", hint=hint) from error
    source: Source = module.open_source(spec, seed=seed)
    return source
