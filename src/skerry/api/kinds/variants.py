"""Variants: the executable forms of a model version, with what was measured of each.

Shared by the factory's card, the OCI config blob of a variant and ModelVersion's status.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from skerry.api.meta import Digest, Struct

Format = Literal["onnx", "tflite", "executorch", "torchscript"]
Precision = Literal["fp32", "fp16", "int8", "int8-dynamic", "int4"]
Engine = Literal["onnxruntime", "litert", "executorch", "torchscript"]
SourceKind = Literal["pytorch", "torch-export", "torchscript", "keras", "savedmodel", "onnx", "tflite", "sklearn"]


class Blob(Struct, frozen=True, kw_only=True):
    """A content-addressed piece of bytes."""

    digest: Digest
    size: int
    """Bytes."""
    media_type: str = "application/octet-stream"


class Delta(Struct, frozen=True, kw_only=True):
    """A way to make one blob from another that a device has; see docs/transfer.md."""

    base: Digest
    """Of the blob that has to be there."""
    target: Digest
    """Of the blob that comes out."""
    blob: Blob
    """What has to be fetched for it."""
    encoding: str
    """`skerry-delta-v1`; a device ignores what it does not know."""


class NumericalError(Struct, frozen=True, kw_only=True):
    """How far a variant's outputs lie from the source model's on the golden samples."""

    max_abs: float
    mean_abs: float
    cosine: float
    """Cosine similarity of all outputs taken as one vector; 1 is identical."""


class Interval(Struct, frozen=True, kw_only=True):
    """A 95 % confidence interval of the metric, from the size and the spread of the test set."""

    low: float
    high: float


class Profile(Struct, frozen=True, kw_only=True):
    """Cost of one variant, measured in a process of its own, batch 1, on one thread."""

    latency_p50_ms: float
    latency_p95_ms: float
    peak_memory_bytes: int
    """Peak resident memory of the whole process that loaded the model and answered, engine included."""
    runs: int
    machine: str = ""
    """Where it was measured: architecture and CPU model."""
    engine_version: str = ""
    """Version of the engine that ran it."""


class Requirements(Struct, frozen=True, kw_only=True):
    """What a device must have to run a variant."""

    engine: Engine
    engine_min_version: str = ""
    precision: Precision
    architectures: list[str] = []
    """Empty means any (GOARCH names: amd64, arm64, arm, riscv64)."""
    memory_bytes: int
    """Memory for one server process with this variant; the profile's peak."""


class Variant(Struct, frozen=True, kw_only=True):
    """One executable form of a model version: format x precision, with its measurements."""

    name: str
    """Unique within the model version: `<format>-<precision>`."""
    format: Format
    precision: Precision
    recipe: str = ""
    """How it was made, where there is more than one way: `static-qdq-per-channel`."""
    needs: Requirements
    blob: Blob
    """The model file itself."""
    manifest: Digest | None = None
    """The OCI manifest that holds it, once pushed."""
    metric: float | None = None
    """The evaluation metric on the test set (see the model version's `evaluation.metric`); None: never evaluated."""
    metric_interval: Interval | None = None
    """How sure the metric is; absent from cards of older versions."""
    metric_drop: float | None = None
    """How much worse the metric is than the source model's; negative when the variant is better. None as `metric`."""
    error: NumericalError
    profile: Profile
    operators: dict[str, int] = {}
    """Operator -> how often it occurs, where the format tells; what an engine must know to run it."""
    details: dict[str, str] = {}
    """What the recipe has to say: layers it kept in higher precision, what it pruned."""


class Rejected(Struct, frozen=True, kw_only=True):
    """A variant the factory made or tried to make, and did not keep."""

    name: str
    reason: str
    metric: float | None = None


class Golden(Struct, frozen=True, kw_only=True):
    """Golden samples: inputs with the source model's outputs and, for classifiers, the true labels (`.npz`).

    Arrays: `input.<tensor>` and `output.<tensor>` with the samples along axis 0, optional `labels` (int64, shape [n]).
    """

    blob: Blob
    samples: int


class Evaluation(Struct, frozen=True, kw_only=True):
    """How variants were judged in the factory."""

    metric: str
    """Name of the metric. `accuracy` is the share of samples whose arg-max equals the label."""
    higher_is_better: bool = True
    """Which way the metric is better."""
    baseline: float
    """The source model's own metric on the same test set."""
    baseline_interval: Interval | None = None
    """How sure the baseline is."""
    samples: int
    allowed_drop: Annotated[float, msgspec.Meta(ge=0)]
    """A variant that loses more than this against the baseline is rejected."""
