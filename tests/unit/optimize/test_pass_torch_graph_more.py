"""More operators as PyTorch: order, repetition, padding, normalisation; each compared with ONNX Runtime for batches."""

from collections.abc import Callable

import numpy as np
import pytest
from onnx import numpy_helper
from tests.unit.optimize.graphs import Builder
from tests.unit.optimize.test_pass_lower import IMAGE, VECTOR, ints
from tests.unit.optimize.test_pass_torch_graph import translated

from skerry.api.errors import UnsupportedError
from skerry.optimize import graph
from skerry.optimize.passes import torch_graph

Case = tuple[Callable[[Builder], object], tuple[int, ...], tuple[int, ...]]
"""What is built, the shape that goes in and the one that comes out."""
PADS = (0, 0, 1, 2, 0, 0, 3, 1)


def batch_of(b: Builder, *rest: int) -> str:
    """The shape [batch, *rest], computed as exporters do."""
    b.add("Shape", first="input")
    b.add("Gather", ints(b, "first", 0))
    return b.add("Concat", ints(b, "rest", *rest), axis=0)


def expanded_to_batch(b: Builder) -> None:
    """A learnt token before the others, as in vision transformers."""
    shape = batch_of(b, 2, 9)
    b.add("Expand", shape, first=b.weight("token", 1, 2, 9))
    b.add("Mul", b.constant("twice", np.float32(2)))
    b.add("Concat", "input", axis=1)


def state(b: Builder, value: float) -> None:
    b.add("ConstantOfShape", first=batch_of(b, 12), value=numpy_helper.from_array(np.array([value], np.float32)))
    b.add("Add", "input")


def resized(b: Builder, **more: object) -> None:
    b.add("Resize", "", b.constant("scales", np.array([1, 1, 2, 3], np.float32)), mode="cubic", **more)


CASES: dict[str, Case] = {
    "top-k": (lambda b: b.add("TopK", ints(b, "k", 3), outputs=2), VECTOR, (3,)),
    "top-k-smallest": (lambda b: b.add("TopK", ints(b, "k", 2), outputs=2, axis=2, largest=0), IMAGE, (4, 2, 7)),
    "cumulative-sum": (lambda b: b.add("CumSum", b.constant("axis", np.int64(1))), VECTOR, VECTOR),
    "cumulative-sum-backwards": (
        lambda b: b.add("CumSum", b.constant("axis", np.int64(-1)), reverse=1, exclusive=1),
        IMAGE,
        IMAGE,
    ),
    "tile": (lambda b: b.add("Tile", ints(b, "repeats", 1, 2, 1, 3)), IMAGE, (8, 9, 21)),
    "expand-to-batch": (expanded_to_batch, (3, 9), (5, 9)),
    "state-of-zeros": (lambda b: state(b, 0), VECTOR, VECTOR),
    "state-of-halves": (lambda b: state(b, 0.5), VECTOR, VECTOR),
    "einsum": (lambda b: b.add("Einsum", b.weight("w", 4, 5), equation="bchw,cd->bdhw"), IMAGE, (5, 9, 7)),
    "einsum-of-two": (lambda b: b.add("Einsum", "input", equation="b c h w, b d h w -> b c d"), IMAGE, (4, 4)),
    "depth-to-space": (lambda b: b.add("DepthToSpace", blocksize=2), (8, 3, 5), (2, 6, 10)),
    "depth-to-space-crd": (lambda b: b.add("DepthToSpace", blocksize=2, mode="CRD"), (8, 3, 5), (2, 6, 10)),
    "space-to-depth": (lambda b: b.add("SpaceToDepth", blocksize=3), (2, 6, 9), (18, 2, 3)),
    "reduce-prod": (lambda b: b.add("ReduceProd", ints(b, "a", 1, 3), keepdims=0), IMAGE, (9,)),
    "reduce-l1": (lambda b: b.add("ReduceL1", ints(b, "a", 2)), IMAGE, (4, 1, 7)),
    "reduce-sum-square": (lambda b: b.add("ReduceSumSquare", ints(b, "a", 1), keepdims=0), IMAGE, (9, 7)),
    "reduce-log-sum-exp": (lambda b: b.add("ReduceLogSumExp", ints(b, "a", -1, 1)), IMAGE, (1, 9, 1)),
    "prelu-of-channels": (lambda b: b.add("PRelu", b.weight("slope", 4, 1, 1)), IMAGE, IMAGE),
    "prelu-of-one": (lambda b: b.add("PRelu", b.weight("slope", 1)), VECTOR, VECTOR),
    "selu": (lambda b: b.add("Selu"), VECTOR, VECTOR),
    "instance-normalization": (
        lambda b: b.add("InstanceNormalization", b.weight("s", 4), b.weight("b", 4), epsilon=1e-3),
        IMAGE,
        IMAGE,
    ),
    "pad-axes": (
        lambda b: b.add("Pad", ints(b, "by", 1, 2, 0, 3), b.constant("c", np.float32(0.5)), ints(b, "axes", 3, 1)),
        IMAGE,
        (9, 9, 8),
    ),
    "resize-cubic": (resized, IMAGE, (4, 18, 21)),
    "resize-cubic-corners": (
        lambda b: resized(b, coordinate_transformation_mode="align_corners"),
        IMAGE,
        (4, 18, 21),
    ),
}
for _mode in ("reflect", "edge", "wrap"):
    CASES[f"pad-{_mode}"] = (lambda b, mode=_mode: b.add("Pad", ints(b, "by", *PADS), mode=mode), IMAGE, (4, 13, 10))  # type: ignore[misc]


@pytest.mark.parametrize("name", CASES)
def test_operators(name: str) -> None:
    build, given, made = CASES[name]
    builder = Builder(given)
    build(builder)
    translated(builder.raw(made))


def test_group_normalization() -> None:
    builder = Builder(IMAGE)
    builder.add("GroupNormalization", builder.weight("s", 4), builder.weight("b", 4), num_groups=2)
    translated(graph.serialise(builder.model(IMAGE, opset=21)))


@pytest.mark.parametrize(
    ("build", "shape", "said"),
    [
        (lambda b: b.add("Pad", ints(b, "by", *PADS[:3], -1, *PADS[4:]), mode="edge"), IMAGE, "cuts and pads at once"),
        (lambda b: resized(b, cubic_coeff_a=-0.5), IMAGE, "resizes in the mode cubic"),
        (lambda b: resized(b, exclude_outside=1), IMAGE, "resizes in the mode cubic"),
    ],
)
def test_what_torch_does_in_another_way_is_refused(
    build: Callable[[Builder], object], shape: tuple[int, ...], said: str
) -> None:
    builder = Builder(shape)
    build(builder)
    model = builder.model((4, 18, 21) if "resizes" in said else (4, 13, 7))
    with pytest.raises(UnsupportedError, match=said):
        torch_graph.to_module(graph.serialise(model), graph.signature(model))
