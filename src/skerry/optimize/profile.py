"""What a variant costs on this machine, batch 1, one thread: latency of the engine, peak memory of the server.

Both are measured in fresh processes per variant, with the engine and nothing else in them: latency by `trial`, memory
in the inference server that devices run (`serving`). Lives here: the conditions and putting the figures together. A
device's own figures come from the device.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skerry.api.errors import InvalidError, SkerryError
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Engine, Profile
from skerry.optimize import serving, trial
from skerry.optimize.standby import Standby
from skerry.optimize.trial import Trial

MAX_SECONDS = 30.0
"""A slow model is measured with fewer runs than asked for once this is over."""
GRACE_SECONDS = 120.0
"""For start, load, warm-up and the least number of runs; beyond that the process is stopped."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "riscv64": "riscv64"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What all variants are measured with: the same samples, as files that other processes read."""

    engine: Engine
    signature: ModelSignature
    signature_file: Path
    samples_file: Path
    """`.npz`, one array for each input tensor."""
    runs: int


def measure(model: Path, given: Conditions) -> Profile:
    """Measure one model file. Raises InvalidError when the engine or the server refuses it, TimedOutError.

    Both processes start beside each other; runs are timed when the server is up and has nothing to do.
    """
    with np.load(given.samples_file, allow_pickle=False) as stored:
        sample = {spec.name: stored[spec.name][:1] for spec in given.signature.inputs}
    with Standby() as ready, serving.Server(given.engine, model, given.signature_file) as server:
        ready.start(trial.arguments(given.engine))
        refused: SkerryError | None = None
        try:
            server.wait_ready()
        except SkerryError as error:  # where the engine refuses the model too, its reason is the better one
            refused = error
        own = Trial(given.engine, model, given.signature_file, given.signature, ready=ready)
        costs = own.latencies(given.samples_file, runs=given.runs, seconds=MAX_SECONDS, grace=GRACE_SECONDS)
        if refused is not None:
            raise refused
        if costs.latency_p50_ms is None or costs.latency_p95_ms is None:
            raise InvalidError("no run of it was measured")
        memory = server.peak_memory(given.signature, sample)
    return Profile(
        latency_p50_ms=round(costs.latency_p50_ms, 4),
        latency_p95_ms=round(costs.latency_p95_ms, 4),
        peak_memory_bytes=memory,
        runs=costs.runs,
        machine=machine(),
        engine_version=costs.engine_version,
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
