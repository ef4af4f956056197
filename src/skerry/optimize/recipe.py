"""The types of `optimize.yaml`: everything that one run of the factory is asked for.

The command line's options make the same value (`request` reads both). Every field says here what it means; the JSON
Schema for editors and the documentation are made from these words. Must not live here: reading files, or checks that
types cannot say.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from skerry.api.kinds.variants import SourceKind
from skerry.api.meta import END, Struct
from skerry.api.quantity import Quantity

MAX_GOLDEN = 4096
MAX_RUNS = 100_000
MAX_VARIANTS = 64
MAX_NAME = 128
"""What an OCI tag may have; model and version together must also be a Kubernetes name."""

DEFAULT_VARIANTS = ("onnx-fp32", "onnx-fp16", "onnx-int8")
PRECISIONS = ("fp32", "fp16", "int8-dynamic", "int8", "int4")
FORMATS = ("onnx", "tflite", "executorch", "torchscript")

ModelName = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^[a-z0-9]+((\.|-+)[a-z0-9]+)*{END}",
        max_length=MAX_NAME,
        description="a name: use a-z and 0-9, with single dots or dashes inside, as in digits or v1.2",
    ),
]
VariantName = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^({'|'.join(FORMATS)})-(fp32|fp16|int8-dynamic|int8|int4)(-[a-z0-9]+)*{END}",
        max_length=63,
        description="a variant: write <format>-<precision>, as in onnx-int8, or <format>-<precision>-<word>; "
        f"formats: {', '.join(FORMATS)}; precisions: {', '.join(PRECISIONS)}",
    ),
]
FunctionPath = Annotated[
    str,
    msgspec.Meta(pattern=rf"^.+\.py:[A-Za-z_][A-Za-z0-9_]*{END}", description="in the form FILE.py:FUNCTION"),
]

Drop = Annotated[float, msgspec.Meta(ge=0, description="how much worse the metric may be, in the metric's own unit")]


class SourceSpec(Struct, frozen=True, kw_only=True):
    """The trained model."""

    path: Annotated[str, msgspec.Meta(min_length=1)]
    """The model: FILE.py:FUNCTION that builds a `torch.nn.Module`, or a file or directory of the formats in `kind`."""
    kind: SourceKind | None = None
    """What it is; without it, the path's form tells."""
    weights: str = ""
    """For `pytorch`: the state dict, saved with `torch.save(model.state_dict(), FILE)`. Code in it is never run."""
    code: str = ""
    """For `keras` models with layers of their own: a Python file that registers them. It is run."""
    allow_code: bool = False
    """Agree to run code that the model's file itself carries (pickled scikit-learn models, Keras Lambda layers)."""


class DataSpec(Struct, frozen=True, kw_only=True):
    """What variants are calibrated and judged with."""

    path: Annotated[str, msgspec.Meta(min_length=1)]
    """An `.npz` file or a directory, laid out as docs/factory.md says."""


class PruningSpec(Struct, frozen=True, kw_only=True):
    """Weights that are taken out before the variant is made."""

    sparsity: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.5
    """Share of the weights, or of the channels, that goes."""
    structured: bool = False
    """Take whole channels out, which makes every engine faster; without it single weights become zero."""
    fine_tune: FunctionPath | None = None
    """FILE.py:FUNCTION that is called with the pruned `torch.nn.Module` and trains it on, in place."""


class SensitivitySpec(Struct, frozen=True, kw_only=True):
    """Which layers stay in higher precision when a variant loses more than is allowed."""

    most_layers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    """Layers that may stay, at most; the variant is rejected when that is not enough."""
    samples: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 128
    """Calibration samples with which the layers are compared."""


class VariantOptions(Struct, frozen=True, kw_only=True):
    """How one variant is made, beyond its format and precision."""

    recipe: str = ""
    """Only this recipe; without it, all recipes of that format and precision are tried, best first."""
    calibration: Literal["min-max", "entropy", "percentile"] | None = None
    """How 8-bit ranges are found; without it, each recipe has its own way."""
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)] = 99.99
    """Share of the values that `percentile` keeps inside the range, in percent."""
    per_channel: bool | None = None
    """One range per channel of a weight instead of one per tensor; without it, each recipe has its own way."""
    calibration_samples: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 512
    """Calibration samples that are used, at most."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Weights that share one scale in 4-bit variants."""
    oldest_onnxruntime: Annotated[str, msgspec.Meta(pattern=rf"^(\d+\.\d+(\.\d+)?)?{END}")] = ""
    """ONNX: the oldest ONNX Runtime among the devices, as in 1.16; the file is written in an operator set that it
    reads. Without it, the operator set is the export's."""
    keep_layers: list[str] = []
    """Layers (node or module names) that stay in the source's precision."""
    sensitivity: SensitivitySpec | None = None
    """Find the layers to keep when too much is lost."""
    pruning: PruningSpec | None = None
    """Prune first; the name should say so, as in onnx-fp32-pruned50."""


class VariantSpec(VariantOptions, frozen=True, kw_only=True):
    """One variant that is wanted. A variant without options can be written as its name alone."""

    name: VariantName
    """`<format>-<precision>`, with a word of your own behind it where there is more than one."""
    allowed_drop: Drop | None = None
    """What this variant may lose; without it, the run's `allowedDrop`."""


class Resources(Struct, frozen=True, kw_only=True):
    """What the factory may use of this machine."""

    memory: Quantity | None = None
    """Memory for all processes of the run together, as in 4Gi; without it, what is free at the start, less a tenth."""
    parallel: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None
    """Variants that are made at the same time, at most; without it, one per processor."""
    timeout_seconds: Annotated[int, msgspec.Meta(ge=1, le=604_800)] = 3600
    """Longest time for one variant; beyond it the variant is given up."""


class Optimization(Struct, frozen=True, kw_only=True):
    """One run of the model factory: `skerry model optimize -f optimize.yaml`. Paths are relative to this file."""

    name: ModelName
    """The model's name."""
    version: ModelName
    """The model's version, as in v1."""
    source: SourceSpec
    """The trained model."""
    data: DataSpec
    """What variants are calibrated and judged with."""
    out: Annotated[str, msgspec.Meta(min_length=1)]
    """Directory for the package."""
    metric: str = "accuracy"
    """What variants are judged by: a name (docs/factory.md has them), or FILE.py:FUNCTION."""
    variants: Annotated[list[VariantSpec], msgspec.Meta(min_length=1, max_length=MAX_VARIANTS)] = msgspec.field(
        default_factory=lambda: [VariantSpec(name=name) for name in DEFAULT_VARIANTS]
    )
    """The variants that are wanted; without them onnx-fp32, onnx-fp16 and onnx-int8."""
    allowed_drop: Drop = 0.01
    """A variant whose metric is worse than the source model's by more than this is rejected."""
    golden: Annotated[int, msgspec.Meta(ge=1, le=MAX_GOLDEN)] = 64
    """Golden samples to ship, at most; chosen by the seed."""
    runs: Annotated[int, msgspec.Meta(ge=1, le=MAX_RUNS)] = 200
    """Measured runs per variant, after a warm-up; fewer if they take longer than 30 s."""
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0
    """Of every random choice."""
    opset: Annotated[int, msgspec.Meta(ge=13, le=25)] | None = None
    """ONNX operator set to export with; without it, the newest that ONNX Runtime 1.18 reads."""
    plot: bool = False
    """Put `pareto.png` into the package: the metric against latency, size as area. Needs matplotlib (skerry[plot])."""
    resources: Resources = Resources()
    """What the factory may use of this machine."""
