"""Evaluation metrics of classifiers, by name; higher is better, all between 0 and 1.

Scores are [n, classes], labels are int64 [n].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from skerry.optimize.dataset import Array


def accuracy(scores: Array, labels: Array) -> float:
    """Return the share of samples whose arg-max equals the label."""
    return float((scores.argmax(axis=1) == labels).mean())


def f1_macro(scores: Array, labels: Array) -> float:
    """Return the F1 score averaged over the classes that occur, each class with the same weight."""
    guesses = scores.argmax(axis=1)
    f1 = []
    for label in np.union1d(labels, guesses):
        hits = int(((guesses == label) & (labels == label)).sum())
        f1.append(2 * hits / int((guesses == label).sum() + (labels == label).sum()))
    return float(np.mean(f1))


METRICS: dict[str, Callable[[Array, Array], float]] = {"accuracy": accuracy, "f1-macro": f1_macro}
