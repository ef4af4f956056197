"""Tensor signatures: what a model takes and gives, in Open Inference Protocol v2 terms."""

from __future__ import annotations

from typing import Literal

from skerry.api.meta import Struct

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]


class TensorSpec(Struct, frozen=True, kw_only=True):
    """One input or output tensor of a model."""

    name: str
    datatype: Datatype
    shape: list[int]
    """Dimensions, outermost first; -1 where any size is accepted (the batch)."""


class ModelSignature(Struct, frozen=True, kw_only=True):
    """All tensors of a model, in the order in which it takes and gives them."""

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
