"""Pruning by magnitude, of graphs and of PyTorch modules, and the user's fine-tuning."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper
from tests.unit.optimize.graphs import Builder

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.optimize import graph
from skerry.optimize.passes import prune
from skerry.optimize.recipe import PruningSpec

ROWS = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)
TUNE = """
import torch

def fine_tune(module, amount):
    assert module.training and amount == 0.5
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        module(torch.ones(4, 6)).square().sum().backward()
        optimiser.step()
    return module

def other(module, amount):
    return torch.nn.Linear(6, 2)

def broken(module, amount):
    raise RuntimeError("no data")
"""


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()


@given(
    weights=arrays.arrays(np.float32, arrays.array_shapes(max_dims=3), elements=st.floats(-9, 9, width=32)),
    amount=st.floats(0.01, 0.99),
)
def test_the_smallest_go_and_the_others_are_untouched(weights: np.ndarray, amount: float) -> None:
    pruned = prune.smallest_to_zero(weights, amount)
    gone = int(weights.size * amount)
    assert (pruned == 0).sum() >= gone
    changed = pruned != weights
    assert changed.sum() <= gone
    assert (pruned[~changed] == weights[~changed]).all()
    if changed.any() and (pruned != 0).any():
        assert np.abs(weights[changed]).max() <= np.abs(pruned[pruned != 0]).min()


def test_a_graphs_layers_lose_their_share_and_biases_stay() -> None:
    built = Builder([20])
    built.gemm(20, 10)
    built.gemm(10, 4)
    raw = built.raw([4])
    pruned, said = prune.apply("onnx", raw, PruningSpec(sparsity=0.25), {"input": ROWS})
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.parse(pruned).graph.initializer}
    assert {name: int((array == 0).sum()) for name, array in tensors.items()} == {
        "fc0.weight": 50,
        "fc0.bias": 0,
        "fc1.weight": 10,
        "fc1.bias": 0,
    }
    assert said == {"pruning": "60 of 240 weights are zero"}
    assert prune.apply("onnx", raw, PruningSpec(sparsity=0.25), {"input": ROWS})[0] == pruned


def test_structured_pruning_is_asked_for_by_the_same_words() -> None:
    built = Builder([20])
    built.gemm(20, 10)
    built.gemm(10, 4)
    raw = built.raw([4])
    pruned, said = prune.apply("onnx", raw, PruningSpec(sparsity=0.5, structured=True), {"input": ROWS})
    assert said["pruning"].startswith("5 of 10 channels removed in 1 layers; ")
    assert len(pruned) < len(raw)


def test_a_module_is_pruned_and_stays_so_while_the_user_trains_it(tmp_path: Path) -> None:
    (tmp_path / "tune.py").write_text(TUNE)
    before = network()
    plain, said = prune.apply("torch", network(), PruningSpec(), {})
    zero = {name: parameter == 0 for name, parameter in plain.named_parameters()}
    assert {name: int(mask.sum()) for name, mask in zero.items()} == {
        "0.weight": 24,
        "0.bias": 0,
        "2.weight": 8,
        "2.bias": 0,
    }
    assert said == {"pruning": "32 of 64 weights are zero"}
    spec = PruningSpec(fine_tune=f"{tmp_path}/tune.py:fine_tune")
    tuned, said = prune.apply("torch", network(), spec, {})
    assert said == {"pruning": "32 of 64 weights are zero", "fine-tuned": "tune.py:fine_tune"}
    assert not tuned.training
    for (name, parameter), old in zip(tuned.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(parameter == 0, zero[name])
        assert not torch.equal(parameter, old)
        assert not parameter.requires_grad


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("other", "tune.py:other: returned another module"),
        ("broken", "tune.py:broken: failed with RuntimeError at line 17: no data"),
        ("absent", "there is no function absent"),
    ],
)
def test_fine_tuning_that_fails_is_named(tmp_path: Path, function: str, words: str) -> None:
    (tmp_path / "tune.py").write_text(TUNE)
    with pytest.raises(InvalidError) as caught:
        prune.apply("torch", network(), PruningSpec(fine_tune=f"{tmp_path}/tune.py:{function}"), {})
    assert words in caught.value.sentence


def test_what_cannot_be_pruned_so_is_said() -> None:
    built = Builder([20])
    built.add("Relu")
    raw = built.raw([20])
    with pytest.raises(UnsupportedError, match="has no layer with weights"):
        prune.apply("onnx", raw, PruningSpec(), {"input": ROWS})
    with pytest.raises(UnsupportedError, match="has no layer with weights"):
        prune.apply("torch", torch.nn.ReLU(), PruningSpec(), {})
    with pytest.raises(UnsupportedError, match="only a PyTorch module can be trained on"):
        prune.apply("onnx", raw, PruningSpec(fine_tune="tune.py:fine_tune"), {"input": ROWS})
    with pytest.raises(UnsupportedError, match="whole channels are taken out of ONNX graphs alone"):
        prune.apply("torch", network(), PruningSpec(structured=True), {})
    with pytest.raises(UnsupportedError, match="models in the form keras cannot be pruned"):
        prune.apply("keras", object(), PruningSpec(), {})
