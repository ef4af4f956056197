"""The data plane: one model, its metadata, its readiness, and inference on arrays. No transport in it.

Lives here: what every transport offers, in the terms of the Open Inference Protocol v2. Must not live here: JSON, HTTP,
statuses, threads.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import skerry
from skerry.api.errors import NotFoundError, SkerryError, UnavailableError
from skerry.api.kinds.tensors import ModelSignature, TensorSpec
from skerry.serve import engines
from skerry.serve.signature import SignatureCheck


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """Which model to serve, and with what."""

    name: str
    version: str
    file: Path
    signature: ModelSignature
    engine: str
    threads: int
    """Threads the engine computes with; at least 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """The outputs of one inference, in the order asked for."""

    outputs: Sequence[tuple[str, engines.Array]]
    engine_seconds: float


class DataPlane:
    """One model. `load` and `infer` compute, and are called from one thread at a time; all else is instant."""

    def __init__(self, model: ModelSettings) -> None:
        self._settings = model
        self._engine: engines.Engine | None = None
        self._model: engines.LoadedModel | None = None
        self.check = SignatureCheck(model.signature)
        self.load_seconds = 0.0

    @property
    def name(self) -> str:
        """The model's name as served."""
        return self._settings.name

    @property
    def version(self) -> str:
        """The model's version as served."""
        return self._settings.version

    @property
    def engine_version(self) -> str:
        """The version of the engine that executes the model; empty before `load`."""
        return self._engine.version if self._engine is not None else ""

    @property
    def single_threaded(self) -> bool:
        """Whether the thread that calls `infer` does all of the computing."""
        return self._settings.threads == 1

    @property
    def ready(self) -> bool:
        """Whether inference can be asked for."""
        return self._model is not None

    def load(self) -> None:
        """Load the model and run it once. Raises InvalidError, NotFoundError, UnavailableError, UnsupportedError."""
        begin = time.perf_counter()
        settings = self._settings
        self._engine = engines.open_engine(settings.engine)
        model = self._engine.load(settings.file, settings.signature, threads=settings.threads)
        _warm_up(model, settings.signature)
        self.load_seconds = time.perf_counter() - begin
        self._model = model

    def unload(self) -> None:
        """Free the model."""
        if self._model is not None:
            self._model.unload()
        self._model = None

    def require(self, model: str, version: str | None = None) -> None:
        """Accept the model's name and version, if one is asked for. Raises NotFoundError."""
        if model != self.name:
            raise NotFoundError("is not served here", element=f'model "{model[:100]}"', hint=f"this is {self.name}")
        if version is not None and version != self.version:
            raise NotFoundError(
                "is not served here",
                element=f'version "{version[:100]}" of {self.name}',
                hint=f"this is {self.version}",
            )

    def server_metadata(self) -> Mapping[str, Any]:
        """Return the protocol's $metadata_server_response."""
        return {"name": "skerry", "version": skerry.__version__, "extensions": ["binary_tensor_data"]}

    def model_metadata(self) -> Mapping[str, Any]:
        """Return the protocol's $metadata_model_response."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": self._engine.platform if self._engine is not None else self._settings.engine,
            "inputs": [_described(spec) for spec in self._settings.signature.inputs],
            "outputs": [_described(spec) for spec in self._settings.signature.outputs],
        }

    def infer(self, inputs: Mapping[str, engines.Array], outputs: Sequence[str]) -> Inference:
        """Run the model on inputs that `check` has accepted. Raises UnavailableError, InvalidError, SkerryError."""
        model = self._model
        if model is None:
            raise UnavailableError("the model is not ready")
        begin = time.perf_counter()
        arrays = model.infer(inputs, outputs)
        return Inference(outputs=list(zip(outputs, arrays, strict=True)), engine_seconds=time.perf_counter() - begin)


def _warm_up(model: engines.LoadedModel, signature: ModelSignature) -> None:
    """Let the engine allocate what it needs before the first request; what fails here fails with a reason later."""
    from skerry.serve import tensors  # noqa: PLC0415 (after the engine has brought NumPy in, in the loading thread)

    zeros = {
        spec.name: tensors.zeros(spec.datatype, [1 if size == -1 else size for size in spec.shape])
        for spec in signature.inputs
    }
    try:
        model.infer(zeros, [spec.name for spec in signature.outputs])
    except SkerryError:
        return


def _described(spec: TensorSpec) -> Mapping[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
