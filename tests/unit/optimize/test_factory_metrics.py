"""Metrics and numerical error against independent definitions."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from skerry.api.errors import InvalidError, NotFoundError
from skerry.optimize import evaluate, metrics


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_metrics_agree_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    guesses, labels = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    scores = np.eye(5)[guesses]
    assert metrics.metric("accuracy").value([scores], labels) == pytest.approx(
        reference.accuracy_score(labels, guesses)
    )
    expected = reference.f1_score(labels, guesses, average="macro", zero_division=0)
    assert metrics.metric("f1-macro").value([scores], labels) == pytest.approx(expected)


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


def test_top_k_agrees_with_scikit_learn() -> None:
    random = np.random.default_rng(0)
    scores, labels = random.random((200, 7)), random.integers(0, 7, 200)
    for k in (1, 3, 5):
        expected = reference.top_k_accuracy_score(labels, scores, k=k)
        assert metrics.metric(f"top-{k}").value([scores], labels) == pytest.approx(expected)
    with pytest.raises(InvalidError, match="the model knows 7 classes, so that all are among the first 7"):
        metrics.metric("top-7").value([scores], labels)


def test_a_model_that_scores_all_alike_is_not_right_by_ties() -> None:
    scores, labels = np.zeros((10, 7)), np.zeros(10, dtype=np.int64)
    assert metrics.metric("top-3").value([scores], labels) == 0


@pytest.mark.parametrize("name", ["mae", "mse"])
def test_errors_agree_with_scikit_learn_and_less_is_better(name: str) -> None:
    random = np.random.default_rng(0)
    outputs, targets = random.random((50, 3)), random.random((50, 3))
    definition = {"mae": reference.mean_absolute_error, "mse": reference.mean_squared_error}[name]
    metric = metrics.metric(name)
    assert metric.value([outputs], targets) == pytest.approx(definition(targets, outputs))
    assert metric.value([outputs[:, :1]], targets[:, 0]) == pytest.approx(definition(targets[:, 0], outputs[:, 0]))
    assert (metric.drop(1.0, 1.5), metric.drop(1.0, 0.5)) == (0.5, -0.5)
    assert metric.better(0.5, 1.0)
    assert not metric.better(1.0, 1.0)
    with pytest.raises(InvalidError, match=r"first output has shape \[50, 3\], the answers have \[50, 2\]"):
        metric.value([outputs], targets[:, :2])


@pytest.mark.parametrize("axis", [1, -1])
def test_iou_agrees_with_scikit_learn_and_leaves_out_what_does_not_count(axis: int) -> None:
    random = np.random.default_rng(0)
    guesses, labels = (random.integers(0, 4, (6, 5, 7)) for _ in range(2))
    scores = np.moveaxis(np.eye(5)[guesses], -1, axis)  # a class that never occurs does not count
    expected = reference.jaccard_score(labels.ravel(), guesses.ravel(), average="macro")
    assert metrics.metric("iou").value([scores], labels) == pytest.approx(expected)
    ignored = np.where(random.random(labels.shape) < 0.3, metrics.IGNORED, labels)
    counted = ignored != metrics.IGNORED
    expected = reference.jaccard_score(ignored[counted], guesses[counted], average="macro")
    assert metrics.metric("iou").value([scores], ignored) == pytest.approx(expected)
    with pytest.raises(InvalidError, match="holds class 9"):
        metrics.metric("iou").value([scores], np.full_like(labels, 9))
    with pytest.raises(InvalidError, match="iou needs scores"):
        metrics.metric("iou").value([np.zeros((6, 9, 9))], labels)


@given(hits=st.integers(0, 500), more=st.integers(0, 500))
def test_wilsons_interval_holds_the_share_and_shrinks_with_the_samples(hits: int, more: int) -> None:
    total = hits + more + 1
    interval, wider = metrics.wilson(hits / total, total), metrics.wilson(hits / total, max(1, total // 4))
    assert 0 <= interval.low <= hits / total <= interval.high <= 1
    assert interval.high - interval.low <= wider.high - wider.low + 1e-12


def test_wilsons_interval_is_the_published_one() -> None:
    interval = metrics.wilson(0.9, 10)
    assert (interval.low, interval.high) == pytest.approx((0.5958, 0.9821), abs=1e-4)


def test_the_bootstrap_is_seeded_and_covers_the_value() -> None:
    random = np.random.default_rng(0)
    outputs, targets = random.random((300, 2)), random.random((300, 2))
    value, interval = metrics.metric("mae").measure([outputs], targets, seed=1)
    assert interval.low < value < interval.high
    assert (value, interval) == metrics.metric("mae").measure([outputs], targets, seed=1)
    assert interval != metrics.metric("mae").measure([outputs], targets, seed=2)[1]
    spread = np.abs(outputs - targets).mean(axis=1).std() / np.sqrt(300)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * spread, rel=0.2)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([0, 3]), "holds class 3, but the model knows 3 classes"),
        (np.array([0, -1]), "holds class -1"),
        (np.array([0.0, 1.0]), "are float64"),
        (np.array([[0], [1]]), r"are int64 \[2, 1\]"),
    ],
)
def test_labels_that_are_none_of_the_models(labels: np.ndarray, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        metrics.metric("accuracy").value([np.eye(3)[:2]], labels)
    with pytest.raises(InvalidError, match=r"first output has shape \[batch, 1\]"):
        metrics.metric("accuracy").value([np.zeros((2, 1))], np.array([0, 0]))


def test_a_function_of_the_users_judges_all_outputs(tmp_path: Path) -> None:
    file = tmp_path / "metric.py"
    file.write_text(
        "import numpy as np\n\n\ndef worst(outputs, targets):\n    return np.abs(outputs[1] - targets).max()\n\n\n"
        "worst.higher_is_better = False\n\n\ndef broken(outputs, targets):\n    return [][0]\n\n\n"
        "def wordy(outputs, targets):\n    return 'good'\n"
    )
    targets = np.arange(8.0)
    outputs = [np.zeros((8, 2)), targets + np.eye(8)[3] / 2]
    metric = metrics.metric(f"{file}:worst")
    value, interval = metric.measure(outputs, targets, seed=0)
    assert (value, metric.higher_is_better, metric.name) == (0.5, False, "metric.py:worst")
    assert interval.low <= value <= interval.high
    with pytest.raises(InvalidError, match=r"metric\.py:broken: failed with IndexError at line 12"):
        metrics.metric(f"{file}:broken").value(outputs, targets)
    with pytest.raises(InvalidError, match="returned str, not a number"):
        metrics.metric(f"{file}:wordy").value(outputs, targets)
    with pytest.raises(NotFoundError, match=r"absent\.py: no such file"):
        metrics.metric(f"{tmp_path}/absent.py:worst")
    with pytest.raises(InvalidError, match="the value is nan"):
        metrics.metric(lambda outputs, targets: float("nan")).value(outputs, targets)


def test_a_name_that_is_no_metric_is_answered_with_those_that_are() -> None:
    with pytest.raises(InvalidError, match='metric: "beauty" is unknown; choose from accuracy, top-<k>'):
        metrics.metric("beauty")
    with pytest.raises(InvalidError, match="unknown"):
        metrics.metric("top-0")


def test_the_documents_mean_average_precision(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "sources.md").read_text()
    code = next(block for block in text.split("```python\n")[1:] if "def mean_average_precision" in block)
    (tmp_path / "metric.py").write_text(code.partition("```")[0])
    judge = metrics.metric(f"{tmp_path}/metric.py:mean_average_precision")
    answers = np.full((2, 3, 5), -1, np.float32)
    answers[0, 0], answers[0, 1], answers[1, 0] = [0, 0, 2, 2, 0], [4, 4, 6, 6, 1], [0, 0, 1, 1, 0]
    boxes = answers[..., :4].copy()
    scores = np.array([[0.9, 0.8, 0.1], [0.7, 0.1, 0.1]], np.float32)
    classes = np.array([[0, 1, -1], [0, -1, -1]])
    assert judge.value([boxes, scores, classes], answers) == 1
    boxes[1, 0] += 5  # the second object of class 0 is missed: its precision is 1 at half of the objects
    assert judge.value([boxes, scores, classes], answers) == pytest.approx((0.5 + 1) / 2)
    assert judge.higher_is_better


AUC = """
import numpy as np

def auc(outputs, answers):
    positive, negative = outputs[0][answers == 1], outputs[0][answers == 0]
    if not len(positive) or not len(negative):
        raise ValueError("only one class")
    return float((positive[:, None] > negative[None]).mean())

def choosy(outputs, answers):
    if list(outputs[0]) != [0.1, 0.7, 0.8, 0.2, 0.3, 0.4]:
        raise ValueError("not these")
    return 1.0
"""


def test_draws_that_a_function_cannot_judge_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text(AUC)
    outputs, answers = [np.array([0.1, 0.7, 0.8, 0.2, 0.3, 0.4])], np.array([0, 1, 0, 0, 0, 0])
    value, interval = metrics.metric(f"{tmp_path}/metric.py:auc").measure(outputs, answers, seed=0)
    assert value == pytest.approx(0.8)
    assert 0 <= interval.low <= value <= interval.high <= 1
    with pytest.raises(InvalidError, match=r"metric metric\.py:choosy: fails on every draw of samples"):
        metrics.metric(f"{tmp_path}/metric.py:choosy").measure(outputs, answers, seed=0)
