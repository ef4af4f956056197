"""What a variant costs on this machine, batch 1, one thread: latency of the engine, peak memory of the server.

Both are measured in fresh processes per variant, without torch in them: latency in `profiled_process`, memory in the
inference server that devices run (`serving`). Lives here: the conditions and putting the figures together. A device's
own figures come from the device.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from skerry.api.errors import InvalidError, TimedOutError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Profile
from skerry.optimize import serving
from skerry.optimize.dataset import Array

MAX_SAMPLES = 16
MAX_SECONDS = 30.0
"""A slow model is measured with fewer runs than asked for once this is over."""
GRACE_SECONDS = 120.0
"""For start, load, warm-up and the least number of runs; beyond that the process is stopped."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "riscv64": "riscv64"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What all variants are measured with: the same samples, as files that other processes read."""

    signature: ModelSignature
    signature_file: Path
    samples: Array
    samples_file: Path
    runs: int


class _Latency(msgspec.Struct):
    p50: float
    p95: float
    runs: int


def conditions(directory: Path, signature: ModelSignature, samples: Array, *, runs: int) -> Conditions:
    """Write what the measuring processes need into a directory for scratch files."""
    samples = samples[:MAX_SAMPLES]
    samples_file, signature_file = directory / "samples.npy", directory / "signature.json"
    np.save(samples_file, samples)
    signature_file.write_bytes(msgspec.json.encode(signature))
    return Conditions(
        signature=signature, signature_file=signature_file, samples=samples, samples_file=samples_file, runs=runs
    )


def measure(model: Path, given: Conditions) -> Profile:
    """Measure one model file. Raises InvalidError when the engine or the server refuses it, TimedOutError."""
    latency = _latency(model, given)
    memory = serving.peak_memory(model, given.signature_file, given.signature, given.samples[:1])
    return Profile(
        latency_p50_ms=round(latency.p50, 4),
        latency_p95_ms=round(latency.p95, 4),
        peak_memory_bytes=memory,
        runs=latency.runs,
        machine=machine(),
    )


def machine() -> str:
    """Return this machine's architecture (GOARCH) and CPU model."""
    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return architecture
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))), "")
    return f"{architecture} {model}".strip()


def _latency(model: Path, given: Conditions) -> _Latency:
    # -P: the directory this runs in is not searched for modules
    argv = [sys.executable, "-P", "-m", "skerry.optimize.profiled_process"]
    argv += [str(model), str(given.samples_file), str(given.runs), str(MAX_SECONDS)]
    limit = MAX_SECONDS + GRACE_SECONDS
    try:
        done = subprocess.run(argv, capture_output=True, timeout=limit, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        raise TimedOutError(f"not measured within {limit:.0f} s", hint="a model this slow cannot be profiled") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise InvalidError(f"the process that measures it failed ({said[-1][:240]})")
    try:
        return msgspec.json.decode(done.stdout, type=_Latency)
    except msgspec.DecodeError as error:
        raise InvalidError(f"the process that measures it answered nonsense ({error})") from error
