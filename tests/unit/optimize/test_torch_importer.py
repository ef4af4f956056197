"""PyTorch models: what they do is kept by the export, and what is no model is said to be none."""

import os
import pickle
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skerry.api.errors import InvalidError, NotFoundError
from skerry.optimize import evaluate, graph
from skerry.optimize.importers import torch as importer

Linear = tuple[str, Path, torch.nn.Module]

LINEAR = "return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))"
SAMPLES = np.random.default_rng(0).random((9, 3, 4), dtype=np.float32)
INPUTS = {"input": SAMPLES}
OPSET = 20


def builder(path: Path, body: str = LINEAR, *, before: str = "", name: str = "build_model") -> str:
    code = f"import torch\nfrom torch import nn\n{textwrap.dedent(before)}\ndef {name}():\n"
    path.write_text(code + textwrap.indent(textwrap.dedent(body), "    "))
    return f"{path}:{name}"


def weights(path: Path, module: torch.nn.Module) -> Path:
    torch.save(module.state_dict(), path)
    return path


@pytest.fixture
def linear(tmp_path: Path) -> Linear:
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    return builder(tmp_path / "model.py"), weights(tmp_path / "weights.pt", module), module


def load(spec: str, file: Path) -> importer.TorchSource:
    return importer.load(spec, file, seed=0)


def test_runs_and_exports_what_was_trained(linear: Linear) -> None:
    spec, file, module = linear
    source = load(spec, file)
    expected = module(torch.from_numpy(SAMPLES)).detach().numpy()
    np.testing.assert_allclose(source.predict(INPUTS)[0], expected, rtol=1e-5)
    exported = source.onnx(INPUTS, opset=OPSET)
    np.testing.assert_allclose(evaluate.Runner(exported).predict(SAMPLES)[0], expected, rtol=1e-4, atol=1e-5)
    signature = graph.signature(graph.parse(exported))
    assert [(t.name, t.datatype, t.shape) for t in signature.inputs] == [("input", "FP32", [-1, 3, 4])]
    assert [(t.name, t.datatype, t.shape) for t in signature.outputs] == [("output", "FP32", [-1, 3])]
    assert set(source.digests) == {"model.py", "weights.pt"}


def test_the_same_model_gives_the_same_bytes_without_paths(linear: Linear, tmp_path: Path) -> None:
    spec, file, _ = linear
    first, second = (load(spec, file).onnx(INPUTS, opset=OPSET) for _ in range(2))
    assert first == second
    assert os.fsencode(tmp_path) not in first
    assert os.fsencode(os.path.dirname(torch.__file__)) not in first


def test_several_outputs_keep_their_names_and_order(tmp_path: Path) -> None:
    body = """
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            scores = self.layer(x).mean(dim=1)
            return {"scores": scores, "certainty": scores.softmax(dim=1)}

    return Two()
    """
    spec = builder(tmp_path / "model.py", body)
    module = torch.nn.Module()
    module.layer = torch.nn.Linear(4, 3)
    source = load(spec, weights(tmp_path / "w.pt", module))
    exported = source.onnx(INPUTS, opset=OPSET)
    assert [t.name for t in graph.signature(graph.parse(exported)).outputs] == ["scores", "certainty"]
    for ours, theirs in zip(evaluate.Runner(exported).predict(SAMPLES), source.predict(INPUTS), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_builder_may_import_the_files_beside_it_and_no_cache_is_left(tmp_path: Path) -> None:
    (tmp_path / "skerry_test_layers.py").write_text("from torch import nn\nhead = nn.Linear(12, 3)\n")
    spec = builder(
        tmp_path / "model.py",
        "return nn.Sequential(nn.Flatten(), skerry_test_layers.head)",
        before="import skerry_test_layers",
    )
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    assert load(spec, weights(tmp_path / "w.pt", module)).predict(INPUTS)[0].shape == (9, 3)
    assert not (tmp_path / "__pycache__").exists()


def test_what_the_newer_exporter_refuses_goes_the_older_way(tmp_path: Path) -> None:
    """torch.export cannot follow a branch on a tensor's value; tracing takes the branch it sees."""
    body = """
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(12, 3)

        def forward(self, x):
            x = x.flatten(1)
            if float(x.detach().sum()) > -1e9:
                return self.layer(x)
            return self.layer(-x)

    return Branch()
    """
    module = torch.nn.Module()
    module.layer = torch.nn.Linear(12, 3)
    source = load(builder(tmp_path / "model.py", body), weights(tmp_path / "w.pt", module))
    exported = source.onnx(INPUTS, opset=OPSET)
    np.testing.assert_allclose(
        evaluate.Runner(exported).predict(SAMPLES)[0], source.predict(INPUTS)[0], rtol=1e-4, atol=1e-5
    )
    assert os.fsencode(tmp_path) not in exported


def test_a_model_that_looks_at_its_batch_cannot_be_exported(tmp_path: Path) -> None:
    body = """
    class Batchy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(12, 3)

        def forward(self, x):
            return self.layer(x.flatten(1)) * (1.0 if len(x) % 2 else -1.0)

    return Batchy()
    """
    module = torch.nn.Module()
    module.layer = torch.nn.Linear(12, 3)
    source = load(builder(tmp_path / "model.py", body), weights(tmp_path / "w.pt", module))
    with pytest.raises(InvalidError, match=r"model: cannot be exported to ONNX") as caught:
        source.onnx(INPUTS, opset=OPSET)
    assert "batch size" in caught.value.hint


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return None", ("model.py:build_model", "returned NoneType", "torch.nn.Module")),
        ("return nn.Linear", ("returned type",)),
        ("return {}['x']", ("failed with KeyError at line 5",)),
        ("raise SystemExit(3)", ("failed with SystemExit at line 5",)),
        ("return nn.Linear(-1, 3)", ("failed with RuntimeError at line 5",)),
    ],
)
def test_builders_that_build_no_model(linear: Linear, tmp_path: Path, body: str, words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidError) as caught:
        load(builder(tmp_path / "model.py", body), linear[1])
    assert all(word in caught.value.sentence for word in words), caught.value.sentence
    assert "\n" not in caught.value.sentence


def test_a_function_that_is_not_there_is_answered_with_those_that_are(linear: Linear, tmp_path: Path) -> None:
    builder(tmp_path / "model.py", name="make_network")
    with pytest.raises(InvalidError, match=r"model\.py:build_model: there is no function build_model") as caught:
        load(linear[0], linear[1])
    assert "make_network" in caught.value.hint


@pytest.mark.parametrize("spec", ["model.py", "model.py:", ":build_model", "model.py:build model", ""])
def test_what_is_no_builder_at_all(linear: Linear, spec: str) -> None:
    with pytest.raises(InvalidError, match="is not a builder"):
        load(spec, linear[1])


def test_files_that_are_not_there_are_named(linear: Linear, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.py: no such file"):
        load(f"{tmp_path}/absent.py:build_model", linear[1])
    with pytest.raises(NotFoundError, match=r"absent\.pt: no such file"):
        load(linear[0], tmp_path / "absent.pt")


def test_python_that_does_not_parse_is_said_to_be_at_its_line(linear: Linear, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def build_model(:\n")
    with pytest.raises(InvalidError, match=r"model\.py: failed with SyntaxError.*line 1"):
        load(linear[0], linear[1])
    (tmp_path / "model.txt").write_text("")
    with pytest.raises(InvalidError, match=r"model\.txt: is not a Python file"):
        load(f"{tmp_path}/model.txt:build_model", linear[1])


class _Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_weights_is_refused_and_never_run(
    linear: Linear, tmp_path: Path, save: Callable[[Any, Path], object]
) -> None:
    save({"1.weight": _Bomb(tmp_path / "mark")}, tmp_path / "evil.pt")
    with pytest.raises(InvalidError, match=r"evil\.pt: .*never run"):
        load(linear[0], tmp_path / "evil.pt")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda module: module, ("never run", "state_dict()")),
        (lambda module: list(module.state_dict().values()), ("is not a state dict",)),
        (lambda module: {"state_dict": module.state_dict()}, ("is not a state dict", "state_dict()")),
        (lambda module: torch.nn.Linear(12, 3).state_dict(), ("missing 1.weight, 1.bias", "unknown weight, bias")),
        (lambda module: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4)).state_dict(), ("[4, 12]",)),
        (lambda module: {k: v * float("nan") for k, v in module.state_dict().items()}, ("1.weight", "NaN")),
    ],
)
def test_weights_that_are_none_of_this_model(
    linear: Linear, tmp_path: Path, content: Any, words: tuple[str, ...]
) -> None:
    torch.save(content(linear[2]), tmp_path / "other.pt")
    with pytest.raises(InvalidError) as caught:
        load(linear[0], tmp_path / "other.pt")
    assert all(word in caught.value.sentence for word in ("other.pt", *words)), caught.value.sentence


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"garbage" * 100, b"\x80\x02}q\x00."])
def test_bytes_that_are_no_weights(linear: Linear, tmp_path: Path, content: Any) -> None:
    (tmp_path / "noise.pt").write_bytes(content)
    with pytest.raises(InvalidError, match=r"noise\.pt: "):
        load(linear[0], tmp_path / "noise.pt")


def test_half_a_weights_file_is_refused(linear: Linear, tmp_path: Path) -> None:
    content = linear[1].read_bytes()
    (tmp_path / "half.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidError, match=r"half\.pt: "):
        load(linear[0], tmp_path / "half.pt")


def test_samples_that_do_not_fit_are_described(linear: Linear) -> None:
    with pytest.raises(InvalidError, match=r"model: cannot take float32 inputs of shape \[batch, 5, 5\]"):
        load(linear[0], linear[1]).predict({"input": np.zeros((2, 5, 5), np.float32)})
    with pytest.raises(InvalidError, match="cannot take uint8 inputs"):
        load(linear[0], linear[1]).predict({"input": np.zeros((2, 3, 4), np.uint8)})


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("x.sum()", "shape []"),
        ("[1, 2]", "gives list"),
        ("None", "gives NoneType"),
        ("x[:1]", "for 9 samples"),
        ("x.bfloat16()", "bfloat16"),
    ],
)
def test_outputs_that_cannot_be_served(tmp_path: Path, expression: str, words: str) -> None:
    body = f"""
    class Odd(nn.Module):
        def forward(self, x):
            return {expression}

    return Odd()
    """
    source = load(builder(tmp_path / "model.py", body), weights(tmp_path / "w.pt", torch.nn.Module()))
    with pytest.raises(InvalidError) as caught:
        source.predict(INPUTS)
    assert words in caught.value.sentence


OPTIONAL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x, context=None, scale=None):
        made = self.layer(x)
        if context is not None:
            made = made + 100 * context.sum(1, keepdim=True)
        return made if scale is None else made * scale
"""


def test_tensors_of_optional_parameters_are_bound_by_name(tmp_path: Path) -> None:
    spec = builder(tmp_path / "model.py", "return Net()", before=OPTIONAL)
    source = load(spec, weights(tmp_path / "w.pt", torch.nn.ModuleDict({"layer": torch.nn.Linear(4, 1)})))
    x, context = (np.random.default_rng(seed).random((5, 4), dtype=np.float32) for seed in (1, 2))
    alone = source.predict({"x": x})[0]
    np.testing.assert_array_equal(source.predict({"input": x})[0], alone)
    given = {"context": context, "x": x}  # in the order of the data
    expected = alone + 100 * context.sum(1, keepdims=True)
    np.testing.assert_allclose(source.predict(given)[0], expected, rtol=1e-5)
    assert [tensor.name for tensor in source.signature(given).inputs] == ["x", "context"]
    exported = evaluate.Runner(source.onnx(given, opset=OPSET))
    np.testing.assert_allclose(exported.predict({"x": x, "context": context})[0], expected, rtol=1e-4)


@pytest.mark.parametrize("names", [("x", "other"), ("x", "scale"), ("context",), ("x", "context", "scale", "y")])
def test_tensors_that_forward_cannot_take_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    spec = builder(tmp_path / "model.py", "return Net()", before=OPTIONAL)
    source = load(spec, weights(tmp_path / "w.pt", torch.nn.ModuleDict({"layer": torch.nn.Linear(4, 1)})))
    with pytest.raises(InvalidError, match="as inputs, but the model takes x"):
        source.signature({name: np.zeros((5, 4), np.float32) for name in names})
