"""Inputs that are drawn for a model without data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.api.errors import InvalidError, TooLargeError, UnsupportedError
from skerry.api.kinds.tensors import TensorSpec
from skerry.optimize import seeded

SPECS = st.lists(
    st.builds(
        TensorSpec,
        name=st.text(min_size=1, max_size=5),
        datatype=st.sampled_from(["FP32", "UINT8", "INT8", "INT32", "INT64", "BOOL"]),
        shape=st.lists(st.integers(-1, 5).filter(bool), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda spec: spec.name,
)


@given(SPECS, st.integers(1, 9), st.integers(0, 99))
def test_what_is_drawn_fits_the_tensors_and_is_the_same_for_a_seed(
    specs: list[TensorSpec], count: int, seed: int
) -> None:
    for first, again in zip(seeded.draws(specs, count, seed=seed), seeded.draws(specs, count, seed=seed), strict=True):
        for spec in specs:
            array = first[spec.name]
            assert np.array_equal(array, again[spec.name])
            assert 1 <= len(array) <= count
            assert all(known in (-1, size) for known, size in zip(spec.shape[1:], array.shape[1:], strict=True))
            if spec.datatype in ("INT32", "INT64"):
                assert set(np.unique(array)) <= {0, 1}


def test_free_dimensions_are_tried_in_several_sizes() -> None:
    specs = [TensorSpec(name="x", datatype="FP32", shape=[-1, 3, -1])]
    assert [inputs["x"].shape for inputs in seeded.draws(specs, 2, seed=0)] == [(2, 3, 16), (2, 3, 224)]


def test_large_samples_are_fewer_and_huge_ones_are_not_drawn() -> None:
    large = [TensorSpec(name="x", datatype="FP32", shape=[-1, 4 * 2**20])]
    assert [len(inputs["x"]) for inputs in seeded.draws(large, 64, seed=0)] == [2]
    with pytest.raises(TooLargeError):
        next(seeded.draws([TensorSpec(name="x", datatype="FP32", shape=[-1, 2**40, 2**40])], 1, seed=0))


def test_what_has_no_samples_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="BYTES"):
        next(seeded.draws([TensorSpec(name="x", datatype="BYTES", shape=[-1])], 1, seed=0))
    with pytest.raises(InvalidError, match="takes no inputs"):
        next(seeded.draws([], 1, seed=0))
