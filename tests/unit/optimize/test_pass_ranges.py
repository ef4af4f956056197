"""Ranges of activations: right numbers, whatever the batches, and sentences for samples that do not fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper
from tests.unit.optimize.graphs import Builder

from skerry.api.errors import InvalidError
from skerry.optimize.passes import ranges

SAMPLES = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)


def doubled():
    """A graph whose output is twice the input."""
    built = Builder([4])
    built.add("Mul", built.constant("two", np.array(2, np.float32)))
    return built.model([4])


def test_min_max_sees_every_sample_of_every_batch() -> None:
    samples = SAMPLES.copy()
    samples[0, 0], samples[-1, -1] = -7, 9  # in the first batch and in the last, which is not full
    found = ranges.measure(doubled(), {"input": samples})
    assert found == {"input": (-7, 9), "output": (-14, 18)}


def test_percentile_leaves_outliers_out_on_both_sides() -> None:
    samples = np.linspace(-1, 1, 40_000, dtype=np.float32).reshape(-1, 4)
    samples[0, 0], samples[-1, -1] = -100, 100
    low, high = ranges.measure(doubled(), {"input": samples}, method="percentile", percentile=99.9)["input"]
    assert -1.2 < low < -0.9
    assert 0.9 < high < 1.2
    assert ranges.measure(doubled(), {"input": samples}, method="percentile", percentile=100)["input"] == (-100, 100)


def test_entropy_clips_a_long_thin_tail_and_nothing_of_an_even_spread() -> None:
    random = np.random.default_rng(1)
    even = random.uniform(-3, 3, (20_000, 4)).astype(np.float32)
    low, high = ranges.measure(doubled(), {"input": even}, method="entropy")["input"]
    assert high - low > 5.7
    tailed = random.standard_normal((20_000, 4)).astype(np.float32)
    tailed[0, 0] = 40
    low, high = ranges.measure(doubled(), {"input": tailed}, method="entropy")["input"]
    assert low < -2
    assert 2 < high < 10


def test_entropy_of_few_samples_clips_nothing() -> None:
    few = SAMPLES[:8]
    assert ranges.measure(doubled(), {"input": few}, method="entropy") == ranges.measure(doubled(), {"input": few})


@given(
    samples=arrays.arrays(np.float32, (7, 4), elements=st.floats(-1e3, 1e3, width=32)),
    method=st.sampled_from(["min-max", "entropy", "percentile"]),
)
def test_no_range_is_wider_than_what_was_seen_or_upside_down(samples: np.ndarray, method) -> None:
    low, high = ranges.measure(doubled(), {"input": samples}, method=method)["input"]
    assert samples.min() <= low <= high <= samples.max()


def test_memory_is_bounded_by_smaller_batches_and_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = ranges.measure(doubled(), {"input": SAMPLES}, method="percentile", percentile=99)
    monkeypatch.setattr(ranges, "HELD_BYTES", 1)
    assert ranges.measure(doubled(), {"input": SAMPLES}, method="percentile", percentile=99) == wide


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (
            {"input": SAMPLES[:, :3]},
            "calibration samples of tensor input: have shape [100, 3], the model takes [-1, 4]",
        ),
        ({"input": SAMPLES[0]}, "calibration samples of tensor input: have shape [4]"),
        ({"input": SAMPLES[:0]}, "calibration samples of tensor input: have shape [0, 4]"),
        ({}, "calibration samples of tensor input: are missing"),
        ({"input": SAMPLES, "more": SAMPLES}, "tensor more: the model has no such input"),
        ({"input": SAMPLES.astype(np.int64)}, "tensor input: are int64, the model takes float32"),
        ({"input": np.full((3, 4), np.nan, np.float32)}, "tensor input: is NaN or infinite on the calibration samples"),
    ],
)
def test_samples_that_do_not_fit_are_named(samples, words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        ranges.measure(doubled(), samples)
    assert words in caught.value.sentence


def test_several_inputs_are_taken_by_name_and_must_be_equally_many() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("a", "b", "sum")]
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"], name="add")]
    made = helper.make_model(
        helper.make_graph(nodes, "graph", values[:2], values[2:]), opset_imports=[helper.make_opsetid("", 20)]
    )
    made.ir_version = 10
    found = ranges.measure(made, {"b": SAMPLES + 1, "a": SAMPLES})
    assert found["sum"] == pytest.approx(((2 * SAMPLES + 1).min(), (2 * SAMPLES + 1).max()))
    with pytest.raises(InvalidError, match="tensor b: differ in number"):
        ranges.measure(made, {"a": SAMPLES, "b": SAMPLES[:5]})
