"""Metrics and numerical error against independent definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from skerry.api.errors import InvalidError
from skerry.optimize import evaluate
from skerry.optimize.metrics import METRICS


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_metrics_agree_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    guesses, labels = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    scores = np.eye(5)[guesses]
    assert METRICS["accuracy"](scores, labels) == pytest.approx(reference.accuracy_score(labels, guesses))
    expected = reference.f1_score(labels, guesses, average="macro", zero_division=0)
    assert METRICS["f1-macro"](scores, labels) == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_an_output_does_not_differ_from_itself(values: list[float]) -> None:
    output = np.array([values])
    error = evaluate.numerical_error([output], [output])
    assert (error.max_abs, error.mean_abs) == (0, 0)
    assert error.cosine == pytest.approx(1)


def test_numerical_error_counts_all_outputs_together() -> None:
    ours = [np.array([[1.0, 0.0]]), np.array([[0.0]])]
    theirs = [np.array([[1.0, 0.5]]), np.array([[0.0]])]
    error = evaluate.numerical_error(ours, theirs)
    assert error.max_abs == pytest.approx(0.5)
    assert error.mean_abs == pytest.approx(0.5 / 3)
    assert error.cosine == pytest.approx(1 / np.sqrt(1.25))


def test_silence_is_only_like_silence() -> None:
    zero, one = [np.zeros((1, 2))], [np.ones((1, 2))]
    assert evaluate.numerical_error(zero, zero).cosine == 1
    assert evaluate.numerical_error(zero, one).cosine == 0


def test_other_shapes_and_infinite_outputs_are_refused() -> None:
    with pytest.raises(InvalidError, match=r"shape \[\[1, 3\]\], the source model's are \[\[1, 2\]\]"):
        evaluate.numerical_error([np.zeros((1, 3))], [np.zeros((1, 2))])
    with pytest.raises(InvalidError, match="not finite"):
        evaluate.numerical_error([np.full((1, 2), np.nan)], [np.zeros((1, 2))])


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InvalidError, match="ONNX Runtime cannot load it"):
        evaluate.Runner(b"not a model")
