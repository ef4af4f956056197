"""What this machine has to give, and what a job is expected to take of it.

The rule: a job takes a base, four times its model and twice its samples. The base is what the import was measured to
take, where the source's own framework has to be loaded again, and 512 MiB where the ONNX graph is enough; 1 GiB or more
where PyTorch writes the file. It decides how many jobs run beside each other; the bound itself is held by `pool`.
Source: Linux cgroup v2 (memory.max).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import psutil

from skerry.optimize import jobs
from skerry.optimize.jobs import Facts
from skerry.optimize.passes import Recipe

GRAPH_BASE = 512 * 2**20
"""Interpreter, ONNX and ONNX Runtime, and the process that judges what was made."""
TORCH_BASE = 2**30
"""The same with PyTorch and its compilers, in both of the processes."""
SHARE = 0.9
"""Of what is free at the start; the rest is the system's."""
_CGROUP = Path("/sys/fs/cgroup")


def free_memory(cgroup: Path = _CGROUP) -> int:
    """Return the memory that a run may take when nothing else is said, in bytes."""
    free = psutil.virtual_memory().available
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((cgroup / "memory.current").read_text(encoding="ascii"))
            free = min(free, max(int(limit) - used, 0))
    except (OSError, ValueError):
        pass
    return int(free * SHARE)


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def need(source: Path, facts: Facts, recipes: Sequence[Recipe]) -> int:
    """Return the memory that a worker is expected to take which tries those of the recipes that fit, in bytes."""
    fitting = [recipe for recipe in recipes if recipe.form in facts.forms]
    samples = sum(_size(source / name) for name in (jobs.TEST_FILE, jobs.CALIBRATION_FILE))
    model = max(facts.graph_bytes, facts.source_bytes)
    base = TORCH_BASE if any("torch" in recipe.requires for recipe in fitting) else GRAPH_BASE
    if any(recipe.form != "onnx" for recipe in fitting):
        base = max(base, facts.peak_bytes)
    return base + 4 * model + 2 * samples


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
