"""PyTorch modules on their way to a file: positional tensors in, a flat tuple of tensors out, a program or a trace.

Lives here: what ExecuTorch, TorchScript and LiteRT need alike. Must not live here: any of their formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from skerry.api.errors import InvalidError
from skerry.optimize.foreign import first_line
from skerry.optimize.passes.material import Inputs
from skerry.optimize.quiet import quiet

CONTROL_FLOW = "keep Python control flow that depends on tensor values or on the batch size out of forward()"


class Positional(torch.nn.Module):
    """A module whose outputs are a tensor, or a flat tuple of tensors in the order of the model's signature."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> Any:
        """Run the module and drop the names of its outputs."""
        outputs = self.module(*inputs)
        if isinstance(outputs, Mapping):
            outputs = tuple(outputs.values())
        elif isinstance(outputs, list):
            outputs = tuple(outputs)
        return outputs[0] if isinstance(outputs, tuple) and len(outputs) == 1 else outputs


def prepared(module: torch.nn.Module) -> Positional:
    """Return the module for conversion: evaluation mode, no gradients, positional outputs."""
    return Positional(module).eval().requires_grad_(requires_grad=False)


def tensors(inputs: Inputs, start: int, count: int) -> tuple[torch.Tensor, ...]:
    """Return samples start..start + count of every input, repeated where there are too few, in the model's order."""
    rows = np.arange(start, start + count)
    return tuple(torch.from_numpy(np.ascontiguousarray(samples[rows % len(samples)])) for samples in inputs.values())


def program(module: torch.nn.Module, inputs: Inputs, *, batch: int = 1) -> Any:
    """Return a `torch.export.ExportedProgram` for this many samples at once.

    Raises InvalidError when forward() does what a fixed graph cannot hold.
    """
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(prepared(module), tensors(inputs, 0, batch))
    except Exception as error:  # torch.export raises whatever the model's own code makes it raise
        raise InvalidError(
            f"cannot be exported by torch.export ({first_line(error)})", element="model", hint=CONTROL_FLOW
        ) from error
