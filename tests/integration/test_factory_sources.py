"""Digits, really trained in each framework: every source answers as its framework does, and so does its ONNX graph."""

import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import digits

from skerry.core import card as cards
from skerry.optimize import dataset, evaluate, graph, importers, metrics
from skerry.optimize.__main__ import DONE, run
from skerry.optimize.recipe import SourceSpec

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras' saving
    pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning"),
]


@dataclass(kw_only=True)
class Trained:
    """A model's file as `SourceSpec` names it, data in its layout, and its framework's own answers on the test set."""

    spec: dict[str, Any]
    data: Path
    expected: np.ndarray
    name: str = field(default="input")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    root = tmp_path_factory.mktemp("sources")
    return {**of_torch(root), **of_keras(root), **of_sklearn(root)}


def of_torch(root: Path) -> dict[str, Trained]:
    builder, weights, module = digits.train_torch(root)
    data = digits.write_data(root / "first.npz")
    images = torch.from_numpy(digits.split()["test_x"])
    torch.export.save(
        torch.export.export(module, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)), root / "m.pt2"
    )
    torch.jit.save(torch.jit.script(module), root / "m.pt")
    source = importers.open_source(SourceSpec(path=builder, weights=str(weights)))
    (root / "m.onnx").write_bytes(source.onnx({"input": images[:8].numpy()}, opset=20))
    with torch.no_grad():
        expected = module(images).numpy()
    made = {"pytorch": {"path": builder, "weights": str(weights)}}
    made |= {kind: {"path": str(root / name)} for kind, name in FILES["torch"].items()}
    return {kind: Trained(spec=spec, data=data, expected=expected) for kind, spec in made.items()}


def of_keras(root: Path) -> dict[str, Trained]:
    import tensorflow as tf

    model = digits.train_keras(root / "m.keras")
    model.export(root / "saved", verbose=False)
    (root / "m.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    data = digits.write_data(root / "last.npz", channels_last=True)
    expected = model(np.load(data)["test_x"], training=False).numpy()
    return {
        kind: Trained(spec={"path": str(root / name)}, data=data, expected=expected, name="image")
        for kind, name in FILES["keras"].items()
    }


def of_sklearn(root: Path) -> dict[str, Trained]:
    import skops.io
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = digits.write_data(root / "flat.npz", flat=True)
    arrays = np.load(data)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(arrays["train_x"], arrays["train_y"])
    skops.io.dump(model, root / "m.skops")
    expected = model.predict_proba(arrays["test_x"])
    return {"sklearn": Trained(spec={"path": str(root / "m.skops")}, data=data, expected=expected)}


FILES = {
    "torch": {"torch-export": "m.pt2", "torchscript": "m.pt", "onnx": "m.onnx"},
    "keras": {"keras": "m.keras", "savedmodel": "saved", "tflite": "m.tflite"},
}


@pytest.mark.parametrize("kind", importers.KINDS)
def test_a_source_and_its_graph_answer_as_the_framework_does(trained: dict[str, Trained], kind: str) -> None:
    case = trained[kind]
    data = dataset.load(case.data)
    source = importers.open_source(SourceSpec(**case.spec))
    assert source.kind == kind
    signature = source.signature(data.test.inputs)
    assert [spec.name for spec in signature.inputs] == [case.name]
    data = data.bound_to([spec.name for spec in signature.inputs])
    outputs = source.predict(data.test.inputs)
    np.testing.assert_allclose(outputs[0], case.expected, rtol=1e-3, atol=1e-4)
    accuracy, interval = metrics.metric("accuracy").measure(outputs, data.test.targets, seed=0)
    assert accuracy >= 0.93
    assert interval.low < accuracy < interval.high
    if "onnx" in source.forms:
        raw = source.onnx(data.golden.inputs, opset=20)
        assert graph.signature(graph.parse(raw)) == signature
        answers = evaluate.Runner(raw).predict(data.test.inputs)
        np.testing.assert_allclose(answers[0], case.expected, rtol=1e-3, atol=1e-4)
        assert metrics.metric("accuracy").value(answers, data.test.targets) == accuracy


@pytest.mark.parametrize("kind", ["savedmodel", "sklearn"])
def test_the_whole_factory_starts_from_it(trained: dict[str, Trained], kind: str, tmp_path: Path) -> None:
    case = trained[kind]
    recipe = {
        "name": "digits",
        "version": "v1",
        "source": case.spec,
        "data": {"path": str(case.data)},
        "out": str(tmp_path / "package"),
        "variants": ["onnx-fp32"],
        "runs": 5,
    }
    (tmp_path / "optimize.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    said = io.StringIO()
    options = ["-f", str(tmp_path / "optimize.yaml"), "--no-cache", "--progress", "json"]
    assert run(options, said) == DONE, said.getvalue()
    card = cards.decode((tmp_path / "package" / "card.json").read_bytes())
    assert card.provenance.source_kind == kind
    assert card.evaluation is not None
    assert card.variants[0].variant.metric == pytest.approx(card.evaluation.baseline)
    assert card.variants[0].variant.error.cosine > 0.9999


def test_opening_a_source_loads_no_framework_but_its_own(trained: dict[str, Trained], tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys\nfrom skerry.optimize import importers\nfrom skerry.optimize.recipe import SourceSpec\n"
        "importers.open_source(SourceSpec(path=sys.argv[1]))\n"
        "print(*({'torch', 'tensorflow', 'sklearn', 'keras'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, trained["onnx"].spec["path"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
