"""Whether two models gave the same outcome."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from skerry.serve.agreement import compare


def f32(values: object) -> np.ndarray:
    return np.array(values, np.float32)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("ours", "theirs", "agrees", "difference"),
    [
        (f32([[1, 2, 3]]), f32([[0, 0, 9]]), True, 6.0),  # scores: the same choice
        (f32([[1, 2, 3], [3, 2, 1]]), f32([[1, 2, 3], [1, 2, 3]]), False, 2.0),  # one row chooses otherwise
        (f32([[1], [2]]), f32([[1.005], [2]]), True, 0.005),  # one column is no score
        (f32([[1], [2]]), f32([[1.02], [2]]), False, 0.02),
        (f32([100.0]), f32([100.9]), True, 0.9),
        (f32([100.0]), f32([101.1]), False, 1.1),
        (np.array([[1, 2]], np.int64), np.array([[1, 2]], np.int64), True, 0.0),
        (np.array([[1, 20]], np.int64), np.array([[2, 20]], np.int64), False, 1.0),  # class numbers are values
        (f32([NAN, INF, -INF]), f32([NAN, INF, -INF]), True, 0.0),
        (f32([NAN]), f32([1.0]), False, sys.float_info.max),
        (f32([INF]), f32([-INF]), False, sys.float_info.max),
        (f32([INF]), f32([1.0]), False, sys.float_info.max),
        (f32([[1, 2]]), f32([[1, 2, 3]]), False, 0.0),
        (f32([1.0]), np.array([1], np.int64), False, 0.0),
        (np.array(["a", "b"], object), np.array(["a", "b"], object), True, 0.0),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), False, 0.0),
        (np.array([True]), np.array([False]), False, 0.0),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), True, 0.0),
    ],
)
def test_the_rule(ours: np.ndarray, theirs: np.ndarray, agrees: bool, difference: float) -> None:
    found, worst = compare([ours], [theirs])
    assert found == agrees
    assert worst == pytest.approx(difference, rel=1e-3)


def test_all_outputs_must_agree_and_the_worst_counts() -> None:
    same, other = f32([1.0]), f32([5.0])
    assert compare([same, same], [same, other]) == (False, 4.0)
    assert compare([same], [same, same]) == (False, 0.0)
    assert compare([], []) == (True, 0.0)


anything = arrays.arrays(
    dtype=st.sampled_from([np.float32, np.float64, np.float16, np.int8, np.uint64, np.bool_]),
    shape=arrays.array_shapes(max_dims=3, max_side=4),
    elements=None,
)


@given(anything, anything)
def test_it_always_gives_a_verdict_and_a_finite_number(one: np.ndarray, other: np.ndarray) -> None:
    agrees, worst = compare([one], [other])
    assert 0.0 <= worst <= sys.float_info.max
    assert compare([one], [one]) == (True, 0.0)
    assert isinstance(agrees, bool)
