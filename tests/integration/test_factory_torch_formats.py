"""Digits from an ONNX file, a SavedModel and scikit-learn to ExecuTorch and TorchScript, by their graphs."""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.models import digits

from skerry.core import card as cards
from skerry.optimize import importers
from skerry.optimize.__main__ import DONE, PARTIAL, run
from skerry.optimize.recipe import SourceSpec

EXECUTORCH, TORCHSCRIPT = {"executorch-int8": "graph-xnnpack-per-channel"}, {"torchscript-fp32": "graph-traced"}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' saving


def of_onnx(root: Path) -> tuple[Path, Path]:
    builder, weights, _ = digits.train_torch(root)
    data = digits.write_data(root / "data.npz")
    source = importers.open_source(SourceSpec(path=builder, weights=str(weights)))
    (root / "m.onnx").write_bytes(source.onnx({"input": np.load(data)["calibration_x"][:8]}, opset=20))
    return root / "m.onnx", data


def of_savedmodel(root: Path) -> tuple[Path, Path]:
    digits.train_keras(root / "m.keras").export(root / "saved", verbose=False)
    return root / "saved", digits.write_data(root / "data.npz", channels_last=True)


def of_sklearn(root: Path) -> tuple[Path, Path]:
    from sklearn.neural_network import MLPClassifier

    return fitted(root, MLPClassifier((64,), max_iter=40, learning_rate_init=3e-3, random_state=0))


def fitted(root: Path, model: Any) -> tuple[Path, Path]:
    import joblib

    data = digits.write_data(root / "data.npz", flat=True)
    arrays = np.load(data)
    with warnings.catch_warnings(action="ignore"):  # it need not converge
        model.fit(arrays["train_x"], arrays["train_y"])
    joblib.dump(model, root / "m.joblib")
    return root / "m.joblib", data


def optimise(path: Path, data: Path, *variants: str) -> tuple[int, cards.EvaluationCard]:
    wanted = {
        "name": "digits",
        "version": "v1",
        "source": {"path": str(path), "allowCode": path.suffix == ".joblib"},
        "data": {"path": str(data)},
        "out": str(path.parent / "package"),
        "variants": variants,
        "runs": 3,
    }
    file = path.parent / "optimize.yaml"
    file.write_text(json.dumps(wanted))  # JSON is YAML
    code = run(["-f", str(file), "--no-cache", "--progress", "json"], io.StringIO())
    return code, cards.decode((path.parent / "package" / "card.json").read_bytes())


@pytest.mark.parametrize(
    ("make", "variants"),
    [(of_onnx, TORCHSCRIPT), (of_savedmodel, EXECUTORCH), (of_sklearn, EXECUTORCH | TORCHSCRIPT)],
)
def test_pytorchs_formats_are_made_of_every_sources_graph(
    make: Callable[[Path], tuple[Path, Path]], variants: dict[str, str], tmp_path: Path
) -> None:
    code, card = optimise(*make(tmp_path), *variants)
    assert code == DONE, card.rejected
    assert {one.variant.name: one.variant.recipe for one in card.variants} == variants
    for one in card.variants:
        assert one.variant.error.cosine > (0.98 if one.variant.precision == "int8" else 0.99999)


def test_a_forest_is_refused_with_its_node_and_the_other_variants_are_made(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    path, data = fitted(tmp_path, RandomForestClassifier(20, random_state=0))
    code, card = optimise(path, data, "onnx-fp32", "torchscript-fp32")
    assert code == PARTIAL
    assert [one.variant.name for one in card.variants] == ["onnx-fp32"]
    (refused,) = card.rejected
    assert "(ai.onnx.ml.TreeEnsembleClassifier): is an operator, which has no counterpart in PyTorch" in refused.reason
