"""Evaluation metrics: by name, or a function of the user's; which way is better, and how sure the figure is.

A metric judges a model's outputs, each [n, ...] with the samples outermost, against the true answers, [n, ...].

| name | outputs | answers | value |
|---|---|---|---|
| `accuracy` | scores [n, classes] | int64 [n] | share of samples whose arg-max is right |
| `top-<k>` | scores [n, classes] | int64 [n] | share of samples whose class is among the k highest scores |
| `f1-macro` | scores [n, classes] | int64 [n] | F1 averaged over the classes that occur |
| `iou` | scores [n, classes, ...] or [n, ..., classes] | int64 [n, ...], -1 is ignored | IoU averaged over classes |
| `mae`, `mse` | [n, ...] | [n, ...] | mean absolute, mean squared error; lower is better |

All look at the first output alone; a function of the user's gets all. Must not live here: running models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from skerry.api.errors import InvalidError
from skerry.optimize.arrays import Array
from skerry.optimize.dataset import Targets
from skerry.optimize.user_code import load_function

NAMES = ("accuracy", "top-<k>", "f1-macro", "iou", "mae", "mse")
RESAMPLES = 1000
CALLABLE_RESAMPLES = 100
"""A function of the user's may be slow."""
IGNORED = -1
"""Label of what `iou` does not count."""

_Z95 = 1.959963984540054
"""Of the standard normal distribution, two-sided 95 %."""
_TOP = re.compile(r"top-([1-9][0-9]{0,3})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """The 95 % confidence interval of a metric, from this test set's size and spread."""

    low: float
    high: float


Reduce = Callable[[Array], float]
"""Rows, one per sample, to the value."""
Prepare = Callable[[Sequence[Array], Array], tuple[Array, Reduce]]
"""Outputs and answers to rows, and how rows become a value: resampling rows costs no second look at the outputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One way to judge outputs."""

    name: str
    higher_is_better: bool
    targets: Targets
    """What the answers must be, see `dataset.load`."""
    prepare: Prepare
    shares: bool = False
    """The value is a share of samples: its interval is Wilson's, of all others the bootstrap's."""
    resamples: int = RESAMPLES

    def value(self, outputs: Sequence[Array], targets: Array) -> float:
        """Judge the outputs. Raises InvalidError when they do not go with the answers, or the value is not finite."""
        return self._judged(outputs, targets)[0]

    def measure(self, outputs: Sequence[Array], targets: Array, *, seed: int) -> tuple[float, Interval]:
        """Return the value and its 95 % confidence interval. Raises InvalidError."""
        value, rows, reduce = self._judged(outputs, targets)
        if self.shares:
            return value, wilson(value, len(rows))
        interval = bootstrap(reduce, rows, seed=seed, resamples=self.resamples)
        if not math.isfinite(interval.high - interval.low):
            hint = "the test set may be too small for it"
            raise InvalidError("fails on every draw of samples", element=f"metric {self.name}", hint=hint)
        return value, interval

    def _judged(self, outputs: Sequence[Array], targets: Array) -> tuple[float, Array, Reduce]:
        if not outputs or any(output.ndim < 1 or len(output) != len(targets) for output in outputs):
            shapes = [list(output.shape) for output in outputs]
            raise InvalidError(f"gives outputs of shape {shapes} for {len(targets)} samples", element="model")
        rows, reduce = self.prepare(outputs, targets)
        value = reduce(rows)
        if not math.isfinite(value):
            raise InvalidError(f"the value is {value}", element=f"metric {self.name}", hint="check outputs and answers")
        return value, rows, reduce

    def drop(self, baseline: float, value: float) -> float:
        """Return how much worse the value is than the baseline; negative when it is better."""
        return baseline - value if self.higher_is_better else value - baseline

    def better(self, value: float, than: float) -> bool:
        """Tell whether one value is better than another."""
        return self.drop(than, value) < 0


def metric(name_or_callable: str | Callable[[Sequence[Array], Array], float]) -> Metric:
    """Return the metric of that name, or the one that a function (outputs, answers) -> float makes.

    The function itself, or FILE.py:FUNCTION, which is loaded and run. It says with an attribute
    `higher_is_better = False` that less is better, with `targets = "classes"` that its answers are class numbers.
    Raises InvalidError, NotFoundError.
    """
    if callable(name_or_callable):
        return _of_callable(getattr(name_or_callable, "__name__", "callable"), name_or_callable, name_or_callable)
    if ":" in name_or_callable:
        loaded = load_function(name_or_callable, hint="name a Python file and a function (outputs, answers) -> float")
        return _of_callable(loaded.element, loaded.function, loaded)
    if top := _TOP.fullmatch(name_or_callable):
        return _top(int(top[1]))
    if name_or_callable not in _BY_NAME:
        raise InvalidError(
            f'"{name_or_callable[:40]}" is unknown',
            element="metric",
            hint=f"choose from {', '.join(NAMES)}, or name FILE.py:FUNCTION",
        )
    return _BY_NAME[name_or_callable]


def wilson(share: float, samples: int) -> Interval:
    """Return Wilson's score interval of a share of n samples (Wilson 1927)."""
    square = _Z95**2
    centre = (share + square / (2 * samples)) / (1 + square / samples)
    half = _Z95 * math.sqrt(share * (1 - share) / samples + square / (4 * samples**2)) / (1 + square / samples)
    return Interval(low=max(0.0, min(centre - half, share)), high=min(1.0, max(centre + half, share)))


def bootstrap(reduce: Callable[[Array], float], rows: Array, *, seed: int, resamples: int = RESAMPLES) -> Interval:
    """Return the percentile bootstrap's interval: the value of samples drawn with replacement (Efron 1979).

    Draws that cannot be judged do not count, such as those of one class for the area under a ROC curve.
    """
    generator = np.random.default_rng(seed)
    values = np.array([_drawn(reduce, rows[generator.integers(0, len(rows), len(rows))]) for _ in range(resamples)])
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(low=-math.inf, high=math.inf)
    low, high = np.percentile(values, (2.5, 97.5))
    return Interval(low=float(low), high=float(high))


def _drawn(reduce: Reduce, rows: Array) -> float:
    try:
        return reduce(rows)
    except InvalidError:
        return math.nan


def _scores(outputs: Sequence[Array], labels: Array) -> Array:
    scores = outputs[0]
    if scores.ndim != 2 or scores.shape[1] < 2:
        dims = ", ".join(map(str, scores.shape[1:])) or "no dimension"
        hint = "the first output must be scores of shape [batch, classes], with at least two classes"
        raise InvalidError(f"its first output has shape [batch, {dims}]", element="model", hint=hint)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InvalidError(f"are {labels.dtype.name} {list(labels.shape)}", element="labels", hint="give int64 [n]")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        worst = labels.max() if labels.max() >= scores.shape[1] else labels.min()
        cause = f"holds class {worst}, but the model knows {scores.shape[1]} classes, counted from 0"
        raise InvalidError(cause, element="labels", hint="use the labels the model was trained with")
    return scores


def _hits(outputs: Sequence[Array], labels: Array) -> Array:
    hits: Array = _scores(outputs, labels).argmax(axis=1) == labels
    return hits


def _guesses(outputs: Sequence[Array], labels: Array) -> Array:
    return np.stack([_scores(outputs, labels).argmax(axis=1), labels], axis=1)


def _f1(rows: Array) -> float:
    guesses, labels = rows[:, 0], rows[:, 1]
    classes = int(rows.max()) + 1
    hits = np.bincount(labels[guesses == labels], minlength=classes)
    total = np.bincount(labels, minlength=classes) + np.bincount(guesses, minlength=classes)
    return float((2 * hits[total > 0] / total[total > 0]).mean())


def _top(k: int) -> Metric:
    def hits(outputs: Sequence[Array], labels: Array) -> Array:
        scores = _scores(outputs, labels)
        if k >= scores.shape[1]:
            cause = f"the model knows {scores.shape[1]} classes, so that all are among the first {k}"
            raise InvalidError(cause, element=f"metric top-{k}", hint="choose a smaller k")
        # a class counts when fewer than k others score as high: a constant output is then never right
        own = np.take_along_axis(scores, labels[:, None], axis=1)
        among: Array = (scores >= own).sum(axis=1) <= k
        return among

    return Metric(name=f"top-{k}", higher_is_better=True, targets="classes", prepare=_by(hits, _mean), shares=True)


def _mean(rows: Array) -> float:
    return float(rows.mean())


def _error(power: int) -> Callable[[Sequence[Array], Array], Array]:
    def of_samples(outputs: Sequence[Array], targets: Array) -> Array:
        output = outputs[0].astype(np.float64)
        if output.shape != targets.shape and output[..., :1].shape == (*targets.shape, 1) and output.shape[-1] == 1:
            output = output[..., 0]
        if output.shape != targets.shape:
            raise InvalidError(
                f"its first output has shape {list(output.shape)}, the answers have {list(targets.shape)}",
                element="model",
                hint="give the answers the shape of the model's first output",
            )
        distance: Array = np.abs(output - targets.astype(np.float64)) ** power
        errors: Array = distance.reshape(len(distance), -1).mean(axis=1)
        return errors

    return of_samples


def _overlaps(outputs: Sequence[Array], labels: Array) -> Array:
    """Return intersection and union per sample and class: [n, classes, 2]."""
    classes, guesses = _segments(outputs[0], labels)
    if labels.min() < IGNORED or labels.max() >= classes:
        worst = labels.max() if labels.max() >= classes else labels.min()
        cause = f"holds class {worst}, but the model knows {classes} classes, counted from 0"
        raise InvalidError(cause, element="labels", hint=f"use {IGNORED} for what does not count")
    rows = np.zeros((len(labels), classes, 2), dtype=np.int64)
    for row, guess, label in zip(rows, guesses, labels, strict=True):
        counted = label != IGNORED
        guess, label = guess[counted], label[counted]  # noqa: PLW2901 - only the pixels that count
        row[:, 0] = np.bincount(label[guess == label], minlength=classes)
        row[:, 1] = np.bincount(label, minlength=classes) + np.bincount(guess, minlength=classes) - row[:, 0]
    return rows


def _segments(scores: Array, labels: Array) -> tuple[int, Array]:
    if labels.dtype.kind not in "iu":
        raise InvalidError(f"are {labels.dtype.name}", element="labels", hint="iou needs int64 class numbers")
    for axis in (1, -1):
        if scores.ndim == labels.ndim + 1 and np.delete(scores.shape, axis).tolist() == list(labels.shape):
            if scores.shape[axis] < 2:
                break
            return scores.shape[axis], scores.argmax(axis=axis)
    raise InvalidError(
        f"its first output has shape {list(scores.shape)}, the labels have {list(labels.shape)}",
        element="model",
        hint="iou needs scores [batch, classes, ...] or [batch, ..., classes], with at least two classes",
    )


def _mean_iou(rows: Array) -> float:
    intersection, union = rows.sum(axis=0).T
    return float((intersection[union > 0] / union[union > 0]).mean()) if union.any() else math.nan


def _of_callable(name: str, declared: Any, function: Callable[[Sequence[Array], Array], Any]) -> Metric:
    kind: Targets = getattr(declared, "targets", "values")
    if kind not in get_args(Targets):
        raise InvalidError(f'targets is "{kind}"', element=f"metric {name}", hint='use "classes" or "values"')

    def prepare(outputs: Sequence[Array], targets: Array) -> tuple[Array, Reduce]:
        def reduce(rows: Array) -> float:
            value = function([output[rows] for output in outputs], targets[rows])
            try:
                return float(value)
            except (TypeError, ValueError):
                cause = f"returned {type(value).__name__}, not a number"
                raise InvalidError(cause, element=f"metric {name}", hint="return one float") from None

        return np.arange(len(targets)), reduce  # a function sees whole samples: its rows are their numbers

    return Metric(
        name=name,
        higher_is_better=bool(getattr(declared, "higher_is_better", True)),
        targets=kind,
        prepare=prepare,
        resamples=CALLABLE_RESAMPLES,
    )


def _by(statistics: Callable[[Sequence[Array], Array], Array], reduce: Reduce) -> Prepare:
    return lambda outputs, targets: (statistics(outputs, targets), reduce)


_BY_NAME = {
    known.name: known
    for known in (
        Metric(name="accuracy", higher_is_better=True, targets="classes", prepare=_by(_hits, _mean), shares=True),
        Metric(name="f1-macro", higher_is_better=True, targets="classes", prepare=_by(_guesses, _f1)),
        Metric(name="iou", higher_is_better=True, targets="values", prepare=_by(_overlaps, _mean_iou)),
        Metric(name="mae", higher_is_better=False, targets="values", prepare=_by(_error(1), _mean)),
        Metric(name="mse", higher_is_better=False, targets="values", prepare=_by(_error(2), _mean)),
    )
}
