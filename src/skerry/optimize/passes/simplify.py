"""Simplify: fold constants, fuse and drop nodes, infer shapes; the starting point of every variant.

The simplifier takes as long as it likes, can fail in many ways, and imports for half a second: a run of the factory
has it in a process of its own (`jobs.SIMPLIFIER`), started ahead (`standby`), which reads one line, a JSON array of the
file to read and the file to write.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import msgspec
import onnx

from skerry.optimize import graph


def simplify(raw: bytes) -> bytes:
    """Return a smaller graph that computes the same. Raises whatever the simplifier cannot cope with."""
    import onnxslim  # noqa: PLC0415 - heavy

    return graph.serialise(onnxslim.slim(graph.parse(raw)))


def infer_shapes(raw: bytes) -> bytes:
    """Return the same graph with the shapes that quantisation needs."""
    return graph.serialise(onnx.shape_inference.infer_shapes(graph.parse(raw)))


def main() -> None:
    """Wait for the two files, and do it."""
    import onnxslim  # noqa: F401, PLC0415 - heavy: what there is time for before the line comes

    logging.disable(logging.WARNING)
    if line := sys.stdin.buffer.readline():
        source, target = msgspec.json.decode(line, type=tuple[str, str])
        Path(target).write_bytes(simplify(Path(source).read_bytes()))


if __name__ == "__main__":
    main()
