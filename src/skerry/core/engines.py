"""The engines there are: what each executes, and what has to be installed for it.

Lives here: one table, which the agent (what to report), the inference server (what to say is missing) and the command
line (`skerry engines`) share. Must not live here: looking at what is installed, or importing an engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skerry.api.kinds.variants import Engine, Format

SERVER_DISTRIBUTIONS = ("httptools", "numpy")
"""What the inference server itself needs, whatever the engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineDescription:
    """One engine."""

    name: Engine
    title: str
    """Its name as people write it."""
    format: Format
    """What it executes."""
    suffixes: Sequence[str]
    """How the names of such files end."""
    distributions: Sequence[str]
    """Python distributions that contain it; one of them is enough, and its version is the engine's."""
    requires: Sequence[str] = ()
    """Distributions that it needs besides and does not always bring along."""
    extra: str
    """Of Skerry: what installs it all."""
    note: str = ""
    """What to know before choosing it."""


ENGINES: Mapping[str, EngineDescription] = {
    one.name: one
    for one in (
        EngineDescription(
            name="onnxruntime",
            title="ONNX Runtime",
            format="onnx",
            suffixes=(".onnx",),
            distributions=("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
            extra="onnx",
        ),
        EngineDescription(
            name="litert",
            title="LiteRT (TensorFlow Lite)",
            format="tflite",
            suffixes=(".tflite",),
            distributions=("ai-edge-litert",),
            extra="litert",
            note="the smallest and the quickest to start",
        ),
        EngineDescription(
            name="executorch",
            title="ExecuTorch",
            format="executorch",
            suffixes=(".pte",),
            distributions=("executorch",),
            requires=("torch",),
            extra="executorch",
            note="on Linux it needs PyTorch, with its memory and its seconds to start",
        ),
        EngineDescription(
            name="torchscript",
            title="TorchScript",
            format="torchscript",
            suffixes=(".pt", ".ptl"),
            distributions=("torch",),
            extra="torchscript",
            note="deprecated by PyTorch; ExecuTorch is what follows it",
        ),
    )
}
