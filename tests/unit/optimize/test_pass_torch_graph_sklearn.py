"""scikit-learn's estimators as PyTorch modules by their graphs: those that are sums of products, and who is refused."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from tests.unit.optimize.test_pass_torch_graph import translated

from skerry.api.errors import UnsupportedError
from skerry.optimize import graph
from skerry.optimize.importers.sklearn import SklearnSource
from skerry.optimize.passes import torch_graph

RANDOM = np.random.default_rng(2)
X = RANDOM.standard_normal((200, 12)).astype(np.float32)
CLASSES = (X @ RANDOM.standard_normal((12, 4))).argmax(axis=1)
BINARY = CLASSES > 1
VALUES = X @ RANDOM.standard_normal((12, 3))


def exported(model: Any, answers: np.ndarray, inputs: np.ndarray = X) -> bytes:
    with warnings.catch_warnings(action="ignore"):  # it need not converge
        model.fit(inputs, answers)
    return SklearnSource(model, {}, name="model").onnx({"input": inputs[:8]}, opset=20)


ESTIMATORS: dict[str, tuple[Any, np.ndarray]] = {
    "logistic": (LogisticRegression(), CLASSES),
    "logistic-binary": (LogisticRegression(), BINARY),
    "standardised": (make_pipeline(StandardScaler(), LogisticRegression()), CLASSES),
    "classes-with-names": (LogisticRegression(), np.array(["auk", "gull", "tern", "skua"])[CLASSES]),
    "normalised": (make_pipeline(MinMaxScaler(), Normalizer("l2"), LogisticRegression()), BINARY),
    "network": (make_pipeline(Normalizer("l1"), MLPClassifier((6,), max_iter=5, random_state=0)), CLASSES),
    "discriminant": (LinearDiscriminantAnalysis(), CLASSES),
    "regression": (LinearRegression(), VALUES[:, 0]),
    "regression-of-several": (Ridge(), VALUES),
    "network-regression": (MLPRegressor(hidden_layer_sizes=(6,), max_iter=5, random_state=0), VALUES[:, 0]),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_of_sums_and_products(name: str) -> None:
    model, answers = ESTIMATORS[name]
    module = translated(exported(model, answers))
    expected = model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X)
    with torch.no_grad():
        given = module(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(given, expected.reshape(given.shape), rtol=1e-3, atol=1e-3)


def test_integers_and_rows_of_zeros_are_divided_as_by_the_engine() -> None:
    counts = RANDOM.integers(0, 3, (60, 12)).astype(np.int64)
    counts[::2] = 0
    model = make_pipeline(Normalizer("l2"), LogisticRegression())
    raw = exported(model, BINARY[:60], counts)
    module = torch_graph.to_module(raw, graph.signature(graph.parse(raw)))
    given = module(torch.from_numpy(counts)).numpy()
    np.testing.assert_allclose(given, model.predict_proba(counts), rtol=1e-4, atol=1e-4)


def test_a_tree_is_refused_with_its_operator() -> None:
    raw = exported(DecisionTreeClassifier(max_depth=3), CLASSES)
    with pytest.raises(UnsupportedError, match="is an operator, which has no counterpart in PyTorch") as caught:
        torch_graph.to_module(raw, graph.signature(graph.parse(raw)))
    assert "(ai.onnx.ml.TreeEnsembleClassifier)" in caught.value.element
