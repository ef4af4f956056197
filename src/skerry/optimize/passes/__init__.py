"""Graph to variant: each pass takes a serialised ONNX graph and returns another.

Lives here: for each precision the recipes that can make it, best first; when one costs too much accuracy the factory
tries the next. Must not live here: judging the result, or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from skerry.api.kinds.variants import Precision
from skerry.optimize.dataset import Array
from skerry.optimize.passes import half, quantize

Pass = Callable[[bytes, Array], bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One way to make a variant: its name, as the card records it, and what does it (graph, calibration inputs)."""

    name: str
    build: Pass


RECIPES: dict[Precision, tuple[Recipe, ...]] = {
    "fp32": (Recipe(name="exported", build=lambda raw, _: raw),),
    "fp16": (
        Recipe(name="float16", build=lambda raw, _: half.convert(raw)),
        Recipe(name="float16-sensitive-float32", build=lambda raw, _: half.convert(raw, keep_sensitive=True)),
    ),
    "int8": (
        Recipe(name="static-qdq-per-channel", build=quantize.build(per_channel=True)),
        Recipe(name="static-qdq-per-tensor", build=quantize.build(per_channel=False)),
        Recipe(name="static-qdq-percentile", build=quantize.build(per_channel=True, percentile=99.99)),
        Recipe(name="static-qdq-float-ends", build=quantize.build(per_channel=True, float_ends=True)),
    ),
}
