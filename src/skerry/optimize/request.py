"""What is asked of the factory: one value, checked before any work begins."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from skerry.api.errors import InvalidError
from skerry.api.kinds.variants import Precision
from skerry.optimize.metrics import METRICS
from skerry.optimize.passes import onnx

MAX_GOLDEN = 4096
MAX_RUNS = 100_000
MAX_NAME = 128
"""What an OCI tag may have; model and version together must also be a Kubernetes name."""

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|-+)[a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One run of the factory. Raises InvalidError, with the command line's option as the element."""

    torch: str
    """`path.py:function`, where the function returns the untrained `torch.nn.Module`."""
    weights: Path
    """The state dict, as `torch.save` wrote it."""
    data: Path
    """`data.npz`; see `dataset` for the layout."""
    out: Path
    """Directory of the package."""
    name: str
    version: str
    variants: Sequence[Precision] = ("fp32", "fp16", "int8")
    allowed_drop: float = 0.01
    """A variant whose metric is lower than the source model's by more than this is rejected."""
    metric: str = "accuracy"
    golden: int = 64
    """Golden samples that are shipped, at most."""
    runs: int = 200
    """Measured runs per variant, after warm-up."""
    seed: int = 0

    def __post_init__(self) -> None:
        for option, name in (("--name", self.name), ("--model-version", self.version)):
            if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
                hint = "use a-z and 0-9, with single dots or dashes inside, as in digits or v1.2"
                raise InvalidError(f'"{name[:80]}" is not a name', element=option, hint=hint)
        if not self.variants:
            raise InvalidError("names no variant", element="--variants", hint=f"choose from {', '.join(onnx.TABLE)}")
        for precision in self.variants:
            _check_choice("--variants", precision, onnx.TABLE)
        _check_choice("--metric", self.metric, METRICS)
        _check_range("--allowed-drop", self.allowed_drop, 0, 1)
        _check_range("--golden", self.golden, 1, MAX_GOLDEN)
        _check_range("--runs", self.runs, 1, MAX_RUNS)
        _check_range("--seed", self.seed, 0, 2**32 - 1)


def _check_choice(option: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise InvalidError(f'"{value[:40]}" is unknown', element=option, hint=f"choose from {', '.join(choices)}")


def _check_range(option: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # NaN is in no range
        raise InvalidError(f"{value} is not between {least} and {most}", element=option)
