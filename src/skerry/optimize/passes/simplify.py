"""Simplify: fold constants, fuse and drop nodes, infer shapes; the starting point of every variant."""

from __future__ import annotations

import onnx
import onnxslim

from skerry.optimize import graph


def simplify(raw: bytes) -> bytes:
    """Return a smaller graph that computes the same. Raises whatever the simplifier cannot cope with."""
    return graph.serialise(onnxslim.slim(graph.parse(raw)))


def infer_shapes(raw: bytes) -> bytes:
    """Return the same graph with the shapes that quantisation needs."""
    return graph.serialise(onnx.shape_inference.infer_shapes(graph.parse(raw)))
