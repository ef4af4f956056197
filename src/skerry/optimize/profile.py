"""What a variant costs: latency and peak memory, measured in a fresh process per variant, batch 1, one thread.

The process (`profiled_process`) holds the engine and the model but not torch, so its peak memory is that of an
inference server's core. Lives here: starting it and reading what it says. Figures are of this machine; a device's own
come from the device.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import msgspec

from skerry.api.errors import InvalidError, TimedOutError
from skerry.api.kinds.variants import Profile

MAX_SECONDS = 30.0
"""A slow model is measured with fewer runs than asked for once this is over."""
GRACE_SECONDS = 120.0
"""For start, load, warm-up and the least number of runs; beyond that the process is stopped."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "riscv64": "riscv64"}


class _Figures(msgspec.Struct):
    p50: float
    p95: float
    runs: int
    peak: int


def measure(model: Path, samples: Path, *, runs: int) -> Profile:
    """Measure a model file with samples from an `.npy` file. Raises InvalidError, TimedOutError."""
    argv = [
        sys.executable,
        "-P",  # the directory this runs in is not searched for modules
        "-m",
        "skerry.optimize.profiled_process",
        str(model),
        str(samples),
        str(runs),
        str(MAX_SECONDS),
    ]
    try:
        done = subprocess.run(
            argv, capture_output=True, timeout=MAX_SECONDS + GRACE_SECONDS, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        raise TimedOutError(
            f"not measured within {MAX_SECONDS + GRACE_SECONDS:.0f} s", hint="a model this slow cannot be profiled"
        ) from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise InvalidError(f"the process that measures it failed ({said[-1][:240]})")
    try:
        figures = msgspec.json.decode(done.stdout, type=_Figures)
    except msgspec.DecodeError as error:
        raise InvalidError(f"the process that measures it answered nonsense ({error})") from error
    return Profile(
        latency_p50_ms=round(figures.p50, 4),
        latency_p95_ms=round(figures.p95, 4),
        peak_memory_bytes=figures.peak,
        runs=figures.runs,
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
