"""scikit-learn models: pipelines become ONNX; pickles are refused unless the user agrees to run them."""

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import skops.io
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from tests.unit.optimize.bombs import Bomb

from skerry.api.errors import ForbiddenError, InvalidError, SkerryError, UnsupportedError
from skerry.optimize import evaluate, graph, importers
from skerry.optimize.importers import Source
from skerry.optimize.recipe import SourceSpec

X = np.random.default_rng(0).random((80, 6), dtype=np.float32)
CLASSES = (X.sum(axis=1) > 3).astype(int) + (X[:, 0] > 0.5)
VALUES = X @ np.arange(6)


def opened(path: Path, **options: Any) -> Source:
    return importers.open_source(SourceSpec(path=str(path), **options))


def saved(model: Any, path: Path) -> Path:
    (skops.io.dump if path.suffix == ".skops" else joblib.dump)(model, path)
    return path


def check(source: Source, expected: np.ndarray) -> None:
    np.testing.assert_allclose(source.predict({"input": X})[0], expected, rtol=1e-5, atol=1e-5)
    raw = source.onnx({"input": X}, opset=20)
    np.testing.assert_allclose(evaluate.Runner(raw).predict({"input": X})[0], expected, rtol=1e-4, atol=1e-4)
    assert graph.signature(graph.parse(raw)) == source.signature({"input": X})
    assert [spec.shape for spec in source.signature({"input": X}).outputs] == [[-1, expected.shape[1]]]


def test_a_classifier_gives_its_probabilities(tmp_path: Path) -> None:
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, CLASSES)
    check(opened(saved(model, tmp_path / "m.skops")), model.predict_proba(X))
    source = opened(saved(model, tmp_path / "m.joblib"), allow_code=True)
    check(source, model.predict_proba(X))
    assert (source.kind, source.forms, set(source.digests)) == ("sklearn", frozenset({"onnx"}), {"m.joblib"})


def test_a_regressor_gives_its_values(tmp_path: Path) -> None:
    model = LinearRegression().fit(X, VALUES)
    check(opened(saved(model, tmp_path / "m.skops")), model.predict(X)[:, None])


def test_trees_are_run_only_when_the_user_agrees(tmp_path: Path) -> None:
    model = RandomForestRegressor(4, random_state=0).fit(X, VALUES)
    path = saved(model, tmp_path / "m.skops")
    with pytest.raises(ForbiddenError, match=r"not known to be harmless \(sklearn\.tree\._tree\.Tree\)"):
        opened(path)
    check(opened(path, allow_code=True), model.predict(X)[:, None])


@pytest.mark.parametrize("suffix", [".joblib", ".pkl"])
def test_a_pickle_is_refused_and_would_have_run(tmp_path: Path, suffix: str) -> None:
    mark = tmp_path / "mark"
    path = saved(Bomb(mark), tmp_path / f"m{suffix}")
    with pytest.raises(ForbiddenError, match=r"is a pickle, which is a program \(it would import posix\.mkdir\)"):
        opened(path)
    assert not mark.exists()
    with pytest.raises(InvalidError, match="holds NoneType, which is no fitted estimator"):
        opened(path, allow_code=True)
    assert mark.exists()


def test_code_in_a_skops_file_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "m.skops"
    skops.io.dump(Bomb(mark), path)
    with pytest.raises(ForbiddenError, match="not known to be harmless"):
        opened(path)
    assert not mark.exists()


def test_models_that_cannot_be_judged_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="holds LogisticRegression, which is no fitted estimator"):
        opened(saved(LogisticRegression(), tmp_path / "m.skops"))
    with pytest.raises(UnsupportedError, match="LinearSVC gives no probabilities"):
        opened(saved(LinearSVC().fit(X, CLASSES), tmp_path / "m.skops"))
    model = LogisticRegression().fit(X, CLASSES)
    with pytest.raises(InvalidError, match=r"inputs of shape \[batch, 2, 3\].*\[n, features\]"):
        opened(saved(model, tmp_path / "m.skops")).predict({"input": X.reshape(80, 2, 3)})


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"garbage" * 99])
@pytest.mark.parametrize("suffix", [".skops", ".joblib"])
def test_bytes_that_are_no_model(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"m{suffix}").write_bytes(content)
    with pytest.raises(SkerryError, match=r"m\.(skops|joblib): ") as caught:
        opened(tmp_path / f"m{suffix}", allow_code=True)
    assert "\n" not in caught.value.sentence
