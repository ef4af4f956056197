"""Graphs to PyTorch modules, operator by operator: each is run, traced and exported, and compared with ONNX Runtime."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.optimize import test_pass_lower as lowered
from tests.unit.optimize.graphs import Builder

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.optimize import graph
from skerry.optimize.passes import Material, torch_graph

RANDOM = np.random.default_rng(5)
Case = tuple[Callable[[Builder], object], tuple[int, ...]]
ints = lowered.ints

IMAGES: dict[str, Case] = {
    **lowered.IMAGES,
    "transposed-convolution": (
        lambda b: b.add(
            "ConvTranspose", b.weight("w", 4, 5, 3, 3), b.weight("b", 5), strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        (5, 17, 13),
    ),
    "transposed-convolution-with-more": (
        lambda b: b.add("ConvTranspose", b.weight("w", 4, 5, 3, 3), strides=[2, 2], output_padding=[1, 1]),
        (5, 20, 16),
    ),
    "global-max-pool": (lambda b: b.add("GlobalMaxPool"), (4, 1, 1)),
    "softmax-of-channels": (lambda b: b.add("Softmax", axis=1), lowered.IMAGE),
    "resize-half-pixel": (
        lambda b: b.add("Resize", "", b.constant("s", np.array([1, 1, 2, 2], np.float32))),
        (4, 18, 14),
    ),
    "elu": (lambda b: b.add("Elu", alpha=0.5), lowered.IMAGE),
    "there-and-back": (
        lambda b: (b.add("Transpose", perm=[0, 2, 3, 1]), b.add("Transpose", perm=[0, 3, 1, 2]), b.add("Relu")),
        lowered.IMAGE,
    ),
    "expand": (
        lambda b: (b.add("ReduceMean", ints(b, "a", 2)), b.add("Expand", ints(b, "to", 1, 1, 9, 1))),
        lowered.IMAGE,
    ),
}
VECTORS: dict[str, Case] = {
    **lowered.VECTORS,
    "dense": (lambda b: (b.add("MatMul", b.weight("w", 12, 5)), b.add("Add", b.weight("o", 5))), (5,)),
    "dense-read-twice": (
        lambda b: (b.add("MatMul", b.weight("w", 12, 5)), b.add("Add", b.weight("o", 5)), b.add("Mul", "matmul0")),
        (5,),
    ),
    "embedding": (
        lambda b: (
            b.add("Sign"),
            b.add("Cast", to=7),
            b.add("Gather", b.last, first=b.weight("table", 4, 6)),
        ),
        (12, 6),
    ),
    "norm": (lambda b: (b.add("ReduceL2", ints(b, "a", 1)), b.add("Div", "input")), (12,)),
    "sum-of-three": (lambda b: b.add("Sum", b.weight("one", 12), b.weight("two", 1)), (12,)),
    "gather-one": (
        lambda b: (b.add("Gather", b.constant("i", np.int64(-2)), axis=1), b.add("Unsqueeze", ints(b, "a", 1))),
        (1,),
    ),
    "argmin": (lambda b: (b.add("ArgMin", axis=1), b.add("Cast", to=1)), (1,)),
}
for _name in ("Erf", "Mish", "Softplus", "Softsign"):
    VECTORS[_name] = (partial(Builder.add, operator=_name), (12,))


def material(raw: bytes, *, near: float = 0.0) -> Material:
    signature = graph.signature(graph.parse(raw))
    samples = {
        spec.name: (RANDOM.standard_normal((5, *spec.shape[1:])) + near).astype(np.float32) for spec in signature.inputs
    }
    return Material(
        load=lambda: raw, inputs_sample=samples, calibration=samples, signature=signature, out=Path("nowhere")
    )


def translated(raw: bytes, *, near: float = 0.0) -> torch.nn.Module:
    """Translate a graph and compare; trace the module with two samples, export it with one, compare those too."""
    given = material(raw, near=near)
    module = torch_graph.as_torch(given).load()
    inputs = tuple(torch.from_numpy(array) for array in given.inputs_sample.values())
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(module, tuple(x[:2] for x in inputs), check_trace=False)
        exported = torch.export.export(module, tuple(x[:1] for x in inputs)).module()
        torch.testing.assert_close(traced(*inputs), module(*inputs))
        torch.testing.assert_close(exported(*(x[:1] for x in inputs)), module(*(x[:1] for x in inputs)))
    return module


def built(cases: dict[str, Case], name: str, given: tuple[int, ...]) -> bytes:
    build, shape = cases[name]
    builder = Builder(given)
    build(builder)
    return builder.raw(shape)


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    translated(built(IMAGES, name, lowered.IMAGE))


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name: str) -> None:
    translated(built(VECTORS, name, lowered.VECTOR))


@pytest.mark.parametrize("name", ["Log", "Sqrt"])
def test_operators_of_positive_numbers(name: str) -> None:
    builder = Builder(lowered.VECTOR)
    builder.add(name)
    translated(builder.raw(lowered.VECTOR), near=10.0)


def test_transpositions_that_cancel_out_are_gone_and_layers_are_torchs_own() -> None:
    module = translated(built(IMAGES, "there-and-back", lowered.IMAGE))
    assert "permute" not in str(torch.export.export(module, (torch.zeros(1, *lowered.IMAGE),)).graph)
    (dense,) = translated(built(VECTORS, "dense", lowered.VECTOR)).children()
    assert isinstance(dense, torch.nn.Linear)
    assert dense.bias is not None
    (dense,) = translated(built(VECTORS, "dense-read-twice", lowered.VECTOR)).children()
    assert dense.bias is None


@pytest.mark.parametrize("operator", ["Hardmax", "ThresholdedRelu"])
def test_an_operator_without_counterpart_is_named_with_its_node(operator: str) -> None:
    builder = Builder(lowered.VECTOR)
    builder.add("Relu")
    builder.add(operator)
    raw = builder.raw(lowered.VECTOR)
    with pytest.raises(UnsupportedError, match="is an operator") as caught:
        torch_graph.to_module(raw, graph.signature(graph.parse(raw)))
    assert caught.value.element == f"node n_{operator.lower()}1 ({operator})"
    assert "PyTorch" in caught.value.cause
    assert caught.value.hint


def test_a_translation_that_does_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_graph, "OPERATORS", {**torch_graph.OPERATORS, "Relu": torch_graph.OPERATORS["Identity"]})
    builder = Builder(lowered.VECTOR)
    builder.add("Relu")
    raw = builder.raw(lowered.VECTOR)
    with pytest.raises(InvalidError, match=r"differs by .* between PyTorch and ONNX Runtime"):
        torch_graph.as_torch(material(raw))
