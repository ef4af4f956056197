"""What "never evaluated" means to whoever reads a metric."""

import msgspec
import pytest

from skerry.api.kinds.model_deployment import Constraints, ModelDeploymentSpec
from skerry.api.kinds.tensors import ModelSignature
from skerry.api.kinds.variants import Blob, Evaluation, Golden, NumericalError, Profile, Requirements, Variant
from skerry.api.meta import LabelSelector
from skerry.core import card as cards
from skerry.core import pareto, placement, sbom
from skerry.core.card import About, EvaluationCard, PackagedVariant, Provenance
from skerry.core.placement import Engine, Machine

BLOB = Blob(digest="sha256:" + "a" * 64, size=1)
MACHINE = Machine(
    arch="amd64", memory_bytes=2**30, engines=(Engine(name="onnxruntime", version="1.20", precisions=()),)
)


def variant(name: str, *, latency: float = 2.0, memory: int = 40, metric: float | None = None) -> Variant:
    return Variant(
        name=name,
        format="onnx",
        precision="fp32",
        needs=Requirements(engine="onnxruntime", precision="fp32", memory_bytes=memory),
        blob=BLOB,
        metric=metric,
        metric_drop=None if metric is None else 0.0,
        error=NumericalError(max_abs=0.0, mean_abs=0.0, cosine=1.0),
        profile=Profile(latency_p50_ms=latency, latency_p95_ms=latency, peak_memory_bytes=memory, runs=1),
    )


def template(least: float | None = None) -> ModelDeploymentSpec:
    return ModelDeploymentSpec(
        model_version="m-v1", device_selector=LabelSelector(), constraints=Constraints(min_accuracy=least)
    )


def card(*variants: Variant, evaluation: Evaluation | None = None, about: About | None = None) -> EvaluationCard:
    return EvaluationCard(
        model="m",
        version="v1",
        signature=ModelSignature(inputs=[], outputs=[]),
        evaluation=evaluation,
        golden=Golden(blob=BLOB, samples=1),
        variants=[PackagedVariant(variant=one, file=f"{one.name}.onnx") for one in variants],
        provenance=Provenance(source_kind="onnx"),
        about=about,
    )


def test_a_least_accuracy_refuses_what_nobody_evaluated_and_says_so() -> None:
    found = placement.place(MACHINE, [variant("onnx-fp32")], template(0.5))
    assert found.variant is None
    assert "its accuracy was never evaluated, the limit is 0.5" in found.reason


def test_without_one_latency_and_then_memory_decide() -> None:
    slow, fast = variant("onnx-a", latency=9), variant("onnx-b", latency=1)
    chosen = placement.place(MACHINE, [slow, fast], template())
    assert chosen.variant == fast
    assert [one.metric for one in chosen.candidates] == [None, None]
    large, small = variant("onnx-a", memory=90), variant("onnx-b", memory=10)
    assert placement.place(MACHINE, [large, small], template()).variant == small
    assert (
        "the name decides"
        in placement.place(MACHINE, [variant("onnx-a"), variant("onnx-b")], template()).candidates[1].reason
    )


def test_an_evaluated_equal_goes_first_and_the_other_hears_why() -> None:
    known, unknown = variant("onnx-b", metric=0.9), variant("onnx-a")
    found = placement.place(MACHINE, [unknown, known], template())
    assert found.variant == known
    assert "reaches what nobody evaluated, not 0.9" in found.candidates[1].reason


def test_of_the_front_only_the_fastest_are() -> None:
    assert pareto.front([variant("onnx-a", latency=3), variant("onnx-b", latency=1)]) == {"onnx-b"}
    both = pareto.front([variant("onnx-a", metric=0.9, latency=3), variant("onnx-b", latency=1)])
    assert both == {"onnx-a", "onnx-b"}


def test_the_bill_names_no_metric_and_the_authors_words() -> None:
    made = card(variant("onnx-fp32"), about=About(license="mit", tags=["t"], description="d"))
    bill = msgspec.json.decode(sbom.build(made))
    assert "modelCard" not in bill["components"][0]
    component = bill["metadata"]["component"]
    assert (component["licenses"], component["tags"]) == ([{"license": {"name": "mit"}}], ["t"])


@pytest.mark.parametrize("metric", [None, 0.9])
def test_cards_come_back_as_they_were(metric: float | None) -> None:
    evaluation = None if metric is None else Evaluation(metric="accuracy", baseline=0.9, samples=3, allowed_drop=0.01)
    made = card(variant("onnx-fp32", metric=metric), evaluation=evaluation)
    raw = cards.encode(made)
    assert cards.decode(raw) == made
    assert cards.encode(cards.decode(raw)) == raw
    assert (b"metric" in raw) == (metric is not None)
    assert b"about" not in raw
