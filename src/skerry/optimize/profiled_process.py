"""The process in which one variant's latency is measured: engine, model and nothing else.

Run by `profile` as `python -m skerry.optimize.profiled_process MODEL SAMPLES RUNS SECONDS`; prints one JSON object.
Must not live here: an import of anything that would share the processor or the caches, above all torch.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime

WARM_UP = 10
LEAST = 10
"""Runs that are measured however long they take."""


def main() -> None:
    """Measure and print latencies (ms) of batch 1 on one thread."""
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
    result = {"p50": float(p50), "p95": float(p95), "runs": len(milliseconds)}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
