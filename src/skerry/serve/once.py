"""A process that loads one model into one engine, answers given samples, and says what that cost: no server.

    python -m skerry.serve.once --engine E --model F --signature S.json --inputs in.npz --outputs out.npz
    python -m skerry.serve.once --ready E

The second imports the engine and then reads the arguments of the first from standard input: one line, a JSON array.

It goes through the same engine port as the server, so what holds here holds on a device. Lives here: the command line,
running all samples in pieces, timing batch 1. Must not live here: an engine's ways (`engines`), or judging the answers.

`in.npz` has one array for each input, named as the tensor, samples along axis 0; `out.npz` gets one for each output.
The last line on stdout is one JSON object (`Costs`); an error is one sentence on stderr and exit code 1.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from skerry.api.errors import InvalidError, NotFoundError, SkerryError, UnavailableError
from skerry.api.kinds.tensors import ModelSignature
from skerry.serve import engines
from skerry.serve.arguments import number, read_signature
from skerry.serve.dataplane import DataPlane, ModelSettings

if TYPE_CHECKING:
    from skerry.serve.engines import Array

BATCH = 64
"""Samples at once where the signature leaves it open: enough to be quick, few enough to stay small."""
READY = "--ready"
MOST_LINE = 1 << 20
LEAST_RUNS = 10
"""Timed runs that are made however long they take, if as many are asked for."""


class Costs(msgspec.Struct, kw_only=True, rename="camel"):
    """What was measured."""

    latency_p50_ms: float | None
    """Of one sample, in the engine; null when no runs were asked for."""
    latency_p95_ms: float | None
    runs: int
    """Timed ones that were made."""
    load_seconds: float
    """Import of the engine, loading, and the first run."""
    peak_memory_bytes: int
    """Peak resident memory of this process; 0 where the kernel does not tell."""
    engine_version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Timing:
    runs: int
    warm_up: int
    seconds: float


def main(argv: Sequence[str]) -> int:
    """Run once; return the exit code."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's, which computes nothing here but would start threads
    try:
        arguments = _parser().parse_args(_awaited(argv[1]) if argv[:1] == [READY] and len(argv) > 1 else argv)
        signature = read_signature(arguments.signature)
        plane = _plane(arguments, signature)
        plane.load()
        samples = _read(arguments.inputs, plane, signature)
        results = _answers(plane, samples, signature)
        _write(arguments.outputs, results)
        timing = _Timing(runs=arguments.runs, warm_up=arguments.warm_up, seconds=arguments.seconds)
        costs = _costs(plane, samples, signature, timing)
    except SkerryError as error:
        sys.stderr.write(f"skerry serve once: {error.sentence}\n")
        return 1
    except MemoryError:
        sys.stderr.write("skerry serve once: not enough memory\n")
        return 1
    sys.stdout.write(msgspec.json.encode(costs).decode() + "\n")
    return 0


def _awaited(engine: str) -> list[str]:
    """Import an engine while nobody waits for it; return the arguments that come when somebody does."""
    with suppress(SkerryError):  # told when the model is loaded
        engines.open_engine(engine)
        from skerry.serve import tensors  # noqa: F401, PLC0415 (after the engine, as below)
    try:
        return msgspec.json.decode(sys.stdin.buffer.readline(MOST_LINE), type=list[str])
    except msgspec.DecodeError as error:
        raise InvalidError(f"holds no JSON array of arguments ({error})", element="standard input") from error


def _plane(arguments: argparse.Namespace, signature: ModelSignature) -> DataPlane:
    settings = ModelSettings(
        name=arguments.model.name,
        version="0",
        file=arguments.model,
        signature=signature,
        engine=arguments.engine,
        threads=arguments.threads,
    )
    return DataPlane(settings)


def _read(file: Path, plane: DataPlane, signature: ModelSignature) -> Mapping[str, Array]:
    """Return the samples, each held against the signature. Raises InvalidError, NotFoundError."""
    import numpy as np  # noqa: PLC0415 (after the engine, which may bring its own)

    from skerry.serve import tensors  # noqa: PLC0415

    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror or error}", element=str(file)) from error
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise InvalidError(f"is not an .npz file of plain arrays ({error})", element=str(file)) from error
    arrays = {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in arrays.items()}
    plane.check.accept_inputs(list(arrays))
    step = _step(signature)
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) == 0 or (step is not None and len(array) % step):
            raise InvalidError(
                f"{len(array) if array.ndim else 0} samples do not make a batch", element=f'input "{name}"'
            )
        shape = [step or len(array), *array.shape[1:]]
        try:
            datatype = tensors.datatype_of(array)
        except SkerryError as error:
            raise InvalidError(error.cause, element=f'input "{name}"') from error
        plane.check.accept_input(name, datatype, shape)
    if len({len(array) for array in arrays.values()}) != 1:
        raise InvalidError("the inputs have different numbers of samples", element=str(file))
    return arrays


def _step(signature: ModelSignature) -> int | None:
    """Return the batch size that the signature fixes, if it does. Raises InvalidError."""
    sizes = {spec.shape[0] if spec.shape else 0 for spec in signature.inputs}
    if len(sizes) != 1 or 0 in sizes:
        raise InvalidError("the inputs need a first dimension in common, the batch", element="signature")
    (size,) = sizes
    return None if size == -1 else size


def _answers(plane: DataPlane, samples: Mapping[str, Array], signature: ModelSignature) -> Mapping[str, Array]:
    import numpy as np  # noqa: PLC0415

    names = [spec.name for spec in signature.outputs]
    step, count = _step(signature) or BATCH, len(next(iter(samples.values())))
    parts: list[Sequence[tuple[str, Array]]] = []
    for start in range(0, count, step):
        piece = {name: array[start : start + step] for name, array in samples.items()}
        parts.append([(name, np.array(found)) for name, found in plane.infer(piece, names).outputs])
    return {name: _joined([part[index][1] for part in parts], name) for index, name in enumerate(names)}


def _joined(parts: Sequence[Array], name: str) -> Array:
    import numpy as np  # noqa: PLC0415

    if len({part.shape[1:] for part in parts}) != 1 or any(part.ndim == 0 for part in parts):
        raise InvalidError("differs in shape from batch to batch", element=f'output "{name}"')
    return np.concatenate(parts)


def _write(file: Path, arrays: Mapping[str, Array]) -> None:
    """Write the outputs, whatever their names; `numpy.savez` has names of its own. Raises UnavailableError."""
    import numpy as np  # noqa: PLC0415

    try:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                plain = array.astype(str) if array.dtype == object else array
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.ascontiguousarray(plain), allow_pickle=False)
    except OSError as error:
        raise UnavailableError(f"cannot be written: {error.strerror}", element=str(file)) from error


def _costs(plane: DataPlane, samples: Mapping[str, Array], signature: ModelSignature, timing: _Timing) -> Costs:
    milliseconds = _latencies(plane, samples, signature, timing)
    return Costs(
        latency_p50_ms=_percentile(milliseconds, 50),
        latency_p95_ms=_percentile(milliseconds, 95),
        runs=len(milliseconds),
        load_seconds=round(plane.load_seconds, 3),
        peak_memory_bytes=_high_water_mark(),
        engine_version=plane.engine_version,
    )


def _latencies(
    plane: DataPlane, samples: Mapping[str, Array], signature: ModelSignature, timing: _Timing
) -> Sequence[float]:
    """Return the time of each run of batch 1 (or of the smallest the signature allows), in milliseconds."""
    names = [spec.name for spec in signature.outputs]
    step, count = _step(signature) or 1, len(next(iter(samples.values())))
    starts = range(0, count, step)
    deadline = time.monotonic() + timing.seconds
    milliseconds: list[float] = []
    for run in range(-timing.warm_up if timing.runs else 0, timing.runs):
        start = starts[run % len(starts)]
        piece = {name: array[start : start + step] for name, array in samples.items()}
        taken = plane.infer(piece, names).engine_seconds * 1000
        if run >= 0:
            milliseconds.append(taken)
        if time.monotonic() > deadline and len(milliseconds) >= LEAST_RUNS:
            break
    return milliseconds


def _percentile(milliseconds: Sequence[float], percent: int) -> float | None:
    import numpy as np  # noqa: PLC0415

    return round(float(np.percentile(milliseconds, percent)), 4) if milliseconds else None


def _high_water_mark() -> int:
    """Return this process's own peak; getrusage would keep what its parent had when it was started (proc(5))."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="skerry serve once", description="Answer samples with one model, and end.")
    add = parser.add_argument
    add("--engine", required=True, choices=engines.names())
    add("--model", required=True, type=Path, help="the model file")
    add("--signature", required=True, type=Path, help="its tensors: JSON with inputs and outputs")
    add("--inputs", required=True, type=Path, help=".npz, one array for each input, samples along axis 0")
    add("--outputs", required=True, type=Path, help=".npz to write, one array for each output")
    add("--runs", default=0, type=number(0, 1_000_000), help="timed runs of batch 1; default none")
    add("--warm-up", default=10, type=number(0, 1_000_000), help="runs before them that are not timed")
    add("--seconds", default=30.0, type=float, help=f"no more runs after this, once {LEAST_RUNS} are made; default 30")
    add("--threads", default=1, type=number(1, 1024), help="threads the engine computes with; default 1")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
