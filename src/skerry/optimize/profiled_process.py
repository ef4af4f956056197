"""The process in which one variant is measured: engine, model and nothing else, as on a device.

Run by `profile` as `python -m skerry.optimize.profiled_process MODEL SAMPLES RUNS SECONDS`; prints one JSON object.
Must not live here: an import of anything that an inference server does not have, above all torch.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

WARM_UP = 10
LEAST = 10
"""Runs that are measured however long they take."""


def main() -> None:
    """Measure and print latencies (ms) and the peak resident memory (bytes) of this process."""
    model, samples_file, runs, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    samples = np.load(samples_file, allow_pickle=False)
    deadline = time.monotonic() + seconds
    milliseconds: list[float] = []
    for run in range(-WARM_UP, runs):
        sample = samples[run % len(samples)][np.newaxis]
        start = time.perf_counter_ns()
        session.run(None, {name: sample})
        taken = (time.perf_counter_ns() - start) / 1e6
        if run >= 0:
            milliseconds.append(taken)
        if time.monotonic() > deadline and len(milliseconds) >= LEAST:
            break
    p50, p95 = np.percentile(milliseconds, [50, 95])
    result = {"p50": float(p50), "p95": float(p95), "runs": len(milliseconds), "peak": peak_memory_bytes()}
    sys.stdout.write(json.dumps(result) + "\n")


def peak_memory_bytes() -> int:
    """Return the most resident memory this process ever had.

    From /proc (proc(5), VmHWM): getrusage's ru_maxrss would keep the high-water mark of the process that started this.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this kernel does not tell a process's peak memory (no VmHWM in /proc/self/status)")


if __name__ == "__main__":
    main()
