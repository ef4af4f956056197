"""What worker processes are asked and what they leave behind: plain values in files, so that any machine can do a job.

A job's directory gets the files of one step: of an import `facts.json`, `model.onnx` and the samples under the model's
own tensor names; of a variant `verdict.json` and the model file. Must not live here: how either is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from skerry.api.errors import StorageFullError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Engine, Format, Interval, NumericalError, Precision, SourceKind
from skerry.optimize.recipe import Optimization, VariantSpec

JOB_FILE = "job.json"
FACTS_FILE = "facts.json"
GRAPH_FILE = "model.onnx"
TEST_FILE = "test.npz"
"""The test set, and behind it the golden samples."""
TARGETS_FILE = "targets.npz"
MEASURED_FILE = "measured.npz"
"""A few golden samples, with which latencies are measured."""
CALIBRATION_FILE = "calibration.npz"
GOLDEN_FILE = "golden.npz"
SIGNATURE_FILE = "signature.json"
VERDICT_FILE = "verdict.json"

WORKER = ("-m", "skerry.optimize.worker")
"""The interpreter's arguments for a worker; behind them, modules that it shall import before its job comes."""
SIMPLIFIER = ("-m", "skerry.optimize.passes.simplify")
"""What an import has its graph simplified by; behind WORKER, the worker shall have it started before its job comes."""

ENGINES: dict[Format, Engine] = {
    "onnx": "onnxruntime",
    "tflite": "litert",
    "executorch": "executorch",
    "torchscript": "torchscript",
}
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "tflite": ".tflite", "executorch": ".pte", "torchscript": ".pt"}


class ImportJob(msgspec.Struct, frozen=True, kw_only=True, tag="import"):
    """Read the source, judge it as it is, and write down what variants are made from and compared with."""

    optimization: Optimization
    directory: str
    """Where the step's files go."""


class VariantJob(msgspec.Struct, frozen=True, kw_only=True, tag="variant"):
    """Make one variant and judge it."""

    optimization: Optimization
    variant: VariantSpec
    source: str
    """The directory of the finished import."""
    directory: str


AnyJob = ImportJob | VariantJob


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What an import found."""

    kind: SourceKind
    digests: dict[str, str]
    """File name -> sha256 of everything the source was read from, and of the data."""
    read: dict[str, str] = {}
    """Name (`beside`) -> sha256 of what was read besides: imports of the user's code, a graph's external data.

    Of an installed distribution it is the version."""
    forms: list[str]
    signature: ModelSignature
    metric: str
    higher_is_better: bool
    baseline: float
    interval: Interval
    samples: int
    golden_samples: int
    graph_bytes: int = 0
    """Size of the ONNX graph; 0 without one."""
    source_bytes: int = 0
    """Size of the source's files."""
    graph_problem: str = ""
    """Why there is no ONNX graph."""
    peak_bytes: int = 0
    """Peak resident memory of the import."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one variant; without a file it could not be made."""

    outcome: Literal["kept", "rejected", "failed"]
    reason: str = ""
    """Why it is not kept."""
    tried: list[str] = []
    """What came of the recipes before the one that was taken."""
    recipe: str = ""
    file: str = ""
    metric: float | None = None
    interval: Interval | None = None
    drop: float = 0.0
    error: NumericalError | None = None
    engine_version: str = ""
    engine_min_version: str = ""
    operators: dict[str, int] = {}
    details: dict[str, str] = {}
    read: dict[str, str] = {}
    """Name (`beside`) -> sha256 of what the user's code imported."""


def line(file: Path, memory: int) -> bytes:
    """Return what tells a worker its job: the file, and how many bytes of its own data it may have."""
    return msgspec.json.encode([str(file), memory])


def read_line(given: bytes) -> tuple[str, int]:
    """Return what `line` wrote."""
    return msgspec.json.decode(given, type=tuple[str, int])


def no_space(job: AnyJob) -> StorageFullError:
    """Return what is said when the disk with a job's directory is full."""
    place = str(Path(job.directory).parent.parent)
    return StorageFullError(
        "no space left on the disk", element=place, hint="free some space, or choose another --cache"
    )


def parse_name(name: str) -> tuple[Format, Precision]:
    """Return format and precision of a variant's name, which `VariantName` has checked."""
    form, _, rest = name.partition("-")
    precision = "int8-dynamic" if (rest + "-").startswith("int8-dynamic-") else rest.partition("-")[0]
    return msgspec.convert(form, Format), msgspec.convert(precision, Precision)


def file_name(model: str, variant: str) -> str:
    """Return the file's name in the package: `<model>-<precision>[-<word>]`, with the format's own suffix."""
    form, _, rest = variant.partition("-")
    return f"{model}-{rest}{SUFFIXES[msgspec.convert(form, Format)]}"


def read_facts(directory: Path) -> Facts:
    """Return what an import wrote."""
    return msgspec.json.decode((directory / FACTS_FILE).read_bytes(), type=Facts)


def read_verdict(directory: Path) -> Verdict:
    """Return what a variant's worker wrote."""
    return msgspec.json.decode((directory / VERDICT_FILE).read_bytes(), type=Verdict)
