"""Which way torch's exporters go: tracing where it has no doubts, torch.export where values or sizes decide."""

import warnings
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from skerry.api.errors import InvalidError
from skerry.optimize import graph
from skerry.optimize.dataset import Inputs
from skerry.optimize.evaluate import Runner
from skerry.optimize.importers import torch_onnx
from skerry.optimize.importers.tensors import Reference
from skerry.optimize.importers.torch_onnx import Wanted
from skerry.optimize.passes import layers, simplify

SAMPLES = np.arange(24, dtype=np.float32).reshape(6, 4) - 10


class Plain(torch.nn.Module):
    """Nothing but tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.view(x.shape[0], -1))


class ByValue(torch.nn.Module):
    """Another way for other values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


class BySize(torch.nn.Module):
    """Another way for other batches, which tracing would not keep."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] > 4 else x


class ByLoop(torch.nn.Module):
    """A loop over the batch, of which tracing says nothing: the check for other batches has to."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[index : index + 1] * 2 for index in range(x.shape[0])])


def wanted() -> Wanted:
    return Wanted(inputs=["x"], outputs=["y"], examples=(torch.from_numpy(SAMPLES[:2]),), opset=20)


def reference(module: torch.nn.Module) -> Reference:
    def run(batch: Inputs) -> Mapping[str, np.ndarray]:
        with torch.no_grad():
            return {"y": module(torch.from_numpy(np.array(batch["x"]))).numpy()}

    return Reference(names=["x"], run=run)


def test_a_plain_module_is_traced_for_any_batch() -> None:
    module, taken = Plain().eval(), []

    def dear(*_: object) -> bytes:
        taken.append("dear")
        raise InvalidError("not needed")

    made = torch_onnx.export(module, wanted(), (torch_onnx.by_trace, dear), reference(module), {"x": SAMPLES})
    assert taken == []
    expected = reference(module).predict({"x": SAMPLES})["y"]
    np.testing.assert_allclose(Runner(made).predict({"x": SAMPLES})[0], expected, rtol=1e-5)


def test_the_same_module_gives_the_same_bytes() -> None:
    assert torch_onnx.by_trace(Plain().eval(), wanted()) == torch_onnx.by_trace(Plain().eval(), wanted())


@pytest.mark.parametrize("module", [ByValue(), BySize()])
def test_what_tracing_has_doubts_about_is_not_taken(module: torch.nn.Module) -> None:
    with pytest.raises(InvalidError, match=r"the tracer warns: .*Python boolean"):
        torch_onnx.by_trace(module.eval(), wanted())


def test_what_the_tracer_does_not_see_is_found_by_the_check() -> None:
    module = ByLoop().eval()
    traced = torch_onnx.by_trace(module, wanted())
    with pytest.raises(InvalidError):
        torch_onnx.check(traced, reference(module), {"x": SAMPLES})


BEYOND = 5.0
MOSTLY_LARGE = np.concatenate([SAMPLES[:3] / 100, np.abs(SAMPLES) + 6])
"""As in any data set, what is rare is not among the first."""


class ByEqual(torch.nn.Module):
    """Looks at values by an operator of which the tracer says nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if torch.equal(x.clamp(max=BEYOND), x) else -x


class InSilence(torch.nn.Module):
    """Suppresses what the tracer would say."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with warnings.catch_warnings(action="ignore"):
            return -x if x.max() > BEYOND else x * 2


class ByParts(torch.nn.Module):
    """Takes the batch's size out of the number of parts; the tracer says nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / len(x.split(1))


class SmallBesideLarge(torch.nn.Module):
    """Another value for rare samples, in an output that is small beside the other one."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 1e6, x[:, :1] * 0 + (1.0 if torch.allclose(x, x.clamp(max=BEYOND)) else 0.5)


@pytest.mark.parametrize("module", [ByEqual(), InSilence()])
def test_looking_at_values_in_silence_is_seen(module: torch.nn.Module) -> None:
    with pytest.raises(InvalidError, match="Python code looks at values, by aten::"):
        torch_onnx.by_trace(module.eval(), wanted())


@pytest.mark.parametrize("module", [ByEqual(), InSilence(), ByParts()])
def test_all_samples_are_compared(module: torch.nn.Module) -> None:
    few = Wanted(inputs=["x"], outputs=["y"], examples=(torch.from_numpy(MOSTLY_LARGE[:2].copy()),), opset=20)
    traced = torch_onnx.by_script(module.eval(), few)
    with pytest.raises(InvalidError, match="differs from the model"):
        torch_onnx.check(traced, reference(module), {"x": MOSTLY_LARGE})


def test_each_output_is_compared_by_itself() -> None:
    module = SmallBesideLarge().eval()

    def run(batch: Inputs) -> Mapping[str, np.ndarray]:
        large, small = module(torch.from_numpy(np.array(batch["x"])))
        return {"large": large.numpy(), "small": small.numpy()}

    few = torch.from_numpy(MOSTLY_LARGE[:2].copy())
    traced = torch_onnx.by_script(module, Wanted(inputs=["x"], outputs=["large", "small"], examples=(few,), opset=20))
    with pytest.raises(InvalidError, match="output 1"):
        torch_onnx.check(traced, Reference(names=["x"], run=run), {"x": MOSTLY_LARGE})


class Blocks(torch.nn.Module):
    """Weights that the exporter or the simplifier fuses, transposes or folds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        part = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
        self.block = torch.nn.Sequential(part, torch.nn.ReLU(), torch.nn.Conv2d(2, 2, 1))
        self.blocker = torch.nn.Linear(4, 4)
        self.last = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.blocker(self.block(x)))


@pytest.mark.parametrize(
    ("module", "nodes"),
    [
        ("last", ["/last/MatMul", "/last/Add"]),
        ("block.0", ["/block/block.0/block.0.0/Conv_output_0"]),
        ("block.0.0", ["/block/block.0/block.0.0/Conv_output_0"]),
        ("block.2", ["/block/block.2/Conv"]),
        ("block", ["/block/block.0/block.0.0/Conv_output_0", "/block/block.1/Relu", "/block/block.2/Conv"]),
    ],
)
def test_layers_are_found_by_their_modules_name(module: str, nodes: list[str]) -> None:
    asked = Wanted(inputs=["x"], outputs=["y"], examples=(torch.zeros(2, 1, 6, 6),), opset=20)
    model = graph.parse(simplify.simplify(torch_onnx.by_trace(Blocks().eval(), asked)))
    assert layers.matching(model, [module]) == nodes


def test_a_name_that_stands_for_no_layer_is_refused() -> None:
    asked = Wanted(inputs=["x"], outputs=["y"], examples=(torch.zeros(2, 1, 6, 6),), opset=20)
    model = graph.parse(torch_onnx.by_trace(Blocks().eval(), asked))
    with pytest.raises(InvalidError, match=r"layer bloc: there is no such layer"):
        layers.matching(model, ["bloc"])
