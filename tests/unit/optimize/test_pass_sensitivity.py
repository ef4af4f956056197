"""Sensitivity search: the harmful layer is found, kept in float32, and the cost told."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from tests.unit.optimize.graphs import Builder

from skerry.api.errors import InvalidError, UnsupportedError
from skerry.optimize import evaluate, graph
from skerry.optimize.passes import Material, quantize, ranges, recipes, sensitivity
from skerry.optimize.recipe import SensitivitySpec, VariantOptions

SAMPLES = {"input": np.random.default_rng(0).standard_normal((64, 24)).astype(np.float32)}


@pytest.fixture(scope="module")
def fragile() -> onnx.ModelProto:
    """Five layers; weights of very different size within one column make the third one lose most in 8 bits."""
    built = Builder([24])
    for index in range(5):
        matrix = built.random.standard_normal((24, 24)).astype(np.float32) / 5
        if index == 2:
            matrix[0] *= 2000
        built.add("MatMul", built.constant(f"layers.{index}.weight", matrix))
        if index == 1:  # what meets the large weights is nearly nothing
            built.add("Mul", built.constant("mask", np.array([5e-4] + [1] * 23, np.float32)))
        if index < 4:
            built.add("Relu")
    return quantize.prepare(built.raw([24]))


def test_the_most_harmful_layer_comes_first(fragile: onnx.ModelProto) -> None:
    ranked = sensitivity.rank(fragile, ranges.measure(fragile, SAMPLES), SAMPLES)
    uses = {tensor: node.name for node in fragile.graph.node for tensor in node.input}
    assert ranked[0] == (uses["layers.2.weight"],)
    assert {name for group in ranked for name in group} == {
        n for t, n in uses.items() if t.endswith(("weight", "mask"))
    }


def test_keeping_few_layers_brings_the_accuracy_back_and_the_card_says_what_it_cost(
    fragile: onnx.ModelProto, tmp_path: Path
) -> None:
    raw = graph.serialise(fragile)
    expected = evaluate.Runner(raw).predict(SAMPLES["input"])
    judged = []

    def drop(path: Path) -> float:
        found = evaluate.Runner(path.read_bytes()).predict(SAMPLES["input"])
        judged.append(1 - evaluate.numerical_error(found, expected).cosine)
        return judged[-1]

    def make(name: str, **more) -> Material:
        material = Material(
            load=lambda: raw,
            inputs_sample=SAMPLES,
            calibration=SAMPLES,
            signature=graph.signature(fragile),
            out=tmp_path / name,
            options=VariantOptions(sensitivity=SensitivitySpec(most_layers=4)),
            **more,
        )
        by_name = {recipe.name: recipe for recipe in recipes("onnx", "int8", material.options)}
        by_name[name].build(material)
        return material

    plain = make("static-qdq-per-channel")
    lost = drop(plain.out)
    judged.clear()
    searched = make("static-qdq-sensitivity", drop=drop, allowed_drop=lost / 10)
    assert drop(searched.out) <= lost / 10
    assert len(judged) == int(searched.detail["files judged"]) + 1 <= 4
    kept = searched.detail["float layers"].split(", ")
    weights = {t.name for t in graph.parse(searched.out.read_bytes()).graph.initializer if t.data_type == 1}
    assert "layers.2.weight" in weights
    assert 1 <= len(kept) < 6
    without = plain.out.stat().st_size
    assert searched.detail["bytes"] == f"{searched.out.stat().st_size} instead of {without} with all layers in int8"
    again = searched.out.read_bytes()
    assert make("static-qdq-sensitivity", drop=drop, allowed_drop=lost / 10).out.read_bytes() == again


def test_it_is_searched_only_when_asked_for() -> None:
    assert "static-qdq-sensitivity" not in [recipe.name for recipe in recipes("onnx", "int8", VariantOptions())]
    (named,) = recipes("onnx", "int8", VariantOptions(recipe="static-qdq-entropy"))
    assert named.name == "static-qdq-entropy"
    with pytest.raises(InvalidError, match="recipe nonsense: there is no such recipe; recipes are static-qdq-per"):
        recipes("onnx", "int8", VariantOptions(recipe="nonsense"))
    with pytest.raises(UnsupportedError, match="it has fp32"):
        recipes("executorch", "int4", VariantOptions())


def test_when_nothing_suffices_the_best_that_was_judged_is_given(fragile: onnx.ModelProto) -> None:
    bounds = ranges.measure(fragile, SAMPLES)
    sizes = []

    def drop(content: bytes) -> float:
        sizes.append(len(content))
        return 0.5

    found = sensitivity.search(fragile, bounds, SAMPLES, drop=drop, allowed=0.1, most=3)
    assert (found.drop, found.evaluations, len(found.kept)) == (0.5, 1, 3)
    assert sizes == [len(found.content)]


def test_a_single_layer_leaves_nothing_to_choose() -> None:
    built = Builder([24])
    built.add("MatMul", built.weight("w", 24, 24))
    model = quantize.prepare(built.raw([24]))
    with pytest.raises(InvalidError, match="too few layers"):
        sensitivity.search(model, ranges.measure(model, SAMPLES), SAMPLES, drop=lambda _: 1, allowed=0, most=8)


@given(threshold=st.integers(1, 300), most=st.integers(1, 256))
def test_bisection_finds_the_smallest_with_few_questions(threshold: int, most: int) -> None:
    asked = []

    def suffices(count: int) -> bool:
        asked.append(count)
        return count >= threshold

    assert sensitivity.bisect(suffices, most) == (threshold if threshold <= most else None)
    assert len(asked) == len(set(asked)) <= (most - 1).bit_length() + 1
    assert all(1 <= count <= most for count in asked)


@given(answers=st.lists(st.booleans(), min_size=1, max_size=64))
def test_bisection_answers_only_what_it_was_told_suffices(answers: list[bool]) -> None:
    asked = {}

    def suffices(count: int) -> bool:
        asked[count] = answers[count - 1]
        return asked[count]

    found = sensitivity.bisect(suffices, len(answers))
    assert asked[found] if found is not None else not answers[-1]


def test_layers_kept_by_name_or_module_stay_float(fragile: onnx.ModelProto, tmp_path: Path) -> None:
    def build(*keep: str) -> int:
        material = Material(
            load=lambda: graph.serialise(fragile),
            inputs_sample=SAMPLES,
            calibration=SAMPLES,
            signature=graph.signature(fragile),
            out=tmp_path / "out",
            options=VariantOptions(keep_layers=list(keep)),
        )
        recipes("onnx", "int8", material.options)[0].build(material)
        made = graph.parse(material.out.read_bytes())
        kept = [numpy_helper.to_array(tensor) for tensor in made.graph.initializer if tensor.data_type == 1]
        return sum(array.ndim == 2 for array in kept)

    assert build() == 0
    assert build("layers.0", "n_matmul2") == 2
    with pytest.raises(
        InvalidError, match=r"layer layers\.9: there is no such layer in the graph; layers are n_matmul0"
    ):
        build("layers.9")
