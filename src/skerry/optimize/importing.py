"""The import: a trained model becomes facts, samples under its own tensor names, and an ONNX graph where it has one.

Runs in a worker process, because frameworks are large: what it leaves in files is all that the rest of the run needs.
Lives here: baseline, golden samples, graph. Must not live here: variants.
"""

from __future__ import annotations

import os
import resource
import subprocess
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from skerry.api.errors import InvalidError, SkerryError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Interval
from skerry.optimize import beside, dataset, evaluate, importers, jobs, metrics
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import Dataset, Inputs
from skerry.optimize.importers import Source
from skerry.optimize.metrics import Metric
from skerry.optimize.passes import material, simplify
from skerry.optimize.progress import Progress
from skerry.optimize.standby import Standby

OPSET = 20
"""What torch's exporter recommends and ONNX Runtime 1.18 already runs."""
SIMPLIFY_SECONDS = 600.0
"""Beyond that the graph stays as it was exported."""
_SAME = 0.99999
"""Cosine of two outputs that differ by rounding alone."""
_MEASURED = 16
_CHECKED = 64
"""Samples on which a simplified graph is compared with the one it came from."""


def run(job: jobs.ImportJob, tell: Progress, ready: Standby) -> None:
    """Do it; `ready` may have a simplifier. Raises SkerryError, with the file, array or tensor as the element."""
    wanted, directory = job.optimization, Path(job.directory)
    started = time.monotonic()
    metric = find_metric(wanted.metric)
    data = dataset.load(Path(wanted.data.path), targets=metric.targets)
    source = importers.open_source(wanted.source, seed=wanted.seed)
    tell("source.loaded", kind=source.kind, seconds=round(time.monotonic() - started, 2))
    signature = source.signature(data.test.inputs)
    data = data.bound_to([spec.name for spec in signature.inputs]).with_golden(wanted.golden, seed=wanted.seed)
    value, interval = baseline(metric, source, data, seed=wanted.seed)
    tell("baseline", metric_name=metric.name, metric=value, samples=len(data.test))
    golden = source.predict(data.golden.inputs)
    check_finite(golden, "golden samples")
    check_golden(metric, golden, data)
    write_samples(directory, data, signature, golden)
    size, problem = _write_graph(directory, source, data, opset=wanted.opset or OPSET, tell=tell, ready=ready)
    read = beside.imported(wanted) | beside.elsewhere(wanted)
    if source.kind == "onnx":
        read |= beside.external(wanted, source.digests)
    facts = jobs.Facts(
        kind=source.kind,
        digests={**source.digests, data.name: data.digest},
        read=read,
        forms=sorted(source.forms if not problem else source.forms - {"onnx"}),
        signature=signature,
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        baseline=value,
        interval=interval,
        samples=len(data.test),
        golden_samples=len(data.golden),
        graph_bytes=size,
        source_bytes=_size(wanted.source.weights) or _size(wanted.source.path),
        graph_problem=problem,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    (directory / jobs.FACTS_FILE).write_bytes(msgspec.json.encode(facts, order="sorted"))


def find_metric(name: str) -> Metric:
    """Return a metric by its name or by FILE.py:FUNCTION. Raises InvalidError, NotFoundError."""
    return metrics.metric(name)


def write_arrays(path: Path, arrays: Mapping[str, Array], *, compress: bool = False) -> None:
    """Write an `.npz` with any names (`numpy.savez` has some of its own), the same bytes for the same arrays."""
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = kind
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def baseline(metric: Metric, source: Source, data: Dataset, *, seed: int) -> tuple[float, Interval]:
    """Judge the source model on the test set. Raises InvalidError, with the array as the element."""
    outputs = source.predict(data.test.inputs)
    try:
        value, interval = metric.measure(outputs, data.test.targets, seed=seed)
    except InvalidError as error:
        check_finite(outputs, "test set")
        raise _about(error, data, "test_y") from error
    check_finite(outputs, "test set")
    return value, Interval(low=interval.low, high=interval.high)


def check_golden(metric: Metric, outputs: Sequence[Array], data: Dataset) -> None:
    """Raise InvalidError where the golden answers do not go with the metric."""
    try:
        metric.value(outputs, data.golden.targets)
    except InvalidError as error:
        raise _about(error, data, "golden_y") from error


def _about(error: InvalidError, data: Dataset, array: str) -> InvalidError:
    """Name the array where a metric speaks of labels."""
    if error.element != "labels":
        return error
    return InvalidError(error.cause, element=data.element(array), hint=error.hint)


def check_finite(outputs: Sequence[Array], samples: str) -> None:
    """Raise InvalidError where an output is NaN or infinite."""
    if not all(np.isfinite(output).all() for output in outputs if output.dtype.kind == "f"):
        raise InvalidError(f"gives NaN or infinite outputs on the {samples}", element="model", hint="train it again")


def write_samples(directory: Path, data: Dataset, signature: ModelSignature, golden: Sequence[Array]) -> None:
    """Write what variants are judged, measured and shipped with, as `jobs` names the files."""
    (directory / jobs.SIGNATURE_FILE).write_bytes(msgspec.json.encode(signature))
    # the golden samples follow the test set: one process, which may take long to start, answers all
    judged = {name: np.concatenate([samples, data.golden.inputs[name]]) for name, samples in data.test.inputs.items()}
    write_arrays(directory / jobs.TEST_FILE, judged)
    write_arrays(directory / jobs.MEASURED_FILE, material.first(data.golden.inputs, _MEASURED))
    write_arrays(directory / jobs.TARGETS_FILE, {"targets": data.test.targets})
    write_arrays(directory / jobs.CALIBRATION_FILE, data.calibration)
    arrays = {f"input.{name}": samples for name, samples in data.golden.inputs.items()}
    arrays["labels"] = data.golden.targets
    for spec, output in zip(signature.outputs, golden, strict=True):
        arrays[f"output.{spec.name}"] = output
    write_arrays(directory / jobs.GOLDEN_FILE, arrays, compress=True)


def _write_graph(
    directory: Path, source: Source, data: Dataset, *, opset: int, tell: Progress, ready: Standby
) -> tuple[int, str]:
    """Write the ONNX graph if the source has one; return its size, and why there is none."""
    started = time.monotonic()
    if "onnx" not in source.forms:
        return 0, ""
    try:
        exported = source.onnx(material.first(data.test.inputs, _CHECKED), opset=opset)
        simplified = _simplified(exported, material.first(data.golden.inputs, _CHECKED), directory, ready)
    except SkerryError as error:
        return 0, error.sentence
    (directory / jobs.GRAPH_FILE).write_bytes(simplified)
    tell("exported", size=len(simplified), seconds=round(time.monotonic() - started, 2))
    return len(simplified), ""


def _simplified(exported: bytes, inputs: Inputs, directory: Path, ready: Standby) -> bytes:
    """Return the simplified graph if the simplifier can cope with it and the result does the same."""
    given, made = directory / ".exported.onnx", directory / ".simplified.onnx"
    try:
        given.write_bytes(exported)
        with ready.take(jobs.SIMPLIFIER) as process:
            try:
                process.communicate(msgspec.json.encode([str(given), str(made)]) + b"\n", timeout=SIMPLIFY_SECONDS)
            finally:
                process.kill()
        simplified = made.read_bytes() if process.returncode == 0 else b""
        before, after = evaluate.Runner(exported).predict(inputs), evaluate.Runner(simplified).predict(inputs)
        if evaluate.numerical_error(after, before).cosine > _SAME:
            return simplified
    except (OSError, SkerryError, subprocess.TimeoutExpired):  # it is only there to help
        pass
    finally:
        given.unlink(missing_ok=True)
        made.unlink(missing_ok=True)
    return simplify.infer_shapes(exported)


def _size(path: str) -> int:
    """Return the bytes of a file or of a directory's files; 0 of what is neither."""
    if os.path.isdir(path):
        return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    return os.path.getsize(path) if os.path.isfile(path) else 0
