"""Engines: what executes a model. One module an engine; the port and the choice are here.

Lives here: loading a file, running it on arrays, translating the engine's errors. Must not live here: the wire, the
queue, or a request's checks; an engine gets what the model's signature allows.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from skerry.api.errors import UnsupportedError
from skerry.api.kinds.tensors import ModelSignature
from skerry.core.engines import ENGINES

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_MODULES = {
    "onnxruntime": "skerry.serve.engines.onnx",
    "litert": "skerry.serve.engines.litert",
    "executorch": "skerry.serve.engines.executorch",
    "torchscript": "skerry.serve.engines.torchscript",
}


class LoadedModel(Protocol):
    """A model ready to run; one call at a time."""

    def infer(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Sequence[Array]:
        """Run it. Raises InvalidError when the input is at fault, UnavailableError without memory, SkerryError else."""
        ...

    def unload(self) -> None:
        """Free it."""
        ...


class Engine(Protocol):
    """One way to execute models."""

    platform: str
    """The protocol's name for it (Open Inference Protocol, "Platforms")."""
    version: str
    """Of the engine that is installed."""

    def load(self, file: Path, signature: ModelSignature, *, threads: int) -> LoadedModel:
        """Load a model that must have that signature. Raises InvalidError, NotFoundError, UnavailableError."""
        ...


def names() -> Sequence[str]:
    """Return the engines there are a driver for."""
    return sorted(_MODULES)


def open_engine(name: str) -> Engine:
    """Import an engine. Raises UnsupportedError that says which, and what to install."""
    if name not in _MODULES:
        raise UnsupportedError("is not an engine", element=name[:100], hint=f"known are: {', '.join(names())}")
    try:
        engine: Engine = importlib.import_module(_MODULES[name]).engine()
    except (ImportError, OSError) as error:  # OSError: a shared library that is not there
        raise UnsupportedError(
            f"cannot be imported: {error}",
            element=name,
            hint=f"install it: pip install 'skerry[{ENGINES[name].extra}]'; see `skerry engines`",
        ) from error
    return engine
